//! Writers that are killed, run out of room, or print. The program starts itself as the writer.

use std::{
    collections::HashSet,
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, SystemTime},
};

use agents_audit_file::{FileAudit, FileAuditConfig};
use agents_core::{AuditEvent, AuditLogger, AuditQuery, ErrorKind, EventType};
use agents_journal::{ChainKey, Keys, verify_events};
use agents_testkit::{libtest_mimic::Trial, run};
use tokio::runtime::{Builder, Runtime};

const WRITER: &str = "AGENTS_TEST_AUDIT_WRITER";

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let Ok(writer) = env::var(WRITER) else {
        let trial = |name, test: fn() -> Outcome| Trial::test(name, move || Ok(test()?));
        return run([vec![
            trial("kill_at_random_points_loses_nothing_acknowledged", kill),
            trial("a_write_that_does_not_fit_leaves_no_part", full),
            trial("standard_error_has_the_lines_with_their_chain", stderr),
        ]]);
    };
    let folder = env::args().nth(1).unwrap_or_default();
    let outcome = match writer.as_str() {
        "endless" => endless(Path::new(&folder)),
        "stderr" => to_stderr(),
        _ => overfull(Path::new(&folder)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().build()
}

fn event() -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning)
}

/// Emits events, alone and in batches, and prints the identifiers of those that were acknowledged.
fn endless(folder: &Path) -> Outcome {
    let audit = FileAudit::new(FileAuditConfig::folder(folder))?;
    let mut output = std::io::stdout().lock();
    let runtime = runtime()?;
    for size in (1..40).cycle() {
        let events: Vec<_> = (0..size)
            .map(|_| event().with_fact("text", "x".repeat(size * 50)))
            .collect();
        for outcome in runtime.block_on(audit.emit_batch(events.clone()))? {
            outcome?;
        }
        let ids: String = events.iter().map(|event| event.event_id.clone() + "\n").collect();
        output.write_all(ids.as_bytes())?;
    }
    Ok(())
}

fn start(folder: &Path) -> std::io::Result<Child> {
    Command::new(env::current_exe()?)
        .arg(folder)
        .env(WRITER, "endless")
        .stdout(Stdio::piped())
        .spawn()
}

fn kill() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut acknowledged = Vec::new();
    let mut seed = SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
    for _ in 0..12 {
        let mut writers = [start(folder.path())?, start(folder.path())?];
        let readers: Vec<_> = writers
            .iter_mut()
            .filter_map(|writer| writer.stdout.take())
            .map(|output| {
                thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect::<Vec<_>>())
            })
            .collect();
        for writer in &mut writers {
            // A linear congruential generator, after Knuth's MMIX.
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            thread::sleep(Duration::from_micros(10_000 + (seed >> 33) % 40_000));
            writer.kill()?;
            writer.wait()?;
        }
        for reader in readers {
            let ids = reader.join().map_err(|_| "the reader panicked")?;
            // The last line may be cut off.
            acknowledged.extend(ids.into_iter().filter(|id| id.len() == 36));
        }
    }
    assert!(
        acknowledged.len() > 100,
        "only {} were acknowledged",
        acknowledged.len()
    );
    let found = all(folder.path())?;
    let audit = FileAudit::new(FileAuditConfig::folder(folder.path()))?;
    let verified = runtime()?.block_on(audit.verify(&Keys::none(), &[]))?;
    assert_eq!(verified.fault, None);
    assert_eq!(verified.writers.len(), 1);
    let missing = acknowledged.iter().filter(|id| !found.contains(*id)).count();
    assert_eq!(missing, 0, "of {} acknowledged", acknowledged.len());
    Ok(())
}

fn all(folder: &Path) -> Result<HashSet<String>, Box<dyn Error>> {
    let audit = FileAudit::new(FileAuditConfig::folder(folder))?;
    // An event after the crash isolates what was torn.
    let runtime = runtime()?;
    runtime.block_on(audit.emit(event()))?;
    let mut found = HashSet::new();
    let mut query = AuditQuery::new().with_limit(1000);
    loop {
        let page = runtime.block_on(audit.query(query.clone()))?;
        found.extend(page.events.into_iter().map(|event| event.event_id));
        match page.next {
            None => return Ok(found),
            next => query.cursor = next,
        }
    }
}

/// Writes more than the limit on the size of a file allows, and then what does fit.
fn overfull(folder: &Path) -> Outcome {
    let audit = FileAudit::new(FileAuditConfig::folder(folder))?;
    let runtime = runtime()?;
    runtime.block_on(audit.emit(event().with_fact("n", 1)))?;
    let large = event().with_fact("text", "x".repeat(1 << 16));
    let error = runtime.block_on(audit.emit(large)).err().ok_or("it fitted")?;
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error:?}");
    runtime.block_on(audit.emit(event().with_fact("n", 2)))?;
    Ok(())
}

fn full() -> Outcome {
    let folder = tempfile::tempdir()?;
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$1\""])
        .arg(env::current_exe()?)
        .arg(folder.path())
        .env(WRITER, "overfull")
        .status()?;
    assert!(status.success());
    let file = fs::read_dir(folder.path())?.next().ok_or("no file")??.path();
    let text = fs::read_to_string(file)?;
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        serde_json::from_str::<AuditEvent>(line)?;
    }
    Ok(())
}

/// Emits five events to standard error, which cannot be read back.
fn to_stderr() -> Outcome {
    let audit = FileAudit::with_key(FileAuditConfig::stderr(), key()?)?;
    assert!(!audit.capabilities().query && !audit.capabilities().durable);
    let runtime = runtime()?;
    runtime.block_on(async {
        assert!(audit.check_availability().await?.available);
        for n in 0..5 {
            audit.emit(event().with_fact("n", n)).await?;
        }
        audit.flush().await?;
        let query = audit.query(AuditQuery::new()).await;
        assert_eq!(query.err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
        let verified = audit.verify(&Keys::none(), &[]).await;
        assert_eq!(verified.err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
        assert_eq!(audit.checkpoint().await?.sequence, 5);
        audit.shutdown().await?;
        Ok(())
    })
}

fn key() -> agents_core::Result<ChainKey> {
    ChainKey::hmac(&[7; 32])
}

fn stderr() -> Outcome {
    let output = Command::new(env::current_exe()?).env(WRITER, "stderr").output()?;
    assert!(output.status.success(), "{output:?}");
    let mut events = Vec::new();
    for line in output.stderr.lines() {
        events.push(serde_json::from_str::<AuditEvent>(&line?)?);
    }
    let found = verify_events(events, &Keys::none().with(&key()?), &[]);
    assert_eq!((found.fault, found.events), (None, 5));
    Ok(())
}
