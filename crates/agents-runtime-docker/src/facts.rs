//! What the engine says of itself, and what follows for what can be enforced.

use std::collections::BTreeMap;

use agents_core::{Availability, Problem, RuntimeCapabilities, Support};
use agents_guest::GVISOR;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::null_as_default;

/// The oldest API that is spoken: 20.10.
const OLDEST_API: u32 = 41;

/// The newest API that bollard's types follow.
const NEWEST_API: u32 = 53;

/// What the engine said of itself, and when.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) at: Timestamp,
    pub(crate) version: Version,
    pub(crate) info: Info,
}

/// `GET /version`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Version {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) version: String,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) api_version: String,
    #[serde(rename = "MinAPIVersion", deserialize_with = "null_as_default")]
    pub(crate) min_api_version: String,
}

impl Version {
    /// The API version to speak, such as `1.41`.
    pub(crate) fn negotiate(&self) -> Result<u32, Problem> {
        let minor = |version: &str| version.strip_prefix("1.").and_then(|minor| minor.parse::<u32>().ok());
        let Some(newest) = minor(&self.api_version) else {
            return Err(Problem::new(
                format!("the engine speaks API {:?}, which is unknown", self.api_version),
                "use docker 20.10 or later",
            ));
        };
        if newest < OLDEST_API {
            return Err(Problem::new(
                format!(
                    "docker {} speaks API {}, which is too old",
                    self.version, self.api_version
                ),
                "use docker 20.10 or later",
            ));
        }
        let chosen = newest.min(NEWEST_API);
        if minor(&self.min_api_version).is_some_and(|oldest| oldest > chosen) {
            return Err(Problem::new(
                format!(
                    "docker {} speaks API {} or later alone, which is too new",
                    self.version, self.min_api_version
                ),
                "use a newer version of this program, or lower the engine's minimum API version",
            ));
        }
        Ok(chosen)
    }
}

/// `GET /info`, of which a field that an engine leaves out means "no".
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Info {
    memory_limit: bool,
    swap_limit: bool,
    #[serde(alias = "CPUCfsQuota")]
    cpu_cfs_quota: bool,
    pids_limit: bool,
    #[serde(deserialize_with = "null_as_default")]
    security_options: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    cgroup_version: String,
    #[serde(deserialize_with = "null_as_default")]
    cgroup_driver: String,
    #[serde(deserialize_with = "null_as_default")]
    runtimes: BTreeMap<String, EngineRuntime>,
    #[serde(deserialize_with = "null_as_default")]
    default_runtime: String,
    #[serde(rename = "OSType", deserialize_with = "null_as_default")]
    os_type: String,
    #[serde(deserialize_with = "null_as_default")]
    operating_system: String,
    #[serde(deserialize_with = "null_as_default")]
    kernel_version: String,
    #[serde(deserialize_with = "null_as_default")]
    architecture: String,
    #[serde(deserialize_with = "null_as_default")]
    driver: String,
    #[serde(deserialize_with = "null_as_default")]
    discovered_devices: Vec<serde_json::Value>,
    system_time: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct EngineRuntime {
    #[serde(deserialize_with = "null_as_default")]
    path: String,
    #[serde(rename = "runtimeType", deserialize_with = "null_as_default")]
    kind: String,
    #[serde(rename = "runtimeArgs", deserialize_with = "null_as_default")]
    args: Vec<String>,
}

/// What was found out about the engine, once.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The minor number of the API version that is spoken.
    pub(crate) api: u32,
    pub(crate) rootless: bool,
    pub(crate) remapped: bool,
    pub(crate) swap_limit: bool,
    /// How far the engine's clock is ahead of this machine's, in seconds.
    pub(crate) clock_offset: f64,
    pub(crate) cgroup_v1: bool,
    /// The engine's runtimes by the runtime classes that they stand for.
    pub(crate) classes: BTreeMap<String, String>,
    /// Whether the engine's default runtime is gVisor.
    default_class: Option<String>,
    capabilities: RuntimeCapabilities,
    lines: Vec<String>,
    problems: Vec<Problem>,
}

/// Where this program stands towards the engine.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// Whether the engine sees the files of this process.
    pub(crate) local: bool,
    /// Whether this process is root.
    pub(crate) root: bool,
    /// The engine's runtime that the configuration names.
    pub(crate) runtime: Option<String>,
}

