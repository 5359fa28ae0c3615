//! `cargo xtask ci`: everything that must hold before a change lands, in named steps.
//!
//! A failed step does not stop the ones after it. The closing lines say how many tests ran, failed and were
//! skipped, and why; a suite that should have run and did not is a failure.

mod report;
pub(crate) mod results;
mod suites;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::error::{Context, Result, fail};
use crate::metadata::{self, Metadata};
use crate::{install, paths, services, sh, tidy, vm};

use report::Report;
use results::{Parser, Suite};

pub(crate) const HELP: &str = "\
Install what is missing, start the services, then check, build and test everything. A failed step does not stop
the ones after it; the last line counts tests: `N passed, N failed, N skipped`.

Usage: cargo xtask ci [--only STEP]… [--skip STEP]…

Options:
  --only STEP   run this step alone (may be repeated)
  --skip STEP   leave this step out (may be repeated)

Steps: install, services, fmt, clippy, tidy, build, test, doc, examples, vm, deny

CARGO_TARGET_DIR defaults to $XDG_CACHE_HOME/isolated-agents/target.
";

const STEPS: &[&str] = &[
    "install", "services", "fmt", "clippy", "tidy", "build", "test", "doc", "examples", "vm", "deny",
];

/// Longer than the slowest step takes on a cold cache.
const STEP_LIMIT: Duration = Duration::from_secs(50 * 60);

/// All steps together; whoever calls us may give up after 90 minutes.
const RUN_LIMIT: Duration = Duration::from_secs(80 * 60);

/// An example is something that a person would wait for.
const EXAMPLE_LIMIT: Duration = Duration::from_secs(300);

const DENY_VERSION: &str = "0.20.2";

/// What the steps share.
struct Ci {
    begin: Instant,
    root: PathBuf,
    target: PathBuf,
    /// Variables of the services, once they are up.
    services: Vec<(String, String)>,
    report: Report,
}

