//! What a server leaves below its private folder: processes that outlive it, and mounts.
//!
//! Container engines do: each container has a supervisor that is meant to survive the engine, and its root
//! file system is mounted. Nothing here touches what does not name the folder.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Context, Result, fail};
use crate::proc;

/// The programs of container engines that go on when the engine ends, as the kernel shortens their names.
const SUPERVISORS: &[&str] = &["conmon", "containerd", "containerd-shim"];

/// Removes the folder with all that is left in it.
pub(super) fn remove(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    kill_supervisors(folder);
    unmount_below(folder)?;
    // A supervisor that has just been killed may still be letting go of a file.
    for _ in 0..20 {
        if fs::remove_dir_all(folder).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    fs::remove_dir_all(folder).context(|| format!("cannot remove {}", folder.display()))
}

/// Kills the engines' programs whose command line names something in the folder, with all below them.
fn kill_supervisors(folder: &Path) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    let prefix = [folder.as_os_str().as_bytes(), b"/"].concat();
    for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()) {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        if supervises(&read("comm"), &read("cmdline"), &prefix) {
            proc::kill_tree(pid);
        }
    }
}

fn supervises(comm: &[u8], cmdline: &[u8], prefix: &[u8]) -> bool {
    let name = comm.trim_ascii_end();
    SUPERVISORS.iter().any(|known| known.as_bytes() == name) && cmdline.windows(prefix.len()).any(|part| part == prefix)
}

/// Unmounts everything below the folder, last mounted first.
///
/// It fails rather than leave a mount behind: removing the folder would empty what is mounted there.
fn unmount_below(folder: &Path) -> Result<()> {
    for _ in 0..20 {
        let mounts = mounts_below(folder)?;
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts.iter().rev() {
            // At once from the tree, and from the kernel when the last process lets go of it.
            let _ = unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        thread::sleep(Duration::from_millis(20));
    }
    match mounts_below(folder)?.first() {
        None => Ok(()),
        Some(mount) => fail(format!(
            "{} stays mounted; unmount it yourself before you remove {}",
            mount.display(),
            folder.display()
        )),
    }
}

fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    // The kernel knows folders by their real names.
    let folder = folder
        .canonicalize()
        .context(|| format!("cannot resolve {}", folder.display()))?;
    let table = fs::read("/proc/self/mountinfo").context(|| "cannot read the mount table".to_owned())?;
    Ok(mount_points(&table)
        .into_iter()
        .filter(|point| point.starts_with(&folder))
        .collect())
}

/// The fifth column of each line, in order of mounting.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|point| PathBuf::from(OsString::from_vec(unescape(point))))
        .collect()
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_engines_that_name_the_folder_are_ended() {
        let line = b"conmon\0-b\0/state/data/podman/root/x\0";
        assert!(supervises(b"conmon\n", line, b"/state/data/podman/"));
        assert!(!supervises(b"conmon\n", line, b"/state/data/pod/"));
        assert!(!supervises(b"bash\n", line, b"/state/data/podman/"));
    }

    #[test]
    fn mount_points_with_spaces() {
        let table = b"31 23 0:28 / /a\\040b rw - tmpfs tmpfs rw\n32 31 0:29 / /c rw - ext4 x rw\n";
        assert_eq!(mount_points(table), [PathBuf::from("/a b"), PathBuf::from("/c")]);
    }

    #[test]
    fn a_folder_goes_and_one_that_is_not_there_is_no_error() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("x");
        fs::create_dir_all(folder.join("y")).unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists());
        remove(&folder).unwrap();
    }
}
