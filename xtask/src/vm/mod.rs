//! `cargo xtask vm-test`: the tests of the native runtime and of podman's on a host with cgroup v2.
//!
//! Debian's cloud kernel boots under qemu, emulated, from an initramfs that is made here; nothing is installed but
//! qemu and debootstrap. There are two machines: a small one of busybox, and a Debian with podman. The scripts that run
//! inside are in `tests/vm/`. What comes back is the text of the serial console.

mod console;
mod cpio;
mod debian;
mod image;
mod kernel;
mod payload;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::args::Args;
use crate::ci::results::Suite;
use crate::error::{Result, fail};
use crate::scratch::Scratch;
use crate::services::engine;
use crate::{metadata, sh};

use console::Console;

pub(crate) const HELP: &str = "\
Boot a kernel with cgroup v2 in qemu (emulated, no KVM) and run there, as root and as an ordinary user with a
delegated cgroup subtree: checks of the machine, `agents run`, and a suite, all built statically. There are two
machines: `native`, with busybox alone and the whole conformance suite of the native runtime, and `podman`, a Debian
whose disk is made by debootstrap (as root, once), with podman and a choice of its cases.

Usage: cargo xtask vm-test [OPTIONS]

Options:
  --machine NAME     only this one: native or podman
  --no-build         only the checks of the machines: build and run nothing of ours
  --timeout SECONDS  how long each machine may run (default 1500)
";

/// A machine, and what runs there.
#[derive(Debug)]
struct Machine {
    name: &'static str,
    /// The package, and its suite.
    suite: (&'static str, &'static str),
    /// Whether its root is the Debian with podman.
    podman: bool,
}

const MACHINES: &[Machine] = &[
    Machine {
        name: "native",
        suite: ("agents-runtime-native", "conformance"),
        podman: false,
    },
    Machine {
        name: "podman",
        suite: ("agents-runtime-podman", "cgroup_v2"),
        podman: true,
    },
];

/// What the caller can choose.
#[derive(Debug)]
pub(crate) struct Options {
    /// All of them, unless it is named.
    machine: Option<String>,
    pub(crate) build: bool,
    pub(crate) limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            machine: None,
            build: true,
            limit: Duration::from_secs(1500),
        }
    }
}

pub(crate) fn run(mut args: Args) -> Result<ExitCode> {
    let mut options = Options {
        machine: args.value("--machine")?,
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

/// Boots the machines and returns what ran there. One that cannot be booted is a failure beside the results of the others.
pub(crate) fn test(options: &Options) -> Result<Vec<Suite>> {
    let chosen: Vec<_> = MACHINES
        .iter()
        .filter(|machine| options.machine.as_ref().is_none_or(|name| name == machine.name))
        .collect();
    if chosen.is_empty() {
        return fail("--machine: there are `native` and `podman`");
    }
    let mut suites = Vec::new();
    for machine in chosen {
        match boot(machine, options) {
            Ok(ran) => suites.extend(ran),
            Err(error) => suites.extend(Console::of(machine.name).finish(Some(error.to_string()))),
        }
    }
    Ok(suites)
}

fn boot(machine: &Machine, options: &Options) -> Result<Vec<Suite>> {
    let qemu = sh::need("qemu-system-x86_64")?;
    let metadata = metadata::load()?;
    let (mut payload, mut suites) = if options.build {
        payload::build(&metadata, machine.suite)?
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
    let disks = if machine.podman {
        let programs = image::programs(scratch.path(), &scripts, &payload, &engine::archive()?)?;
        vec![debian::disk()?, programs]
    } else {
        vec![image::disk(scratch.path(), &scripts, &payload)?]
    };

    println!("booting the machine {}", machine.name);
    let mut console = Console::of(machine.name);
    let mut command = command(&qemu, &kernel.image, &initramfs, &disks);
    // What is written to disks goes to a file there.
    command.env("TMPDIR", scratch.path());
    let outcome = sh::stream(&mut command, options.limit, |line| {
        let line = console::plain(line);
        println!("  vm| {line}");
        console.line(&line);
    });
    let problem = match outcome {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("qemu ended with {status}")),
        Err(error) => Some(error.to_string()),
    };
    suites.extend(console.finish(problem));
    Ok(suites)
}

fn command(qemu: &Path, kernel: &Path, initramfs: &Path, disks: &[PathBuf]) -> Command {
    let mut command = Command::new(qemu);
    // KVM, where there is one, is often a nested one that hangs: emulation is slow and works everywhere.
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
    command.args(["-smp", "2", "-m", "2048", "-nodefaults", "-nographic"]);
    command.args(["-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(kernel);
    command.arg("-initrd").arg(initramfs);
    for disk in disks {
        command.arg("-drive").arg(format!(
            "file={},if=virtio,format=raw,cache=unsafe,snapshot=on",
            disk.display()
        ));
    }
    // The last two are for systemd, which one of the machines has.
    command.args([
        "-append",
        "console=ttyS0 quiet loglevel=1 panic=-1 cgroup_no_v1=all lsm=landlock,yama,apparmor,bpf \
         systemd.run=/vmtest/debian.sh systemd.show_status=false",
    ]);
    command
}
