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
    if !report.is_gvisor() {
        // There the guest program holds it, and neither the engine nor the host knows of it.
        state.pids = weaker(told.pids, [state.pids, kernel.pids], u64::max);
    }
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
    // They are ours, bound before the container was made; with them it still has no network of its own.
    let loopback_only = state
        .network_interfaces
        .as_ref()
        .is_some_and(|names| names.iter().all(|name| name == "lo"));
    state.ingress_ports = loopback_only.then(|| plan.ingress_ports.clone());
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

#[cfg(test)]
mod tests {
    use agents_core::{ContainerId, ProvisionRequest, ResourceLimits, SessionId};
    use agents_guest::{Connection, protocol::FromGuest};
    use tokio::io::AsyncWriteExt;

    use super::*;

    const STATUS: &str = "Uid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t\nCapInh:\t0\nCapPrm:\t0\nCapEff:\t0\n\
                          CapBnd:\t0\nCapAmb:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    /// As the guest program of the recorded container would report.
    const REPORT: &[(&str, &str)] = &[
        ("status", STATUS),
        (
            "mountinfo",
            "1 0 0:1 / / ro - overlay overlay ro\n2 1 0:2 / /output rw - tmpfs tmpfs rw\n3 1 0:3 / /.agents ro - ext4 x ro\n",
        ),
        ("root_read_only", "1"),
        ("memory_max", "67108864"),
        ("cpu_max", "50000 100000"),
        ("pids_max", "32"),
        ("nofile", "512"),
        ("net_dev", "a\nb\n lo: 0\n"),
        ("space /output", "8388608 8388608"),
        ("ns pid", "pid:[1]"),
        ("ns mnt", "mnt:[1]"),
        ("ns net", "net:[1]"),
        ("ns ipc", "ipc:[1]"),
        ("ns uts", "uts:[1]"),
    ];

    async fn report(changed: &[(&str, &str)]) -> Report {
        let mut fields: std::collections::BTreeMap<_, _> = REPORT.iter().copied().collect();
        fields.extend(changed.iter().copied());
        let fields = fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let (host, mut guest) = tokio::io::duplex(64 << 10);
        let mut bytes = Vec::new();
        FromGuest::<Vec<u8>>::Report(fields).encode(&mut bytes);
        guest.write_all(&bytes).await.unwrap();
        let (reader, writer) = tokio::io::split(host);
        Connection::new(reader, writer).report().await.unwrap()
    }

    fn request() -> ProvisionRequest {
        let limits = ResourceLimits::none()
            .with_memory_bytes(Some(64 << 20))
            .with_cpu_cores(Some(0.5))
            .with_pids(Some(32))
            .with_disk_bytes(Some(8 << 20));
        ProvisionRequest::new(SessionId::generate(), ContainerId::new("c").unwrap(), "alpine")
            .with_resources(limits)
            .with_mounts([agents_core::Mount::scratch("/output")])
    }

    fn inspected(json: &str) -> View {
        serde_json::from_str(json).unwrap()
    }

    /// What differs from the request.
    fn differences(report: &Report, inspected: &View, kernel: Option<Limited>) -> Vec<String> {
        let request = request();
        let plan = Plan::new(&request, None).unwrap();
        let rows = combine(&plan, report, inspected, kernel).compare(&request);
        rows.into_iter().filter(|row| !row.holds).map(|row| row.field).collect()
    }

    const ANSWERS: [(&str, &str); 3] = [
        ("4.3", include_str!("../tests/data/inspect-4.3.json")),
        ("5", include_str!("../tests/data/inspect-5.json")),
        ("6", include_str!("../tests/data/inspect-6.json")),
    ];

    #[tokio::test]
    async fn the_answers_of_every_version_are_understood() {
        let report = report(&[]).await;
        for (version, json) in ANSWERS {
            let view = inspected(json);
            assert_eq!(differences(&report, &view, None), [""; 0], "podman {version}");
            assert_eq!(
                crate::model::state(view.text("/State/Status").unwrap()),
                agents_core::ContainerState::Running
            );
            assert_eq!(
                crate::model::created(&view).to_string(),
                "2026-11-24T08:55:28.640345369Z"
            );
            assert!(view.text("/State/CgroupPath").is_some() && view.number("/State/Pid").is_some());
        }
    }

    #[tokio::test]
    async fn what_either_side_does_not_confirm_is_not_in_force() {
        let good = inspected(ANSWERS[0].1);
        let kernel = |memory_bytes| {
            Some(Limited {
                memory_bytes,
                ..Limited::default()
            })
        };
        for (field, value, expected) in [
            ("memory_max", "134217728", "memory_mb"),
            ("cpu_max", "100000 100000", "cpu_cores"),
            ("pids_max", "64", "pids_limit"),
            ("memory_max", "max", "memory_mb"),
            ("cpu_max", "max 100000", "cpu_cores"),
            ("cpu_max", "-1 100000", "cpu_cores"),
            ("pids_max", "max", "pids_limit"),
            ("space /output", "16777216 1", "disk_mb"),
            ("root_read_only", "0", "read_only_rootfs"),
            ("net_dev", "a\nb\n eth0: 0\n", "network.disabled"),
            ("status", "Uid:\t0\n", "cap_add"),
            ("ns pid", "pid:[4026531836]", "namespaces"),
        ] {
            let differ = differences(&report(&[(field, value)]).await, &good, None);
            assert!(differ.iter().any(|differ| differ == expected), "{field}: {differ:?}");
        }
        let report = report(&[]).await;
        assert_eq!(differences(&report, &good, kernel(Some(1 << 40))), ["memory_mb"]);
        assert_eq!(differences(&report, &good, kernel(Some(1 << 20))), [""; 0]);
        for (old, new, expected) in [
            ("\"Memory\": 67108864", "\"Memory\": 0", "memory_mb"),
            ("\"PidsLimit\": 32", "\"PidsLimit\": -1", "pids_limit"),
            (
                "\"ReadonlyRootfs\": true",
                "\"ReadonlyRootfs\": false",
                "read_only_rootfs",
            ),
            ("\"no-new-privileges\"", "\"label=disable\"", "no_new_privileges"),
            (
                "\"EffectiveCaps\": null",
                "\"EffectiveCaps\": [\"CAP_SYS_ADMIN\"]",
                "cap_add",
            ),
            ("\"Privileged\": false", "\"Privileged\": true", "cap_add"),
            (
                "\"NetworkMode\": \"none\"",
                "\"NetworkMode\": \"host\"",
                "network.disabled",
            ),
            ("\"PidMode\": \"private\"", "\"PidMode\": \"host\"", "namespaces"),
        ] {
            let json = ANSWERS[0].1.replacen(old, new, 1);
            assert_ne!(json, ANSWERS[0].1, "{old}");
            let differ = differences(&report, &inspected(&json), None);
            assert!(differ.iter().any(|differ| differ == expected), "{new}: {differ:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_anything_confirms_nothing() {
        let differ = differences(&report(&[]).await, &View::default(), None);
        for field in [
            "cap_add",
            "no_new_privileges",
            "read_only_rootfs",
            "memory_mb",
            "network.disabled",
        ] {
            assert!(differ.iter().any(|differ| differ == field), "{field}: {differ:?}");
        }
    }
}
