//! What only the host's root can do for a container: mounts with mapped ids, and a file system of a fixed size on disk.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use agents_core::ErrorKind;
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, mount, mount_change, open_tree, unmount},
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
};

use super::rootfs::{Mounts, copy_mount, open_source, replaced};
use crate::{
    spec::{ContainerSpec, Context, Failure, IdMap, Root, Source},
    state::{self, is_ours},
    sys::{
        CloneFlags, MountAttributes, configure_loop_device, exit_now, fork, free_loop_device, mount_setattr,
        unshare_mounts,
    },
};

/// Makes the mounts. `user_namespace` is the container's.
pub(crate) fn mounts(spec: &ContainerSpec, user_namespace: &OwnedFd) -> Result<Mounts, Failure> {
    let IdMap::Range { base } = spec.ids else {
        return Ok(Mounts::default());
    };
    let mut mounts = Mounts::default();
    if let Root::Layers(folders) = &spec.root {
        for folder in folders {
            let open = clone_mount(folder, false)?;
            // Where the file system cannot map ids, the image's files belong to nobody inside, which is still safe.
            let _ = map_ids(&open, user_namespace);
            mounts.layers.push(open);
        }
    }
    let mut namespaces: Vec<((u32, u32), OwnedFd)> = Vec::new();
    for (index, item) in spec.mounts.iter().enumerate() {
        let Source::Bind { path, is_dir, uid, gid } = &item.source else {
            continue;
        };
        let owner = (*uid, *gid);
        if !namespaces.iter().any(|(known, _)| *known == owner) {
            namespaces.push((owner, mapping(owner, (base + spec.uid, base + spec.gid))?));
        }
        let source = open_source(path, *is_dir)?;
        let stat = rustix::fs::fstat(&source).context(format_args!("cannot mount {}", path.display()))?;
        if (stat.st_uid, stat.st_gid) != owner {
            return Err(replaced(path));
        }
        let open = copy_mount(&source, path)?;
        if let Some((_, namespace)) = namespaces.iter().find(|(known, _)| *known == owner)
            && let Err(error) = map_ids(&open, namespace)
            && !item.read_only
        {
            return Err(Failure::new(
                ErrorKind::Unsupported,
                format!(
                    "the file system of {} does not support id-mapped mounts ({error}), so what the agent makes there \
                     could not belong to you; put it on ext4, xfs or btrfs, or run as an ordinary user",
                    path.display()
                ),
            ));
        }
        mounts.binds.push((index, open));
    }
    Ok(mounts)
}

fn clone_mount(path: &Path, recursive: bool) -> Result<OwnedFd, Failure> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).context(format_args!("cannot mount {}", path.display()))
}

fn map_ids(mount: &OwnedFd, namespace: &OwnedFd) -> io::Result<()> {
    let attributes = MountAttributes {
        id_map: Some(namespace.as_fd()),
        ..Default::default()
    };
    mount_setattr(mount.as_fd(), false, attributes)
}

/// A user namespace that only carries a mapping: what belongs to `owner` on disk belongs to `agent` in the mount.
fn mapping(owner: (u32, u32), agent: (u32, u32)) -> Result<OwnedFd, Failure> {
    let (wait, hold) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let Some(child) = fork(CloneFlags::USER).context("cannot make a user namespace for a mapping")? else {
        drop(hold);
        let _ = rustix::io::read(&wait, &mut [0]);
        exit_now(0);
    };
    let pid = child.as_raw_nonzero();
    let written = fs::write(format!("/proc/{pid}/uid_map"), format!("{} {} 1", owner.0, agent.0))
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), format!("{} {} 1", owner.1, agent.1)))
        .context("cannot write an id mapping");
    let namespace = open_namespace(child, "user");
    let _ = kill_process(child, Signal::KILL);
    let _ = waitpid(Some(child), WaitOptions::empty());
    written?;
    namespace
}

/// A namespace of a process.
pub(crate) fn open_namespace(pid: Pid, kind: &str) -> Result<OwnedFd, Failure> {
    let path = format!("/proc/{}/ns/{kind}", pid.as_raw_nonzero());
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(format_args!("cannot open {path}"))
}

