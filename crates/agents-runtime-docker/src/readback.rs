//! What is in force: what the guest program read inside and what the engine says, where the laxer of the two counts.

use agents_core::{EffectiveState, Error, ErrorKind, Result};
use agents_guest::{Plan, Report};

use crate::inspect::Inspected;

/// The state in force.
///
/// # Errors
///
/// `EnforcementMismatch` for what [`EffectiveState`] has no field for.
pub(crate) fn effective(
    plan: &Plan,
    report: &Report,
    inspected: &Inspected,
    runtime: Option<&str>,
    gvisor: bool,
) -> Result<EffectiveState> {
    plan.check(report)?;
    let host = &inspected.host_config;
    let mut different = Vec::new();
    if host.privileged {
        different.push("the container is privileged".to_owned());
    }
    if let Some(runtime) = runtime
        && host.runtime != runtime
    {
        different.push(format!("the runtime is {:?} instead of {runtime:?}", host.runtime));
    }
    if gvisor != report.is_gvisor() {
        let kernel = report.kernel().unwrap_or("unknown");
        let asked = if gvisor { "gVisor's" } else { "the host's" };
        different.push(format!("the kernel is not {asked}, but {kernel}"));
    }
    if !host.devices.is_empty() {
        different.push("the container has devices".to_owned());
    }
    if !different.is_empty() {
        return Err(Error::new(
            ErrorKind::EnforcementMismatch,
            format!(
                "the container differs from what was requested: {}",
                different.join("; ")
            ),
        ));
    }
    let mut state = plan.effective(report);
    let option = |name: &str| {
        host.security_opt
            .iter()
            .any(|option| option == name || option.starts_with(&format!("{name}=")))
    };
    if let Some(capabilities) = &mut state.capabilities {
        for added in &host.cap_add {
            let name = if added.starts_with("CAP_") {
                added.clone()
            } else {
                format!("CAP_{added}")
            };
            if !capabilities.contains(&name) {
                capabilities.push(name);
            }
        }
    }
    let confined = option("seccomp") && !host.security_opt.iter().any(|option| option == "seccomp=unconfined");
    state.no_new_privileges = state
        .no_new_privileges
        .map(|inside| inside && option("no-new-privileges"));
    state.seccomp_filter = state.seccomp_filter.map(|inside| inside && confined);
    state.read_only_rootfs = state.read_only_rootfs.map(|inside| inside && host.readonly_rootfs);
    for planned in plan.mounts.iter().filter(|planned| planned.read_only) {
        let inside = state
            .mounts
            .iter_mut()
            .flatten()
            .find(|inside| inside.destination == planned.destination);
        let outside = inspected
            .mounts
            .iter()
            .find(|outside| outside.destination == planned.destination);
        if let (Some(inside), Some(outside)) = (inside, outside) {
            inside.read_only &= !outside.read_write;
        }
    }
    let limit = |value: u64| (value > 0).then_some(value);
    state.memory_bytes = weaker(limit(host.memory), state.memory_bytes);
    if !gvisor {
        state.pids = weaker(u64::try_from(host.pids_limit).ok().and_then(limit), state.pids);
    }
    let cores = if host.cpu_quota > 0 {
        let period = if host.cpu_period == 0 { 100_000 } else { host.cpu_period };
        Some(host.cpu_quota as f64 / period as f64)
    } else {
        limit(host.nano_cpus).map(|nano| nano as f64 / 1e9)
    };
    state.cpu_cores = weaker(cores, state.cpu_cores);
    if host.network_mode != "none"
        && let Some(interfaces) = &mut state.network_interfaces
    {
        interfaces.push(format!("network {}", host.network_mode));
    }
    let shared = [
        ("pid", &host.pid_mode, "host"),
        ("ipc", &host.ipc_mode, "host"),
        ("uts", &host.uts_mode, "host"),
        ("net", &host.network_mode, "host"),
    ];
    if let Some(private) = &mut state.private_namespaces {
        private.retain(|kind| !shared.iter().any(|(name, mode, all)| name == kind && mode == all));
    }
    Ok(state)
}

/// The engine's word is needed, and what was read inside may only make it weaker.
fn weaker<T: PartialOrd>(engine: Option<T>, inside: Option<T>) -> Option<T> {
    let engine = engine?;
    match inside {
        Some(inside) if inside > engine => Some(inside),
        _ => Some(engine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_laxer_reading_counts_and_the_engines_is_needed() {
        assert_eq!(weaker(Some(5), Some(3)), Some(5));
        assert_eq!(weaker(Some(5), Some(7)), Some(7));
        assert_eq!(weaker(Some(5), None), Some(5));
        assert_eq!(weaker(None, Some(3)), None);
    }
}
