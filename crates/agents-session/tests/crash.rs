//! Owners that are killed in the middle of an operation. The program starts itself as the owner, over a real audit log.

mod support;

use std::{
    env,
    error::Error,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use agents_audit_file::{FileAudit, FileAuditConfig};
use agents_core::{Adapters, AuditEvent, AuditLogger, AuditQuery, EventType, SessionId};
use agents_session::{Engine, EngineConfig, SessionStatus};
use agents_testkit::{libtest_mimic::Trial, run};
use support::*;
use tokio::runtime::{Builder, Runtime};

const OWNER: &str = "AGENTS_TEST_SESSION_OWNER";
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let Ok(owner) = env::var(OWNER) else {
        return run([vec![
            Trial::test("an_operation_that_a_kill_cut_off_ends_as_unknown", || Ok(cut_off()?)),
            Trial::test("kill_at_random_points_leaves_one_outcome_for_each_intent", || {
                Ok(random()?)
            }),
        ]]);
    };
    let folder = env::args().nth(1).unwrap_or_default();
    match own(&owner, Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn log(folder: &Path) -> agents_core::Result<Arc<FileAudit>> {
    Ok(Arc::new(FileAudit::new(FileAuditConfig::folder(folder.join("audit")))?))
}

fn engine(folder: &Path, scripts: Vec<Script>, storage: FakeStorage) -> agents_core::Result<Engine> {
    let adapters = Adapters {
        runtime: FakeRuntime::new(scripts),
        storage: Arc::new(storage),
        audit: log(folder)?,
        policy: Arc::new(FakePolicy::default()),
    };
    Engine::new(adapters, EngineConfig::new(folder.join("state")))
}

/// Runs sessions until it is killed.
fn own(point: &str, folder: &Path) -> Outcome {
    let runtime = runtime()?;
    let output = || archive(&[("a", b"a"), ("b", b"b")]);
    if point == "random" {
        let script = || Script::steps([Step::Out("x"), Step::Wait(Duration::from_millis(2)), exit(0)]).output(output());
        let engine = engine(folder, (0..10_000).map(|_| script()).collect(), FakeStorage::default())?;
        loop {
            runtime.block_on(engine.run(request()))?;
            println!("one more");
        }
    }
    let storage = FakeStorage::default();
    let script = match point {
        "runtime.provision" => Script {
            provision_delay: PATIENCE,
            ..Script::steps([])
        },
        "runtime.start" => Script::steps([Step::Forever]),
        _ => {
            storage.hangs.store(true, Ordering::SeqCst);
            Script::steps([exit(0)]).output(output())
        }
    };
    let engine = engine(folder, vec![script], storage)?;
    let request = request().with_session_id(Some(SessionId::new("victim")?));
    runtime.block_on(engine.run(request))?;
    Err("it should have been killed".into())
}

fn start(point: &str, folder: &Path) -> std::io::Result<Child> {
    Command::new(env::current_exe()?)
        .arg(folder)
        .env(OWNER, point)
        .stdout(Stdio::piped())
        .spawn()
}

fn trail(folder: &Path) -> Result<Vec<AuditEvent>, Box<dyn Error>> {
    let log = log(folder)?;
    runtime()?.block_on(async {
        let mut events = Vec::new();
        let mut cursor = None;
        loop {
            let page = log.query(AuditQuery::new().with_cursor(cursor)).await?;
            events.extend(page.events);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(events);
            }
        }
    })
}

fn cut_off() -> Outcome {
    for point in ["runtime.provision", "runtime.start", "storage.store"] {
        let folder = tempfile::tempdir()?;
        let mut owner = start(point, folder.path())?;
        let began = Instant::now();
        let is_intended = |event: &AuditEvent| {
            event.event_type == EventType::OperationIntended && event.payload["operation"] == point
        };
        while !trail(folder.path())?.iter().any(is_intended) {
            if began.elapsed() > PATIENCE || owner.try_wait()?.is_some() {
                owner.kill()?;
                return Err(format!("{point} was never reached").into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        owner.kill()?;
        owner.wait()?;
        let engine = engine(folder.path(), vec![], FakeStorage::default())?;
        let report = runtime()?.block_on(engine.gc())?;
        if report.ended_sessions.len() != 1 || !report.problems.is_empty() {
            return Err(format!("{point}: {report:?}").into());
        }
        let operations = operations(&trail(folder.path())?);
        let outcome = operations.iter().find(|(name, _)| name == point);
        if outcome.map(|(_, outcome)| outcome.as_str()) != Some("unknown") {
            return Err(format!("{point}: {operations:?}").into());
        }
    }
    Ok(())
}

fn random() -> Outcome {
    let folder = tempfile::tempdir()?;
    for round in 0..20_u64 {
        let mut owner = start("random", folder.path())?;
        // It has begun, and each time goes on a little longer.
        let mut output = BufReader::new(owner.stdout.take().ok_or("the owner has no output")?);
        output.read_line(&mut String::new())?;
        thread::sleep(Duration::from_millis(1 + round * 3));
        owner.kill()?;
        owner.wait()?;
    }
    let engine = engine(folder.path(), vec![], FakeStorage::default())?;
    let runtime = runtime()?;
    let report = runtime.block_on(engine.gc())?;
    if !report.problems.is_empty() {
        return Err(format!("{report:?}").into());
    }
    let again = runtime.block_on(engine.gc())?;
    if !again.ended_sessions.is_empty() {
        return Err(format!("{again:?}").into());
    }
    let events = trail(folder.path())?;
    let operations = operations(&events);
    let closed: Vec<_> = events
        .iter()
        .filter(|event| event.event_type == EventType::SessionClosed)
        .collect();
    let sessions = runtime.block_on(engine.list(true))?;
    let lost = sessions
        .iter()
        .filter(|info| info.status == SessionStatus::Lost)
        .count();
    for info in &sessions {
        let ends = closed
            .iter()
            .filter(|event| event.session_id.as_ref() == Some(&info.session_id));
        let ends: Vec<_> = ends.collect();
        if ends.len() != 1 {
            return Err(format!("{info:?} has these ends on record: {ends:?}").into());
        }
    }
    if closed.len() != sessions.len() || lost == 0 || sessions.len() == lost {
        let ends = closed.len();
        return Err(format!("{lost} of {} sessions are lost, {ends} have ended", sessions.len()).into());
    }
    if operations.is_empty() {
        return Err("there was nothing to look at".into());
    }
    Ok(())
}
