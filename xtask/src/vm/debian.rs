//! A disk with Debian and podman, made by debootstrap once and kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::image;
use crate::error::{Context, Result};
use crate::services::{cache, engine};
use crate::{paths, sh};

const RELEASE: &str = "bookworm";

/// Packages beside the essential ones. debootstrap takes the first of alternatives, so those that podman leaves open are
/// named: its runtime and its network. systemd is there because rootless podman has nobody else who makes cgroups for it.
const PACKAGES: &str = "busybox-static,crun,dbus,dbus-user-session,libpam-systemd,netavark,podman,systemd-sysv,uidmap";

/// Rootless podman would copy whole images, for want of another program: this kernel's own file system serves users too.
const STORAGE_CONF: &str = "[storage]\ndriver = \"overlay\"\n\
    graphroot = \"/var/lib/containers/storage\"\nrunroot = \"/run/containers/storage\"\n";

/// An ordinary user, with subordinate ids as every new one gets.
const USER: &[&str] = &[
    "useradd",
    "--create-home",
    "--uid",
    "1000",
    "--shell",
    "/bin/sh",
    "agent",
];

/// The disk; it is shared, so nothing may write to it.
pub(super) fn disk() -> Result<PathBuf> {
    let recipe = format!("{PACKAGES} {STORAGE_CONF} {USER:?}; 1");
    let folder = paths::cache()?.join("vm/debian");
    let kept = cache::once(&folder, RELEASE, &recipe, |building| {
        engine::need_root("the virtual machine with podman")?;
        println!("making a disk with Debian {RELEASE} and podman");
        let root = building.join("root");
        bootstrap(&root)?;
        let kept = building.join("kept");
        fs::create_dir(&kept).context(|| format!("cannot create {}", kept.display()))?;
        image::file_system(&root, &kept.join("disk"))?;
        Ok(kept)
    })?;
    Ok(kept.join("disk"))
}

fn bootstrap(root: &Path) -> Result<()> {
    // What it mounts below the folder goes away with its namespace, however it ends.
    sh::output(
        Command::new(sh::need("unshare")?)
            .args(["--mount", "--propagation", "private"])
            .arg(sh::need("debootstrap")?)
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), RELEASE])
            .arg(root),
    )?;
    sh::run(Command::new(sh::need("chroot")?).arg(root).args(USER))?;
    for waste in ["var/cache/apt", "var/lib/apt/lists"] {
        let waste = root.join(waste);
        fs::remove_dir_all(&waste).context(|| format!("cannot remove {}", waste.display()))?;
    }
    let mount_point = root.join("vmtest");
    fs::create_dir(&mount_point).context(|| format!("cannot create {}", mount_point.display()))?;
    let file = root.join("etc/containers/storage.conf");
    fs::write(&file, STORAGE_CONF).context(|| format!("cannot write {}", file.display()))
}
