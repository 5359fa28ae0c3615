//! `bench audit`: the journal, the database sink and the audit layer beside what they are built on.
//!
//! Each has an example of its own that measures; this runs them, and puts what they print into one table with what is
//! promised.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{Options, machine, write};
use crate::{
    error::{Context, Error, Result, fail},
    paths,
    services::Own,
    sh,
};

/// What was measured.
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    wanted: Option<Wanted>,
}

#[derive(Clone, Copy)]
enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Wanted {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// Measures; true when everything is as promised.
pub(super) fn run(options: &Options) -> Result<bool> {
    let mut rows = journal()?;
    rows.extend(database()?);
    rows.extend(overhead()?);
    println!("\n{:<44} {:>12}  {:<12} {:>14}", "", "measured", "", "wanted");
    let mut held = true;
    for row in &rows {
        let wanted = match row.wanted {
            Some(Wanted::AtLeast(bound)) => format!("at least {bound}"),
            Some(Wanted::AtMost(bound)) => format!("at most {bound}"),
            None => String::new(),
        };
        let verdict = row.wanted.map(|wanted| wanted.holds(row.value));
        held &= verdict != Some(false);
        let told = match verdict {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        };
        println!(
            "{:<44} {:>12.2}  {:<12} {wanted:>16}  {told}",
            row.name, row.value, row.unit
        );
    }
    write(&options.json, &to_json(&rows))?;
    Ok(held)
}

fn to_json(rows: &[Row]) -> Value {
    let row = |row: &Row| {
        json!({
            "name": row.name,
            "value": row.value,
            "unit": row.unit,
            "at_least": match row.wanted { Some(Wanted::AtLeast(bound)) => Some(bound), _ => None },
            "at_most": match row.wanted { Some(Wanted::AtMost(bound)) => Some(bound), _ => None },
            "holds": row.wanted.map(|wanted| wanted.holds(row.value)),
        })
    };
    json!({"benchmark": "audit", "machine": machine(), "rows": rows.iter().map(row).collect::<Vec<_>>()})
}

/// What an example printed. One that misses what is promised says so with its status, and has printed all the same.
fn example(package: &str, name: &str, arguments: &[&Path], env: &[(String, String)]) -> Result<String> {
    println!("\n{package}: {name}");
    let target = paths::target()?;
    let mut build = sh::cargo();
    build
        .args(["build", "--release", "--package", package, "--example", name])
        .current_dir(paths::workspace()?)
        .env("CARGO_TARGET_DIR", &target);
    sh::run(&mut build)?;
    let program = target.join("release/examples").join(name);
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .envs(env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command
        .output()
        .context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    match text.is_empty() {
        true => fail(format!(
            "the example {name} of {package} printed nothing and ended with {}",
            output.status
        )),
        false => Ok(text),
    }
}

fn journal() -> Result<Vec<Row>> {
    // On the disk of the target folder, which is a real one more often than /tmp is.
    let folder = paths::target()?.join("bench");
    fs::create_dir_all(&folder).context(|| format!("cannot create {}", folder.display()))?;
    parse_journal(&example("agents-journal", "bench", &[&folder], &[])?)
}

/// Lines of `KEY VALUE NEED ok|MISSED`.
fn parse_journal(text: &str) -> Result<Vec<Row>> {
    const NAMES: [(&str, &str, &str); 4] = [
        ("journal_durable_1_per_raw", "journal, durable, 1 writer", "x raw"),
        ("journal_durable_64_per_raw", "journal, durable, 64 writers", "x raw"),
        (
            "journal_chain_per_second",
            "journal, chain without durability",
            "events/s",
        ),
        (
            "journal_chain_per_tracing_appender",
            "the same beside tracing-appender",
            "x appender",
        ),
    ];
    NAMES
        .iter()
        .map(|&(key, name, unit)| {
            let mut words = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
                .ok_or_else(|| missing(key))?
                .split_whitespace();
            let value = words
                .next()
                .and_then(|word| word.parse().ok())
                .ok_or_else(|| missing(key))?;
            let wanted = words.next().and_then(|word| word.parse().ok()).map(Wanted::AtLeast);
            Ok(Row {
                name: name.to_owned(),
                value,
                unit,
                wanted,
            })
        })
        .collect()
}

fn database() -> Result<Vec<Row>> {
    // One of its own, so that nobody else's events are measured.
    let server = Own::start("postgres", "bench")?;
    parse_database(&example("agents-audit-sql", "throughput", &[], server.env())?)
}

/// `the sink RATE events/s R x INSERT R x COPY`.
fn parse_database(text: &str) -> Result<Vec<Row>> {
    let line = text
        .lines()
        .find(|line| line.starts_with("the sink"))
        .ok_or_else(|| missing("the sink"))?;
    let words: Vec<_> = line.split_whitespace().collect();
    let before = |marks: &[&str]| -> Result<f64> {
        let at = words.windows(marks.len()).position(|window| window == marks);
        let word = at.and_then(|at| at.checked_sub(1)).and_then(|at| words.get(at));
        word.and_then(|word| word.parse().ok())
            .ok_or_else(|| missing(&marks.join(" ")))
    };
    let row = |name: &str, value, unit, wanted| Row {
        name: name.to_owned(),
        value,
        unit,
        wanted,
    };
    Ok(vec![
        row("postgres, batches of 1000", before(&["events/s"])?, "events/s", None),
        row(
            "the same beside a multi-row INSERT",
            before(&["x", "INSERT"])?,
            "x INSERT",
            Some(Wanted::AtLeast(0.8)),
        ),
        row("the same beside COPY", before(&["x", "COPY"])?, "x COPY", None),
    ])
}

fn overhead() -> Result<Vec<Row>> {
    parse_overhead(&example("agents-session", "audit_overhead", &[], &[])?)
}

/// `added in all MS ms (at most MS)`.
fn parse_overhead(text: &str) -> Result<Vec<Row>> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("added in all"));
    let line = line.ok_or_else(|| missing("added in all"))?;
    let mut numbers = line
        .split(|c: char| !c.is_ascii_digit() && c != '.' && c != '-')
        .filter_map(|word| word.parse().ok());
    let (value, bound) = numbers
        .next()
        .zip(numbers.next())
        .ok_or_else(|| missing("added in all"))?;
    Ok(vec![Row {
        name: "added to a run by the trail, median".to_owned(),
        value,
        unit: "ms",
        wanted: Some(Wanted::AtMost(bound)),
    }])
}