impl Facts {
    /// Draws the conclusions.
    pub(crate) fn new(said: &Said, standing: &Standing) -> Result<Self, Problem> {
        let Said { at, version, info } = said;
        let api = version.negotiate()?;
        if info.os_type != "linux" {
            return Err(Problem::new(
                format!("the engine runs containers of {:?}", info.os_type),
                "switch it to Linux containers",
            ));
        }
        let option = |name: &str| {
            info.security_options
                .iter()
                .any(|option| option.split(',').any(|part| part == format!("name={name}")))
        };
        if let Some(own) = &standing.runtime
            && !info.runtimes.contains_key(own)
        {
            let known: Vec<_> = info.runtimes.keys().map(String::as_str).collect();
            return Err(Problem::new(
                format!("runtime: the engine has no runtime {own:?}"),
                format!("choose one of {}", known.join(", ")),
            ));
        }
        let mut classes = BTreeMap::new();
        for (name, runtime) in &info.runtimes {
            classes.insert(name.clone(), name.clone());
            if is_gvisor(name, runtime) {
                classes.entry(GVISOR.to_owned()).or_insert_with(|| name.clone());
            }
        }
        let default_class = info
            .runtimes
            .get(&info.default_runtime)
            .filter(|runtime| is_gvisor(&info.default_runtime, runtime))
            .map(|_| GVISOR.to_owned());
        let mut facts = Self {
            api,
            rootless: option("rootless"),
            remapped: option("userns"),
            swap_limit: info.swap_limit,
            clock_offset: info
                .system_time
                .map_or(0.0, |theirs| theirs.duration_since(*at).as_secs_f64()),
            cgroup_v1: info.cgroup_version != "2",
            classes,
            default_class,
            capabilities: RuntimeCapabilities::none(),
            lines: vec![
                format!("docker {} (API 1.{api})", version.version),
                format!(
                    "{}, Linux {}, {}, storage {}",
                    info.operating_system, info.kernel_version, info.architecture, info.driver
                ),
                format!(
                    "cgroup v{}, driver {}{}",
                    if info.cgroup_version == "2" { 2 } else { 1 },
                    info.cgroup_driver,
                    if option("rootless") { ", rootless" } else { "" }
                ),
            ],
            problems: Vec::new(),
        };
        facts.lines.push(format!(
            "runtimes: {} (default {})",
            facts.classes.keys().cloned().collect::<Vec<_>>().join(", "),
            info.default_runtime
        ));
        let of_runtime = |name: &str| {
            let runtime = info.runtimes.get(name);
            let gvisor = runtime.is_some_and(|runtime| is_gvisor(name, runtime));
            let capabilities = capabilities(info, &facts, standing, option("seccomp"), gvisor);
            if !runtime.is_some_and(ignores_profiles) {
                return capabilities;
            }
            let refused = Support::refused(
                "gVisor leaves seccomp profiles aside unless it is told to",
                "add \"--oci-seccomp\" to the runtimeArgs of the runtime in the engine's daemon.json",
            );
            capabilities.with_seccomp(refused.clone()).with_seccomp_profile(refused)
        };
        let own = standing.runtime.as_deref().unwrap_or(&info.default_runtime);
        let mut all = of_runtime(own);
        for (class, runtime) in &facts.classes {
            all = all.with_runtime_class(class.clone(), of_runtime(runtime));
        }
        for (name, support) in all.entries() {
            if let Support::Refused { reason, remedy } = support
                && matches!(name, "memory_limit" | "cpu_limit" | "pids_limit" | "seccomp")
            {
                facts
                    .problems
                    .push(Problem::new(format!("{name}: {reason}"), remedy.clone()));
            }
        }
        facts.capabilities = all;
        Ok(facts)
    }

    pub(crate) fn capabilities(&self) -> RuntimeCapabilities {
        self.capabilities.clone()
    }

    pub(crate) fn availability(&self, endpoint: &str) -> Availability {
        let mut availability = Availability::ready().with_fact(format!("engine at {endpoint}"));
        for line in &self.lines {
            availability = availability.with_fact(line.clone());
        }
        for problem in &self.problems {
            availability = availability.with_problem(problem.clone());
        }
        availability
    }

    /// Whether a container of this runtime runs on gVisor's kernel.
    pub(crate) fn is_gvisor(&self, runtime: Option<&str>) -> bool {
        match runtime {
            Some(runtime) => self.classes.get(GVISOR).is_some_and(|gvisor| gvisor == runtime) || runtime == "runsc",
            None => self.default_class.is_some(),
        }
    }
}

