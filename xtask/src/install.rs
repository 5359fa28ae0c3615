//! `cargo xtask install`: the Debian packages that tests and benchmarks need.

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::args::Args;
use crate::error::{Result, fail};
use crate::sh;

pub(crate) const HELP: &str = "\
Install the Debian packages that tests and benchmarks need, those only that are missing.

Usage: cargo xtask install [--list]

Options:
  --list   print the missing packages and install nothing
";

/// Package, and what it is for.
const PACKAGES: &[(&str, &str)] = &[
    (
        "busybox-static",
        "root file systems of tests and of the virtual machine",
    ),
    ("bubblewrap", "bench run"),
    ("chromium", "looking at the page of a session as people do"),
    ("cpio", "looking into the virtual machine's initramfs"),
    ("containerd", "docker services"),
    ("debootstrap", "vm-test: the machine with podman"),
    ("docker.io", "docker services"),
    ("e2fsprogs", "disk images: mkfs.ext4"),
    ("gcc", "a probe that looks around in a container"),
    ("libc6-dev", "the same, linked statically"),
    ("libseccomp-dev", "building a newer runc"),
    ("mariadb-client-core", "mariadb service"),
    ("mariadb-server-core", "mariadb service"),
    ("maven", "opensearch service"),
    ("openjdk-17-jre-headless", "opensearch service"),
    ("pkg-config", "building a newer runc"),
    ("podman", "podman services; bench run"),
    ("postgresql", "postgres service"),
    ("python3", "the example agents"),
    ("qemu-system-x86", "vm-test"),
    ("runc", "bench run"),
    ("skopeo", "filling the test registry"),
    ("unzip", "opensearch service"),
    ("uidmap", "the rootless podman service"),
];

pub(crate) fn run(mut args: Args) -> Result<ExitCode> {
    let list = args.flag("--list");
    args.finish()?;
    let missing = missing();
    if list {
        for package in missing {
            println!("{package}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    install(&missing)?;
    Ok(ExitCode::SUCCESS)
}

/// Installs everything that is missing; used by `ci` as its first step.
pub(crate) fn all() -> Result<()> {
    install(&missing())
}

fn missing() -> Vec<&'static str> {
    PACKAGES
        .iter()
        .map(|&(package, _)| package)
        .filter(|package| !installed(package))
        .collect()
}

fn installed(package: &str) -> bool {
    sh::output(Command::new("dpkg").args(["-s", package]).env("LC_ALL", "C"))
        .is_ok_and(|text| text.contains("\nStatus: install ok installed"))
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        println!("all {} packages are installed", PACKAGES.len());
        return Ok(());
    }
    println!("installing {}", packages.join(" "));
    // Some packages would start a server of their own, for the whole machine.
    let _quiet = NoServers::begin()?;
    let arguments = |command: &mut Command| {
        command
            .args([
                "install",
                "-y",
                "--no-install-recommends",
                "-o",
                "DPkg::Lock::Timeout=300",
            ])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive");
    };
    let mut command = privileged("apt-get", packages)?;
    arguments(&mut command);
    if sh::run(&mut command).is_ok() {
        return Ok(());
    }
    // The usual reason on a fresh machine: no package lists, or old ones that name files that are gone.
    update()?;
    let mut command = privileged("apt-get", packages)?;
    arguments(&mut command);
    sh::run(&mut command)
}

/// While it lives, packages that are installed start no servers, as Debian's policy has it for those who say so.
struct NoServers;

impl NoServers {
    /// Nothing when the machine has a policy already.
    fn begin() -> Result<Option<Self>> {
        if Path::new(POLICY).exists() {
            return Ok(None);
        }
        let script = format!("printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}");
        sh::run(privileged("sh", &[])?.args(["-c", &script]))?;
        Ok(Some(Self))
    }
}

impl Drop for NoServers {
    fn drop(&mut self) {
        if let Ok(mut command) = privileged("rm", &[]) {
            let _ = sh::run(command.arg(POLICY));
        }
    }
}

/// Asked before a package starts a server; 101 is a no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Refreshes the package lists.
pub(crate) fn update() -> Result<()> {
    println!("refreshing the package lists");
    sh::run(
        privileged("apt-get", &[])?
            .args(["-q", "update", "-o", "DPkg::Lock::Timeout=300"])
            .env("LC_ALL", "C"),
    )
}

/// A command that runs as root: directly, or through a sudo that does not ask.
fn privileged(program: &str, packages: &[&str]) -> Result<Command> {
    if sh::find(program).is_none() {
        return fail(format!(
            "`{program}` is missing: this is not a Debian-like system. Install these yourself: {}",
            packages.join(" ")
        ));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    if sh::output(Command::new("sudo").args(["-n", "true"])).is_ok() {
        let mut command = Command::new("sudo");
        command.args(["-n", "DEBIAN_FRONTEND=noninteractive", program]);
        return Ok(command);
    }
    fail(format!(
        "root is needed and `sudo -n` does not give it. As root, run: \
         apt-get update && apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    ))
}
