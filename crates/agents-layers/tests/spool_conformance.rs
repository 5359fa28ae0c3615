//! The conformance cases over a spool, and writers that are killed. The program starts itself as the writer.

use std::{
    collections::HashSet,
    env,
    error::Error,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use agents_audit_file::{FileAudit, FileAuditConfig};
use agents_core::{AuditEvent, AuditLogger, AuditQuery, EventType};
use agents_journal::{EventVerifier, Keys, Reading};
use agents_layers::spool::{Spool, SpoolOptions, inspect};
use agents_testkit::{
    audit::{AuditFixture, cases},
    fakes::MemoryAudit,
    libtest_mimic::Trial,
    run, trials,
};
use tokio::runtime::{Builder, Runtime};

const WRITER: &str = "AGENTS_TEST_SPOOL_WRITER";

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    if env::var_os(WRITER).is_some() {
        let folder = PathBuf::from(env::args_os().nth(1).unwrap_or_default());
        return match endless(&folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let killed = Trial::test("kill_at_random_points_delivers_everything_acknowledged_once", || {
        Ok(kill()?)
    });
    run([trials("spool", cases(), fixture), vec![killed]])
}

async fn fixture() -> Result<AuditFixture, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (sink, path) = (MemoryAudit::new(), folder.path().to_owned());
    let open = move |sink: MemoryAudit| -> agents_core::Result<Arc<dyn AuditLogger>> {
        Ok(Arc::new(Spool::new(Arc::new(sink), SpoolOptions::new(&path))?))
    };
    let audit = open(sink.clone()).map_err(|error| error.report())?;
    let fixture = AuditFixture::new(audit).keeping(folder);
    Ok(fixture.with_reopen(move || Box::pin(std::future::ready(open(sink.reopened())))))
}

/// The trail that stands for a remote one: any number of processes may write to it, and it finds an event once.
fn remote(folder: &Path) -> agents_core::Result<FileAudit> {
    FileAudit::new(FileAuditConfig::folder(folder.join("remote")))
}

fn spool(folder: &Path) -> agents_core::Result<Spool> {
    Spool::new(Arc::new(remote(folder)?), SpoolOptions::new(folder.join("spool")))
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// Emits events, alone and in batches, and prints the identifiers of those that were acknowledged.
fn endless(folder: &Path) -> Outcome {
    let runtime = runtime()?;
    let audit = spool(folder)?;
    let mut output = std::io::stdout().lock();
    for size in (1..30).cycle() {
        let events: Vec<_> = (0..size)
            .map(|_| AuditEvent::now(EventType::SystemWarning).with_fact("text", "x".repeat(size * 50)))
            .collect();
        let ids: String = events.iter().map(|event| event.event_id.clone() + "\n").collect();
        for outcome in runtime.block_on(audit.emit_batch(events))? {
            outcome?;
        }
        output.write_all(ids.as_bytes())?;
    }
    Ok(())
}

fn start(folder: &Path) -> std::io::Result<Child> {
    Command::new(env::current_exe()?)
        .arg(folder)
        .env(WRITER, "1")
        .stdout(Stdio::piped())
        .spawn()
}

fn kill() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut acknowledged: Vec<Vec<String>> = Vec::new();
    let mut seed = SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
    for _ in 0..12 {
        let mut writers = [start(folder.path())?, start(folder.path())?];
        let outputs = writers.iter_mut().filter_map(|writer| writer.stdout.take());
        let readers: Vec<_> = outputs
            .map(|output| {
                thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect::<Vec<_>>())
            })
            .collect();
        for writer in &mut writers {
            // A linear congruential generator, after Knuth's MMIX.
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            thread::sleep(Duration::from_micros(50_000 + (seed >> 33) % 200_000));
            writer.kill()?;
            writer.wait()?;
        }
        for reader in readers {
            let mut ids = reader.join().map_err(|_| "the reader panicked")?;
            // The last line may be cut off.
            ids.retain(|id| id.len() == 36);
            acknowledged.push(ids);
        }
    }
    let count: usize = acknowledged.iter().map(Vec::len).sum();
    assert!(count > 100, "only {count} were acknowledged");
    let found = runtime()?.block_on(async {
        let audit = spool(folder.path())?;
        let found = all(&audit).await?;
        audit.shutdown().await?;
        Ok::<_, agents_core::Error>(found)
    })?;
    let places: std::collections::HashMap<_, _> = found.iter().enumerate().map(|(n, e)| (&e.event_id, n)).collect();
    assert_eq!(places.len(), found.len(), "an event is found twice");
    for ids in &acknowledged {
        let missing = ids.iter().filter(|id| !places.contains_key(id)).count();
        assert_eq!(missing, 0, "of {} acknowledged", ids.len());
        let order: Vec<_> = ids.iter().map(|id| places[id]).collect();
        assert!(order.is_sorted(), "the order of a writer was lost");
    }
    let mut verifier = EventVerifier::new(Keys::none(), Reading::Ordered, Vec::new());
    found.iter().for_each(|event| verifier.push(event));
    assert_eq!(verifier.finish().fault, None);
    let report = runtime()?
        .block_on(inspect(folder.path().join("spool")))?
        .ok_or("no spool")?;
    assert_eq!((report.events(), report.lost()), (0, 0));
    Ok(())
}

async fn all(audit: &dyn AuditLogger) -> agents_core::Result<Vec<AuditEvent>> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut query = AuditQuery::new().with_limit(1000);
    loop {
        let page = audit.query(query.clone()).await?;
        // The file finds an event once within a page and a little before; a reader of more does as this one.
        found.extend(
            page.events
                .into_iter()
                .filter(|event| seen.insert(event.event_id.clone())),
        );
        match page.next {
            None => return Ok(found),
            next => query.cursor = next,
        }
    }
}
