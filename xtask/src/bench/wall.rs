//! `bench run`: the wall time of whole processes, one tool after the other in each round.

use std::io;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::contenders::{self, Contender, Missing};
use super::stats::{self, Summary};
use super::{Options, machine, write};
use crate::error::{Error, Result, fail};
use crate::scratch::Scratch;
use crate::sh;

/// Rounds that fill caches and do not count.
const WARM_UP: usize = 3;

/// What many at once may take of what as many command lines take.
const LIMIT_AT_ONCE: f64 = 1.0;

/// A contender and how long it took.
struct Row {
    contender: Contender,
    times: Vec<Duration>,
    summary: Summary,
}

/// How a row stands to its rival.
struct Standing<'a> {
    rival: &'a str,
    ratio: f64,
    limit: f64,
}

/// Measures; true when `agents run` is as fast as promised.
pub(super) fn run(options: &Options) -> Result<bool> {
    let scratch = Scratch::new("bench")?;
    let (ready, mut missing) = contenders::prepare(&options.agents()?, scratch.path())?;
    let mut racing = Vec::new();
    for contender in ready {
        let chosen = options.only.as_ref().is_none_or(|word| contender.name.contains(word));
        if !chosen {
            continue;
        }
        match warm_up(&contender) {
            Ok(()) => racing.push((contender, Vec::new())),
            // A tool of others that does not work here is left out; ours has to work.
            Err(error) if contender.is_ours() => return Err(error),
            Err(error) => missing.push(Missing {
                name: contender.name,
                reason: error.to_string(),
            }),
        }
    }
    // In turn, so that a busy moment of the machine hits all of them.
    for _ in 0..options.rounds {
        for (contender, times) in &mut racing {
            times.push(batch(contender, options.at_once)?);
        }
    }
    let rows: Vec<Row> = racing
        .into_iter()
        .filter_map(|(contender, times)| {
            let summary = stats::summary(&times)?;
            Some(Row {
                contender,
                times,
                summary,
            })
        })
        .collect();
    print_table(options, &rows);
    for Missing { name, reason } in &missing {
        println!("{name:<34} not measured: {reason}");
    }
    write(&options.json, &report(options, &rows, &missing))?;
    let mut held = true;
    for (row, standing) in rows
        .iter()
        .filter_map(|row| Some((row, standing(options, row, &rows)?)))
    {
        let good = standing.ratio <= standing.limit;
        held &= good;
        println!(
            "{}: {} takes {:.2} times {}; the limit is {}",
            if good { "ok" } else { "TOO SLOW" },
            row.contender.name,
            standing.ratio,
            standing.rival,
            standing.limit
        );
    }
    if options.check && rows.iter().all(|row| standing(options, row, &rows).is_none()) {
        return fail("--check compares with other tools, of which none worked here");
    }
    Ok(held)
}

/// How a row stands to the one that it is measured by, when that was measured.
fn standing<'a>(options: &Options, row: &'a Row, rows: &[Row]) -> Option<Standing<'a>> {
    let target = row.contender.target.as_ref()?;
    let rival = rows.iter().find(|other| other.contender.name == target.rival)?;
    Some(Standing {
        rival: &target.rival,
        ratio: row.summary.median / rival.summary.median,
        limit: match options.at_once {
            1 => target.limit,
            _ => LIMIT_AT_ONCE.max(target.limit),
        },
    })
}

fn report(options: &Options, rows: &[Row], missing: &[Missing]) -> Value {
    json!({
        "benchmark": "run",
        "machine": machine(),
        "rounds": options.rounds,
        "at_once": options.at_once,
        "rows": rows.iter().map(|row| {
            let standing = standing(options, row, rows);
            json!({
                "name": row.contender.name,
                "min_ms": row.summary.min,
                "median_ms": row.summary.median,
                "p90_ms": row.summary.p90,
                "rival": standing.as_ref().map(|standing| standing.rival),
                "ratio_to_rival": standing.as_ref().map(|standing| standing.ratio),
                "limit": standing.as_ref().map(|standing| standing.limit),
                "samples_ms": row.times.iter().map(|&time| stats::millis(time)).collect::<Vec<_>>(),
            })
        }).collect::<Vec<_>>(),
        "not_measured": missing.iter()
            .map(|missing| json!({ "name": missing.name, "reason": missing.reason }))
            .collect::<Vec<_>>(),
    })
}

fn print_table(options: &Options, rows: &[Row]) {
    let what = match options.at_once {
        1 => "whole process".to_owned(),
        many => format!("{many} whole processes at once"),
    };
    println!("\n`echo hello`, {what}, {} runs each, in ms", options.rounds);
    println!(
        "{:34} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "min", "median", "p90", "ratio", "limit"
    );
    for row in rows {
        let Summary { min, median, p90 } = row.summary;
        let (ratio, limit) = standing(options, row, rows).map_or_else(Default::default, |standing| {
            (format!("{:.2}", standing.ratio), standing.limit.to_string())
        });
        let name = &row.contender.name;
        println!("{name:<34} {min:>8.1} {median:>8.1} {p90:>8.1} {ratio:>8} {limit:>8}");
    }
}

fn warm_up(contender: &Contender) -> Result<()> {
    for _ in 0..WARM_UP {
        once(contender)?;
    }
    Ok(())
}

fn once(contender: &Contender) -> Result<Duration> {
    batch(contender, 1)
}

/// Some runs at once, from before the first process starts until after the last has ended.
fn batch(contender: &Contender, at_once: usize) -> Result<Duration> {
    let mut commands: Vec<Command> = (0..at_once).map(|_| (contender.command)()).collect();
    let begin = Instant::now();
    let running: Vec<_> = commands
        .iter_mut()
        .map(|command| {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn()
        })
        .collect();
    // All are waited for, also when one could not be started. The little that each prints fits into its pipes.
    let ended: Vec<_> = running
        .into_iter()
        .map(|child| child.and_then(Child::wait_with_output))
        .collect();
    let took = begin.elapsed();
    for (command, output) in commands.iter().zip(ended) {
        check(command, output)?;
    }
    Ok(took)
}

/// Whether a run did what it was to do.
fn check(command: &Command, output: io::Result<Output>) -> Result<()> {
    let output = output.map_err(|error| {
        Error::new(format!(
            "{} cannot be started: {error}",
            command.get_program().to_string_lossy()
        ))
    })?;
    if output.status.success() && output.stdout == b"hello\n" {
        return Ok(());
    }
    fail(format!(
        "`{}` ended with {}, printed {:?} and said:\n{}",
        sh::display(command),
        output.status,
        String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(200)]),
        sh::tail(&String::from_utf8_lossy(&output.stderr), 15)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(script: &'static str) -> Contender {
        let command = move || {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        Contender::new("script", None, Box::new(command))
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
