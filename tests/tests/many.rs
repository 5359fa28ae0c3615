//! Fifty sessions at once from one process.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use agents_sdk::{
    configure_adapters,
    core::{AgentId, Mount, Policy, PolicySpec, SessionId},
    session::{Agent, AgentResult, Engine, RunStatus, SessionRequest},
};
use agents_tests::{Caller, Outcome, Place, assert_nothing_of_ours_runs, run, trial};

const SESSIONS: usize = 50;

fn main() -> ExitCode {
    agents_sdk::init();
    run(true, vec![trial("fifty_sessions_at_once", fifty_sessions_at_once)])
}

fn fifty_sessions_at_once() -> Outcome {
    let caller = match rustix::process::geteuid().is_root() {
        true => Caller::Root,
        false => Caller::User,
    };
    let limited = caller.has_limits()?;
    let place = Place::new(caller)?;
    let gate = place.folder("gate");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let results = runtime.block_on(async {
        let engine = configure_adapters()
            .with_container_runtime("native")
            .with_state_dir(Some(place.state()))
            .build()
            .await
            .expect("an engine");
        let runs: Vec<_> = (0..SESSIONS)
            .map(|index| {
                let (engine, gate) = (engine.clone(), gate.clone());
                tokio::spawn(async move { one(&engine, index, limited, Path::new(&gate)).await })
            })
            .collect();
        all_run(&engine).await;
        fs::write(Path::new(&gate).join("open"), "").expect("the gate");
        let mut results = Vec::new();
        for run in runs {
            results.push(run.await.expect("no panic"));
        }
        results
    });
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result.status, RunStatus::Completed, "{index}: {:?}", result.error);
        let expected = format!("{index} {}\n", result.session_id);
        assert_eq!(result.stdout.to_text(), expected);
        let uri = result.artifacts()["mine"]
            .strip_prefix("file://")
            .expect("a file")
            .to_owned();
        assert_eq!(fs::read_to_string(uri).expect("the artifact"), expected);
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    assert_nothing_of_ours_runs();
    assert_eq!(place.sessions().len(), SESSIONS);
    place.assert_clean();
    Ok(())
}

async fn one(engine: &Engine, index: usize, limited: bool, gate: &Path) -> AgentResult {
    let mut spec = PolicySpec {
        memory_mb: Some(128),
        tmpfs_size_mb: 8,
        disk_mb: Some(16),
        timeout_seconds: Some(120.0),
        ..PolicySpec::default()
    };
    if !limited {
        (spec.memory_mb, spec.cpu_cores) = (None, None);
    }
    let script = format!(
        "until [ -e /gate/open ]; do sleep 0.2; done; \
         echo {index} $ISOLATED_AGENTS_SESSION_ID | tee /output/mine"
    );
    let agent = Agent::new(
        AgentId::new(format!("agent-{index}")).expect("an id"),
        ["sh", "-c", &script],
    )
    .with_image(Some("host".to_owned()))
    .with_mounts([Mount::bind(gate, "/gate")]);
    let policy = Policy::new(spec).expect("a policy");
    engine.run(SessionRequest::new(agent, policy)).await.expect("a result")
}

/// Waits until every session has a container whose agent has been started.
async fn all_run(engine: &Engine) {
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let sessions = engine.list(false).await.expect("the sessions");
        let with_container = sessions.iter().filter(|info| info.container_id.is_some()).count();
        if with_container == SESSIONS {
            return;
        }
    }
    let sessions: Vec<SessionId> = engine
        .list(false)
        .await
        .expect("the sessions")
        .into_iter()
        .filter(|info| info.container_id.is_none())
        .map(|info| info.session_id)
        .collect();
    panic!("these have no container yet: {sessions:?}");
}
