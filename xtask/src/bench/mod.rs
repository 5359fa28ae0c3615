//! `cargo xtask bench`: how fast and how small `agents run` is, beside other tools on the same machine.

mod audit;
mod contenders;
mod engines;
mod memory;
mod stats;
mod storage;
mod wall;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Value, json};

use crate::args::Args;
use crate::error::{Context, Error, Result, fail};
use crate::{paths, sh};

pub(crate) const HELP: &str = "\
Measure the `agents` binary, built with the release profile.

Usage: cargo xtask bench run [OPTIONS]
       cargo xtask bench memory [OPTIONS]
       cargo xtask bench storage [OPTIONS]
       cargo xtask bench audit [OPTIONS]

  run      wall time of a whole `echo hello`, process start to end, of `agents run`, `bwrap`, `runc run` and
           `runsc run` in turn, and of `agents run` on each engine that `cargo xtask services` has started beside the
           engine's own command line; a tool that is missing or does not work here is left out, with the reason
  memory   peak memory of the `agents` process with 300 MiB of output, and with an artifact of 1 GiB, on the
           embedded runtime and on each engine that runs
  storage  store and retrieve of 1 GiB, and of 10,000 small artifacts, beside the client that it is built on, plain and
           with the SHA-256 and the metadata that we must keep, against one server
  audit    the journal beside raw `write` and `fdatasync`, the database sink beside raw statements, and what the trail
           adds to a run

Options:
  -n N             rounds of `run` after 3 that do not count (default 30), or of `storage` (default 5)
  --at-once N      start N processes at once in each round of `run` (default 1)
  --only WORD      measure only what has this word in its name, such as podman
  --check          fail when `agents run` on the host's root takes more than 1.5 times the median of `runc run`,
                   when it takes more than 0.8 times an engine's command line (1.0 times for many at once),
                   when storage is below 0.95 (1 GiB) or 0.9 (small artifacts) of the hashing client's throughput,
                   when more than 64 MiB are needed, or when a ratio of `audit` is missed
  --json FILE      where to write the numbers (default CARGO_TARGET_DIR/bench/{run,memory,storage,audit}.json)
  --agents FILE    measure this binary instead of building one
";

/// What the caller chose.
struct Options {
    rounds: usize,
    /// How many processes start at once.
    at_once: usize,
    /// What the names of those that are measured have in them.
    only: Option<String>,
    check: bool,
    json: PathBuf,
    /// The binary to measure; none builds one.
    agents: Option<PathBuf>,
}

impl Options {
    /// The `agents` binary.
    fn agents(&self) -> Result<PathBuf> {
        match &self.agents {
            Some(file) => Ok(file.clone()),
            None => build(),
        }
    }
}

pub(crate) fn run(mut args: Args) -> Result<ExitCode> {
    let rounds = args.number("-n")?;
    let at_once = args.number("--at-once")?.unwrap_or(1);
    let only = args.value("--only")?;
    let check = args.flag("--check");
    let json = args.value("--json")?.map(PathBuf::from);
    let agents = args.value("--agents")?.map(PathBuf::from);
    let what = args.word();
    args.finish()?;
    let (run, default_rounds): (fn(&Options) -> Result<bool>, _) = match what.as_deref() {
        Some("run") => (wall::run, 30),
        Some("memory") => (memory::run, 1),
        Some("storage") => (storage::run, 5),
        Some("audit") => (audit::run, 1),
        Some(other) => return fail(format!("no benchmark `{other}`; see --help")),
        None => {
            print!("{HELP}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let rounds = rounds.unwrap_or(default_rounds);
    if rounds == 0 || at_once == 0 {
        return fail("-n and --at-once want at least 1");
    }
    let default = format!("bench/{}.json", what.unwrap_or_default());
    let options = Options {
        rounds: usize::try_from(rounds).context(|| "-n is too large".to_owned())?,
        at_once: usize::try_from(at_once).context(|| "--at-once is too large".to_owned())?,
        only,
        check,
        json: match json {
            Some(file) => file,
            None => paths::target()?.join(default),
        },
        agents: match agents {
            Some(file) => Some(
                file.canonicalize()
                    .context(|| format!("cannot find {}", file.display()))?,
            ),
            None => None,
        },
    };
    let held = run(&options)?;
    Ok(if held || !options.check {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds the binary that users get.
fn build() -> Result<PathBuf> {
    let target = paths::target()?;
    sh::run(
        sh::cargo()
            .args(["build", "--release", "--package", "agents-cli"])
            .current_dir(paths::workspace()?)
            .env("CARGO_TARGET_DIR", &target),
    )?;
    let agents = target.join("release/agents");
    match agents.is_file() {
        true => Ok(agents),
        false => fail(format!("the build left no {}", agents.display())),
    }
}

/// `agents run` with the state of this benchmark alone, and nothing of the user's configuration.
fn agents(binary: &Path, scratch: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary);
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("ISOLATED_AGENTS_") {
            command.env_remove(key);
        }
    }
    command
        .arg("run")
        .args(args)
        .current_dir(scratch)
        .env("XDG_CONFIG_HOME", scratch.join("config"))
        .env("XDG_DATA_HOME", scratch.join("data"))
        .env("ISOLATED_AGENTS_STATE_DIR", scratch.join("state"));
    command
}

/// What the numbers were taken on.
fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, name)| name.to_owned());
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processor": processor,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "cgroup": if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 },
    })
}

fn write(path: &Path, value: &Value) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
    }
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Error::new(format!("cannot write JSON: {error}")))?;
    fs::write(path, text + "\n").context(|| format!("cannot write {}", path.display()))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}
