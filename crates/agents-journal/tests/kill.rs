//! Writers that are killed at a thousand random points under load. The program starts itself as the writer.

use std::{
    collections::HashMap,
    env,
    error::Error,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, SystemTime},
};

use agents_journal::{ChainKey, Journal, JournalOptions, Keys, Reader, verify};
use agents_testkit::{libtest_mimic::Trial, run};
use tokio::runtime::Builder;

const WRITER: &str = "AGENTS_TEST_JOURNAL_WRITER";

/// How often writers are killed.
const KILLS: usize = 1000;

/// The tasks that append at the same time.
const TASKS: usize = 8;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let Ok(round) = env::var(WRITER) else {
        let trial = Trial::test("kill_at_a_thousand_points_loses_nothing_acknowledged", || Ok(kill()?));
        return run([vec![trial]]);
    };
    let folder = env::args().nth(1).unwrap_or_default();
    match endless(Path::new(&folder), &round) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn key() -> agents_core::Result<ChainKey> {
    ChainKey::hmac(b"a secret of thirty-two bytes ...")
}

fn options(folder: &Path) -> agents_core::Result<JournalOptions> {
    Ok(JournalOptions::new(folder)
        .with_key(key()?)
        // Small, so that some kills hit a rotation.
        .with_segment_bytes(20_000)
        .with_checkpoint_every(50))
}

/// Appends without end, and prints the place and the payload of what was acknowledged.
fn endless(folder: &Path, round: &str) -> Outcome {
    let runtime = Builder::new_multi_thread().worker_threads(2).build()?;
    let journal = Arc::new(runtime.block_on(Journal::open(options(folder)?))?);
    let (told, acknowledged) = mpsc::channel::<String>();
    for task in 0..TASKS {
        let (journal, told, round) = (Arc::clone(&journal), told.clone(), round.to_owned());
        runtime.spawn(async move {
            for n in 0.. {
                let payload = format!("{round}-{task}-{n}-{}", "x".repeat(n * 7 % 300));
                let receipt = journal.append(payload.clone()).await?;
                // Fails once the other end is gone, and then so is this.
                let _ = told.send(format!("{} {payload}\n", receipt.sequence));
            }
            Ok::<_, agents_core::Error>(())
        });
    }
    drop(told);
    let mut output = std::io::stdout().lock();
    for line in acknowledged {
        output.write_all(line.as_bytes())?;
    }
    Err("the journal refused".into())
}

fn start(folder: &Path, round: usize) -> std::io::Result<Child> {
    Command::new(env::current_exe()?)
        .arg(folder)
        .env(WRITER, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
}

/// What was acknowledged before the writer died. The last line may be cut off.
fn collect(output: impl std::io::Read) -> Vec<String> {
    let mut lines = Vec::new();
    let mut reader = BufReader::new(output);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
        lines.push(line.trim_end().to_owned());
        line.clear();
    }
    lines
}

fn kill() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut acknowledged: HashMap<u64, String> = HashMap::new();
    let mut seed = SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
    for round in 0..KILLS {
        let mut writer = start(folder.path(), round)?;
        let output = writer.stdout.take().ok_or("no output")?;
        let reader = thread::spawn(move || collect(output));
        // A linear congruential generator, after Knuth's MMIX.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_micros(1_000 + (seed >> 33) % 30_000));
        let ended = writer.try_wait()?;
        writer.kill()?;
        writer.wait()?;
        assert!(
            ended.is_none(),
            "the writer of round {round} ended by itself: {ended:?}"
        );
        for line in reader.join().map_err(|_| "the reader panicked")? {
            let (sequence, payload) = line.split_once(' ').ok_or("no payload")?;
            let before = acknowledged.insert(sequence.parse()?, payload.to_owned());
            assert_eq!(before, None, "two records have the place {sequence}");
        }
        if round % 100 == 99 {
            check(folder.path(), &acknowledged)?;
        }
    }
    assert!(
        acknowledged.len() > KILLS,
        "only {} were acknowledged",
        acknowledged.len()
    );
    // Once more, after the recovery.
    let runtime = Builder::new_current_thread().build()?;
    let journal = runtime.block_on(Journal::open(options(folder.path())?))?;
    runtime.block_on(journal.close())?;
    check(folder.path(), &acknowledged)
}

/// Everything acknowledged is there, in its place, once, and the chain verifies.
fn check(folder: &Path, acknowledged: &HashMap<u64, String>) -> Outcome {
    let found = verify(folder, &Keys::none().with(&key()?), &[])?;
    assert!(found.is_intact(), "{found}");
    assert_eq!(
        found.writers.len(),
        1,
        "every writer took up the folder of the one before"
    );
    let runtime = Builder::new_current_thread().build()?;
    let mut reader = Reader::of_folder(&found.writers[0].folder, 1);
    let mut payloads = HashMap::new();
    let mut last = 0;
    loop {
        let records = runtime.block_on(reader.read(10_000, 16 << 20))?;
        if records.is_empty() {
            break;
        }
        for record in records {
            last += 1;
            assert_eq!(record.sequence, last);
            let payload = String::from_utf8(record.payload.to_vec())?;
            if let Some(wanted) = acknowledged.get(&last) {
                assert_eq!(&payload, wanted, "record {last}");
            }
            assert_eq!(payloads.insert(payload, last), None, "record {last} is there twice");
        }
    }
    let missing = acknowledged.keys().filter(|sequence| **sequence > last).count();
    assert_eq!(missing, 0, "of {} acknowledged", acknowledged.len());
    Ok(())
}
