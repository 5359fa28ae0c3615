//! Measures the journal beside a bare loop of `write` and `fdatasync`, and beside `tracing-appender`, in turns.
//!
//! Run it with `cargo run --release -p agents-journal --example bench [FOLDER]`, on a folder of a real disk. The last lines
//! are `KEY VALUE NEED ok|MISSED`, and the exit status says whether every need was met.

use std::{
    error::Error,
    fs::{self, File},
    io::Write,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use agents_core::{AuditEvent, EventType, SessionId};
use agents_journal::{ChainKey, Durability, Journal, JournalOptions, Keys, canonical, verify};
use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};

const ROUNDS: usize = 5;
/// A disk is faster at one moment than at the next, so the loop and what is measured beside it take short turns.
const TURNS: usize = 12;
const ALONE: usize = 100;
const WRITERS: usize = 64;
const EACH: usize = 50;
const QUICK: usize = 100_000;
const BATCH: usize = 100;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<ExitCode> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let folder = tempfile::tempdir_in(parent)?;
    let one = Builder::new_current_thread().build()?;
    let many = Builder::new_multi_thread().worker_threads(2).build()?;
    let payload = payload();
    println!("payload: {} bytes, HMAC chain; {ROUNDS} rounds, medians", payload.len());

    let mut rates = Rates::default();
    for round in 0..ROUNDS {
        let place = folder.path().join(round.to_string());
        fs::create_dir(&place)?;
        rates.turns(&place, &payload, &one, &many)?;
        rates.chain.push(batches(&one, &place, &payload)?);
        rates.appender.push(appender(&place, &payload)?);
        rates.quick.push(quick(&many, &place, &payload)?);
        fs::remove_dir_all(&place)?;
    }
    Ok(rates.report())
}

/// Records a second.
#[derive(Default)]
struct Rates {
    raw: Vec<f64>,
    alone: Vec<f64>,
    shared: Vec<f64>,
    chain: Vec<f64>,
    appender: Vec<f64>,
    quick: Vec<f64>,
}

impl Rates {
    /// Durable records: the loop, one writer and 64 in turns.
    fn turns(&mut self, folder: &Path, payload: &Bytes, one: &Runtime, many: &Runtime) -> Outcome {
        let mut line = payload.to_vec();
        line.push(b'\n');
        let mut file = File::create(folder.join("raw"))?;
        let journal = Arc::new(open(one, folder, Durability::EveryCommit)?);
        let mut seconds = [0.0; 3];
        for _ in 0..TURNS {
            let start = Instant::now();
            for _ in 0..ALONE {
                file.write_all(&line)?;
                file.sync_data()?;
            }
            seconds[0] += start.elapsed().as_secs_f64();
            let start = Instant::now();
            one.block_on(emit(&journal, payload, ALONE))?;
            seconds[1] += start.elapsed().as_secs_f64();
            let start = Instant::now();
            share(many, &journal, payload, EACH)?;
            seconds[2] += start.elapsed().as_secs_f64();
        }
        close(one, folder, &journal, TURNS * (ALONE + WRITERS * EACH))?;
        let rate = |count: usize, seconds: f64| (TURNS * count) as f64 / seconds;
        self.raw.push(rate(ALONE, seconds[0]));
        self.alone.push(rate(ALONE, seconds[1]));
        self.shared.push(rate(WRITERS * EACH, seconds[2]));
        Ok(())
    }

