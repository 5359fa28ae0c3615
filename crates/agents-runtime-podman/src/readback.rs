//! What is in force: the guest program's report from inside, the engine's own words, and where the engine is local the host's
//! kernel. Of two that differ the weaker counts, and what only one side confirms of a limit is not in force.

use agents_core::EffectiveState;
use agents_guest::{Plan, Report};

use crate::{kernel::Limited, model::View};

/// Combines what was read.
pub(crate) fn combine(plan: &Plan, report: &Report, inspected: &View, kernel: Option<Limited>) -> EffectiveState {
    let mut state = plan.effective(report);
    let told = Told::read(inspected);
    state.capabilities = match (state.capabilities.take(), told.capabilities) {
        (Some(mut inside), told) => {
            inside.extend(told);
            inside.sort();
            inside.dedup();
            Some(inside)
        }
        (None, _) => None,
    };
    state.no_new_privileges = both(state.no_new_privileges, Some(told.no_new_privileges));
    state.read_only_rootfs = both(state.read_only_rootfs, told.read_only_rootfs);
    if told.privileged != Some(false) {
        state.no_new_privileges = None;
        state.capabilities = None;
    }
    let kernel = kernel.unwrap_or_default();
    state.memory_bytes = weaker(told.memory_bytes, [state.memory_bytes, kernel.memory_bytes], u64::max);
    state.pids = weaker(told.pids, [state.pids, kernel.pids], u64::max);
    state.cpu_cores = weaker(told.cpu_cores, [state.cpu_cores, kernel.cpu_cores], f64::max);
    if let Some(mounts) = &mut state.mounts {
        for (destination, writable) in &told.mounts {
            for mount in mounts.iter_mut().filter(|mount| mount.destination == *destination) {
                mount.read_only &= !writable;
            }
        }
    }
    if !told.without_network {
        state.network_interfaces = None;
    }
    if let Some(private) = &mut state.private_namespaces {
        private.retain(|kind| !told.shared.iter().any(|shared| shared == kind));
    }
    state
}

fn both(inside: Option<bool>, told: Option<bool>) -> Option<bool> {
    Some(inside? && told?)
}

/// The engine must confirm a limit; a kernel that can be read may only weaken it.
fn weaker<T: Copy>(told: Option<T>, read: [Option<T>; 2], max: fn(T, T) -> T) -> Option<T> {
    Some(read.into_iter().flatten().fold(told?, max))
}

/// What the engine says.
struct Told {
    capabilities: Vec<String>,
    no_new_privileges: bool,
    privileged: Option<bool>,
    read_only_rootfs: Option<bool>,
    memory_bytes: Option<u64>,
    pids: Option<u64>,
    cpu_cores: Option<f64>,
    mounts: Vec<(String, bool)>,
    without_network: bool,
    /// The namespaces that are another's.
    shared: Vec<&'static str>,
}

impl Told {
    fn read(view: &View) -> Self {
        let mut capabilities = view.texts("/EffectiveCaps");
        capabilities.extend(view.texts("/BoundingCaps"));
        let options = view.texts("/HostConfig/SecurityOpt");
        let cores = || {
            let quota = view.limit("/HostConfig/CpuQuota")? as f64;
            Some(quota / view.limit("/HostConfig/CpuPeriod")? as f64)
        };
        let nano = || view.limit("/HostConfig/NanoCpus").map(|nano| nano as f64 / 1e9);
        let mounts = view.items("/Mounts").filter_map(|mount| {
            let destination = mount.text("/Destination")?.to_owned();
            Some((destination, mount.flag("/RW").unwrap_or(true)))
        });
        let foreign = |mode: &str| mode == "host" || mode.starts_with("container:") || mode.starts_with("ns:");
        let modes = [
            ("pid", "PidMode"),
            ("ipc", "IpcMode"),
            ("uts", "UTSMode"),
            ("net", "NetworkMode"),
        ];
        Self {
            capabilities,
            no_new_privileges: options.iter().any(|option| option.starts_with("no-new-privileges")),
            privileged: view.flag("/HostConfig/Privileged"),
            read_only_rootfs: view.flag("/HostConfig/ReadonlyRootfs"),
            memory_bytes: view.limit("/HostConfig/Memory"),
            pids: view.limit("/HostConfig/PidsLimit"),
            cpu_cores: cores().or_else(nano),
            mounts: mounts.collect(),
            without_network: view.text("/HostConfig/NetworkMode") == Some("none"),
            shared: modes
                .into_iter()
                .filter(|(_, key)| view.text(&format!("/HostConfig/{key}")).is_some_and(foreign))
                .map(|(kind, _)| kind)
                .collect(),
        }
    }
}