pub(crate) fn run(mut args: Args) -> Result<ExitCode> {
    let only = steps(&mut args, "--only")?;
    let skip = steps(&mut args, "--skip")?;
    args.finish()?;
    let mut ci = Ci {
        begin: Instant::now(),
        root: paths::workspace()?,
        target: paths::target()?,
        services: Vec::new(),
        report: Report::default(),
    };
    let chosen =
        |step: &str| (only.is_empty() || only.iter().any(|name| name == step)) && !skip.iter().any(|name| name == step);
    let mut started = Vec::new();
    for &step in STEPS {
        if !chosen(step) {
            continue;
        }
        println!("\n── {step} ──");
        let begin = Instant::now();
        let outcome = match step {
            "install" => install::all(),
            "services" => ci.start_services(&mut started),
            "fmt" => ci.cargo(&["fmt", "--all", "--check"], &[]),
            "clippy" => ci.clippy(),
            "tidy" => ci.tidy(),
            "build" => ci.cargo(&["build", "--workspace", "--all-features"], &[]),
            "test" => ci.test(),
            "doc" => ci.cargo(
                &["doc", "--workspace", "--no-deps", "--all-features"],
                &[("RUSTDOCFLAGS", "-D warnings")],
            ),
            "examples" => ci.examples(),
            "vm" => ci.vm(),
            _ => ci.deny(),
        };
        ci.report.step(step, begin.elapsed(), outcome);
    }
    if !started.is_empty()
        && let Err(error) = services::down(&started)
    {
        ci.report.step("services down", Duration::ZERO, Err(error));
    }
    print!("\n{}", ci.report);
    Ok(if ci.report.failed() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn steps(args: &mut Args, option: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    while let Some(name) = args.value(option)? {
        if !STEPS.contains(&name.as_str()) {
            return fail(format!("no step `{name}`; there are: {}", STEPS.join(", ")));
        }
        names.push(name);
    }
    Ok(names)
}

impl Ci {
    /// Every server, because each has a suite that fails without it.
    fn start_services(&mut self, started: &mut Vec<String>) -> Result<()> {
        let (names, outcome) = services::up_all();
        *started = names;
        self.services = services::env()?;
        // The suites of a server that is not there fail too: each says which one it misses.
        outcome
    }

    fn clippy(&self) -> Result<()> {
        self.cargo(
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--",
                "-D",
                "warnings",
            ],
            &[],
        )?;
        // Somebody who takes the facade and brings adapters of their own has none of its features.
        if self.metadata()?.members.iter().any(|m| m.name == "agents-sdk") {
            self.cargo(
                &[
                    "clippy",
                    "--package",
                    "agents-sdk",
                    "--no-default-features",
                    "--",
                    "-D",
                    "warnings",
                ],
                &[],
            )?;
        }
        Ok(())
    }

    fn tidy(&self) -> Result<()> {
        let findings = tidy::check()?;
        for finding in &findings {
            println!("tidy: {finding}");
        }
        match findings.len() {
            0 => Ok(()),
            count => fail(format!("{count} findings")),
        }
    }

    fn test(&mut self) -> Result<()> {
        let metadata = self.metadata()?;
        let mut build = self.command();
        build.args([
            "test",
            "--workspace",
            "--all-features",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ]);
        let executables = suites::executables(&metadata, &sh::printed(&mut build)?);

        let mut test = self.command();
        test.args(["test", "--workspace", "--all-features", "--no-fail-fast"]);
        let mut parser = Parser::new(executables);
        let status = sh::stream(&mut test, self.limit(), |line| {
            println!("{line}");
            parser.line(line);
        });
        let ran = parser.finish();
        let missing = suites::missing(&suites::required(&metadata), &ran);
        let failed: u64 = ran.iter().map(Suite::failures).sum();
        self.report.suites(ran);
        let status = status?;
        if !missing.is_empty() {
            return fail(format!(
                "these suites should have run and did not: {}",
                missing.join(", ")
            ));
        }
        if !status.success() && failed == 0 {
            return fail(format!("`cargo test` ended with {status}"));
        }
        Ok(())
    }

    /// Each example is a folder with a `run.sh` that ends with 0 when all is as it should be.
    fn examples(&mut self) -> Result<()> {
        let folder = self.root.join("examples");
        let mut scripts: Vec<_> = fs::read_dir(&folder)
            .context(|| format!("cannot read {}", folder.display()))?
            .filter_map(|entry| Some(entry.ok()?.path().join("run.sh")))
            .filter(|script| script.is_file())
            .collect();
        scripts.sort();
        if scripts.is_empty() {
            println!("there are no examples");
            return Ok(());
        }
        let agents = self.agents();
        if !agents.is_file() {
            return fail(format!(
                "{} is missing; it comes from the step `build`",
                agents.display()
            ));
        }
        for script in scripts {
            let name = example_name(&script);
            println!("example {name}");
            let mut command = Command::new("bash");
            command
                .arg(&script)
                .current_dir(&self.root)
                .env("AGENTS", &agents)
                .envs(self.services.iter().cloned());
            let outcome = sh::stream(&mut command, self.limit().min(EXAMPLE_LIMIT), |line| {
                println!("  {line}");
            })
            .and_then(|status| match status.success() {
                true => Ok(()),
                false => fail(format!("run.sh ended with {status}")),
            });
            self.report
                .suites(vec![Suite::single(format!("examples/{name}"), outcome)]);
        }
        Ok(())
    }

    fn vm(&mut self) -> Result<()> {
        let mut options = vm::Options::default();
        options.limit = options.limit.min(self.limit());
        let suites = vm::test(&options)?;
        self.report.suites(suites);
        Ok(())
    }

    fn deny(&self) -> Result<()> {
        let tools = paths::cache()?.join("tools");
        let program = tools.join("bin/cargo-deny");
        let current = sh::output(Command::new(&program).arg("--version"))
            .is_ok_and(|text| text.trim() == format!("cargo-deny {DENY_VERSION}"));
        if !current {
            println!("building cargo-deny {DENY_VERSION}, once");
            // In a build folder of its own: it shares nothing with ours and would only fill it.
            let build = tools.join("build");
            let outcome = sh::run(
                self.command()
                    .args(["install", "cargo-deny", "--locked", "--force", "--quiet"])
                    .args(["--version", DENY_VERSION, "--root"])
                    .arg(&tools)
                    .env("CARGO_TARGET_DIR", &build),
            );
            let _ = fs::remove_dir_all(&build);
            outcome?;
        }
        sh::run(Command::new(&program).current_dir(&self.root).args([
            "--all-features",
            "check",
            "licenses",
            "bans",
            "sources",
        ]))
    }

    fn metadata(&self) -> Result<Metadata> {
        metadata::load()
    }

    fn cargo(&self, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
        let mut command = self.command();
        command.args(args).envs(env.iter().copied());
        let status = sh::stream(&mut command, self.limit(), |line| println!("{line}"))?;
        match status.success() {
            true => Ok(()),
            false => fail(format!("`{}` ended with {status}", sh::display(&command))),
        }
    }

    fn command(&self) -> Command {
        let mut command = sh::cargo();
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            // Each run is of another clone, so what is kept for the next edit is never used; it took 27 GB.
            .env("CARGO_INCREMENTAL", "0")
            // The lines are parsed, and colours would be in the way.
            .env("CARGO_TERM_COLOR", "never")
            .env("NO_COLOR", "1")
            // Tests in other crates than the CLI's find the binary by it.
            .env("AGENTS", self.agents())
            .envs(self.services.iter().cloned());
        command
    }

    /// The binary that the step `build` leaves.
    fn agents(&self) -> PathBuf {
        self.target.join("debug/agents")
    }

    /// How long a step may take: a hang must not eat the time of what comes after, nor that of the closing lines.
    fn limit(&self) -> Duration {
        STEP_LIMIT.min(RUN_LIMIT.saturating_sub(self.begin.elapsed()))
    }
}

fn example_name(script: &Path) -> String {
    script
        .parent()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
