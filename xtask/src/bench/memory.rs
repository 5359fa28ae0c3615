//! `bench memory`: does the memory of the `agents` process grow with what the agent produces?

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::engines::ENGINES;
use super::{Options, agents, machine, write};
use crate::error::{Context, Result, fail};
use crate::scratch::Scratch;
use crate::{proc, sh};

const LIMIT_MIB: f64 = 64.0;
const OUTPUT_BYTES: u64 = 300 << 20;
const ARTIFACT_BYTES: u64 = 1 << 30;

/// The kernel keeps the high-water mark, so a late look misses only what was reached after the one before it.
const INTERVAL: Duration = Duration::from_millis(5);

/// The most memory that a run had resident, in MiB.
struct Peak {
    /// In the process that was started.
    main: f64,
    /// In all processes of our binary together, counting each at its highest.
    all: f64,
    took: Duration,
    printed: u64,
}

/// What a case has the agent do.
#[derive(Clone, Copy)]
enum Case {
    Output,
    Artifact,
}

impl Case {
    const ALL: [Self; 2] = [Self::Output, Self::Artifact];

    fn name(self) -> &'static str {
        match self {
            Self::Output => "300 MiB of output",
            Self::Artifact => "an artifact of 1 GiB",
        }
    }

    /// The script, how much it prints, and what it needs: an engine's writable places are in memory, with equal shares.
    fn script(self) -> (String, u64, &'static [&'static str]) {
        match self {
            Self::Output => (format!("yes agent | head -c {OUTPUT_BYTES}"), OUTPUT_BYTES, &[]),
            Self::Artifact => (
                format!("yes agent | head -c {ARTIFACT_BYTES} > /output/big"),
                0,
                &["--disk", "4096", "--memory", "3072"],
            ),
        }
    }
}

/// Measures; true when the process stays as small as promised.
pub(super) fn run(options: &Options) -> Result<bool> {
    let binary = options.agents()?;
    let scratch = Scratch::new("bench")?;
    let mut rows = Vec::new();
    let mut missing = Vec::new();
    let chosen = |name: &str| options.only.as_ref().is_none_or(|word| name.contains(word));
    if chosen("embedded") {
        for case in Case::ALL {
            let command = |args: &[&str]| agents(&binary, scratch.path(), &[&["--image", "host"], args].concat());
            rows.push(("embedded", case, measured(case, &binary, command)?));
        }
    }
    for engine in ENGINES.iter().filter(|engine| chosen(engine.name)) {
        match engine.find(scratch.path()) {
            Ok(live) => {
                for case in Case::ALL {
                    let command = |args: &[&str]| live.agents(&binary, scratch.path(), args);
                    rows.push((engine.name, case, measured(case, &binary, command)?));
                }
            }
            Err(error) => missing.push((engine.name, error.to_string())),
        }
    }
    println!("\npeak resident memory of `agents run`, in MiB");
    println!("{:44} {:>8} {:>14} {:>8}", "", "process", "with children", "seconds");
    for (place, case, peak) in &rows {
        println!(
            "{:<44} {:>8.1} {:>14.1} {:>8.1}",
            format!("{place}: {}", case.name()),
            peak.main,
            peak.all,
            peak.took.as_secs_f64()
        );
    }
    for (name, reason) in &missing {
        println!("{name:<44} not measured: {reason}");
    }
    let value = json!({
        "benchmark": "memory",
        "machine": machine(),
        "limit_mib": LIMIT_MIB,
        "rows": rows.iter().map(|(place, case, peak)| json!({
            "runtime": place,
            "name": case.name(),
            "peak_mib": peak.main,
            "peak_with_children_mib": peak.all,
            "seconds": peak.took.as_secs_f64(),
        })).collect::<Vec<_>>(),
        "not_measured": missing.iter()
            .map(|(name, reason)| json!({ "name": name, "reason": reason }))
            .collect::<Vec<_>>(),
    });
    write(&options.json, &value)?;
    let held = rows.iter().all(|(_, _, peak)| peak.main < LIMIT_MIB);
    println!("{}: the limit is {LIMIT_MIB} MiB", if held { "ok" } else { "TOO MUCH" });
    Ok(held)
}

