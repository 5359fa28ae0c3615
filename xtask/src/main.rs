//! Automation of the workspace: `cargo xtask help`.
//!
//! One module per sub-command. Everything is written for a Debian machine with Rust and nothing else:
//! what a command needs, it installs or builds into the user's cache folder.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod ci;
mod deb;
mod error;
mod install;
mod lock;
mod metadata;
mod paths;
mod proc;
mod random;
mod scratch;
mod services;
mod sh;
mod tidy;
mod vm;

use std::process::ExitCode;

use crate::args::Args;
use crate::error::{Result, fail};

const HELP: &str = "\
Automation of the workspace.

Usage: cargo xtask COMMAND [OPTIONS]

Commands:
  ci         install, start services, check, build and test everything
  tidy       rules that the compiler does not know: arrows between crates, forbidden packages, sources
  services   start and stop the servers that tests talk to
  install    Debian packages that tests and benchmarks need
  bench      compare `agents run` with other tools; measure its memory
  vm-test    boot a cgroup v2 kernel in qemu and run tests of the native and the podman runtime there

`cargo xtask COMMAND --help` tells more.
";

fn main() -> ExitCode {
    match dispatch(std::env::args().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(mut words: Vec<String>) -> Result<ExitCode> {
    if words.is_empty() || matches!(words[0].as_str(), "help" | "-h" | "--help") {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    let command = words.remove(0);
    let (help, run): (&str, fn(Args) -> Result<ExitCode>) = match command.as_str() {
        "bench" => (bench::HELP, bench::run),
        "ci" => (ci::HELP, ci::run),
        "install" => (install::HELP, install::run),
        "services" => (services::HELP, services::run),
        "tidy" => (tidy::HELP, tidy::run),
        "vm-test" => (vm::HELP, vm::run),
        other => {
            return fail(format!("no command `{other}`; `cargo xtask help` lists them"));
        }
    };
    let mut args = Args::new(words);
    if args.wants_help() {
        print!("{help}");
        return Ok(ExitCode::SUCCESS);
    }
    run(args)
}
