//! Rule sets, and what a policy shows about each of their rules.
//!
//! Sources: the Pod Security Standards of Kubernetes (<https://kubernetes.io/docs/concepts/security/pod-security-standards/>,
//! by the names of their controls) and section 5 of the CIS Docker Benchmark v1.6.0 (by its numbers).
//!
//! Some rules forbid what no policy can ask for. They pass, since core destroys a container whose effective state differs
//! from what was requested, and the evidence says so.

use std::path::{Component, Path};

use agents_core::{
    ComplianceOutcome::{self, Fail, NotApplicable, Pass},
    ComplianceReport, ComplianceRule, Error, ImagePullPolicy, Policy, Result, capability, split_mount,
};

use crate::DefaultPolicyConfig;

type Verdict = (ComplianceOutcome, String);
type Rule = (&'static str, fn(&Policy, &DefaultPolicyConfig) -> Verdict);

/// The sets by name.
const RULE_SETS: [(&str, &[&[Rule]]); 3] = [
    ("pod-security-baseline", &[BASELINE]),
    ("pod-security-restricted", &[BASELINE, RESTRICTED]),
    ("cis-docker", &[CIS_DOCKER]),
];

/// Checks each rule of each set.
pub(crate) fn check(policy: &Policy, config: &DefaultPolicyConfig, names: &[String]) -> Result<ComplianceReport> {
    let mut report = ComplianceReport::default();
    for name in names {
        let Some((_, parts)) = RULE_SETS.iter().find(|(known, _)| known == name) else {
            let known = RULE_SETS.map(|(known, _)| known).join(", ");
            return Err(
                Error::not_found(format!("there is no rule set {name:?}; the rule sets are {known}"))
                    .with_operation("check_compliance"),
            );
        };
        for (rule, judge) in parts.iter().copied().flatten() {
            let (outcome, evidence) = judge(policy, config);
            report.rules.push(ComplianceRule {
                rule_set: name.clone(),
                rule: (*rule).to_owned(),
                outcome,
                evidence,
            });
        }
    }
    Ok(report)
}

const BASELINE: &[Rule] = &[
    ("HostProcess", |_, _| not_applicable("a matter of Windows pods")),
    ("Host Namespaces", |_, _| private_namespaces()),
    ("Privileged Containers", |_, _| privileged()),
    ("Capabilities (baseline)", |policy, _| {
        capabilities(policy, BASELINE_CAPABILITIES)
    }),
    ("HostPath Volumes", |policy, _| host_paths(policy)),
    ("Host Ports", needed_ports),
    ("Host Probes / Lifecycle Hooks", |_, _| {
        pass("a policy has no field for probes or hooks")
    }),
    ("AppArmor", |_, _| {
        pass("a policy has no field that replaces or disables the runtime's default profile")
    }),
    ("SELinux", |_, _| pass("a policy has no field for SELinux options")),
    ("/proc Mount Type", |_, _| {
        pass("a policy has no field that unmasks /proc; runtimes keep their default masks")
    }),
    ("Seccomp (baseline)", |policy, _| seccomp(policy)),
    ("Sysctls", |_, _| pass("a policy has no field for sysctls")),
];

const RESTRICTED: &[Rule] = &[
    ("Volume Types", |policy, _| host_paths(policy)),
    ("Privilege Escalation", |_, _| no_new_privileges()),
    ("Running as Non-root", |policy, _| non_root(policy)),
    ("Running as Non-root user", |policy, _| non_root(policy)),
    ("Seccomp", |policy, _| seccomp(policy)),
    ("Capabilities", |policy, _| {
        capabilities(policy, &["CAP_NET_BIND_SERVICE"])
    }),
];

const CIS_DOCKER: &[Rule] = &[
    ("5.1 swarm mode is not enabled", |_, _| {
        not_applicable("a matter of the daemon")
    }),
    ("5.2 an AppArmor profile is enabled", |_, _| {
        not_applicable("a matter of the host")
    }),
    ("5.3 SELinux options are set", |_, _| {
        not_applicable("a matter of the host")
    }),
    ("5.4 capabilities are restricted", |policy, _| {
        capabilities(policy, BASELINE_CAPABILITIES)
    }),
    ("5.5 not privileged", |_, _| privileged()),
    ("5.6 no sensitive host folders are mounted", |policy, _| {
        sensitive_mounts(policy)
    }),
    ("5.7 no sshd inside", |_, _| {
        not_applicable("a matter of the image and the agent")
    }),
    ("5.8 no privileged ports are mapped", |policy, _| {
        privileged_ports(policy)
    }),
    ("5.9 only needed ports are open", needed_ports),
    ("5.10 the host's network namespace is not shared", |_, _| {
        private_namespaces()
    }),
    ("5.11 memory is limited", |policy, _| {
        limit("memory_mb", policy.memory_mb)
    }),
    ("5.12 CPU is limited", |policy, _| limit("cpu_cores", policy.cpu_cores)),
    ("5.13 the root file system is read-only", |policy, _| {
        let evidence = format!("read_only_rootfs is {}", policy.read_only_rootfs);
        (outcome(policy.read_only_rootfs), evidence)
    }),
    ("5.14 incoming traffic is bound to an interface", |_, _| {
        pass("ingress_ports are published on the loopback interface alone")
    }),
    ("5.15 restarts on failure are limited to 5", |policy, _| {
        let evidence = format!(
            "retry_count is {}, and nothing restarts a container",
            policy.retry_count
        );
        (outcome(policy.retry_count <= 5), evidence)
    }),
    ("5.16 the host's process namespace is not shared", |_, _| {
        private_namespaces()
    }),
    ("5.17 the host's IPC namespace is not shared", |_, _| {
        private_namespaces()
    }),
    ("5.18 no host devices are exposed", |policy, _| match &policy.gpus {
        None => pass("gpus is null, and a policy has no other field for devices"),
        Some(gpus) => (Fail, format!("gpus is {gpus:?}")),
    }),
    ("5.19 ulimits are overwritten if needed", |policy, _| {
        match policy.nofile_limit {
            Some(files) => (Pass, format!("nofile_limit is {files}")),
            None => not_applicable("nofile_limit is null, so the runtime's default holds"),
        }
    }),
    ("5.20 mount propagation is not shared", |_, _| {
        pass("a policy has no field for propagation; mounts are private")
    }),
    ("5.21 the host's UTS namespace is not shared", |_, _| {
        private_namespaces()
    }),
    ("5.22 seccomp is not disabled", |policy, _| seccomp(policy)),
    ("5.23 exec is not privileged", |_, _| privileged()),
    ("5.24 exec does not use the root user", |policy, _| non_root(policy)),
    ("5.25 cgroup usage is confirmed", |_, _| {
        pass("a policy has no field for a parent cgroup; the limits in force are read back and compared")
    }),
    ("5.26 no additional privileges", |_, _| no_new_privileges()),
    ("5.27 health is checked", |_, _| {
        not_applicable("an agent runs once; its ending is typed and on record")
    }),
    ("5.28 the latest image is used", |policy, _| latest_image(policy)),
    ("5.29 the number of processes is limited", |policy, _| {
        limit("pids_limit", policy.pids_limit)
    }),
    ("5.30 the default bridge is not used", |_, _| {
        pass("without a network there is no bridge, and with one only our proxy is reachable")
    }),
    ("5.31 the host's user namespace is not shared", |_, _| {
        pass("a policy has no field that asks for the host's user namespace")
    }),
    ("5.32 the engine's socket is not mounted", |policy, _| {
        engine_sockets(policy)
    }),
];

/// What the baseline allows to add, which is the default of Docker without `NET_RAW`.
const BASELINE_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

fn outcome(met: bool) -> ComplianceOutcome {
    if met { Pass } else { Fail }
}

fn pass(evidence: &str) -> Verdict {
    (Pass, evidence.to_owned())
}

fn not_applicable(evidence: &str) -> Verdict {
    (NotApplicable, evidence.to_owned())
}

/// Fails when something was found.
fn none_of(found: Vec<String>, good: &str) -> Verdict {
    match found.is_empty() {
        true => pass(good),
        false => (Fail, found.join(", ")),
    }
}

fn private_namespaces() -> Verdict {
    pass("a policy has no field that shares a namespace; private ones are verified after creation")
}

fn privileged() -> Verdict {
    pass("a policy has no field for privileged mode; the capabilities in force are verified after creation")
}

fn no_new_privileges() -> Verdict {
    pass("no_new_privileges is always on, and verified after creation")
}

fn capabilities(policy: &Policy, allowed: &[&str]) -> Verdict {
    let beyond: Vec<_> = policy
        .cap_add
        .iter()
        .filter(|name| !capability(name).is_some_and(|(_, full)| allowed.contains(&full.as_str())))
        .map(|name| format!("cap_add has {name}"))
        .collect();
    let kept = match policy.cap_add.is_empty() {
        true => "all are dropped and none is added".to_owned(),
        false => format!("all are dropped but {}", policy.cap_add.join(", ")),
    };
    none_of(beyond, &kept)
}

fn host_paths(policy: &Policy) -> Verdict {
    let mounts = policy
        .readonly_mounts
        .iter()
        .map(|mount| format!("readonly_mounts has {mount}"));
    none_of(mounts.collect(), "readonly_mounts is empty")
}

fn needed_ports(policy: &Policy, config: &DefaultPolicyConfig) -> Verdict {
    let needed = config.allowed_ingress_ports.as_deref().unwrap_or_default();
    let others = policy.network.ingress_ports.iter().filter(|port| {
        let listed = needed.iter().any(|needed| u32::from(*needed) == **port);
        !listed
    });
    let others = others.map(|port| format!("port {port} is published and not in allowed_ingress_ports"));
    none_of(
        others.collect(),
        "no port is published but those of allowed_ingress_ports",
    )
}

fn privileged_ports(policy: &Policy) -> Verdict {
    let low = policy.network.ingress_ports.iter().filter(|port| **port < 1024);
    none_of(
        low.map(|port| format!("port {port} is published")).collect(),
        "no port below 1024 is published",
    )
}

fn seccomp(policy: &Policy) -> Verdict {
    match &policy.seccomp_profile {
        None => pass("the default filter is on, and verified after creation"),
        Some(profile) => (
            Pass,
            format!("the filter of {profile:?} is on, and verified after creation"),
        ),
    }
}

fn non_root(policy: &Policy) -> Verdict {
    match policy.user() {
        None => pass("container_user is null, and a user who is root is found after creation"),
        Some(user) => (outcome(user.uid != 0), format!("container_user has uid {}", user.uid)),
    }
}

fn limit<T: ToString>(field: &str, value: Option<T>) -> Verdict {
    match value {
        Some(value) => (Pass, format!("{field} is {}", value.to_string())),
        None => (Fail, format!("{field} is null")),
    }
}

fn latest_image(policy: &Policy) -> Verdict {
    let image = &policy.base_image;
    match policy.image_pull_policy {
        ImagePullPolicy::Always => pass("image_pull_policy is always"),
        _ if image.contains("@sha256:") => (Pass, format!("{image} names its content")),
        _ => (
            Fail,
            format!("{image} may be an old copy; set image_pull_policy to always, or name the image by digest"),
        ),
    }
}

/// The list of the benchmark.
fn sensitive_mounts(policy: &Policy) -> Verdict {
    const SENSITIVE: [&str; 7] = ["/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr"];
    let found = sources(policy).filter(|source| {
        let path = Path::new(source);
        path.parent().is_none() || climbs(path) || SENSITIVE.iter().any(|folder| path.starts_with(folder))
    });
    none_of(
        found.map(|source| format!("readonly_mounts has {source}")).collect(),
        "readonly_mounts has no path in /boot, /dev, /etc, /lib, /proc, /sys or /usr, nor / itself",
    )
}

/// A read-only mount of a socket can still be connected to.
fn engine_sockets(policy: &Policy) -> Verdict {
    const SOCKETS: [&str; 6] = [
        "/run/docker.sock",
        "/run/podman/podman.sock",
        "/run/containerd/containerd.sock",
        "/var/run/docker.sock",
        "/var/run/podman/podman.sock",
        "/var/run/containerd/containerd.sock",
    ];
    let found = sources(policy).filter(|source| {
        let path = Path::new(source);
        let named = path.extension().is_some_and(|extension| extension == "sock");
        named || climbs(path) || SOCKETS.iter().any(|socket| Path::new(socket).starts_with(path))
    });
    none_of(
        found.map(|source| format!("readonly_mounts has {source}")).collect(),
        "readonly_mounts has no socket of an engine, nor a folder above one",
    )
}

fn sources(policy: &Policy) -> impl Iterator<Item = &str> {
    // A policy's mounts are well-formed.
    policy
        .readonly_mounts
        .iter()
        .filter_map(|mount| split_mount(mount).ok())
        .map(|(source, _)| source)
}

/// Whether a path has `..`, so that it is not where it seems.
fn climbs(path: &Path) -> bool {
    path.components().any(|component| component == Component::ParentDir)
}
