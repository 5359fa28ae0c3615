//! The folder that becomes a sandbox's root.
//!
//! `runsc` serves it read-only and makes mount points in its own memory, so that an image's folder is used as it is. An
//! image of several layers is put together once a container from hard links, which needs no privilege and no mount.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use agents_core::{Error, ErrorKind, Result};

use crate::helper::{HOST_FOLDERS, HOST_SECRETS};

/// A root, and what is mounted in it besides what was asked for.
#[derive(Debug, Default)]
pub(super) struct Rootfs {
    pub(super) folder: PathBuf,
    /// Sources and destinations, all read-only.
    pub(super) binds: Vec<(PathBuf, String)>,
}

/// The name of an overlayfs attribute that hides what lower layers have in a folder.
const OPAQUE: &str = "user.overlay.opaque";

pub(super) fn prepare(layers: &[PathBuf], place: &Path) -> Result<Rootfs> {
    let broken = |error: io::Error| Error::io("cannot put the image together for gVisor", error);
    match layers {
        [host] if host == Path::new("/") => self::host(place).map_err(broken),
        [folder] => Ok(Rootfs {
            folder: folder.clone(),
            ..Rootfs::default()
        }),
        layers => {
            let folder = place.join("rootfs");
            fs::create_dir(&folder).map_err(broken)?;
            for layer in layers {
                merge(layer, &folder).map_err(|error| match error.kind() {
                    io::ErrorKind::CrossesDevices => Error::new(
                        ErrorKind::Unsupported,
                        "runtime_class: gvisor needs images of several layers on the same file system as the state folder; set \
                         `images` in the runtime's configuration to a folder there",
                    ),
                    _ => broken(error),
                })?;
            }
            Ok(Rootfs {
                folder,
                ..Rootfs::default()
            })
        }
    }
}

/// A skeleton with the host's folders of programs mounted read-only, and its secrets covered.
fn host(place: &Path) -> io::Result<Rootfs> {
    let folder = place.join("rootfs");
    fs::create_dir(&folder)?;
    let (no_file, no_folder) = (place.join("no-file"), place.join("no-folder"));
    fs::write(&no_file, "")?;
    fs::create_dir(&no_folder)?;
    let mut binds = Vec::new();
    for name in HOST_FOLDERS {
        let source = Path::new("/").join(name);
        let Ok(metadata) = fs::symlink_metadata(&source) else {
            continue;
        };
        if metadata.is_symlink() {
            symlink(fs::read_link(&source)?, folder.join(name))?;
        } else if metadata.is_dir() {
            binds.push((source, format!("/{name}")));
        }
    }
    for secret in HOST_SECRETS {
        match fs::symlink_metadata(secret) {
            Ok(metadata) if metadata.is_dir() => binds.push((no_folder.clone(), (*secret).to_owned())),
            Ok(metadata) if metadata.is_file() => binds.push((no_file.clone(), (*secret).to_owned())),
            _ => {}
        }
    }
    Ok(Rootfs { folder, binds })
}

/// Lays a layer over what is there, as overlayfs would show it.
fn merge(layer: &Path, target: &Path) -> io::Result<()> {
    for entry in fs::read_dir(layer)? {
        let entry = entry?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&from)?;
        let kind = metadata.file_type();
        let below = fs::symlink_metadata(&to).ok();
        let is_whiteout = kind.is_char_device() && metadata.rdev() == 0;
        let merges = kind.is_dir() && below.as_ref().is_some_and(fs::Metadata::is_dir) && !is_opaque(&from);
        match &below {
            Some(below) if below.is_dir() && !merges => fs::remove_dir_all(&to)?,
            Some(below) if !below.is_dir() => fs::remove_file(&to)?,
            _ => {}
        }
        if is_whiteout {
            continue;
        }
        if kind.is_dir() {
            if !merges {
                fs::create_dir(&to)?;
            }
            merge(&from, &to)?;
            // Last, since a folder that may not be written to could not be filled.
            fs::set_permissions(&to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
            match std::os::unix::fs::lchown(&to, Some(metadata.uid()), Some(metadata.gid())) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                other => other?,
            }
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else {
            fs::hard_link(&from, &to)?;
        }
    }
    Ok(())
}

fn is_opaque(folder: &Path) -> bool {
    let mut value = [0u8; 1];
    rustix::fs::lgetxattr(folder, OPAQUE, &mut value).is_ok_and(|length| length == 1 && value == *b"y")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_laid_over_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let layer = dir.path().join(name);
            fs::create_dir_all(layer.join("etc")).unwrap();
            layer
        };
        let (one, two) = (layer("1"), layer("2"));
        fs::write(one.join("etc/a"), "one").unwrap();
        fs::write(one.join("etc/b"), "one").unwrap();
        fs::create_dir_all(one.join("gone/deep")).unwrap();
        fs::write(two.join("etc/a"), "two").unwrap();
        symlink("etc", two.join("gone")).unwrap();
        let place = dir.path().join("place");
        fs::create_dir(&place).unwrap();
        let root = prepare(&[one.clone(), two], &place).unwrap().folder;
        assert_eq!(fs::read_to_string(root.join("etc/a")).unwrap(), "two");
        assert_eq!(fs::read_to_string(root.join("etc/b")).unwrap(), "one");
        assert_eq!(fs::read_link(root.join("gone")).unwrap(), Path::new("etc"));
        assert_eq!(
            fs::read_to_string(one.join("etc/a")).unwrap(),
            "one",
            "a layer was changed"
        );
        let single = prepare(std::slice::from_ref(&one), &place).unwrap();
        assert_eq!(single.folder, one);
    }
}
