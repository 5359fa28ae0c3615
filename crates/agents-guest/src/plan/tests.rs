//! Tests of the planning.

use agents_core::{Mount, ResourceLimits, Secret, SecretBytes, SecurityConfig};

use super::*;

fn request() -> ProvisionRequest {
    let session = SessionId::generate();
    let name = ContainerId::new(format!("a_b.{session}")).unwrap();
    ProvisionRequest::new(session, name, "busybox").with_mounts([Mount::scratch("/output"), Mount::scratch("/work")])
}

#[test]
fn shares_of_the_writable_space_never_exceed_it() {
    for bytes in [1u64 << 20, (64 << 20) + 1, 10_000_000, 12_288] {
        let limits = ResourceLimits::none().with_disk_bytes(Some(bytes));
        let plan = Plan::new(&request().with_resources(limits), None).unwrap();
        let sizes: Vec<u64> = plan
            .mounts
            .iter()
            .filter_map(|mount| match mount.source {
                PlannedSource::Tmpfs { size_bytes, .. } => size_bytes,
                PlannedSource::Bind { .. } => None,
            })
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(
            sizes.iter().sum::<u64>() <= bytes && sizes.iter().all(|size| size % 4096 == 0),
            "{sizes:?}"
        );
    }
}

#[test]
fn places_of_the_runtime_are_refused() {
    for place in [
        "/proc/x",
        "/dev",
        "/sys/fs",
        "/run",
        "/run/secrets/x",
        "/.agents",
        "/.agents/guest",
    ] {
        let bad = request().with_mounts([Mount::tmpfs(1, place)]);
        let error = Plan::new(&bad, None).unwrap_err();
        assert!(
            error.kind() == ErrorKind::ConfigInvalid && error.message().contains(place),
            "{error}"
        );
    }
    assert!(Plan::new(&request().with_mounts([Mount::tmpfs(1, "/device")]), None).is_ok());
}

#[test]
fn secrets_have_memory_and_are_not_in_the_plan() {
    let secret = Secret {
        name: "token".to_owned(),
        value: SecretBytes::new("hunter2"),
    };
    let plan = Plan::new(&request().with_secrets([secret]), None).unwrap();
    let mount = plan
        .mounts
        .iter()
        .find(|mount| mount.destination == crate::SECRETS_DIR)
        .unwrap();
    let options = mount.tmpfs_options().unwrap();
    assert!(options.contains(&"noexec".to_owned()), "{options:?}");
    assert!(!format!("{plan:?}").contains("hunter2"));
}

#[test]
fn the_user_is_never_root_by_default() {
    let default = Some(DEFAULT_USER);
    for (text, expected) in [
        ("", default),
        ("root", default),
        ("0", default),
        ("0:5", default),
        ("5:0", default),
        ("7", Some(User { uid: 7, gid: 7 })),
        ("7:8", Some(User { uid: 7, gid: 8 })),
        ("nobody", None),
        ("7:staff", None),
    ] {
        assert_eq!(Plan::new(&request(), Some(text)).unwrap().user, expected, "{text}");
    }
    let root = Some(User { uid: 0, gid: 0 });
    let asked = request().with_security(SecurityConfig::default().with_user(root));
    assert_eq!(Plan::new(&asked, Some("7")).unwrap().user, root);
}

#[test]
fn limits_are_rounded_down() {
    assert_eq!(
        (whole_pages(8191), whole_pages(1), whole_pages(8192)),
        (4096, 4096, 8192)
    );
    assert_eq!(CpuQuota::of_cores(0.5).quota_us, 50_000);
    assert_eq!(CpuQuota::of_cores(0.000_01).quota_us, 1000);
}

#[test]
fn labels_stand_for_the_container() {
    let request = request().with_labels([("a".to_owned(), "b".to_owned())]);
    let plan = Plan::new(&request, None).unwrap();
    let found = container_info(&plan.name, &plan.labels, ContainerState::Running, Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(found.handle.session_id, request.session_id);
    assert_eq!((found.image.as_str(), found.labels["a"].as_str()), ("busybox", "b"));
    assert!(
        container_info(
            &plan.name,
            &BTreeMap::new(),
            ContainerState::Running,
            Timestamp::UNIX_EPOCH
        )
        .is_none()
    );
    assert!(plan.hostname.len() <= 63 && !plan.hostname.contains(['_', '.']));
}

fn report(extra: &[(&str, &str)]) -> Report {
    let mut fields = vec![("status", "Gid:\t1000\t1000\t1000\t1000\nGroups:\t1000\n")];
    fields.extend_from_slice(extra);
    Report::new(
        fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    )
}

#[test]
fn what_differs_inside_is_found() {
    let limits = ResourceLimits::none().with_disk_bytes(Some(2 << 20));
    let plan = Plan::new(&request().with_resources(limits), None).unwrap();
    let line = |at: &str, kind: &str| format!("1 0 0:1 / {at} rw,nosuid - {kind} {kind} rw\n");
    let good = [
        line("/output", "tmpfs"),
        line("/work", "tmpfs"),
        line("/dev/shm", "tmpfs"),
    ]
    .concat();
    let sizes = [("space /output", "1048576 1048576"), ("space /work", "1048576 0")];
    let report = |extra: &[(&str, &str)]| {
        let writable = [("writable /output", "1"), ("writable /work", "1")];
        report(&[&writable[..], extra].concat())
    };
    let as_planned = report(&[("mountinfo", &good), sizes[0], sizes[1]]);
    plan.check(&as_planned).unwrap();
    assert_eq!(plan.effective(&as_planned).disk_bytes, Some(2 << 20));
    let bad = [
        (
            report(&[("mountinfo", &good), sizes[0], sizes[1], ("writable /work", "0")]),
            "may not write to /work",
        ),
        (report(&[("mountinfo", &good), sizes[0]]), "/work"),
        (
            report(&[("mountinfo", &good), sizes[0], ("space /work", "1048577 0")]),
            "/work",
        ),
        (
            report(&[("mountinfo", &line("/output", "tmpfs")), sizes[0], sizes[1]]),
            "/work is no mount",
        ),
        (
            report(&[
                ("mountinfo", &[good.clone(), line("/work", "ext4")].concat()),
                sizes[0],
                sizes[1],
            ]),
            "/work is a ext4",
        ),
        (
            report(&[
                ("mountinfo", &[good.clone(), line("/data", "ext4")].concat()),
                sizes[0],
                sizes[1],
            ]),
            "/data can be written to",
        ),
        (
            report(&[
                ("status", "Gid:\t5\t5\t5\t5\nGroups:\t5 0\n"),
                ("mountinfo", &good),
                sizes[0],
                sizes[1],
            ]),
            "further groups [0]",
        ),
    ];
    for (report, what) in bad {
        let error = plan.check(&report).unwrap_err();
        assert!(
            error.kind() == ErrorKind::EnforcementMismatch && error.message().contains(what),
            "{what}: {error}"
        );
    }
}

#[test]
fn images_of_the_embedded_runtime_are_not_looked_for_in_a_registry() {
    for image in ["host", "/srv/root", "./root", "oci:layout", "docker-archive:x.tar"] {
        let error = check_engine_image(image).unwrap_err();
        assert!(error.message().contains("--runtime native"), "{error}");
    }
    for image in ["alpine", "localhost/host:1", "example.com/a/b@sha256:00"] {
        check_engine_image(image).unwrap();
    }
}
