//! What this host can enforce.

use std::fs;

use agents_core::{Availability, Problem, RuntimeCapabilities, Support};

use crate::cgroup::{Hierarchy, NoCgroup};

/// The facts that decide what can be enforced, found once.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) root: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) hierarchy: Result<Hierarchy, NoCgroup>,
}

impl Host {
    pub(crate) fn detect() -> Self {
        let uid = rustix::process::geteuid();
        Self {
            root: uid.is_root(),
            uid: uid.as_raw(),
            gid: rustix::process::getegid().as_raw(),
            hierarchy: Hierarchy::detect(),
        }
    }

    pub(crate) fn capabilities(&self) -> RuntimeCapabilities {
        let group = |field: &str| match &self.hierarchy {
            Ok(_) => Support::Enforced,
            Err(NoCgroup { reason, remedy }) => Support::refused(
                reason.clone(),
                format!("{remedy}; or waive the limit by setting {field} to null"),
            ),
        };
        let network = || {
            Support::refused(
                "the embedded runtime gives containers no network",
                "leave the network disabled, or choose another runtime",
            )
        };
        RuntimeCapabilities::none()
            .with_memory_limit(group("memory_mb"))
            .with_cpu_limit(group("cpu_cores"))
            // Without cgroups by RLIMIT_NPROC, which counts per user namespace.
            .with_pids_limit(Support::Enforced)
            .with_nofile_limit(Support::Enforced)
            .with_disk_limit(Support::Enforced)
            .with_network_isolation(Support::Enforced)
            .with_egress_allow_list(network())
            .with_ingress_ports(network())
            .with_add_capabilities(Support::Enforced)
            .with_seccomp(Support::Enforced)
            .with_seccomp_profile(Support::Enforced)
            .with_user(Support::Enforced)
            .with_read_only_rootfs(Support::Enforced)
            .with_writable_rootfs(Support::Enforced)
            .with_bind_mounts(Support::Enforced)
            .with_writable_bind_mounts(Support::Enforced)
            .with_secrets(Support::Enforced)
            .with_tty(Support::Enforced)
            .with_main_process(Support::Enforced)
            .with_quiesce(match &self.hierarchy {
                Ok(_) => Support::Enforced,
                Err(NoCgroup { reason, remedy }) => Support::refused(reason.clone(), remedy.clone()),
            })
    }

    pub(crate) fn availability(&self, helper: Result<String, String>) -> Availability {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.trim();
        if kernel_version(release).is_some_and(|version| version < (5, 12)) {
            return Availability::unavailable(
                format!("Linux {release} is too old for the embedded runtime"),
                "use Linux 5.12 or later, or another runtime",
            );
        }
        let switch = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        if switch("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
            return Availability::unavailable(
                "user namespaces are switched off",
                "set user.max_user_namespaces to a number above 0",
            );
        }
        if !self.root && switch("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
            return Availability::unavailable(
                "user namespaces are switched off for ordinary users",
                "set kernel.unprivileged_userns_clone=1, or run as root",
            );
        }
        if !self.root && switch("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
            return Availability::unavailable(
                "AppArmor restricts user namespaces of ordinary users",
                "set kernel.apparmor_restrict_unprivileged_userns=0, add a profile for this program, or run as root",
            );
        }
        let helper = match helper {
            Ok(helper) => helper,
            Err(reason) => {
                return Availability::unavailable(
                    reason,
                    "call agents_sdk::init() first in main, or set `helper` in the runtime's configuration",
                );
            }
        };
        let user = if self.root {
            "root".to_owned()
        } else {
            format!("an ordinary user ({})", self.uid)
        };
        let availability = Availability::ready()
            .with_fact(format!("Linux {release}"))
            .with_fact(format!("runs as {user}"))
            .with_fact(format!("helper: {helper}"));
        match &self.hierarchy {
            Ok(hierarchy) => availability.with_fact(hierarchy.describe()),
            Err(NoCgroup { reason, remedy }) => availability.with_problem(Problem::new(
                format!("memory_mb and cpu_cores cannot be enforced: {reason}"),
                format!("{remedy}; or set both to null"),
            )),
        }
    }
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(kernel_version("6.1.0-40-cloud-amd64"), Some((6, 1)));
        assert!(kernel_version("5.9.1").unwrap() < (5, 12));
        assert_eq!(kernel_version("x"), None);
    }

    #[test]
    fn without_cgroups_the_refusal_says_what_to_do() {
        let none = NoCgroup {
            reason: "no".to_owned(),
            remedy: "delegate".to_owned(),
        };
        let host = Host {
            root: false,
            uid: 1,
            gid: 1,
            hierarchy: Err(none),
        };
        let Support::Refused { remedy, .. } = host.capabilities().memory_limit else {
            panic!("accepted")
        };
        assert!(remedy.contains("memory_mb"), "{remedy}");
        assert!(host.capabilities().pids_limit.is_enforced());
    }
}
