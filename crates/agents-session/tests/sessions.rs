//! Long-lived sessions, other processes, and what is left of dead owners.

mod support;

use std::{collections::BTreeMap, time::Duration};

use agents_core::{AgentId, ErrorKind, EventType, Exit, Process, SessionId};
use agents_session::{Agent, CancellationToken, RunStatus, SessionRequest, SessionStatus, Upload};
use futures_util::StreamExt;
use support::*;

fn idle() -> SessionRequest {
    SessionRequest::new(
        Agent::idle(AgentId::new("helper").unwrap()),
        agents_core::Policy::default(),
    )
}

#[tokio::test]
async fn a_session_runs_many_processes_and_ends_with_its_artifacts() {
    let script = Script::steps([Step::Out("hi"), exit(3)]).output(archive(&[("a", b"a")]));
    let world = World::new([script]);
    let session = world.engine.open(idle()).await.unwrap();
    for _ in 0..2 {
        let output = session
            .exec(Process::new(["ls"]), None)
            .await
            .unwrap()
            .collect(100)
            .await
            .unwrap();
        assert_eq!(
            (output.exit, output.stdout.to_text().as_str()),
            (Exit::Exited { code: 3 }, "hi")
        );
    }
    assert_eq!(
        world.audit.of(EventType::AgentFailed).len(),
        2,
        "the end of each is on record"
    );
    let snapshot = session.snapshot().await.unwrap();
    assert_eq!(snapshot.artifacts[0].version, 1);
    assert!(
        world.runtime.quiesced.lock().unwrap()[0],
        "the processes are stopped meanwhile"
    );
    assert!(session.stats().await.unwrap().memory_mb > 0.0);

    let file = world.dir.path().join("in.txt");
    std::fs::write(&file, b"content").unwrap();
    session.upload(Upload::Path(file.clone()), "/workspace").await.unwrap();
    session.upload(Upload::Path(file), "/workspace/new.txt").await.unwrap();
    session
        .upload(Upload::Path("/nonexistent".into()), "/workspace")
        .await
        .unwrap_err();
    let uploads: Vec<(String, String)> = world
        .runtime
        .uploads
        .lock()
        .unwrap()
        .iter()
        .map(|(path, bytes)| {
            let mut archive = tar::Archive::new(&bytes[..]);
            let entry = archive.entries().unwrap().next().unwrap().unwrap();
            (path.clone(), entry.path().unwrap().display().to_string())
        })
        .collect();
    let expected = [("/workspace", "in.txt"), ("/workspace", "new.txt")];
    assert_eq!(uploads, expected.map(|(path, name)| (path.to_owned(), name.to_owned())));

    let target = world.dir.path().join("down");
    let downloaded = session.download("/output", &target).await.unwrap();
    assert_eq!((downloaded.files, downloaded.bytes), (1, 1));
    assert_eq!(std::fs::read(target.join("output/a")).unwrap(), b"a");

    let result = session.finish().await.unwrap();
    assert_eq!(result.status, RunStatus::Completed);
    assert_eq!(result.artifacts[0].version, 2);
    assert!(world.runtime.containers().is_empty() && world.active().is_empty());
}

