//! The cases about containers as such.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use agents_core::{
    ContainerHandle, ContainerId, ContainerState, CopyFromRequest, Error, ErrorKind, ExecRequest, Mount, NetworkConfig,
    Process, ProvisionRequest, ResourceLimits, Secret, SecretBytes, SecurityConfig, SessionId, StartRequest, Support,
    User,
};
use futures_util::StreamExt;

use super::{Fx, MIB, RuntimeFixture, SOON, exited, first_line, kind_of, shell, stdout, succeeded, to_the_end};
use crate::{
    Case, CaseResult, Failure,
    case::{cases, failed},
};

/// The cases about containers as such.
pub fn lifecycle_cases() -> Vec<Case<RuntimeFixture>> {
    cases![
        identity_and_availability,
        what_is_undeclared_is_refused,
        everything_that_is_compared_holds,
        a_name_in_use_already_exists,
        a_container_is_found_until_it_is_destroyed,
        states_follow_the_main_process,
        an_unknown_image_is_not_found,
        a_missing_bind_source_is_not_found,
        a_dropped_provision_leaves_nothing,
        reap_leaves_living_containers_alone,
        a_container_can_be_used_by_who_finds_it,
        destroy_ends_what_runs,
        containers_do_not_see_each_other,
    ]
}

async fn identity_and_availability(fx: Fx) -> CaseResult {
    let info = fx.runtime.info();
    assert!(info.adapter_type.starts_with(|c: char| c.is_ascii_lowercase()));
    assert_eq!(fx.runtime.info(), info, "info must not change");
    let availability = fx.runtime.check_availability().await?;
    assert!(availability.available, "{availability:?}");
    for (name, support) in fx.capabilities().entries() {
        if let Support::Refused { reason, remedy } = support {
            assert!(
                !reason.is_empty() && !remedy.is_empty(),
                "{name} is refused without reason or remedy"
            );
        }
    }
    Ok(())
}

async fn what_is_undeclared_is_refused(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none;
    let security = SecurityConfig::default;
    let profile = || Some(PathBuf::from("/no/such/profile.json"));
    let secret = || Secret {
        name: "s".to_owned(),
        value: SecretBytes::new("x"),
    };
    let base = || fx.request();
    let asks: Vec<(&str, &str, ProvisionRequest)> = vec![
        (
            "memory_limit",
            "memory_mb",
            base().with_resources(limits().with_memory_bytes(Some(64 * MIB))),
        ),
        (
            "cpu_limit",
            "cpu_cores",
            base().with_resources(limits().with_cpu_cores(Some(1.0))),
        ),
        (
            "pids_limit",
            "pids_limit",
            base().with_resources(limits().with_pids(Some(64))),
        ),
        (
            "nofile_limit",
            "nofile",
            base().with_resources(limits().with_nofile(Some(64))),
        ),
        (
            "disk_limit",
            "disk_mb",
            base().with_resources(limits().with_disk_bytes(Some(64 * MIB))),
        ),
        ("network_isolation", "network.disabled", base()),
        (
            "egress_allow_list",
            "network.allowed_endpoints",
            base().with_network(NetworkConfig::disabled().with_allowed_endpoints(vec!["example.com:443".to_owned()])),
        ),
        (
            "ingress_ports",
            "network.ingress_ports",
            base().with_network(NetworkConfig::disabled().with_ingress_ports(vec![8080])),
        ),
        (
            "add_capabilities",
            "cap_add",
            base().with_security(security().with_capabilities(vec!["CAP_CHOWN".to_owned()])),
        ),
        ("seccomp", "seccomp", base()),
        (
            "seccomp_profile",
            "seccomp_profile",
            base().with_security(security().with_seccomp_profile(profile())),
        ),
        (
            "user",
            "container_user",
            base().with_security(security().with_user(Some(User { uid: 1234, gid: 1234 }))),
        ),
        ("read_only_rootfs", "read_only_rootfs", base()),
        (
            "writable_rootfs",
            "read_only_rootfs",
            base().with_security(security().with_read_only_rootfs(false)),
        ),
        (
            "bind_mounts",
            "/mounted",
            base().with_mounts([Mount::bind(&fx.host_dir, "/mounted")]),
        ),
        (
            "writable_bind_mounts",
            "/mounted",
            base().with_mounts([Mount::bind(&fx.host_dir, "/mounted").writable()]),
        ),
        ("secrets", "tmpfs_secrets", base().with_secrets([secret()])),
        (
            "gpus",
            "gpus",
            base().with_security(security().with_gpus(Some("all".to_owned()))),
        ),
        (
            "tty",
            "tty",
            base().with_process(Some(shell("true").with_tty(Some((24, 80))))),
        ),
        ("main_process", "process", base().with_process(Some(shell("true")))),
    ];
    let capabilities = fx.capabilities();
    let refused: BTreeSet<_> = capabilities
        .entries()
        .into_iter()
        .filter_map(|(name, support)| (!support.is_enforced()).then_some(name))
        .collect();
    for (capability, field, request) in asks {
        if !refused.contains(capability) {
            continue;
        }
        fx.remember(&request.name);
        let Err(error) = fx.try_provision(request).await else {
            return failed(format!("{capability} is not declared, and a request for it was taken"));
        };
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{capability}: {error}");
        assert!(error.message().contains(field), "{error} does not name {field}");
    }
    let class = base().with_security(security().with_runtime_class(Some("no-such-class".to_owned())));
    let error = fx.try_provision(class).await;
    assert_eq!(kind_of(error), Some(ErrorKind::Unsupported), "an unknown runtime class");
    assert_eq!(fx.of_namespace().await?, [], "something was created before the refusal");
    Ok(())
}