fn missing(what: &str) -> Error {
    Error::new(format!(
        "the example printed no number for {what:?}; see what it prints now"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_examples_print_is_read() {
        let rows = parse_journal(
            "payload: 1\njournal_durable_1_per_raw 0.91 0.8 ok\njournal_durable_64_per_raw 12.00 20 MISSED\n\
             journal_chain_per_second 400000.00 285000 ok\njournal_chain_per_tracing_appender 0.50 - ok\n",
        )
        .unwrap();
        let held: Vec<_> = rows
            .iter()
            .map(|row| row.wanted.map(|wanted| wanted.holds(row.value)))
            .collect();
        assert_eq!(held, [Some(true), Some(false), Some(true), None]);
        let rows =
            parse_database("raw COPY 1 rows/s\nthe sink                  9000 events/s  1.10 x INSERT  0.70 x COPY\n")
                .unwrap();
        assert_eq!(rows.iter().map(|row| row.value).collect::<Vec<_>>(), [9000.0, 1.1, 0.7]);
        let rows = parse_overhead("  added in all               1.250 ms (at most 2)\n").unwrap();
        assert!(rows[0].wanted.unwrap().holds(rows[0].value) && rows[0].value == 1.25);
        assert!(parse_overhead("added in all").is_err() && parse_database("").is_err() && parse_journal("x").is_err());
    }
}
