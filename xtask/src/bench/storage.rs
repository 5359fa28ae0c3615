//! `bench storage`: our storage backend beside the client that it is built on, against the same server.
//!
//! The client runs twice: as it is, and with what our contract demands of everything that is stored and read: its SHA-256,
//! which a small object keeps in its metadata, under a key as deep as ours.
//! Over loopback a single core hashes about as fast as the wire delivers, so that difference is the hash's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Options, machine, stats, write};
use crate::error::{Context, Error, Result};
use crate::services::Own;
use crate::{paths, random, sh};

const SERVER: &str = "versitygw";

/// The most resident memory of our process, in MiB.
const LIMIT_MIB: f64 = 64.0;

/// What is measured, and how fast ours must be beside the client that does the same.
const CASES: &[Case] = &[
    Case {
        name: "1 GiB",
        what: "large",
        ratio: 0.95,
    },
    Case {
        name: "10,000 of 1 KiB",
        what: "small",
        ratio: 0.9,
    },
];

struct Case {
    name: &'static str,
    what: &'static str,
    ratio: f64,
}

/// The runs of one side.
#[derive(Default)]
struct Runs {
    store: Vec<Duration>,
    retrieve: Vec<Duration>,
    cpu: Vec<Duration>,
    peak_mib: f64,
}

/// Measures; true when every ratio and the memory are as promised.
pub(super) fn run(options: &Options) -> Result<bool> {
    let program = build()?;
    // One of its own, so that nobody else's requests are measured, and nobody else's server is stopped.
    let server = Own::start(SERVER, "bench")?;
    let (rows, held) = measure(options, &program, &server)?;
    let value = json!({
        "benchmark": "storage",
        "machine": machine(),
        "server": SERVER,
        "rounds": options.rounds,
        "limit_mib": LIMIT_MIB,
        "rows": rows,
    });
    write(&options.json, &value)?;
    Ok(held)
}

fn measure(options: &Options, program: &Path, server: &Own) -> Result<(Vec<Value>, bool)> {
    let (mut rows, mut held) = (Vec::new(), true);
    println!(
        "\n{SERVER}, {} rounds in turn, medians in seconds; a ratio of 1 is as fast, less is slower",
        options.rounds
    );
    println!(
        "{:<26} {:>7} {:>7} {:>7}   {:>8} {:>8} {:>7} {:>8}",
        "", "ours", "hashing", "plain", "to hash.", "to plain", "wanted", "our MiB"
    );
    for case in CASES {
        let (mut ours, mut hashing, mut plain) = (Runs::default(), Runs::default(), Runs::default());
        for _ in 0..options.rounds {
            once(program, server, "ours", case.what, &mut ours)?;
            once(program, server, "hashing", case.what, &mut hashing)?;
            once(program, server, "plain", case.what, &mut plain)?;
        }
        let small = ours.peak_mib < LIMIT_MIB;
        for (verb, times) in [
            ("store", [&ours.store, &hashing.store, &plain.store]),
            ("retrieve", [&ours.retrieve, &hashing.retrieve, &plain.retrieve]),
        ] {
            let [mine, same, bare] = times.map(|times| stats::summary(times).map_or(f64::NAN, |times| times.median));
            // The contract demands the hash, so the client that does the same is the one that hashes too.
            let (ratio, to_plain) = (same / mine, bare / mine);
            let fast = ratio >= case.ratio;
            held &= fast && small;
            let name = format!("{verb} {}", case.name);
            println!(
                "{name:<26} {:>7.2} {:>7.2} {:>7.2}   {ratio:>8.2} {to_plain:>8.2} {:>7.2} {:>8.1}  {}",
                mine / 1e3,
                same / 1e3,
                bare / 1e3,
                case.ratio,
                ours.peak_mib,
                match (fast, small) {
                    (true, true) => "ok",
                    (false, _) => "TOO SLOW",
                    (true, false) => "TOO LARGE",
                }
            );
            let side = |runs: &Runs, median: f64, times: &[Duration]| {
                json!({
                    "median_ms": median,
                    "samples_ms": times.iter().map(|&time| stats::millis(time)).collect::<Vec<_>>(),
                    // Of the whole process: both verbs.
                    "cpu_median_ms": stats::summary(&runs.cpu).map(|cpu| cpu.median),
                    "peak_mib": runs.peak_mib,
                })
            };
            rows.push(json!({
                "name": name,
                "ratio_to_hashing": ratio,
                "ratio_to_plain": to_plain,
                "wanted": case.ratio,
                "ours": side(&ours, mine, times[0]),
                "hashing": side(&hashing, same, times[1]),
                "plain": side(&plain, bare, times[2]),
            }));
        }
    }
    Ok((rows, held))
}

/// One process: it stores, reads, and says how long each took.
fn once(program: &Path, server: &Own, who: &str, what: &str, runs: &mut Runs) -> Result<()> {
    let variables = server.env();
    let buckets = variables
        .iter()
        .find(|(key, _)| key == "AGENTS_TEST_VERSITYGW_FOLDER")
        .map(|(_, value)| value)
        .ok_or_else(|| Error::new("the server does not say where its bucket is"))?;
    // A folder of the server's own disk; it is removed behind the server's back, which costs no request.
    let folder = format!("bench-{}", random::hex(6)?);
    let printed = sh::printed(
        Command::new(program)
            .args([who, what, &folder])
            .envs(variables.iter().map(|(key, value)| (key, value))),
    )?;
    let left = Path::new(buckets).join(&folder);
    fs::remove_dir_all(&left).context(|| format!("cannot remove {}", left.display()))?;
    let result: Value = serde_json::from_str(&printed).context(|| format!("`{who} {what}` printed no JSON"))?;
    let seconds = |key: &str| {
        result[key]
            .as_f64()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| Error::new(format!("`{who} {what}` printed no {key}")))
    };
    runs.store.push(seconds("store_seconds")?);
    runs.retrieve.push(seconds("retrieve_seconds")?);
    runs.cpu.push(seconds("cpu_seconds")?);
    let peak = result["peak_kib"].as_f64().unwrap_or(f64::INFINITY) / 1024.0;
    runs.peak_mib = runs.peak_mib.max(peak);
    Ok(())
}

/// Builds what measures, with the release profile.
fn build() -> Result<PathBuf> {
    let target = paths::target()?;
    sh::run(
        sh::cargo()
            .args([
                "build",
                "--release",
                "--package",
                "agents-tests",
                "--example",
                "storage_bench",
            ])
            .current_dir(paths::workspace()?)
            .env("CARGO_TARGET_DIR", &target),
    )?;
    Ok(target.join("release/examples/storage_bench"))
}
