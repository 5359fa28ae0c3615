//! What an engine can enforce.

use agents_core::{RuntimeCapabilities, Support};

use crate::{address::Address, engine::Engine};

/// What is declared while the engine has not been heard yet: everything that some engine can do, so that a request comes
/// as far as to the engine, and ends with the reason why that cannot be reached. Before anything is created the request is
/// compared again, with what the engine can do then.
pub(crate) fn unknown() -> RuntimeCapabilities {
    let engine = Engine {
        cgroup_v2: true,
        seccomp: true,
        controllers: ["memory", "cpu", "pids"].map(str::to_owned).to_vec(),
        ..Engine::default()
    };
    of(&engine, true, false, false)
}

/// What the engine can enforce, with each of its runtimes.
pub(crate) fn of_engine(engine: &Engine, address: &Address) -> RuntimeCapabilities {
    let root = rustix::process::geteuid().is_root();
    let of_class = |class: Option<&str>| of(engine, address.is_local(), root, engine.is_gvisor(class));
    let mut all = of_class(None);
    for runtime in &engine.runtimes {
        all = all.with_runtime_class(runtime, of_class(Some(runtime)));
        if runtime == "runsc" {
            all = all.with_runtime_class("gvisor", of_class(Some(runtime)));
        }
    }
    all
}