async fn everything_that_is_compared_holds(fx: Fx) -> CaseResult {
    let capabilities = fx.capabilities();
    let limit = |support: &Support, value: u64| support.is_enforced().then_some(value);
    let limits = ResourceLimits::none()
        .with_memory_bytes(limit(&capabilities.memory_limit, 256 * MIB))
        .with_pids(limit(&capabilities.pids_limit, 64))
        .with_nofile(limit(&capabilities.nofile_limit, 128))
        .with_disk_bytes(limit(&capabilities.disk_limit, 64 * MIB))
        .with_cpu_cores(capabilities.cpu_limit.is_enforced().then_some(0.5));
    let request = fx
        .request()
        .with_resources(limits)
        .with_mounts([Mount::tmpfs(MIB, "/tmp"), Mount::scratch("/work")]);
    let verified = fx.provision(request).await?;
    for field in [
        "cap_add",
        "no_new_privileges",
        "seccomp",
        "read_only_rootfs",
        "mount /tmp",
        "network.disabled",
        "namespaces",
    ] {
        let row = verified.comparison.iter().find(|row| row.field == field);
        assert!(row.is_some_and(|row| row.holds), "{field}: {row:?}");
    }
    Ok(())
}

async fn a_name_in_use_already_exists(fx: Fx) -> CaseResult {
    let request = fx.request();
    let first = fx.provision(request.clone()).await?.handle;
    let second = fx.try_provision(request).await;
    assert_eq!(kind_of(second), Some(ErrorKind::AlreadyExists));
    succeeded(&fx.sh(&first, "true").await?)?;
    Ok(())
}

async fn a_container_is_found_until_it_is_destroyed(fx: Fx) -> CaseResult {
    let labelled = |value: &str| {
        fx.request()
            .with_labels([("testkit-part".to_owned(), value.to_owned())])
    };
    let (one, two) = (labelled("one"), labelled("two"));
    let (first, second) = (fx.provision(one.clone()).await?.handle, fx.provision(two).await?.handle);
    assert_eq!(first.session_id, one.session_id);

    let found = fx.of_namespace().await?;
    let ids: BTreeSet<_> = found.iter().map(|info| &info.handle.id).collect();
    assert_eq!(ids, [&first.id, &second.id].into());
    let found = fx.runtime.list(&one.labels).await?;
    assert_eq!(found.len(), 1, "all labels must match");
    let inspected = fx.runtime.inspect(&first.id).await?;
    for info in [&found[0], &inspected] {
        assert_eq!(info.handle, first);
        assert_eq!(info.state, ContainerState::Running, "an idle container runs");
        for (key, value) in &one.labels {
            assert_eq!(info.labels.get(key), Some(value));
        }
    }
    let nothing = [("testkit-part".to_owned(), "three".to_owned())].into();
    assert_eq!(fx.runtime.list(&nothing).await?, []);

    fx.runtime.destroy(&first.id).await?;
    fx.runtime.destroy(&first.id).await?;
    assert_eq!(kind_of(fx.runtime.inspect(&first.id).await), Some(ErrorKind::NotFound));
    let exec = fx.runtime.exec(ExecRequest::new(first.clone(), shell("true"))).await;
    assert_eq!(kind_of(exec), Some(ErrorKind::NotFound));
    assert_eq!(kind_of(fx.runtime.stats(&first).await), Some(ErrorKind::NotFound));
    let copy = fx.runtime.copy_from(CopyFromRequest::new(first, "/output")).await;
    assert_eq!(kind_of(copy), Some(ErrorKind::NotFound));
    assert_eq!(fx.of_namespace().await?.len(), 1);
    fx.runtime
        .destroy(&ContainerId::new("testkit-was-never-there")?)
        .await?;
    Ok(())
}

async fn states_follow_the_main_process(fx: Fx) -> CaseResult {
    let process = shell("echo ready; read line; exit 3").with_stdin(true);
    let request = fx.request().with_process(Some(process));
    let container = fx.provision(request).await?.handle;
    let state = async || Ok::<_, Error>(fx.runtime.inspect(&container.id).await?.state);
    assert_eq!(state().await?, ContainerState::Created);
    let exec = fx
        .runtime
        .exec(ExecRequest::new(container.clone(), shell("true")))
        .await;
    assert_eq!(kind_of(exec), Some(ErrorKind::Conflict), "exec before start");
    let mut session = fx.runtime.start(StartRequest::new(container.clone())).await?;
    assert_eq!(first_line(&mut session).await?, "ready");
    assert_eq!(state().await?, ContainerState::Running);
    drop(session.take_stdin());
    assert_eq!(to_the_end(session).await?.1, exited(3));
    assert_eq!(state().await?, ContainerState::Exited);
    let exec = fx
        .runtime
        .exec(ExecRequest::new(container.clone(), shell("true")))
        .await;
    assert_eq!(kind_of(exec), Some(ErrorKind::Conflict), "exec after the end");
    Ok(())
}