#[tokio::test]
async fn a_session_that_cannot_be_opened_says_why_and_has_an_ending() {
    let script = Script {
        provision_error: Some(ErrorKind::NotFound),
        ..Script::default()
    };
    let world = World::new([script]);
    let error = world.engine.open(idle()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = world.engine.open(request()).await.unwrap_err();
    assert!(error.message().contains("no command"), "{error}");
    assert_eq!(world.audit.of(EventType::SessionClosed).len(), 2);
    assert!(world.active().is_empty());
}

#[tokio::test]
async fn a_dropped_session_is_cleaned_up() {
    let world = World::new([Script::steps([])]);
    drop(world.engine.open(idle()).await.unwrap());
    eventually("the container goes", || {
        world.runtime.containers().is_empty() && world.active().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_session_can_be_stopped_from_elsewhere_and_cancelled_here() {
    let output = archive(&[("a", b"a")]);
    let world = World::new([
        Script::steps([]).output(output.clone()),
        Script::steps([]).output(output),
    ]);
    let session = world.engine.open(idle()).await.unwrap();
    let info = world.elsewhere().stop(session.id()).await.unwrap();
    assert_eq!(info.status, SessionStatus::Terminated);
    let result = session.finish().await.unwrap();
    assert_eq!((&result.ending, result.artifacts.len()), (&Exit::Cancelled, 1));

    let cancel = CancellationToken::new();
    let session = world.engine.open(idle().with_cancel(cancel.clone())).await.unwrap();
    cancel.cancel();
    eventually("it ends", || world.active().is_empty()).await;
    session.snapshot().await.unwrap_err();
}

#[tokio::test]
async fn a_run_can_be_seen_entered_followed_and_stopped_from_elsewhere() {
    let script = Script::steps([Step::Out("one\n"), Step::Forever]).output(archive(&[("part", b"ial")]));
    let world = World::new([script]);
    let id = SessionId::new("long").unwrap();
    let engine = world.engine.clone();
    let request = request().with_session_id(Some(id.clone()));
    let run = tokio::spawn(async move { engine.run(request).await.unwrap() });
    let other = world.elsewhere();
    eventually("it runs", || world.audit.types().contains(&EventType::AgentStarted)).await;
    let listed = other.list(false).await.unwrap();
    assert_eq!((listed.len(), listed[0].status), (1, SessionStatus::Running));
    assert_eq!(listed[0].owner_pid, Some(std::process::id()));
    assert_eq!(listed[0].container_id.as_ref().unwrap().as_str(), "long");
    let inspection = other.inspect(&id).await.unwrap();
    assert!(inspection.container.is_some() && inspection.result.is_none());

    let handle = other.attach(&id).await.unwrap();
    let process = handle
        .exec(Process::new(["sh"]), Some(Duration::from_millis(100)))
        .await
        .unwrap();
    assert_eq!(process.collect(100).await.unwrap().exit, Exit::Deadline);

    let mut log = other.logs(&id, true).await.unwrap();
    assert_eq!(log.next().await.unwrap().unwrap().bytes, "one\n");
    let followed = tokio::spawn(async move { log.count().await });

    let info = handle.stop().await.unwrap();
    assert_eq!(info.status, SessionStatus::Terminated);
    assert_eq!(info.error.as_deref(), Some("the session was stopped"));
    let result = run.await.unwrap();
    assert_eq!(
        (&result.ending, result.artifacts.len()),
        (&Exit::Cancelled, 1),
        "partial artifacts are collected"
    );
    assert_eq!(followed.await.unwrap(), 0, "the log ends with the session");
    assert_eq!(other.stop(&id).await.unwrap(), info, "stopping twice is harmless");
    assert_eq!(other.attach(&id).await.unwrap_err().kind(), ErrorKind::Conflict);
    let unknown = SessionId::new("unknown").unwrap();
    assert_eq!(other.stop(&unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(other.inspect(&unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(other.logs(&unknown, false).await.is_err());
}

/// Rewrites the ownership record of a running session as if its owner had been killed.
fn kill_owner(world: &World, change: impl FnOnce(&mut serde_json::Value)) {
    let name = world.active().pop().unwrap();
    let path = world.state().join("active").join(name);
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(&path, record.to_string()).unwrap();
}

/// A session whose owner is dead, with its container still there.
async fn orphan(world: &World) -> SessionId {
    let session = world.engine.open(idle()).await.unwrap();
    let id = session.id().clone();
    kill_owner(world, |record| record["owner"]["start_time"] = 1.into());
    // The owner cannot do anything more.
    std::mem::forget(session);
    id
}

#[tokio::test]
async fn what_a_dead_owner_left_is_removed_and_its_session_is_lost() {
    let world = World::new([Script::steps([])]);
    let id = orphan(&world).await;
    world.runtime.plant(&id, "stray", BTreeMap::new());
    assert_eq!(world.engine.list(false).await.unwrap()[0].status, SessionStatus::Lost);
    assert_eq!(world.engine.attach(&id).await.unwrap_err().kind(), ErrorKind::Conflict);

    let report = world.elsewhere().gc().await.unwrap();
    assert_eq!(report.ended_sessions, std::slice::from_ref(&id));
    assert_eq!(report.removed, [format!("container {id}"), "an upload".to_owned()]);
    assert!(report.problems.is_empty());
    assert_eq!(
        world.runtime.containers(),
        ["stray"],
        "what does not carry our labels is not ours"
    );
    let closed = world.audit.of(EventType::SessionClosed);
    assert_eq!((closed.len(), closed[0].payload["status"].as_str()), (1, Some("lost")));
    assert!(
        world
            .audit
            .operations()
            .contains(&("runtime.destroy".to_owned(), "succeeded".to_owned()))
    );
    assert_eq!(world.audit.of(EventType::ContainerDestroyed).len(), 1);
    assert_eq!(world.engine.list(true).await.unwrap()[0].status, SessionStatus::Lost);
    let again = world.engine.gc().await.unwrap();
    assert!(again.ended_sessions.is_empty());
    assert_eq!(world.audit.of(EventType::SessionClosed).len(), 1);
}

#[tokio::test]
async fn what_a_living_owner_has_is_not_touched() {
    let world = World::new([Script::steps([]), Script::steps([])]);
    let session = world.engine.open(idle()).await.unwrap();
    let report = world.elsewhere().gc().await.unwrap();
    assert!(report.ended_sessions.is_empty());
    assert_eq!(world.runtime.containers().len(), 1);
    assert_eq!(session.finish().await.unwrap().status, RunStatus::Completed);
}

#[tokio::test]
async fn a_container_that_no_session_stands_for_is_removed() {
    let world = World::new([Script::steps([])]);
    let session = world.engine.open(idle()).await.unwrap();
    let labels = world.runtime.requests.lock().unwrap()[0].labels.clone();
    let gone = SessionId::new("gone").unwrap();
    world.runtime.plant(&gone, "late", labels);
    let report = world.elsewhere().gc().await.unwrap();
    assert!(report.removed.contains(&"container late".to_owned()), "{report:?}");
    assert_eq!(world.runtime.containers(), [session.id().to_string()]);
    session.finish().await.unwrap();
}

#[tokio::test]
async fn a_session_of_another_runtime_is_left_with_a_word_about_it() {
    let world = World::new([Script::steps([])]);
    let id = orphan(&world).await;
    kill_owner(&world, |record| record["runtime"] = "podman".into());
    let report = world.engine.gc().await.unwrap();
    assert!(report.ended_sessions.is_empty());
    assert!(report.problems[0].contains("--runtime podman"), "{report:?}");
    assert_eq!(world.runtime.containers().len(), 1);
    assert!(
        world
            .engine
            .stop(&id)
            .await
            .unwrap_err()
            .message()
            .contains("--runtime podman")
    );
}

#[tokio::test]
async fn stopping_the_session_of_a_dead_owner_ends_it() {
    let world = World::new([Script::steps([])]);
    let id = orphan(&world).await;
    let info = world.engine.stop(&id).await.unwrap();
    assert_eq!(info.status, SessionStatus::Lost);
    assert!(world.runtime.containers().is_empty() && world.active().is_empty());
}

#[tokio::test]
async fn a_clean_up_that_is_cut_off_is_taken_up_again_with_one_closing_event() {
    let world = World::new([Script::steps([])]);
    orphan(&world).await;
    world.audit.refuse_from.store(0, std::sync::atomic::Ordering::SeqCst);
    let report = world.engine.gc().await.unwrap();
    assert!(
        report.ended_sessions.is_empty() && report.problems[0].starts_with("session "),
        "{report:?}"
    );
    let reaped = world.runtime.reaped.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(reaped, 1, "what only makes safe needs no record");
    let refused = |problem: &String| problem.starts_with("storage: ") && problem.contains("storage.reap was not done");
    assert!(report.problems.iter().any(refused), "{report:?}");
    assert_eq!(
        world.active().len(),
        1,
        "the record stays until the ending is on record"
    );
    world
        .audit
        .refuse_from
        .store(usize::MAX, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(world.engine.gc().await.unwrap().ended_sessions.len(), 1);
    assert_eq!(world.audit.of(EventType::SessionClosed).len(), 1);
    assert!(world.active().is_empty());
}