/// Keeps the helper's mounts to itself.
pub(crate) fn own_mounts() -> Result<(), Failure> {
    unshare_mounts().context("cannot make a mount namespace")?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .context("cannot make the mounts private")
}

/// A file system of exactly the size of the limit, in a sparse file, so that what the agent writes does not count as its
/// memory. `None` where this host has no loop devices or no `mkfs.ext4`: a tmpfs of the same size takes its place.
pub(crate) fn scratch(spec: &ContainerSpec) -> Result<Option<OwnedFd>, Failure> {
    let (IdMap::Range { base }, Some(size)) = (spec.ids, spec.disk_bytes) else {
        return Ok(None);
    };
    // Smaller ones have no room for ext4's own tables.
    if size < 8 << 20 {
        return Ok(None);
    }
    let folder = &spec.identity.folder;
    let Some(template) = template(folder, size) else {
        return Ok(None);
    };
    let image = folder.join("scratch.img");
    let file = copy_sparse(&template, &image).context("cannot make the writable space")?;
    let Some((device, open_device)) = loop_device(&file) else {
        return Ok(None);
    };
    let target = folder.join("scratch");
    fs::create_dir_all(&target).context("cannot make the folder of the writable space")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    mount(&device, &target, "ext4", flags, None).context("cannot mount the writable space")?;
    // From here on the device frees itself when the last mount is gone.
    drop(open_device);
    let owner = (rustix::fs::Uid::from_raw(base), rustix::fs::Gid::from_raw(base));
    rustix::fs::chown(&target, Some(owner.0), Some(owner.1)).context("cannot hand the writable space over")?;
    let _ = fs::remove_dir(target.join("lost+found"));
    let open = clone_mount(&target, false)?;
    unmount(&target, rustix::mount::UnmountFlags::DETACH).context("cannot unmount the writable space")?;
    // Nobody else finds the file, and its space is free once the last process of the container is gone.
    let _ = fs::remove_file(&image);
    let _ = fs::remove_dir(&target);
    Ok(Some(open))
}

/// Goes up when a template is made in another way, so that an older one is not taken for it.
const TEMPLATE_FORMAT: u32 = 2;

/// An empty file system of a size, made once. It is stored sparse.
fn template(folder: &Path, size: u64) -> Option<PathBuf> {
    let store = folder.parent()?.join(state::TEMPLATES);
    let path = store.join(format!("{size}-{TEMPLATE_FORMAT}.ext4"));
    // Only one of our own is handed to the kernel, which trusts what is in it.
    if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && is_ours(&found)) {
        return Some(path);
    }
    fs::create_dir_all(&store).ok()?;
    let temporary = store.join(format!(".{size}.ext4.{}", std::process::id()));
    let file = File::create(&temporary).ok()?;
    let made = file.set_len(size).is_ok()
        && Command::new("mkfs.ext4")
            .args([
                "-q",
                "-F",
                "-b",
                "4096",
                "-m",
                "0",
                "-O",
                "^has_journal,^resize_inode",
                "-E",
                "lazy_itable_init=1,nodiscard",
            ])
            .arg(&temporary)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
    if made && fs::rename(&temporary, &path).is_ok() {
        return Some(path);
    }
    let _ = fs::remove_file(&temporary);
    None
}

/// Copies only what is written in a sparse file.
fn copy_sparse(source: &Path, target: &Path) -> io::Result<File> {
    let from = File::open(source)?;
    let to = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(target)?;
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(start))?;
        let (mut read, mut write) = (start, start);
        while read < end {
            let most = usize::try_from(end - read).unwrap_or(usize::MAX);
            if rustix::fs::copy_file_range(&from, Some(&mut read), &to, Some(&mut write), most)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = end;
    }
    Ok(to)
}

/// A loop device over a file, with the descriptor that keeps it until it is mounted.
fn loop_device(file: &File) -> Option<(PathBuf, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = rustix::fs::open("/dev/loop-control", flags, Mode::empty()).ok()?;
    // Between the question for a free device and its use, another process may take it.
    for _ in 0..64 {
        let path = PathBuf::from(format!("/dev/loop{}", free_loop_device(control.as_fd()).ok()?));
        let device = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
        match configure_loop_device(device.as_fd(), file.as_fd()) {
            Ok(()) => return Some((path, device)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(_) => return None,
        }
    }
    None
}