fn is_gvisor(name: &str, runtime: &EngineRuntime) -> bool {
    let program = runtime.path.rsplit('/').next().unwrap_or_default();
    name == GVISOR || name == "runsc" || program == "runsc" || runtime.kind.starts_with("io.containerd.runsc.")
}

/// Whether this is gVisor without the option that makes it keep to seccomp profiles. How a shim of containerd's is
/// configured cannot be seen from here; what is read back tells.
fn ignores_profiles(runtime: &EngineRuntime) -> bool {
    let told = |arg: &String| arg.trim_start_matches('-').starts_with("oci-seccomp");
    runtime.path.rsplit('/').next() == Some("runsc") && !runtime.args.iter().any(told)
}

/// What is assumed of an engine that could not be asked yet. Whatever needs it asks it first, and is refused then.
pub(crate) fn assumed(standing: &Standing) -> RuntimeCapabilities {
    let info = Info {
        memory_limit: true,
        cpu_cfs_quota: true,
        pids_limit: true,
        ..Info::default()
    };
    let facts = Facts {
        api: OLDEST_API,
        rootless: false,
        remapped: false,
        swap_limit: true,
        clock_offset: 0.0,
        cgroup_v1: false,
        classes: BTreeMap::new(),
        default_class: None,
        capabilities: RuntimeCapabilities::none(),
        lines: Vec::new(),
        problems: Vec::new(),
    };
    capabilities(&info, &facts, standing, true, false)
}