    fn report(mut self) -> ExitCode {
        let per_raw = |rates: &[f64]| {
            let mut ratios: Vec<_> = rates.iter().zip(&self.raw).map(|(rate, raw)| rate / raw).collect();
            median(&mut ratios)
        };
        let (alone, shared) = (per_raw(&self.alone), per_raw(&self.shared));
        let raw = median(&mut self.raw);
        let chain = median(&mut self.chain);
        let appender = median(&mut self.appender);
        for (what, rate) in [
            ("write + fdatasync", raw),
            ("durable, 1 writer", median(&mut self.alone)),
            ("durable, 64 writers", median(&mut self.shared)),
            ("not durable, batches of 100", chain),
            ("not durable, 64 writers", median(&mut self.quick)),
            ("tracing-appender, no chain", appender),
        ] {
            println!("{what:28} {rate:10.0} /s");
        }
        let mut met = true;
        for (key, value, need) in [
            ("journal_durable_1_per_raw", alone, 0.8),
            ("journal_durable_64_per_raw", shared, 20.0),
            ("journal_chain_per_second", chain, 285_000.0),
        ] {
            let good = value >= need;
            met &= good;
            println!("{key} {value:.2} {need} {}", if good { "ok" } else { "MISSED" });
        }
        println!("journal_chain_per_tracing_appender {:.2} - ok", chain / appender);
        if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn payload() -> Bytes {
    let event = AuditEvent::now(EventType::ContainerStarted)
        .with_session(SessionId::generate())
        .with_fact("image", "python:3.11-slim")
        .with_fact("pid", 4711);
    canonical(&event)
}

fn key() -> agents_core::Result<ChainKey> {
    ChainKey::hmac(b"a secret of thirty-two bytes ...")
}

fn rate(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

fn open(runtime: &Runtime, folder: &Path, durability: Durability) -> Outcome<Journal> {
    let options = JournalOptions::new(folder.join("journal"))
        .with_key(key()?)
        .with_durability(durability);
    Ok(runtime.block_on(Journal::open(options))?)
}

/// Closes it and sees to it that what was measured was real.
fn close(runtime: &Runtime, folder: &Path, journal: &Journal, count: usize) -> Outcome {
    runtime.block_on(journal.close())?;
    let path = folder.join("journal");
    let found = verify(&path, &Keys::none().with(&key()?), &[])?;
    assert!(found.is_intact(), "{found}");
    assert_eq!(found.records(), count as u64);
    fs::remove_dir_all(path)?;
    Ok(())
}

async fn emit(journal: &Journal, payload: &Bytes, count: usize) -> agents_core::Result<()> {
    for _ in 0..count {
        journal.append(payload.clone()).await?;
    }
    Ok(())
}

/// 64 writers at the same time.
fn share(runtime: &Runtime, journal: &Arc<Journal>, payload: &Bytes, each: usize) -> Outcome {
    let writers = (0..WRITERS).map(|_| {
        let (journal, payload) = (Arc::clone(journal), payload.clone());
        runtime.spawn(async move { emit(&journal, &payload, each).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        runtime.block_on(writer)??;
    }
    Ok(())
}

fn quick(runtime: &Runtime, folder: &Path, payload: &Bytes) -> Outcome<f64> {
    let journal = Arc::new(open(runtime, folder, Durability::None)?);
    let start = Instant::now();
    share(runtime, &journal, payload, QUICK / WRITERS)?;
    let rate = rate(QUICK, start);
    close(runtime, folder, &journal, QUICK / WRITERS * WRITERS)?;
    Ok(rate)
}

/// One writer, which has the next batch in line while one is written.
fn batches(runtime: &Runtime, folder: &Path, payload: &Bytes) -> Outcome<f64> {
    let journal = open(runtime, folder, Durability::None)?;
    let start = Instant::now();
    runtime.block_on(async {
        let mut before = journal.append_batch(vec![payload.clone(); BATCH]);
        for _ in 1..QUICK / BATCH {
            let next = journal.append_batch(vec![payload.clone(); BATCH]);
            before.await?;
            before = next;
        }
        before.await
    })?;
    let rate = rate(QUICK, start);
    close(runtime, folder, &journal, QUICK)?;
    Ok(rate)
}

/// Until everything is written, as it neither loses nor acknowledges anything otherwise.
fn appender(folder: &Path, payload: &[u8]) -> Outcome<f64> {
    let mut line = payload.to_vec();
    line.push(b'\n');
    let file = tracing_appender::rolling::never(folder, "appender");
    let (mut writer, guard) = tracing_appender::non_blocking::NonBlockingBuilder::default()
        .lossy(false)
        .finish(file);
    let start = Instant::now();
    for _ in 0..QUICK {
        writer.write_all(&line)?;
    }
    drop(guard);
    let rate = rate(QUICK, start);
    let written = fs::metadata(folder.join("appender"))?.len();
    assert_eq!(written, (QUICK * line.len()) as u64);
    Ok(rate)
}