async fn an_unknown_image_is_not_found(fx: Fx) -> CaseResult {
    let mut request = fx.request().with_pull_policy(agents_core::ImagePullPolicy::Never);
    request.image = "/no/such/image".to_owned();
    // Not every runtime takes a path for an image, and none has this one.
    let kind = kind_of(fx.try_provision(request).await);
    assert!(
        matches!(
            kind,
            Some(ErrorKind::NotFound | ErrorKind::ConfigInvalid | ErrorKind::Unsupported)
        ),
        "{kind:?}"
    );
    assert_eq!(fx.of_namespace().await?, []);
    Ok(())
}

async fn a_missing_bind_source_is_not_found(fx: Fx) -> CaseResult {
    fx.needs("bind_mounts", |c| &c.bind_mounts)?;
    let missing = fx.host_dir.join("missing");
    let request = fx.request().with_mounts([Mount::bind(&missing, "/mounted")]);
    let Err(error) = fx.try_provision(request).await else {
        return failed("a mount source that does not exist was taken");
    };
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("missing"), "{error} does not name the path");
    assert!(!missing.exists(), "the source was created");
    assert_eq!(fx.of_namespace().await?, []);
    Ok(())
}

async fn a_dropped_provision_leaves_nothing(fx: Fx) -> CaseResult {
    let probe = fx.request();
    fx.provision(probe).await?;
    for wait in [0, 1, 2, 4, 8, 16, 64] {
        let request = fx.request();
        fx.remember(&request.name);
        let provision = fx.try_provision(request.clone());
        let ended = tokio::time::timeout(Duration::from_millis(wait), provision).await;
        if let Ok(verified) = ended {
            fx.runtime.destroy(&verified?.handle.id).await?;
            continue;
        }
        let begun = Instant::now();
        while fx.of_namespace().await?.len() > 1 {
            if begun.elapsed() > SOON {
                return failed(format!(
                    "a provision that was dropped after {wait} ms left its container behind"
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

async fn reap_leaves_living_containers_alone(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    fx.runtime.reap().await?;
    succeeded(&fx.sh(&container, "true").await?)
}

async fn a_container_can_be_used_by_who_finds_it(fx: Fx) -> CaseResult {
    let request = fx.request();
    let labels = request.labels.clone();
    fx.provision(request).await?;
    let found = fx.runtime.list(&labels).await?.remove(0).handle;
    let json = serde_json::to_string(&found).map_err(|error| Failure::Failed(error.to_string()))?;
    let handle: ContainerHandle = serde_json::from_str(&json).map_err(|error| Failure::Failed(error.to_string()))?;
    assert_eq!(stdout(&fx.sh(&handle, "echo again").await?), "again\n");
    Ok(())
}

async fn destroy_ends_what_runs(fx: Fx) -> CaseResult {
    let (container, mut session) = fx
        .begin(
            fx.request(),
            shell("trap '' TERM; echo ready; while :; do sleep 1; done"),
            None,
        )
        .await?;
    first_line(&mut session).await?;
    let begun = Instant::now();
    fx.runtime.destroy(&container.id).await?;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "destroy waited for a grace period"
    );
    let ended = tokio::time::timeout(SOON, async { while session.next().await.is_some() {} }).await;
    assert!(ended.is_ok(), "the stream goes on after its container is gone");
    Ok(())
}

async fn containers_do_not_see_each_other(fx: Fx) -> CaseResult {
    let (one, two) = (fx.idle().await?, fx.idle().await?);
    let mark = SessionId::generate();
    let process = Process::new([
        "sh",
        "-c",
        // Waits without a child, which would show the same command line between its fork and its exec.
        "echo x > /output/mine; echo ready; read line",
        mark.as_str(),
    ])
    .with_stdin(true);
    let mut session = fx.runtime.exec(ExecRequest::new(one.clone(), process)).await?;
    first_line(&mut session).await?;
    let seen = format!("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c '^{mark}$'");
    // The grep finds no line of itself: the mark is part of a longer word there.
    assert_eq!(stdout(&fx.sh(&one, &seen).await?).trim(), "1");
    assert_eq!(stdout(&fx.sh(&two, &seen).await?).trim(), "0");
    assert_eq!(fx.sh(&two, "test -e /output/mine").await?.exit, exited(1));
    if fx.own_kernel() {
        return Ok(());
    }
    for namespace in ["pid", "net", "ipc", "mnt", "uts"] {
        let own = format!("readlink /proc/self/ns/{namespace}");
        let (first, second) = (stdout(&fx.sh(&one, &own).await?), stdout(&fx.sh(&two, &own).await?));
        assert!(
            !first.is_empty() && first != second,
            "{namespace}: {first:?} and {second:?}"
        );
    }
    Ok(())
}