/// Runs a case, and sees that it did what it was to do.
fn measured(case: Case, binary: &Path, command: impl Fn(&[&str]) -> Command) -> Result<Peak> {
    let (script, printed, needs) = case.script();
    let mut command = command(&[needs, &["--", "sh", "-c", &script]].concat());
    let peak = measure(&mut command, binary)?;
    if peak.printed != printed {
        return fail(format!(
            "`{}` printed {} bytes instead of {printed}",
            sh::display(&command),
            peak.printed
        ));
    }
    Ok(peak)
}

fn measure(command: &mut Command, binary: &Path) -> Result<Peak> {
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(|| format!("cannot start `{}`", sh::display(command)))?;
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let counter = thread::spawn(move || stdout.map_or(Ok(0), |mut out| io::copy(&mut out, &mut io::sink())));
    let said = thread::spawn(move || {
        let mut text = Vec::new();
        stderr.map_or(Ok(0), |mut err| err.read_to_end(&mut text))?;
        Ok::<_, io::Error>(text)
    });
    let main = child.id();
    let mut peaks: HashMap<u32, u64> = HashMap::new();
    let status = loop {
        for pid in family(main, binary) {
            if let Some(kib) = high_water(pid) {
                let peak = peaks.entry(pid).or_default();
                *peak = kib.max(*peak);
            }
        }
        if let Some(status) = child
            .try_wait()
            .context(|| format!("cannot wait for `{}`", sh::display(command)))?
        {
            break status;
        }
        thread::sleep(INTERVAL);
    };
    let took = begin.elapsed();
    let printed = counter
        .join()
        .unwrap_or(Ok(0))
        .context(|| "cannot read the output".to_owned())?;
    let said = said.join().unwrap_or(Ok(Vec::new())).unwrap_or_default();
    if !status.success() {
        return fail(format!(
            "`{}` ended with {status} and said:\n{}",
            sh::display(command),
            sh::tail(&String::from_utf8_lossy(&said), 15)
        ));
    }
    let mib = |kib: u64| kib as f64 / 1024.0;
    Ok(Peak {
        main: mib(peaks.get(&main).copied().unwrap_or(0)),
        all: mib(peaks.values().sum()),
        took,
        printed,
    })
}

/// The process and those of its descendants that run our binary; what the agent itself uses is not ours.
fn family(main: u32, binary: &Path) -> Vec<u32> {
    let mut found = vec![main];
    let mut at = 0;
    while at < found.len() {
        let pid = found[at];
        at += 1;
        for child in proc::children(pid) {
            let same = fs::read_link(format!("/proc/{child}/exe")).is_ok_and(|exe| exe == binary);
            if same {
                found.push(child);
            }
        }
    }
    found
}

/// `VmHWM` of a process, in KiB.
fn high_water(pid: u32) -> Option<u64> {
    parse_high_water(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_high_water(status: &str) -> Option<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read() {
        assert_eq!(parse_high_water("Name:\tx\nVmHWM:\t    1234 kB\n"), Some(1234));
        assert_eq!(parse_high_water("Name:\tx\n"), None);
        assert!(high_water(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn output_is_counted_and_memory_seen() {
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 1000000 /dev/zero; sleep 0.1"]);
        let peak = measure(&mut command, Path::new("/none")).unwrap();
        assert_eq!(peak.printed, 1_000_000);
        assert!(peak.main > 0.0 && peak.main <= peak.all);
    }

    #[test]
    fn a_run_that_fails_shows_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no space left >&2; exit 125"]);
        let error = measure(&mut command, Path::new("/none")).err().unwrap();
        assert!(error.to_string().contains("no space left"), "{error}");
    }
}
