//! `cargo xtask vm-test`: the tests of the native runtime on a host with cgroup v2.
//!
//! Debian's cloud kernel boots under qemu, emulated, from an initramfs that is made here; nothing is installed but
//! qemu. The scripts that run inside are in `tests/vm/`. What comes back is the text of the serial console.

mod console;
mod cpio;
mod image;
mod kernel;
mod payload;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::args::Args;
use crate::ci::results::Suite;
use crate::error::Result;
use crate::scratch::Scratch;
use crate::{metadata, sh};

use console::Console;

pub(crate) const HELP: &str = "\
Boot a kernel with cgroup v2 in qemu (emulated, no KVM) and run there, as root and as an ordinary user with a
delegated cgroup subtree: checks of the machine, `agents run`, and the conformance suite of the native runtime,
both built statically.

Usage: cargo xtask vm-test [OPTIONS]

Options:
  --no-build         only the checks of the machine: build and run nothing of ours
  --timeout SECONDS  how long the machine may run (default 1500)
";

/// What the caller can choose.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) build: bool,
    pub(crate) limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            build: true,
            limit: Duration::from_secs(1500),
        }
    }
}

pub(crate) fn run(mut args: Args) -> Result<ExitCode> {
    let mut options = Options {
        build: !args.flag("--no-build"),
        ..Options::default()
    };
    if let Some(seconds) = args.number("--timeout")? {
        options.limit = Duration::from_secs(seconds);
    }
    args.finish()?;
    let suites = test(&options)?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    println!();
    for suite in &suites {
        for test in &suite.broken {
            println!("failed: {}: {test}", suite.name);
        }
        if !suite.finished {
            println!("failed: {}: ended without a result", suite.name);
        }
        for (test, reason) in &suite.skipped {
            println!("skipped: {}: {test}: {reason}", suite.name);
        }
        passed += suite.passed;
        failed += suite.failures();
        skipped += suite.ignored;
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Boots the machine and returns what ran there.
pub(crate) fn test(options: &Options) -> Result<Vec<Suite>> {
    let qemu = sh::need("qemu-system-x86_64")?;
    let metadata = metadata::load()?;
    let (mut payload, mut suites) = if options.build {
        payload::build(&metadata)?
    } else {
        (Vec::new(), Vec::new())
    };
    let kernel = kernel::fetch()?;
    let scratch = Scratch::new("vm")?;
    if options.build {
        payload.extend(payload::probe(&metadata.root, scratch.path())?);
    }
    let scripts = metadata.root.join("tests/vm");
    let initramfs = image::initramfs(scratch.path(), &scripts, &kernel.modules)?;
    let disk = image::disk(scratch.path(), &scripts, &payload)?;

    let mut console = Console::default();
    let outcome = sh::stream(
        &mut command(&qemu, &kernel.image, &initramfs, &disk),
        options.limit,
        |line| {
            let line = console::plain(line);
            println!("  vm| {line}");
            console.line(&line);
        },
    );
    let problem = match outcome {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("qemu ended with {status}")),
        Err(error) => Some(error.to_string()),
    };
    suites.extend(console.finish(problem));
    Ok(suites)
}

fn command(qemu: &Path, kernel: &Path, initramfs: &Path, disk: &Path) -> Command {
    let mut command = Command::new(qemu);
    // KVM, where there is one, is often a nested one that hangs: emulation is slow and works everywhere.
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
    command.args(["-smp", "2", "-m", "2048", "-nodefaults", "-nographic"]);
    command.args(["-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(kernel);
    command.arg("-initrd").arg(initramfs);
    command
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()));
    command.args([
        "-append",
        "console=ttyS0 quiet loglevel=1 panic=-1 cgroup_no_v1=all lsm=landlock,yama,apparmor,bpf",
    ]);
    command
}
