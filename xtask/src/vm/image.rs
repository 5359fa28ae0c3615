//! What the machines boot from: an initramfs that finds the disks, a disk with a small root file system, and one with
//! our programs for a machine whose root is another.

use std::fs::{self, File, Permissions};
use std::io::BufWriter;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cpio::Archive;
use super::kernel;
use super::payload::Program;
use crate::error::{Context, Result};
use crate::sh;

/// Sparse: it takes the space of what is in it.
const DISK_SIZE: &str = "4G";

const SCRIPTS: &[&str] = &["guest.sh", "checks.sh", "debian.sh", "podman.sh", "report.sh", "cc.sh"];

/// What a host has and busybox lacks.
const HOST_PROGRAMS: &[&str] = &["mkfs.ext4"];

/// Files of `/etc` that programs expect on a host.
const ETC: &[(&str, &str)] = &[
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/home/agent:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    ("group", "root:x:0:\ntty:x:5:\nagent:x:1000:\nnogroup:x:65534:\n"),
    ("hostname", "vmtest\n"),
    ("hosts", "127.0.0.1 localhost\n"),
    ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ("os-release", "ID=vmtest\nPRETTY_NAME=\"vm-test\"\n"),
    ("resolv.conf", ""),
];

/// Writes the initramfs: busybox, the modules and the script that switches to the disk.
///
/// It is not compressed, because the emulated machine would take longer to unpack it than qemu takes to load it.
pub(super) fn initramfs(folder: &Path, scripts: &Path, modules: &[PathBuf]) -> Result<PathBuf> {
    let path = folder.join("initramfs");
    let doing = || format!("cannot write {}", path.display());
    let busybox = sh::need("busybox")?;
    let mut archive = Archive::new(BufWriter::new(File::create(&path).context(doing)?));
    for name in ["bin", "dev", "proc", "sys", "modules", "disk"] {
        archive.folder(name).context(doing)?;
    }
    archive.console().context(doing)?;
    archive.file("bin/busybox", &read(&busybox)?).context(doing)?;
    for applet in applets(&busybox)? {
        archive.link(&format!("bin/{applet}"), "busybox").context(doing)?;
    }
    archive.file("init", &read(&scripts.join("init.sh"))?).context(doing)?;
    let mut order = String::new();
    for module in modules {
        let name = kernel::module_name(module);
        archive
            .file(&format!("modules/{name}"), &kernel::read(module)?)
            .context(doing)?;
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes()).context(doing)?;
    archive.finish().context(doing)?;
    Ok(path)
}

/// Makes the disk: a root file system of busybox, with the scripts and our programs in `/vmtest`.
pub(super) fn disk(folder: &Path, scripts: &Path, payload: &[Program]) -> Result<PathBuf> {
    let root = folder.join("root");
    let bin = root.join("usr/bin");
    for name in [
        "dev",
        "etc",
        "home/agent",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "srv",
        "sys",
        "tmp",
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "usr/sbin",
        "usr/share",
        "var/tmp",
        "vmtest/suites",
    ] {
        let path = root.join(name);
        fs::create_dir_all(&path).context(|| format!("cannot create {}", path.display()))?;
    }
    for name in ["tmp", "var/tmp"] {
        let path = root.join(name);
        fs::set_permissions(&path, Permissions::from_mode(0o1777))
            .context(|| format!("cannot open {} to all", path.display()))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        link(&format!("usr/{name}"), &root.join(name))?;
    }
    let busybox = sh::need("busybox")?;
    copy(&busybox, &bin.join("busybox"))?;
    for applet in applets(&busybox)? {
        link("busybox", &bin.join(applet))?;
    }
    for (name, text) in ETC {
        let path = root.join("etc").join(name);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
    }
    add_programs(&root.join("vmtest"), scripts, payload)?;
    for program in payload {
        copy(&program.file, &inside(&root, &program.file))?;
    }
    for program in HOST_PROGRAMS {
        with_libraries(&root, &sh::need(program)?)?;
    }
    let disk = folder.join("disk");
    file_system(&root, &disk)?;
    Ok(disk)
}

/// Makes the disk that is `/vmtest` where the root is not ours: the scripts, our programs, and the files of an image.
pub(super) fn programs(folder: &Path, scripts: &Path, payload: &[Program], image: &[u8]) -> Result<PathBuf> {
    let root = folder.join("programs");
    let suites = root.join("suites");
    fs::create_dir_all(&suites).context(|| format!("cannot create {}", suites.display()))?;
    add_programs(&root, scripts, payload)?;
    let archive = root.join("image.tar");
    fs::write(&archive, image).context(|| format!("cannot write {}", archive.display()))?;
    let disk = folder.join("disk");
    file_system(&root, &disk)?;
    Ok(disk)
}

/// Makes a sparse disk with what is in a folder.
pub(super) fn file_system(root: &Path, disk: &Path) -> Result<()> {
    sh::output(
        Command::new(sh::need("mkfs.ext4")?)
            .args(["-q", "-F", "-E", "root_owner=0:0", "-d"])
            .arg(root)
            .arg(disk)
            .arg(DISK_SIZE),
    )
    .map(drop)
}

fn add_programs(to: &Path, scripts: &Path, payload: &[Program]) -> Result<()> {
    for script in SCRIPTS {
        copy(&scripts.join(script), &to.join(script))?;
    }
    for program in payload {
        copy(&program.file, &to.join(&program.place))?;
    }
    Ok(())
}

/// Copies a program of this machine, and the libraries that it is linked with, to where they are here.
fn with_libraries(root: &Path, program: &Path) -> Result<()> {
    copy(program, &inside(root, program))?;
    for library in libraries(&sh::output(Command::new("ldd").arg(program))?) {
        copy(&library, &inside(root, &library))?;
    }
    Ok(())
}

/// The files that ldd(1) names: `libc.so.6 => /lib/libc.so.6 (0x…)`, or the path alone for the loader.
fn libraries(listed: &str) -> Vec<PathBuf> {
    listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn applets(busybox: &Path) -> Result<Vec<String>> {
    Ok(sh::output(Command::new(busybox).arg("--list"))?
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(|| format!("cannot read {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    to.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::copy(from, to))
        .and_then(|_| fs::set_permissions(to, Permissions::from_mode(0o755)))
        .context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn link(target: &str, at: &Path) -> Result<()> {
    symlink(target, at).context(|| format!("cannot create {}", at.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_both_forms() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(
            libraries(listed),
            [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]
        );
        assert_eq!(
            inside(Path::new("/disk"), Path::new("/lib/x")),
            Path::new("/disk/lib/x")
        );
    }
}
