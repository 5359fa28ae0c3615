//! How many durable events a second the file audit log takes, beside a bare loop of `write` and `fdatasync`.
//!
//! Run it with `cargo run --release -p agents-audit-file --example throughput [FOLDER]`, on a folder of a real disk.

use std::{error::Error, fs::File, io::Write, sync::Arc, time::Instant};

use agents_audit_file::{FileAudit, FileAuditConfig};
use agents_core::{AuditEvent, AuditLogger, EventType, SessionId};

const RAW: usize = 2_000;
const WRITERS: usize = 64;
const EACH: usize = 1_000;

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let folder = tempfile::tempdir_in(parent)?;

    let mut line = serde_json::to_vec(&event())?;
    line.push(b'\n');
    let mut file = File::create(folder.path().join("raw"))?;
    let start = Instant::now();
    for _ in 0..RAW {
        file.write_all(&line)?;
        file.sync_data()?;
    }
    let raw = report("write + fdatasync", RAW, start, None);

    let audit = Arc::new(FileAudit::new(FileAuditConfig::folder(folder.path()))?);
    let one = tokio::runtime::Builder::new_current_thread().build()?;
    one.block_on(emit(&audit, events(1)))?;
    let some = events(RAW);
    let start = Instant::now();
    one.block_on(emit(&audit, some))?;
    report("one writer", RAW, start, Some(raw));

    let many = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let each: Vec<_> = (0..WRITERS).map(|_| events(EACH)).collect();
    let start = Instant::now();
    let writers = each.into_iter().map(|events| {
        let audit = Arc::clone(&audit);
        many.spawn(async move { emit(&audit, events).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        many.block_on(writer)??;
    }
    report("64 writers", WRITERS * EACH, start, Some(raw));
    Ok(())
}

async fn emit(audit: &FileAudit, events: Vec<AuditEvent>) -> agents_core::Result<()> {
    for event in events {
        audit.emit(event).await?;
    }
    Ok(())
}

fn events(count: usize) -> Vec<AuditEvent> {
    (0..count).map(|_| event()).collect()
}

fn event() -> AuditEvent {
    AuditEvent::now(EventType::ContainerStarted)
        .with_session(SessionId::generate())
        .with_fact("image", "python:3.11-slim")
        .with_fact("pid", 4711)
}

/// Prints and returns events a second.
fn report(what: &str, count: usize, start: Instant, raw: Option<f64>) -> f64 {
    let rate = count as f64 / start.elapsed().as_secs_f64();
    match raw {
        None => println!("{what:20} {rate:10.0} events/s"),
        Some(raw) => println!("{what:20} {rate:10.0} events/s  {:6.2} x the loop", rate / raw),
    }
    rate
}
