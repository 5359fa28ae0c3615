//! `cargo xtask bench`: how fast and how small `agents run` is, beside other tools on the same machine.

mod contenders;
mod memory;
mod stats;
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

  run      wall time of a whole `echo hello`, process start to end, of `agents run`, `bwrap`, `runc run` and
           `podman run --rm` in turn; a tool that is missing or does not work here is left out, with the reason
  memory   peak memory of the `agents` process with 300 MiB of output, and with an artifact of 1 GiB

Options:
  -n N             rounds of `run` after 3 that do not count (default 30)
  --check          fail when `agents run` on the host's root takes more than 1.5 times the median of `runc run`,
                   or when it needs more than 64 MiB
  --json FILE      where to write the numbers (default CARGO_TARGET_DIR/bench/{run,memory}.json)
  --agents FILE    measure this binary instead of building one
";

/// What the caller chose.
struct Options {
    rounds: usize,
    check: bool,
    json: PathBuf,
    agents: PathBuf,
}

pub(crate) fn run(mut args: Args) -> Result<ExitCode> {
    let rounds = args.number("-n")?.unwrap_or(30);
    let check = args.flag("--check");
    let json = args.value("--json")?.map(PathBuf::from);
    let agents = args.value("--agents")?.map(PathBuf::from);
    let what = args.word();
    args.finish()?;
    let run: fn(&Options) -> Result<bool> = match what.as_deref() {
        Some("run") => wall::run,
        Some("memory") => memory::run,
        Some(other) => return fail(format!("no benchmark `{other}`; see --help")),
        None => {
            print!("{HELP}");
            return Ok(ExitCode::FAILURE);
        }
    };
    if rounds == 0 {
        return fail("-n wants at least 1 round");
    }
    let default = format!("bench/{}.json", what.unwrap_or_default());
    let options = Options {
        rounds: usize::try_from(rounds).context(|| "-n is too large".to_owned())?,
        check,
        json: match json {
            Some(file) => file,
            None => paths::target()?.join(default),
        },
        agents: match agents {
            Some(file) => file
                .canonicalize()
                .context(|| format!("cannot find {}", file.display()))?,
            None => build()?,
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
