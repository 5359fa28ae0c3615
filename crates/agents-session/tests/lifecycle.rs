//! What a run does, step by step, over scripted fakes.

mod support;

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use agents_core::{
    AuditClass, AuditSettings, ErrorKind, EventType, Exit, Finding, Mount, Requirement, Secret, SecretBytes, SessionId,
};
use agents_session::{
    Agent, CancellationToken, Engine, Input, Observer, OutputStream, Phase, PhaseState, RunStatus, SessionRequest,
    SessionStatus,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use support::*;

#[tokio::test]
async fn a_good_run_completes_and_leaves_nothing_but_its_record() {
    let output = archive(&[("report.txt", b"fine"), ("deep/er/data.bin", &[0, 1, 2])]);
    let world = World::new([Script::steps([Step::Out("hello\n"), Step::Err("oops\n"), exit(0)]).output(output)]);
    let result = world.engine.run(request()).await.unwrap();
    assert_eq!(result.status, RunStatus::Completed, "{result:?}");
    assert_eq!(result.exit_code(), Some(0));
    assert_eq!(result.stdout.to_text(), "hello\n");
    assert_eq!(result.stderr.to_text(), "oops\n");
    let id = &result.session_id;
    assert_eq!(
        result.artifacts()["deep/er/data.bin"],
        format!("fake://{id}/deep/er/data.bin")
    );
    assert_eq!(world.storage.content("report.txt").unwrap(), b"fine");
    assert_eq!(result.usage.cpu_seconds, Some(0.5));
    let json = result.to_json();
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "agent_id",
        "artifact_details",
        "artifacts",
        "audit",
        "ending",
        "error",
        "error_kind",
        "exit_code",
        "output",
        "refused_artifacts",
        "session_id",
        "status",
        "stderr",
        "stderr_truncated",
        "stdout",
        "stdout_truncated",
        "timings_ms",
        "usage",
    ];
    assert_eq!(keys, expected);
    assert_eq!(json["ending"], json!({"kind": "exited", "code": 0}));
    assert_eq!((&json["error"], &json["error_kind"]), (&json!(null), &json!(null)));
    for phase in ["validate", "provision", "run", "collect", "destroy", "total"] {
        assert!(json["timings_ms"][phase].as_f64().unwrap() > 0.0, "{phase}");
    }
    use EventType::*;
    assert_eq!(
        world.audit.types(),
        [
            SessionCreated,
            PolicyValidated,
            ContainerCreated,
            AgentLaunched,
            ContainerStarted,
            AgentStarted,
            ContainerStopped,
            AgentCompleted,
            ArtifactStored,
            ArtifactStored,
            ContainerDestroyed,
            SessionClosed,
        ]
    );
    let succeeded = |name: &str| (name.to_owned(), "succeeded".to_owned());
    let operations = [
        "policy.enforce",
        "policy.validate",
        "runtime.provision",
        "runtime.start",
        "runtime.copy_from",
        "storage.store",
        "storage.store",
        "runtime.destroy",
    ];
    assert_eq!(world.audit.operations(), operations.map(succeeded));
    let effective = &world.audit.of(ContainerCreated)[0].payload["effective"];
    assert!(
        effective
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["field"] == "read_only_rootfs")
    );
    assert!(world.runtime.containers().is_empty());
    assert!(world.active().is_empty());
    let sessions = world.engine.list(true).await.unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].status, SessionStatus::Completed);
    assert_eq!(sessions[0].command, ["do", "it"]);
    assert!(world.engine.list(false).await.unwrap().is_empty());
    let inspection = world.engine.inspect(id).await.unwrap();
    assert_eq!(inspection.result.unwrap()["artifacts"], json["artifacts"]);
    let log: Vec<_> = world.engine.logs(id, true).await.unwrap().collect().await;
    let log: Vec<_> = log
        .into_iter()
        .map(|chunk| chunk.unwrap())
        .map(|chunk| (chunk.stream, chunk.bytes))
        .collect();
    assert_eq!(
        log,
        [
            (OutputStream::Stdout, "hello\n".into()),
            (OutputStream::Stderr, "oops\n".into())
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_needs_few_durable_appends() {
    let world = World::new([Script::steps([Step::Out("x"), exit(0)])]);
    let result = world.engine.run(request()).await.unwrap();
    assert_eq!(result.status, RunStatus::Completed, "{result:?}");
    // Before provision, start and copy, beside destroy, and at the end.
    assert_eq!(world.audit.calls.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn the_container_is_what_the_policy_says() {
    let world = World::new([Script::steps([])]);
    let workspace = world.dir.path().join("work");
    std::fs::create_dir(&workspace).unwrap();
    let policy = policy(|spec| {
        spec.env_vars = [("A", "policy"), ("B", "policy"), ("C", "policy")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        spec.blocked_env_vars = vec!["C".to_owned(), "PATH".to_owned()];
        spec.allowed_env_vars = vec![
            "CARGO_PKG_NAME".to_owned(),
            "PATH".to_owned(),
            "NOT_SET_AT_ALL".to_owned(),
        ];
        spec.entrypoint = Some(vec!["env".to_owned(), "-i".to_owned()]);
        spec.readonly_mounts = vec!["/usr:/host/usr".to_owned()];
        spec.container_user = None;
    });
    let agent = agent()
        .with_workspace(Some(workspace.clone()))
        .with_env([
            ("A".to_owned(), "agent".to_owned()),
            ("ISOLATED_AGENTS_AGENT_ID".to_owned(), "forged".to_owned()),
        ])
        .with_mounts([Mount::scratch("/scratch")]);
    let id = SessionId::new("mine").unwrap();
    let request = SessionRequest::new(agent, policy).with_session_id(Some(id.clone()));
    let result = world.engine.run(request).await.unwrap();
    assert_eq!(result.session_id, id);
    let requests = world.runtime.requests.lock().unwrap();
    let made = &requests[0];
    let var = |name: &str| {
        made.env
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    assert_eq!(
        (var("A"), var("B"), var("C"), var("PATH")),
        (Some("agent"), Some("policy"), None, None)
    );
    assert_eq!(var("CARGO_PKG_NAME"), Some("agents-session"));
    assert_eq!(var("ISOLATED_AGENTS_AGENT_ID"), Some("tester"));
    assert_eq!(var("ISOLATED_AGENTS_SESSION_ID"), Some("mine"));
    assert_eq!(made.process.as_ref().unwrap().command, ["env", "-i", "do", "it"]);
    assert_eq!(made.working_dir, "/workspace");
    let mounts: Vec<_> = made
        .mounts
        .iter()
        .map(|mount| (mount.destination.as_str(), mount.read_only))
        .collect();
    let expected = [
        ("/workspace", false),
        ("/output", false),
        ("/tmp", false),
        ("/host/usr", true),
        ("/scratch", false),
    ];
    assert_eq!(mounts, expected);
    assert_eq!(made.resources.memory_bytes, Some(512 << 20));
    assert_eq!(made.labels["isolated-agents.session"], "mine");
    assert_eq!(made.labels["isolated-agents.agent"], "tester");
    assert_eq!(made.labels["isolated-agents.state"].len(), 16);
}

#[tokio::test]
async fn an_identifier_is_used_once() {
    let world = World::new([]);
    let request = || request().with_session_id(Some(SessionId::new("once").unwrap()));
    world.engine.run(request()).await.unwrap();
    let error = world.engine.run(request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(world.runtime.requests.lock().unwrap().len(), 1);
    assert!(world.active().is_empty());
}

#[tokio::test]
async fn every_ending_is_told_and_put_on_record() {
    use EventType::{AgentFailed, AgentTimeout};
    let code = Some(1);
    let cases = [
        (Exit::Exited { code: 3 }, RunStatus::Failed, Some(3), None, AgentFailed),
        (
            Exit::Signalled { signal: 11 },
            RunStatus::Failed,
            Some(139),
            None,
            AgentFailed,
        ),
        (
            Exit::OutOfMemory,
            RunStatus::Failed,
            Some(137),
            Some("oom_kill"),
            AgentFailed,
        ),
        (
            Exit::PidsLimit { code },
            RunStatus::Failed,
            code,
            Some("pids"),
            AgentFailed,
        ),
        (
            Exit::DiskLimit { code },
            RunStatus::Failed,
            code,
            Some("disk"),
            AgentFailed,
        ),
        (Exit::Deadline, RunStatus::Failed, None, Some("timeout"), AgentTimeout),
        (
            Exit::RuntimeLost { reason: "gone".into() },
            RunStatus::Lost,
            None,
            None,
            AgentFailed,
        ),
    ];
    for (ending, status, code, violation, event) in cases {
        let world = World::new([Script::steps([Step::Exit(ending.clone())]).output(archive(&[("part", b"ial")]))]);
        let result = world.engine.run(request()).await.unwrap();
        assert_eq!(
            (&result.ending, result.status, result.exit_code()),
            (&ending, status, code)
        );
        assert!(
            result.error.as_ref().unwrap().starts_with("the agent "),
            "{:?}",
            result.error
        );
        assert_eq!(result.error_kind, None, "the agent failed by itself");
        let exceeded = world.audit.of(EventType::ResourceLimitExceeded);
        let violations: Vec<_> = exceeded
            .iter()
            .map(|event| event.payload["violation_type"].as_str().unwrap())
            .collect();
        assert_eq!(violations, violation.into_iter().collect::<Vec<_>>());
        assert_eq!(world.audit.of(event).len(), 1, "{ending:?}");
        let artifacts = if status == RunStatus::Lost { 0 } else { 1 };
        assert_eq!(
            result.artifacts.len(),
            artifacts,
            "partial artifacts are collected: {ending:?}"
        );
        assert!(world.runtime.containers().is_empty());
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_started_is_no_start() {
    let ending = Exit::NotStarted {
        reason: agents_core::StartFailure::NotFound,
        message: "no such command: do".to_owned(),
    };
    let world = World::new([Script::steps([Step::Exit(ending)])]);
    let result = world.engine.run(request()).await.unwrap();
    assert_eq!((result.status, result.exit_code()), (RunStatus::Failed, Some(127)));
    assert!(!world.audit.types().contains(&EventType::AgentStarted));
    assert!(
        world.runtime.quiesced.lock().unwrap().is_empty(),
        "there is nothing to collect"
    );
}

#[tokio::test]
async fn the_deadline_ends_the_agent_also_when_the_runtime_forgets_it() {
    let script = Script::steps([Step::Out("x"), Step::Forever]).output(archive(&[("part", b"ial")]));
    let forgetful = Script {
        ignores_deadline: true,
        ..script.clone()
    };
    let world = World::new([script, forgetful]);
    for _ in 0..2 {
        let policy = policy(|spec| spec.timeout_seconds = Some(0.2));
        let result = world.engine.run(SessionRequest::new(agent(), policy)).await.unwrap();
        assert_eq!(result.ending, Exit::Deadline);
        assert_eq!(result.artifacts.len(), 1);
        assert!(result.timings.phase(Phase::Run) >= Duration::from_millis(200));
    }
    assert_eq!(world.audit.of(EventType::AgentTimeout).len(), 2);
    // The start was put on record while the agent ran.
    let types = world.audit.types();
    let place = |event_type| types.iter().position(|known| *known == event_type).unwrap();
    assert!(place(EventType::AgentStarted) < place(EventType::ResourceLimitExceeded));
}

#[tokio::test]
async fn cancelling_kills_and_still_collects() {
    let script = Script::steps([Step::Out("working\n"), Step::Forever]).output(archive(&[("part", b"ial")]));
    let world = World::new([script]);
    let cancel = CancellationToken::new();
    let run = world.engine.run(request().with_cancel(cancel.clone()));
    let (result, ()) = tokio::join!(run, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
    });
    let result = result.unwrap();
    assert_eq!((&result.ending, result.status), (&Exit::Cancelled, RunStatus::Failed));
    assert_eq!(result.artifacts.len(), 1);
    let sessions = world.engine.list(true).await.unwrap();
    assert_eq!(sessions[0].status, SessionStatus::Terminated);
}

#[tokio::test]
async fn a_cancelled_agent_is_not_tried_again_whatever_it_exits_with() {
    let script = Script {
        unkillable: true,
        ..Script::steps([Step::Wait(Duration::from_millis(200)), exit(1)])
    };
    let world = World::new([script, Script::steps([])]);
    let cancel = CancellationToken::new();
    let policy = policy(|spec| spec.retry_count = 1);
    let run = world
        .engine
        .run(SessionRequest::new(agent(), policy).with_cancel(cancel.clone()));
    let (result, ()) = tokio::join!(run, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
    });
    let result = result.unwrap();
    assert_eq!((result.exit_code(), result.attempts), (Some(1), 1));
}

#[tokio::test]
async fn cancelling_the_collection_ends_it() {
    let world = World::new([Script::steps([exit(0)]).output(archive(&[("a", b"a")]))]);
    world.storage.hangs.store(true, Ordering::SeqCst);
    let cancel = CancellationToken::new();
    let run = world.engine.run(request().with_cancel(cancel.clone()));
    let run = tokio::time::timeout(Duration::from_secs(5), run);
    let (result, ()) = tokio::join!(run, async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel();
    });
    let result = result.expect("it ends").unwrap();
    assert_eq!((result.status, result.exit_code()), (RunStatus::Failed, Some(0)));
    assert_eq!(result.error_kind, Some(ErrorKind::Cancelled));
    assert!(world.runtime.containers().is_empty());
}

#[tokio::test]
async fn cancelling_while_the_container_is_made_leaves_none() {
    let script = Script {
        provision_delay: Duration::from_secs(60),
        ..Script::steps([])
    };
    let world = World::new([script]);
    let cancel = CancellationToken::new();
    let run = world.engine.run(request().with_cancel(cancel.clone()));
    let (result, ()) = tokio::join!(run, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancel.cancel();
    });
    let result = result.unwrap();
    assert_eq!(
        (&result.ending, result.error_kind),
        (&Exit::Cancelled, Some(ErrorKind::Cancelled))
    );
    assert!(world.runtime.containers().is_empty());
    assert_eq!(world.audit.types().last(), Some(&EventType::SessionClosed));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_outlives_its_kill_is_lost_and_destroyed() {
    let script = Script {
        unkillable: true,
        ..Script::steps([Step::Forever])
    };
    let world = World::new([script]);
    let cancel = CancellationToken::new();
    let run = world.engine.run(request().with_cancel(cancel.clone()));
    let (result, ()) = tokio::join!(run, async {
        while world.audit.of(EventType::AgentLaunched).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.cancel();
    });
    let result = result.unwrap();
    assert_eq!(result.status, RunStatus::Lost, "{result:?}");
    assert!(world.runtime.containers().is_empty());
}

#[tokio::test]
async fn a_failed_agent_is_tried_again_in_a_fresh_container() {
    let world = World::new([
        Script::steps([Step::Out("first"), exit(1)]).output(archive(&[("first", b"1")])),
        Script::steps([Step::Out("second"), Step::Exit(Exit::OutOfMemory)]).output(archive(&[("second", b"2")])),
        Script::steps([Step::Echo, Step::Out(" third"), exit(0)]).output(archive(&[("third", b"3")])),
        Script::steps([exit(0)]),
    ]);
    let policy = policy(|spec| spec.retry_count = 3);
    let agent = agent().with_stdin(Some(Input::Bytes("in".into())));
    let id = SessionId::new("again").unwrap();
    let request = SessionRequest::new(agent, policy).with_session_id(Some(id.clone()));
    let result = world.engine.run(request).await.unwrap();
    assert_eq!((result.status, result.attempts), (RunStatus::Completed, 3));
    assert_eq!(
        result.artifacts().keys().copied().collect::<Vec<_>>(),
        ["third"],
        "of the last attempt"
    );
    assert_eq!(
        result.stdout.to_text(),
        "in third",
        "of the last attempt, with the input from the start"
    );
    assert_eq!(result.usage.cpu_seconds, Some(1.5), "of all attempts");
    assert_eq!(
        *world.runtime.destroyed.lock().unwrap(),
        ["again", "again-2", "again-3"]
    );
    assert_eq!(world.audit.of(EventType::AgentRetry).len(), 2);
    assert_eq!(world.audit.of(EventType::ContainerDestroyed).len(), 3);
    let log: Vec<_> = world.engine.logs(&id, false).await.unwrap().collect().await;
    let log: Vec<u8> = log.into_iter().flat_map(|chunk| chunk.unwrap().bytes).collect();
    assert_eq!(log, b"firstsecondin third", "the log has all attempts");
}

#[tokio::test]
async fn retries_end_with_the_last_failure_and_never_follow_a_deadline() {
    let world = World::new([Script::steps([exit(1)]), Script::steps([exit(2)])]);
    let result = world
        .engine
        .run(SessionRequest::new(agent(), policy(|spec| spec.retry_count = 1)))
        .await
        .unwrap();
    assert_eq!((result.exit_code(), result.attempts), (Some(2), 2));
    let world = World::new([Script::steps([Step::Exit(Exit::Deadline)])]);
    let result = world
        .engine
        .run(SessionRequest::new(agent(), policy(|spec| spec.retry_count = 1)))
        .await
        .unwrap();
    assert_eq!((result.ending, result.attempts), (Exit::Deadline, 1));
}

#[tokio::test]
async fn no_record_no_action() {
    let output = archive(&[("a", b"a")]);
    // Every call of a retried run is refused, from there on for good or only for once.
    for refuse_count in [usize::MAX, 1] {
        for call in 1..=14 {
            let world = World::new([
                Script::steps([exit(1)]),
                Script::steps([Step::Out("x"), Step::Wait(Duration::from_millis(80)), exit(0)]).output(output.clone()),
            ]);
            world.audit.refuse_from.store(call, Ordering::SeqCst);
            world.audit.refuse_count.store(refuse_count, Ordering::SeqCst);
            let result = world
                .engine
                .run(SessionRequest::new(agent(), policy(|spec| spec.retry_count = 1)))
                .await
                .unwrap();
            let calls = world.audit.calls.load(Ordering::SeqCst);
            let what = format!("call {call} refused {refuse_count} times, of {calls}: {result:?}");
            assert!(world.runtime.containers().is_empty(), "{what}");
            // Nothing was done whose intent is not on record.
            let intended = |operation: &str| {
                let mut intents = world.audit.of(EventType::OperationIntended);
                intents.retain(|event| event.payload["operation"] == operation);
                intents.len()
            };
            assert!(
                world.runtime.requests.lock().unwrap().len() <= intended("runtime.provision"),
                "{what}"
            );
            assert!(
                world.runtime.quiesced.lock().unwrap().len() <= intended("runtime.copy_from"),
                "{what}"
            );
            assert!(
                world.storage.artifacts.lock().unwrap().len() <= intended("storage.store"),
                "{what}"
            );
            if calls < call {
                assert_eq!(result.status, RunStatus::Completed, "{what}");
                assert!(call > 9, "{what}");
            } else if refuse_count == usize::MAX {
                assert_ne!(result.status, RunStatus::Completed, "{what}");
            }
            if result.status == RunStatus::Completed {
                // What nobody waits for may be refused, and is there in the end all the same.
                let expected = ["runtime.provision", "runtime.start", "runtime.destroy"].map(|name| (name, 2));
                assert!(expected.iter().all(|(name, count)| intended(name) == *count), "{what}");
                assert!(
                    world
                        .audit
                        .operations()
                        .iter()
                        .all(|(_, outcome)| outcome == "succeeded"),
                    "{what}"
                );
            } else {
                let error = result.error.clone().unwrap();
                assert!(error.contains("nothing is done without a record"), "{what}");
            }
            if call == 1 {
                assert!(world.runtime.requests.lock().unwrap().is_empty(), "{what}");
                assert_eq!(result.status, RunStatus::Refused);
                assert_eq!(result.error_kind, Some(ErrorKind::ResourceExhausted));
            }
            if call == 2 {
                assert_eq!(result.attempts, 1);
                assert_eq!(result.status, RunStatus::Refused, "the agent was not started: {what}");
            }
            // What could not be put on record is put there by the next clean-up.
            world.audit.refuse_from.store(usize::MAX, Ordering::SeqCst);
            world.elsewhere().recover().await.unwrap();
            assert_eq!(world.audit.of(EventType::SessionClosed).len(), 1, "{what}");
            world.audit.operations();
            assert!(world.active().is_empty(), "{what}");
        }
    }
}

#[tokio::test]
async fn best_effort_goes_on_and_the_losses_are_told() {
    let all = |settings: AuditSettings, class| settings.with_class(class, Requirement::BestEffort);
    let settings = AuditClass::ALL.into_iter().fold(AuditSettings::new(), all);
    let world = World::new([Script::steps([exit(0)]).output(archive(&[("a", b"a")]))]);
    let config = world.engine.config().clone().with_audit(settings);
    let engine = Engine::new(world.engine.adapters().clone(), config).unwrap();
    world.audit.refuse_from.store(1, Ordering::SeqCst);
    let result = engine.run(request()).await.unwrap();
    assert_eq!(
        (result.status, result.artifacts.len()),
        (RunStatus::Completed, 1),
        "{result:?}"
    );
    assert!(world.audit.types().is_empty() && world.active().is_empty());

    let world = World::new([Script::steps([exit(0)]).output(archive(&[("a", b"a")]))]);
    let settings = AuditSettings::new().with_class(AuditClass::Store, Requirement::BestEffort);
    let config = world.engine.config().clone().with_audit(settings);
    let engine = Engine::new(world.engine.adapters().clone(), config).unwrap();
    world.audit.refuse_operation("storage.store");
    let result = engine.run(request()).await.unwrap();
    assert_eq!(result.status, RunStatus::Completed, "{result:?}");
    let closed = world.audit.of(EventType::SessionClosed);
    assert_eq!(
        closed[0].payload["audit_losses"],
        json!({"store": 1}),
        "the intent; the outcome comes later"
    );
}

#[tokio::test]
async fn a_key_that_was_not_resolved_is_no_key() {
    let world = World::new([]);
    let settings = AuditSettings::new().with_key(Some("env:AUDIT_KEY".parse().unwrap()));
    let config = world.engine.config().clone().with_audit(settings);
    let error = Engine::new(world.engine.adapters().clone(), config.clone()).unwrap_err();
    assert!(error.to_string().contains("env:AUDIT_KEY was not resolved"), "{error}");
    let key = Some(SecretBytes::new("sixteen bytes or more"));
    Engine::new(world.engine.adapters().clone(), config.clone().with_audit_key(key)).unwrap();
    let key = Some(SecretBytes::new("short"));
    Engine::new(world.engine.adapters().clone(), config.with_audit_key(key)).unwrap_err();
}

#[tokio::test]
async fn a_container_that_differs_from_the_request_is_destroyed() {
    let script = Script {
        mismatch: true,
        ..Script::steps([])
    };
    let world = World::new([script]);
    let result = world.engine.run(request()).await.unwrap();
    assert_eq!(result.status, RunStatus::Refused);
    assert_eq!(result.error_kind, Some(ErrorKind::EnforcementMismatch));
    assert!(result.error.unwrap().contains("read_only_rootfs"));
    assert!(world.runtime.containers().is_empty());
    assert_eq!(world.audit.of(EventType::SecurityViolation).len(), 1);
    assert!(!world.audit.types().contains(&EventType::AgentLaunched));
}

#[tokio::test]
async fn what_the_runtime_cannot_do_is_refused_with_its_own_words() {
    let script = Script {
        provision_error: Some(ErrorKind::NotFound),
        ..Script::steps([])
    };
    let world = World::new([script]);
    let result = world.engine.run(request()).await.unwrap();
    assert_eq!(
        (result.status, result.error_kind),
        (RunStatus::Refused, Some(ErrorKind::NotFound))
    );
    assert!(result.error.unwrap().contains("no image"));
    let policy = policy(|spec| spec.cap_add = vec!["NET_RAW".to_owned()]);
    let result = world.engine.run(SessionRequest::new(agent(), policy)).await.unwrap();
    assert_eq!(
        (result.status, result.error_kind),
        (RunStatus::Refused, Some(ErrorKind::Unsupported))
    );
    assert_eq!(
        world.runtime.requests.lock().unwrap().len(),
        1,
        "refused before anything was created"
    );
    assert_eq!(world.audit.of(EventType::PolicyViolation).len(), 1);
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_is_created() {
    let world = World::new([]);
    let missing = world.dir.path().join("missing");
    type Case = (&'static str, SessionRequest);
    let with_policy = |change: fn(&mut agents_core::PolicySpec)| SessionRequest::new(agent(), policy(change));
    let with_agent = |agent: Agent| SessionRequest::new(agent, agents_core::Policy::default());
    let cases: Vec<Case> = vec![
        (
            "pip_packages",
            with_policy(|spec| spec.pip_packages = vec!["x".to_owned()]),
        ),
        (
            "tmpfs_secrets.token",
            with_policy(|spec| {
                spec.tmpfs_secrets = [("token".to_owned(), "env:X".parse().unwrap())].into();
            }),
        ),
        (
            "network.disabled",
            with_policy(|spec| spec.network.allowed_endpoints = vec!["a.example:443".to_owned()]),
        ),
        ("network.disabled", with_policy(|spec| spec.network.disabled = false)),
        (
            "BLOCKED_ENV_VAR",
            SessionRequest::new(
                agent().with_env([("LD_PRELOAD".to_owned(), String::new())]),
                policy(|spec| spec.blocked_env_vars = vec!["LD_PRELOAD".to_owned()]),
            ),
        ),
        ("interactive", with_agent(agent().with_tty(Some((24, 80))))),
        (
            "retry_count",
            SessionRequest::new(
                agent().with_stdin(Some(Input::stream(tokio::io::empty()))),
                policy(|spec| spec.retry_count = 1),
            ),
        ),
        (
            "command",
            with_agent(Agent::idle(agents_core::AgentId::new("a").unwrap())),
        ),
        (
            "structured_output",
            with_policy(|spec| spec.structured_output = Some(json!({"type": "nothing"}))),
        ),
        ("missing", with_agent(agent().with_workspace(Some(missing.clone())))),
        ("root", with_agent(agent().with_workspace(Some("/".into())))),
        (
            "state folder",
            with_agent(agent().with_workspace(Some(world.dir.path().to_owned()))),
        ),
        (
            "not a folder",
            with_agent(agent().with_workspace(Some("/etc/hostname".into()))),
        ),
        ("missing", with_agent(agent().with_mounts([Mount::bind(missing, "/m")]))),
    ];
    for (word, request) in cases {
        let result = world.engine.run(request).await.unwrap();
        assert_eq!(result.status, RunStatus::Refused, "{word}");
        assert!(
            result.error.as_ref().unwrap().contains(word),
            "{word}: {:?}",
            result.error
        );
        assert_eq!(world.audit.types().last(), Some(&EventType::SessionClosed), "{word}");
    }
    assert!(world.runtime.requests.lock().unwrap().is_empty());
    assert!(world.active().is_empty());
}

#[tokio::test]
async fn the_validator_decides() {
    let denying = FakePolicy {
        findings: vec![
            Finding::error("CPU_EXCEEDED", "cpu_cores", "too many"),
            Finding::error("X", "y", "bad"),
        ],
        ..FakePolicy::default()
    };
    let broken = FakePolicy {
        broken: true,
        ..FakePolicy::default()
    };
    let silent = FakePolicy {
        memory_mb: Some(64),
        silent: true,
        ..FakePolicy::default()
    };
    for (policy, word) in [
        (denying, "CPU_EXCEEDED"),
        (broken, "policy server"),
        (silent, "without saying"),
    ] {
        let world = World::with_policy([], policy);
        let result = world.engine.run(request()).await.unwrap();
        assert_eq!(
            (result.status, result.error_kind),
            (RunStatus::Refused, Some(ErrorKind::PolicyDenied))
        );
        assert!(result.error.as_ref().unwrap().contains(word), "{:?}", result.error);
        assert_eq!(world.audit.of(EventType::PolicyViolation).len(), 1);
        assert!(world.runtime.requests.lock().unwrap().is_empty());
    }
    let narrowing = FakePolicy {
        memory_mb: Some(64),
        drops: true,
        findings: vec![Finding::warning("LOW_MEMORY", "memory_mb", "is little")],
        ..FakePolicy::default()
    };
    let world = World::with_policy([Script::steps([])], narrowing);
    let watcher = Arc::new(Watcher::default());
    let result = world
        .engine
        .run(request().with_observer(Some(watcher.clone())))
        .await
        .unwrap();
    assert_eq!(result.status, RunStatus::Completed);
    let heard = watcher.heard.lock().unwrap().join("\n");
    assert!(
        heard.contains("the policy was narrowed: memory_mb from 512 to 64"),
        "{heard}"
    );
    assert_eq!(
        world.runtime.requests.lock().unwrap()[0].resources.memory_bytes,
        Some(64 << 20)
    );
    assert_eq!(world.audit.of(EventType::PolicyCapClamped)[0].payload["to"], 64);
}

#[tokio::test]
async fn a_storage_failure_fails_the_run_and_leaves_no_container() {
    let world = World::new([Script::steps([exit(0)]).output(archive(&[("a", b"a"), ("b", b"b")]))]);
    world.storage.fails.store(true, Ordering::SeqCst);
    let result = world.engine.run(request()).await.unwrap();
    assert_eq!((result.status, result.exit_code()), (RunStatus::Failed, Some(0)));
    assert_eq!(result.error_kind, Some(ErrorKind::ResourceExhausted));
    assert!(result.error.unwrap().contains("the disk is full"));
    assert_eq!(result.refused_artifacts.len(), 2);
    assert!(world.runtime.containers().is_empty());
}

#[tokio::test]
async fn a_container_that_cannot_be_destroyed_is_left_to_the_clean_up() {
    let script = Script {
        destroy_fails: true,
        ..Script::steps([exit(0)])
    };
    let world = World::new([script]);
    let result = world.engine.run(request()).await.unwrap();
    assert_eq!(result.status, RunStatus::Failed);
    assert!(result.error.unwrap().contains("agents gc"));
    assert_eq!(world.active().len(), 1);
    let report = world.engine.recover().await.unwrap();
    assert_eq!(report.removed.len(), 1, "{report:?}");
    assert!(world.runtime.containers().is_empty() && world.active().is_empty());
    assert_eq!(world.audit.of(EventType::SessionClosed).len(), 1);
    assert_eq!(
        world.engine.list(true).await.unwrap()[0].status,
        SessionStatus::Failed,
        "the ending is kept"
    );
}

#[tokio::test]
async fn max_output_bytes_ends_the_collection() {
    let output = archive(&[("a", &[b'a'; 60]), ("b", &[b'b'; 60]), ("c", b"c")]);
    let world = World::new([
        Script::steps([exit(0)]).output(output.clone()),
        Script::steps([exit(7)]).output(output),
    ]);
    let limit = || policy(|spec| spec.max_output_bytes = Some(100));
    let result = world.engine.run(SessionRequest::new(agent(), limit())).await.unwrap();
    assert_eq!((&result.ending, result.status), (&Exit::OutputLimit, RunStatus::Failed));
    assert_eq!(result.artifacts.len(), 1);
    assert_eq!(result.refused_artifacts.len(), 2);
    assert_eq!(world.audit.of(EventType::OutputSizeExceeded).len(), 1);
    let result = world.engine.run(SessionRequest::new(agent(), limit())).await.unwrap();
    assert_eq!(result.exit_code(), Some(7), "the agent's own failure is told");
    assert!(result.error.unwrap().contains("max_output_bytes"));
}

#[tokio::test]
async fn a_structured_result_is_validated() {
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let big = vec![b' '; (1 << 20) + 1];
    type Case<'a> = (Option<&'a [u8]>, bool, Result<serde_json::Value, &'a str>);
    let cases: Vec<Case<'_>> = vec![
        (Some(br#"{"n": 1}"#), true, Ok(json!({"n": 1}))),
        (Some(br#"{"n": "one"}"#), true, Err("/n")),
        (Some(b"{}"), true, Err("\"n\" is a required property")),
        (Some(b"not json"), true, Err("not JSON")),
        (Some(&big), true, Err("larger than 1 MiB")),
        (None, true, Err("left no result.json")),
        (Some(b"[1]"), false, Ok(json!([1]))),
        (Some(b"not json"), false, Ok(json!(null))),
        (None, false, Ok(json!(null))),
    ];
    for (content, with_schema, expected) in cases {
        let files: Vec<_> = content.iter().map(|content| ("result.json", *content)).collect();
        let world = World::new([Script::steps([exit(0)]).output(archive(&files))]);
        let policy = policy(|spec| spec.structured_output = with_schema.then(|| schema.clone()));
        let result = world.engine.run(SessionRequest::new(agent(), policy)).await.unwrap();
        match expected {
            Ok(value) => {
                assert_eq!(result.status, RunStatus::Completed, "{result:?}");
                assert_eq!(json!(result.output), value);
            }
            Err(word) => {
                assert_eq!(result.status, RunStatus::Failed);
                assert_eq!(result.output, None);
                assert!(
                    result.error.as_ref().unwrap().contains(word),
                    "{word}: {:?}",
                    result.error
                );
            }
        }
        assert_eq!(result.artifacts.len(), files.len(), "it is an artifact all the same");
    }
}

#[tokio::test]
async fn artifacts_also_go_into_a_folder() {
    let big = vec![7; 700 << 10];
    let output = archive(&[("a/b.txt", b"new"), ("big.bin", &big), ("trap/x", b"x")]);
    let world = World::new([Script::steps([exit(0)]).output(output)]);
    let out = world.dir.path().join("out");
    let outside = world.dir.path().join("outside");
    std::fs::create_dir_all(out.join("a")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, out.join("trap")).unwrap();
    std::os::unix::fs::symlink(outside.join("victim"), out.join("a/b.txt")).unwrap();
    let result = world
        .engine
        .run(request().with_export_dir(Some(out.clone())))
        .await
        .unwrap();
    assert_eq!(result.artifacts.len(), 3);
    assert_eq!(std::fs::read(out.join("a/b.txt")).unwrap(), b"new");
    assert!(!out.join("a/b.txt").is_symlink());
    assert_eq!(std::fs::read(out.join("big.bin")).unwrap(), big);
    assert_eq!(world.storage.content("big.bin").unwrap(), big);
    assert!(names(&outside).is_empty(), "no link is followed");
    assert_eq!(result.status, RunStatus::Failed);
    assert!(result.error.unwrap().contains("links are not followed"));
    assert!(
        names(&out).iter().all(|name| !name.starts_with('.')),
        "nothing temporary is left"
    );
}

#[tokio::test]
async fn secrets_are_hidden_in_everything_that_is_kept() {
    let steps = [
        Step::Out("the token is s3cr"),
        Step::Out("et-value!\n"),
        Step::Err("pass hunter22 s3cret"),
        exit(1),
    ];
    let world = World::new([Script::steps(steps)]);
    let policy = policy(|spec| {
        spec.env_vars = [("PASSWORD".to_owned(), "hunter22".to_owned())].into();
        spec.sensitive_env_vars = vec!["PASSWORD".to_owned()];
    });
    let mut agent = agent().with_secrets([Secret {
        name: "token".to_owned(),
        value: SecretBytes::new("s3cret-value"),
    }]);
    agent.command = vec!["echo".to_owned(), "hunter22".to_owned()];
    let result = world.engine.run(SessionRequest::new(agent, policy)).await.unwrap();
    assert_eq!(result.stdout.to_text(), "the token is [redacted]!\n");
    assert_eq!(result.stderr.to_text(), "pass [redacted] s3cret");
    let log: Vec<_> = world
        .engine
        .logs(&result.session_id, false)
        .await
        .unwrap()
        .collect()
        .await;
    let log: Vec<u8> = log.into_iter().flat_map(|chunk| chunk.unwrap().bytes).collect();
    let mut kept = world.audit.text();
    kept.push_str(&String::from_utf8(log).unwrap());
    kept.push_str(&result.to_json().to_string());
    kept.push_str(&format!(
        "{:?}",
        world.engine.inspect(&result.session_id).await.unwrap()
    ));
    assert!(kept.contains("the token is [redacted]!"));
    assert!(
        world.audit.text().contains("[\"echo\",\"hmac-sha256:"),
        "equal secrets can be told"
    );
    for secret in ["s3cret-value", "hunter22"] {
        assert!(!kept.contains(secret), "{secret}");
    }
    let requests = world.runtime.requests.lock().unwrap();
    assert!(
        requests[0]
            .env
            .contains(&("PASSWORD".to_owned(), "hunter22".to_owned())),
        "the agent gets it"
    );
}

#[derive(Debug, Default)]
struct Watcher {
    heard: Mutex<Vec<String>>,
    delay: Duration,
}

#[async_trait]
impl Observer for Watcher {
    fn phase(&self, phase: Phase, state: PhaseState) {
        let end = if matches!(state, PhaseState::End(_)) { "-" } else { "+" };
        self.heard.lock().unwrap().push(format!("{end}{phase}"));
    }
    async fn output(&self, stream: OutputStream, bytes: Bytes) {
        tokio::time::sleep(self.delay).await;
        self.heard.lock().unwrap().push(format!("{stream:?} {}", bytes.len()));
    }
    fn warning(&self, message: &str) {
        self.heard.lock().unwrap().push(format!("warning {message}"));
    }
}

#[tokio::test]
async fn the_observer_hears_everything_in_order() {
    let world = World::new([Script::steps([Step::Out("abc"), Step::Err("de"), exit(0)])]);
    let watcher = Arc::new(Watcher::default());
    world
        .engine
        .run(request().with_observer(Some(watcher.clone())))
        .await
        .unwrap();
    let heard = watcher.heard.lock().unwrap().join(" ");
    assert_eq!(
        heard,
        "+validate -validate +provision -provision +run Stdout 3 Stderr 2 -run +collect -collect +destroy -destroy"
    );
}

#[tokio::test]
async fn a_slow_observer_slows_the_agent_and_a_stuck_one_does_not_stop_its_end() {
    let world = World::new([
        Script::steps([Step::Flood(8), exit(0)]),
        Script::steps([Step::Flood(8), Step::Forever]),
    ]);
    let slow = Arc::new(Watcher {
        delay: Duration::from_millis(20),
        ..Watcher::default()
    });
    let result = world
        .engine
        .run(request().with_observer(Some(slow.clone())))
        .await
        .unwrap();
    assert!(result.timings.phase(Phase::Run) >= Duration::from_millis(160));
    assert_eq!(result.stdout.total, 8 * (64 << 10));
    assert!(result.stdout.truncated());
    assert_eq!(result.stdout.head.len() + result.stdout.tail.len(), 64 << 10);

    let stuck = Arc::new(Watcher {
        delay: Duration::from_secs(3600),
        ..Watcher::default()
    });
    let policy = policy(|spec| spec.timeout_seconds = Some(0.1));
    let began = Instant::now();
    let request = SessionRequest::new(agent(), policy).with_observer(Some(stuck.clone()));
    let result = world.engine.run(request).await.unwrap();
    assert_eq!(result.ending, Exit::Deadline);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(
        stuck
            .heard
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.starts_with("warning"))
    );
}

#[tokio::test]
async fn input_reaches_the_agent_and_a_runtime_without_main_process_works_too() {
    let world = World::new([Script::steps([Step::Echo, exit(0)])]);
    world.runtime.no_main_process.store(true, Ordering::SeqCst);
    let input = Input::stream(std::io::Cursor::new(b"from a stream".to_vec()));
    let request = SessionRequest::new(agent().with_stdin(Some(input)), agents_core::Policy::default());
    let result = world.engine.run(request).await.unwrap();
    assert_eq!(result.stdout.to_text(), "from a stream");
    assert!(world.runtime.requests.lock().unwrap()[0].process.is_none());
    assert_eq!(result.status, RunStatus::Completed);
}

#[tokio::test]
async fn a_threshold_is_put_on_record_once_a_crossing() {
    let world = World::new([Script::steps([Step::Wait(Duration::from_millis(300)), exit(0)])]);
    let policy = policy(|spec| spec.resource_monitor_interval = 0.02);
    world.engine.run(SessionRequest::new(agent(), policy)).await.unwrap();
    let events = world.audit.of(EventType::ResourceLimitExceeded);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].payload["violation_type"], "cpu_threshold_exceeded");

    // What was used over time is on record with the end.
    let closed = world.audit.of(EventType::SessionClosed);
    let samples = closed[0].payload["resource_samples"].as_array().unwrap();
    let times: Vec<u64> = samples.iter().map(|sample| sample["at_ms"].as_u64().unwrap()).collect();
    assert!(times.len() > 2 && times.is_sorted() && times[0] >= 20, "{times:?}");
    assert!(
        samples
            .iter()
            .all(|sample| sample["cpu_percent"].is_number() && sample["memory_mb"].is_number())
    );
}

#[tokio::test]
async fn a_dropped_run_is_cleaned_up_in_the_background() {
    let world = World::new([Script::steps([Step::Forever])]);
    let run = world.engine.run(request());
    assert!(tokio::time::timeout(Duration::from_millis(200), run).await.is_err());
    eventually("the container goes", || {
        world.runtime.containers().is_empty() && world.active().is_empty()
    })
    .await;
    assert_eq!(world.audit.types().last(), Some(&EventType::SessionClosed));
    assert_eq!(
        world.engine.list(true).await.unwrap()[0].status,
        SessionStatus::Terminated
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_at_once_all_end_right() {
    let scripts = (0..50).map(|_| Script::steps([Step::Flood(4), exit(0)]).output(archive(&[("a", b"a")])));
    let world = World::new(scripts);
    let runs = (0..50).map(|_| {
        let engine = world.engine.clone();
        tokio::spawn(async move { engine.run(request()).await.unwrap() })
    });
    for run in runs.collect::<Vec<_>>() {
        let result = run.await.unwrap();
        assert_eq!((result.status, result.artifacts.len()), (RunStatus::Completed, 1));
    }
    assert!(world.runtime.containers().is_empty() && world.active().is_empty());
    assert_eq!(world.audit.of(EventType::SessionClosed).len(), 50);
}