fn of(engine: &Engine, local: bool, caller_is_root: bool, gvisor: bool) -> RuntimeCapabilities {
    let limit = |controller: &str| {
        if engine.controls(controller) {
            return Support::Enforced;
        }
        if engine.rootless && !engine.cgroup_v2 {
            return Support::refused(
                format!("rootless podman cannot limit {controller} on cgroup v1"),
                "boot the host with cgroup v2 (systemd.unified_cgroup_hierarchy=1), use podman as root, or leave the limit out",
            );
        }
        if !engine.makes_cgroups() {
            return Support::refused(
                format!(
                    "rootless podman limits {controller} through systemd alone, and its cgroup manager is {:?}",
                    engine.cgroup_manager
                ),
                "set `cgroup_manager = \"systemd\"` in containers.conf and run podman in a session of systemd \
                 (`loginctl enable-linger`), use podman as root, or leave the limit out",
            );
        }
        Support::refused(
            format!("the cgroup controller {controller} is not delegated to podman"),
            format!(
                "delegate it (`systemctl edit user@.service`: Delegate=cpu memory pids, then log in again), or leave the limit out; \
                 podman lists: {}",
                engine.controllers.join(", ")
            ),
        )
    };
    let elsewhere = || {
        Support::refused(
            "podman runs on another host, which has other folders",
            "copy the files in, or run on the engine's host over its unix socket",
        )
    };
    let binds = if local { Support::Enforced } else { elsewhere() };
    let writable_binds = match (local, engine.rootless, caller_is_root) {
        (false, ..) => elsewhere(),
        (true, true, _) | (true, false, false) => Support::Enforced,
        (true, false, true) => Support::refused(
            "the agent is not root, so that what it makes in a folder of root would not belong to root",
            "use rootless podman as the folder's owner, or `type: native`; or copy the files in and out",
        ),
    };
    let seccomp = || {
        if engine.seccomp {
            return Support::Enforced;
        }
        Support::refused(
            "podman was built without seccomp, or the kernel has none",
            "use an engine with seccomp (`podman info` says seccompEnabled)",
        )
    };
    RuntimeCapabilities::none()
        .with_memory_limit(limit("memory"))
        .with_cpu_limit(limit("cpu"))
        // Under gVisor the guest program holds it, since the cgroup would count the threads of gVisor's own kernel.
        .with_pids_limit(if gvisor { Support::Enforced } else { limit("pids") })
        .with_nofile_limit(Support::Enforced)
        .with_disk_limit(Support::Enforced)
        .with_network_isolation(Support::Enforced)
        .with_egress_allow_list(Support::refused(
            "this runtime cannot filter outgoing connections yet",
            "leave allowed_endpoints empty, or use `type: native`",
        ))
        .with_ingress_ports(if gvisor {
            Support::refused(
                "podman leaves gVisor without a loopback interface, where ports are carried to",
                "leave ingress_ports empty, or choose another runtime class",
            )
        } else {
            Support::Enforced
        })
        .with_add_capabilities(Support::Enforced)
        .with_seccomp(seccomp())
        .with_seccomp_profile(seccomp())
        .with_user(Support::Enforced)
        .with_read_only_rootfs(Support::Enforced)
        .with_writable_rootfs(Support::refused(
            "nothing bounds what is written to a container's root on this engine",
            "leave read_only_rootfs true and write to /tmp, /workspace and /output",
        ))
        .with_bind_mounts(binds)
        .with_writable_bind_mounts(writable_binds)
        .with_secrets(Support::Enforced)
        .with_gpus(Support::refused(
            "access to GPUs is not proved with podman",
            "leave gpus out",
        ))
        .with_tty(Support::Enforced)
        .with_main_process(Support::Enforced)
        .with_quiesce(Support::Enforced)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(rootless: bool, cgroup_v2: bool, controllers: &[&str]) -> Engine {
        Engine {
            rootless,
            cgroup_v2,
            cgroup_manager: "systemd".to_owned(),
            seccomp: true,
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            runtimes: vec!["crun".to_owned(), "runsc".to_owned()],
            ..Engine::default()
        }
    }

    #[test]
    fn rootless_on_cgroup_v1_refuses_limits_and_says_what_would_help() {
        let capabilities = of(&engine(true, false, &["memory", "cpu", "pids"]), true, false, false);
        for support in [
            &capabilities.memory_limit,
            &capabilities.cpu_limit,
            &capabilities.pids_limit,
        ] {
            assert!(
                matches!(support, Support::Refused { reason, remedy } if reason.contains("cgroup v1") && remedy.contains("cgroup v2")),
                "{support:?}"
            );
        }
        assert!(capabilities.nofile_limit.is_enforced() && capabilities.disk_limit.is_enforced());
    }

    #[test]
    fn rootless_without_systemd_promises_no_limit_whatever_is_delegated() {
        let mut engine = engine(true, true, &["memory", "cpu", "pids"]);
        engine.cgroup_manager = "cgroupfs".to_owned();
        let capabilities = of(&engine, true, false, false);
        for support in [
            &capabilities.memory_limit,
            &capabilities.cpu_limit,
            &capabilities.pids_limit,
        ] {
            assert!(
                matches!(support, Support::Refused { reason, remedy } if reason.contains("cgroupfs") && remedy.contains("systemd")),
                "{support:?}"
            );
        }
    }

    #[test]
    fn a_controller_that_is_not_delegated_is_not_promised() {
        let capabilities = of(&engine(true, true, &["memory", "pids"]), true, false, false);
        assert!(capabilities.memory_limit.is_enforced() && capabilities.pids_limit.is_enforced());
        assert!(
            matches!(&capabilities.cpu_limit, Support::Refused { remedy, .. } if remedy.contains("Delegate") && remedy.contains("memory, pids"))
        );
    }

    #[test]
    fn writable_mounts_are_promised_only_where_they_belong_to_the_caller() {
        let writable = |rootless, local, root| {
            of(&engine(rootless, true, &[]), local, root, false)
                .writable_bind_mounts
                .is_enforced()
        };
        assert!(writable(true, true, false) && writable(true, true, true) && writable(false, true, false));
        assert!(!writable(false, true, true) && !writable(true, false, false));
    }

    #[test]
    fn runsc_is_also_called_gvisor_and_needs_no_cgroup_for_processes() {
        let engine = engine(true, true, &[]);
        let all = of_engine(&engine, &Address::parse("unix:///s").unwrap());
        let names: Vec<_> = all.runtime_classes.keys().map(String::as_str).collect();
        assert_eq!(names, ["crun", "gvisor", "runsc"]);
        let pids = |class: &str| all.of_class(Some(class)).unwrap().pids_limit.is_enforced();
        assert!(!all.pids_limit.is_enforced() && !pids("crun") && pids("gvisor") && pids("runsc"));
        let by_default = Engine {
            default_runtime: "runsc".to_owned(),
            ..engine
        };
        let all = of_engine(&by_default, &Address::parse("unix:///s").unwrap());
        assert!(all.pids_limit.is_enforced());
    }
}