fn capabilities(info: &Info, facts: &Facts, standing: &Standing, seccomp: bool, gvisor: bool) -> RuntimeCapabilities {
    let limit = |has: bool, field: &str, controller: &str| {
        if has {
            return Support::Enforced;
        }
        let remedy = if facts.rootless {
            format!(
                "delegate the {controller} controller to the engine's user (cgroup v2 and systemd), or set {field} to null"
            )
        } else {
            format!("give the engine the {controller} controller, or set {field} to null")
        };
        Support::refused(
            format!("the engine cannot use the {controller} controller of cgroups"),
            remedy,
        )
    };
    let binds = if standing.local {
        Support::Enforced
    } else {
        Support::refused(
            "the engine is on another machine, which does not see this one's files",
            "copy the files in, or use an engine of this machine by its socket",
        )
    };
    // Without a mapping of users in mounts, what is made belongs to the number that made it.
    let writable_binds = if !standing.local {
        binds.clone()
    } else if standing.root {
        Support::refused(
            "the caller is root, and what an agent makes in a mount of docker would belong to the agent's user and not to root",
            "run as the folder's owner in the group docker, copy the files in and out, or use the podman or embedded runtime",
        )
    } else if facts.rootless || facts.remapped {
        Support::refused(
            "the engine maps users, so that what an agent makes in a mount would belong to a subordinate user",
            "copy the files in and out, or use the podman or embedded runtime",
        )
    } else {
        Support::Enforced
    };
    RuntimeCapabilities::none()
        .with_memory_limit(limit(info.memory_limit, "memory_mb", "memory"))
        .with_cpu_limit(limit(info.cpu_cfs_quota, "cpu_cores", "cpu"))
        // gVisor's own kernel counts its processes.
        .with_pids_limit(if gvisor {
            Support::Enforced
        } else {
            limit(info.pids_limit, "pids_limit", "pids")
        })
        .with_nofile_limit(Support::Enforced)
        .with_disk_limit(Support::Enforced)
        .with_network_isolation(Support::Enforced)
        .with_egress_allow_list(Support::refused(
            "there is no egress proxy for docker yet",
            "leave the network disabled",
        ))
        .with_ingress_ports(Support::Enforced)
        .with_add_capabilities(Support::refused(
            "docker keeps capabilities for root alone, and an agent is not root",
            "use the embedded or the podman runtime",
        ))
        .with_seccomp(if seccomp {
            Support::Enforced
        } else {
            Support::refused(
                "the engine has no seccomp filters",
                "use a kernel and an engine with seccomp",
            )
        })
        .with_seccomp_profile(if seccomp {
            Support::Enforced
        } else {
            Support::refused(
                "the engine has no seccomp filters",
                "use a kernel and an engine with seccomp",
            )
        })
        .with_user(Support::Enforced)
        .with_read_only_rootfs(Support::Enforced)
        .with_writable_rootfs(Support::Enforced)
        .with_bind_mounts(binds)
        .with_writable_bind_mounts(writable_binds)
        .with_secrets(Support::Enforced)
        .with_gpus(
            if info.runtimes.contains_key("nvidia") || !info.discovered_devices.is_empty() {
                Support::Enforced
            } else {
                Support::refused(
                    "the engine knows of no graphics processor",
                    "install the NVIDIA Container Toolkit and register its runtime with docker",
                )
            },
        )
        .with_tty(Support::Enforced)
        .with_main_process(Support::Enforced)
        .with_quiesce(Support::Enforced)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"{"MemoryLimit":true,"SwapLimit":true,"CpuCfsPeriod":true,"CpuCfsQuota":true,"PidsLimit":true,
        "SecurityOptions":["name=seccomp,profile=default"],"CgroupVersion":"1","CgroupDriver":"cgroupfs","OSType":"linux",
        "Runtimes":{"runc":{"path":"runc"},"runsc":{"path":"/usr/bin/runsc","runtimeArgs":["--oci-seccomp"]},"runsc-plain":{"path":"/usr/bin/runsc"}},"DefaultRuntime":"runc",
        "Driver":"overlay2","Swarm":{"NodeID":""},"Warnings":null,"CDISpecDirs":null}"#;
    const ROOTLESS: &str = r#"{"MemoryLimit":false,"CPUCfsQuota":false,"SecurityOptions":["name=rootless","name=cgroupns"],
        "CgroupVersion":"1","CgroupDriver":"none","OSType":"linux","Runtimes":null,"DefaultRuntime":"runc","Future":{"x":[1]}}"#;

    const HERE: Standing = Standing {
        local: true,
        root: false,
        runtime: None,
    };

    fn facts(info: &str, standing: Standing) -> Facts {
        let said = Said {
            at: Timestamp::now(),
            version: Version {
                api_version: "1.41".to_owned(),
                ..Version::default()
            },
            info: serde_json::from_str(info).unwrap(),
        };
        Facts::new(&said, &standing).unwrap()
    }

    #[test]
    fn versions_are_negotiated() {
        let version = |api: &str, min: &str| Version {
            version: "x".to_owned(),
            api_version: api.to_owned(),
            min_api_version: min.to_owned(),
        };
        assert_eq!(version("1.41", "1.12").negotiate().ok(), Some(41));
        assert_eq!(version("1.56", "1.44").negotiate().ok(), Some(NEWEST_API));
        for (api, min) in [("1.40", "1.12"), ("", ""), ("2.0", "1.44"), ("1.90", "1.80")] {
            assert!(version(api, min).negotiate().is_err(), "{api}");
        }
    }

    #[test]
    fn classes_are_the_engines_runtimes_and_gvisor() {
        let facts = facts(OLD, HERE);
        let classes: Vec<_> = facts.classes.iter().map(|(class, name)| (&**class, &**name)).collect();
        assert_eq!(
            &classes[..3],
            [("gvisor", "runsc"), ("runc", "runc"), ("runsc", "runsc")]
        );
        let plain = facts.capabilities().of_class(Some("runsc-plain")).unwrap().clone();
        assert!(!plain.seccomp.is_enforced() && plain.pids_limit.is_enforced());
        let capabilities = facts.capabilities();
        assert!(capabilities.of_class(Some("gvisor")).unwrap().pids_limit.is_enforced());
        assert!(
            capabilities
                .of_class(Some("kata"))
                .unwrap_err()
                .message()
                .contains("runsc")
        );
        assert!(facts.is_gvisor(Some("runsc")) && !facts.is_gvisor(None));
    }

    #[test]
    fn what_a_rootless_engine_cannot_do_is_refused_with_a_remedy() {
        let capabilities = facts(ROOTLESS, HERE).capabilities();
        for support in [
            &capabilities.memory_limit,
            &capabilities.cpu_limit,
            &capabilities.pids_limit,
        ] {
            let Support::Refused { remedy, .. } = support else {
                panic!("accepted")
            };
            assert!(remedy.contains("null"), "{remedy}");
        }
        assert!(!capabilities.seccomp.is_enforced());
        assert!(!capabilities.writable_bind_mounts.is_enforced());
    }

    #[test]
    fn what_is_mounted_depends_on_where_the_engine_is_and_who_asks() {
        let at = |local, root| facts(OLD, Standing { local, root, ..HERE }).capabilities();
        assert!(at(true, false).writable_bind_mounts.is_enforced());
        assert!(!at(true, true).writable_bind_mounts.is_enforced());
        assert!(at(true, true).bind_mounts.is_enforced());
        assert!(!at(false, false).bind_mounts.is_enforced());
        assert!(assumed(&HERE).memory_limit.is_enforced());
    }
}
