//! `bench run`: the wall time of whole processes, one tool after the other in each round.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::contenders::{self, AGENTS_HOST, Contender, Missing, RUNC};
use super::stats::{self, Summary};
use super::{Options, machine, write};
use crate::error::{Error, Result, fail};
use crate::scratch::Scratch;
use crate::sh;

/// Rounds that fill caches and do not count.
const WARM_UP: usize = 3;

/// `agents run` may take this much of what `runc run` takes.
const LIMIT: f64 = 1.5;

/// Measures; true when `agents run` is as fast as promised.
pub(super) fn run(options: &Options) -> Result<bool> {
    let scratch = Scratch::new("bench")?;
    let (ready, mut missing) = contenders::prepare(&options.agents()?, scratch.path())?;
    let mut racing = Vec::new();
    for contender in ready {
        match warm_up(&contender) {
            Ok(()) => racing.push((contender, Vec::new())),
            // A tool of others that does not work here is left out; ours has to work.
            Err(error) if contender.name == AGENTS_HOST => return Err(error),
            Err(error) => missing.push(Missing {
                name: contender.name,
                reason: error.to_string(),
            }),
        }
    }
    // In turn, so that a busy moment of the machine hits all of them.
    for _ in 0..options.rounds {
        for (contender, times) in &mut racing {
            times.push(once(contender)?);
        }
    }

    let rows: Vec<_> = racing
        .iter()
        .filter_map(|(contender, times)| Some((contender.name, stats::summary(times)?, times)))
        .collect();
    let median = |name: &str| {
        rows.iter()
            .find(|(other, _, _)| *other == name)
            .map(|(_, summary, _)| summary.median)
    };
    let runc = median(RUNC);
    print_table(
        options.rounds,
        rows.iter().map(|(name, summary, _)| (*name, *summary)),
        runc,
    );
    for Missing { name, reason } in &missing {
        println!("{name:<24} not measured: {reason}");
    }
    let value = json!({
        "benchmark": "run",
        "machine": machine(),
        "rounds": options.rounds,
        "rows": rows.iter().map(|(name, summary, times)| json!({
            "name": name,
            "min_ms": summary.min,
            "median_ms": summary.median,
            "p90_ms": summary.p90,
            "ratio_to_runc": runc.map(|runc| summary.median / runc),
            "samples_ms": times.iter().map(|&time| stats::millis(time)).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "not_measured": missing.iter()
            .map(|missing| json!({ "name": missing.name, "reason": missing.reason }))
            .collect::<Vec<_>>(),
    });
    write(&options.json, &value)?;

    let (Some(agents), Some(runc)) = (median(AGENTS_HOST), runc) else {
        if options.check {
            return fail("--check compares with `runc run`, which did not work here");
        }
        return Ok(true);
    };
    let held = agents <= LIMIT * runc;
    println!(
        "{}: {AGENTS_HOST} takes {:.2} times {RUNC}; the limit is {LIMIT}",
        if held { "ok" } else { "TOO SLOW" },
        agents / runc
    );
    Ok(held)
}

fn print_table<'a>(rounds: usize, rows: impl Iterator<Item = (&'a str, Summary)>, runc: Option<f64>) {
    println!("\n`echo hello`, whole process, {rounds} runs each, in ms");
    println!("{:24} {:>8} {:>8} {:>8} {:>8}", "", "min", "median", "p90", "to runc");
    for (name, summary) in rows {
        let ratio = runc.map_or_else(String::new, |runc| format!("{:.2}", summary.median / runc));
        println!(
            "{name:<24} {:>8.1} {:>8.1} {:>8.1} {ratio:>8}",
            summary.min, summary.median, summary.p90
        );
    }
}

fn warm_up(contender: &Contender) -> Result<()> {
    for _ in 0..WARM_UP {
        once(contender)?;
    }
    Ok(())
}

/// One run, from before the process starts until after it has ended.
fn once(contender: &Contender) -> Result<Duration> {
    let mut command: Command = (contender.command)();
    command.stdin(Stdio::null());
    let begin = Instant::now();
    let output = command.output().map_err(|error| {
        Error::new(format!(
            "{} cannot be started: {error}",
            command.get_program().to_string_lossy()
        ))
    })?;
    let took = begin.elapsed();
    if output.status.success() && output.stdout == b"hello\n" {
        return Ok(took);
    }
    fail(format!(
        "`{}` ended with {}, printed {:?} and said:\n{}",
        sh::display(&command),
        output.status,
        String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(200)]),
        sh::tail(&String::from_utf8_lossy(&output.stderr), 15)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(script: &'static str) -> Contender {
        Contender {
            name: "script",
            command: Box::new(move || {
                let mut command = Command::new("sh");
                command.args(["-c", script]);
                command
            }),
        }
    }

    #[test]
    fn only_a_run_that_did_its_work_is_timed() {
        assert!(once(&contender("echo hello")).is_ok());
        let error = once(&contender("echo no image here >&2; exit 125")).unwrap_err();
        assert!(error.to_string().contains("no image here"), "{error}");
        assert!(once(&contender("echo something else")).is_err());
        assert!(once(&contender("echo hello; exit 1")).is_err());
    }
}
