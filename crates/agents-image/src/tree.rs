//! Removing folders that a hostile image has shaped.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, fchmod, openat, renameat, unlinkat},
    io::Errno,
};

/// Removes a folder and all in it, whatever its depth and modes, without following a link.
///
/// Nested folders are first moved up into the folder, so neither the stack nor the number of open files grows with the depth.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let top = match openat(rustix::fs::CWD, path, FOLDER, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    empty(&top)?;
    std::fs::remove_dir(path)
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut moved: u64 = 0;
    loop {
        let folders = unlink_files(top.as_fd())?;
        if folders.is_empty() {
            return Ok(());
        }
        for name in folders {
            match unlinkat(top, &name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
                other => {
                    other?;
                    continue;
                }
            }
            let folder = open_writable(top.as_fd(), &name)?;
            for nested in unlink_files(folder.as_fd())? {
                if unlinkat(&folder, &nested, AtFlags::REMOVEDIR).is_ok() {
                    continue;
                }
                // Moving a folder changes its `..`, for which its owner needs write permission.
                drop(open_writable(folder.as_fd(), &nested)?);
                loop {
                    let target = format!(".moved-{moved}");
                    moved += 1;
                    match rustix::fs::renameat_with(
                        &folder,
                        &nested,
                        top,
                        target.as_str(),
                        rustix::fs::RenameFlags::NOREPLACE,
                    ) {
                        Err(Errno::EXIST) => {}
                        Err(Errno::INVAL) => {
                            // The file system does not know NOREPLACE; the name is ours in practice.
                            renameat(&folder, &nested, top, target.as_str())?;
                            break;
                        }
                        other => {
                            other?;
                            break;
                        }
                    }
                }
            }
            unlinkat(top, &name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Unlinks all but folders, and returns the names of the folders.
fn unlink_files(folder: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut folders = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => folders.push(name.to_owned()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(folders)
}

/// Opens a folder, giving its owner all permissions when they are missing.
fn open_writable(parent: BorrowedFd<'_>, name: &CString) -> io::Result<OwnedFd> {
    let folder = match openat(parent, name, FOLDER, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // O_PATH needs no permission, and the kernel checks that it is a folder.
            let path = openat(parent, name, FOLDER.union(OFlags::PATH), Mode::empty())?;
            rustix::fs::chmod(
                format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&path)),
                Mode::RWXU,
            )?;
            openat(parent, name, FOLDER, Mode::empty())?
        }
        other => other?,
    };
    let mode = rustix::fs::fstat(&folder)?.st_mode;
    if mode & 0o700 != 0o700 {
        fchmod(&folder, Mode::RWXU)?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn a_deep_tree_with_awkward_modes_goes_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("keep"), "x").unwrap();
        let top = folder.path().join("top");
        fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
        fs::create_dir(top.join(".moved-0")).unwrap();
        let mut at = openat(rustix::fs::CWD, &top, FOLDER, Mode::empty()).unwrap();
        for depth in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/", &at, "l").unwrap();
            let next = openat(&at, "d", FOLDER, Mode::empty()).unwrap();
            if depth % 100 == 0 {
                fchmod(&at, Mode::empty()).unwrap();
            }
            at = next;
        }
        fs::create_dir(top.join("closed")).unwrap_or_default();
        let _ = fs::set_permissions(top.join("closed"), fs::Permissions::from_mode(0o000));
        remove(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.join("keep").exists());
    }
}
