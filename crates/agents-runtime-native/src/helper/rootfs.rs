//! The container's file system, built by its first process in a mount namespace of its own.
//!
//! Everything is put together below a staging folder and becomes the root at the end. What only the host's root can
//! mount (id-mapped folders, the scratch file system) was made by the helper and arrives as open mounts.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Component, Path, PathBuf},
};

use agents_core::ErrorKind;
use rustix::{
    fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, openat2},
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
        move_mount, open_tree, unmount,
    },
};

use crate::{
    spec::{ContainerSpec, Context, Failure, MountSpec, Root, Source},
    sys::{MountAttributes, mount_setattr},
};

/// Open mounts that the helper made, in the order of [`super::prepare::Prepared`].
#[derive(Debug, Default)]
pub(crate) struct Mounts {
    /// The layers, the lowest first; empty when the container mounts them itself.
    pub(crate) layers: Vec<OwnedFd>,
    /// By the index of the mount in the specification.
    pub(crate) binds: Vec<(usize, OwnedFd)>,
}

/// The host's folders with programs, libraries and their settings. Nothing else of the host is visible.
pub(crate) const HOST_FOLDERS: [&str; 9] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt"];

/// What is hidden of them: passwords, keys and the settings of services. Whatever only root may read is out of reach of
/// the agent's user anyway; this is for a caller who is that user, or in a privileged group.
pub(crate) const HOST_SECRETS: &[&str] = &[
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/pki/tls/private",
    "/etc/letsencrypt",
    "/etc/krb5.keytab",
    "/etc/kubernetes",
    "/etc/rancher",
    "/etc/docker",
    "/etc/containers",
    "/etc/wireguard",
    "/etc/openvpn",
    "/etc/ipsec.d",
    "/etc/NetworkManager",
    "/etc/wpa_supplicant",
    "/etc/netplan",
    "/etc/ppp",
    "/etc/mysql",
    "/etc/postgresql",
    "/etc/cron.d",
    "/etc/crontab",
    "/etc/security/opasswd",
    "/etc/machine-id",
    "/etc/fstab",
    "/etc/environment",
    "/etc/apt/auth.conf",
    "/etc/apt/auth.conf.d",
    "/etc/netrc",
    "/etc/pip.conf",
    "/etc/npmrc",
    "/etc/maven",
    "/etc/gitconfig",
    "/etc/boto.cfg",
];

/// What of `/proc` is hidden, as in Docker's and Podman's default masks, with more of what concerns the whole machine.
const MASKED_PROC: &[&str] = &[
    "acpi",
    "asound",
    "bus",
    "config.gz",
    "driver",
    "dynamic_debug",
    "fs",
    "interrupts",
    "iomem",
    "ioports",
    "irq",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "modules",
    "mtrr",
    "pagetypeinfo",
    "sched_debug",
    "scsi",
    "slabinfo",
    "sysrq-trigger",
    "sysvipc",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
    "zoneinfo",
];

/// The host's device nodes that a container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Builds the root and moves into it. The writable space is waited for when it is first needed, since making it takes the
/// helper about as long as everything else takes here.
pub(crate) fn build(
    spec: &ContainerSpec,
    mounts: Mounts,
    mut scratch_mount: impl FnMut() -> Result<Option<OwnedFd>, Failure>,
) -> Result<(), Failure> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .context("cannot make the mounts private")?;
    // Sources are opened before the staging folder covers a folder that they may lie in.
    let mounts = open_sources(spec, mounts)?;
    let stage = stage()?;
    let root = stage.join("root");
    make_dir(&root)?;
    let empty = empty_file(&stage)?;
    let mut scratch = None;
    if !spec.read_only_root {
        scratch = Some(self::scratch(spec, &stage, scratch_mount()?)?);
    }
    match &spec.root {
        Root::Host => host_root(spec, &root, &empty)?,
        Root::Layers(_) => layered_root(spec, &stage, &root, &mounts.layers, scratch.as_deref())?,
    }
    dev(&root)?;
    proc(&root, &empty)?;
    tmpfs(&root.join("sys"), "mode=755,size=64k", true)?;
    run(spec, &root)?;
    let mut binds = mounts.binds;
    for (index, item) in spec.mounts.iter().enumerate() {
        let open = binds
            .iter()
            .position(|(at, _)| *at == index)
            .map(|at| binds.swap_remove(at).1);
        if item.source == Source::Scratch && scratch.is_none() {
            scratch = Some(self::scratch(spec, &stage, scratch_mount()?)?);
        }
        add_mount(spec, item, &root, scratch.as_deref(), open)?;
    }
    if scratch.is_none() {
        // Without any use of it, it is waited for all the same: the cgroups come with it.
        scratch_mount()?;
    }
    if spec.read_only_root || spec.root == Root::Host {
        let top = clone_root(&root)?;
        mount_setattr(
            top.as_fd(),
            false,
            MountAttributes {
                read_only: true,
                ..Default::default()
            },
        )
        .context("cannot make the root read-only")?;
    }
    rustix::process::chdir(&root).context("cannot enter the new root")?;
    rustix::process::pivot_root(".", ".").context("cannot change the root")?;
    unmount(".", UnmountFlags::DETACH).context("cannot leave the host's root")?;
    rustix::process::chdir("/").context("cannot enter the root")
}

/// Opens every layer and bind mount that the helper has not opened.
fn open_sources(spec: &ContainerSpec, mut mounts: Mounts) -> Result<Mounts, Failure> {
    if let Root::Layers(folders) = &spec.root
        && mounts.layers.is_empty()
    {
        mounts.layers = folders
            .iter()
            .map(|folder| bind(folder, false))
            .collect::<Result<_, _>>()?;
    }
    for (index, item) in spec.mounts.iter().enumerate() {
        if let Source::Bind { path, is_dir, .. } = &item.source
            && !mounts.binds.iter().any(|(at, _)| *at == index)
        {
            let source = open_source(path, *is_dir)?;
            mounts.binds.push((index, copy_mount(&source, path)?));
        }
    }
    Ok(mounts)
}

/// An open reference to the mount whose root is at a path, to change its attributes.
fn clone_root(path: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::open(
        path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(format_args!("cannot open {}", path.display()))
}

/// A memory-backed folder to build in, over a folder that every host has and everybody may enter.
fn stage() -> Result<PathBuf, Failure> {
    let mut fault = io::Error::from(io::ErrorKind::NotFound);
    for folder in ["/tmp", "/run", "/mnt", "/proc"] {
        let options = MountFlags::NOSUID | MountFlags::NODEV;
        match mount("tmpfs", folder, "tmpfs", options, Some(c"mode=755,size=16m")) {
            Ok(()) => return Ok(PathBuf::from(folder)),
            Err(error) => fault = error.into(),
        }
    }
    Err(Failure::io("cannot mount a staging folder", fault))
}

fn tmpfs(target: &Path, options: &str, read_only: bool) -> Result<(), Failure> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    let options = std::ffi::CString::new(options)
        .map_err(io::Error::other)
        .context("bad tmpfs options")?;
    mount("tmpfs", target, "tmpfs", flags, Some(options.as_c_str()))
        .context(format_args!("cannot mount a tmpfs at {}", target.display()))
}

/// The writable space: the helper's file system, or a tmpfs of the asked-for size.
fn scratch(spec: &ContainerSpec, stage: &Path, open: Option<OwnedFd>) -> Result<PathBuf, Failure> {
    let folder = stage.join("scratch");
    make_dir(&folder)?;
    if let Some(open) = open {
        attach(&open, &folder)?;
        return Ok(folder);
    }
    let size = spec
        .disk_bytes
        .map(|bytes| format!(",size={bytes}"))
        .unwrap_or_default();
    tmpfs(&folder, &format!("mode=755{size}"), false)?;
    Ok(folder)
}

fn attach(open: &OwnedFd, target: &Path) -> Result<(), Failure> {
    move_mount(open, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context(format_args!("cannot mount at {}", target.display()))
}

/// A skeleton with the host's folders mounted read-only.
fn host_root(spec: &ContainerSpec, root: &Path, empty: &Path) -> Result<(), Failure> {
    tmpfs(root, "mode=755,size=16m", false)?;
    for name in HOST_FOLDERS {
        let source = Path::new("/").join(name);
        let Ok(metadata) = fs::symlink_metadata(&source) else {
            continue;
        };
        let target = root.join(name);
        if metadata.is_symlink() {
            let link = fs::read_link(&source).context(format_args!("cannot read {}", source.display()))?;
            symlink(link, &target).context(format_args!("cannot make {}", target.display()))?;
        } else if metadata.is_dir() {
            make_dir(&target)?;
            let open = bind(&source, true)?;
            let attributes = MountAttributes {
                read_only: true,
                no_dev: true,
                ..Default::default()
            };
            mount_setattr(open.as_fd(), true, attributes).context(format_args!("cannot protect /{name}"))?;
            attach(&open, &target)?;
        }
    }
    for secret in HOST_SECRETS {
        mask(&root.join(secret.trim_start_matches('/')), empty)?;
    }
    skeleton(spec, root)
}

/// Layers below each other, with the mount points in a layer of their own on top, so that the root needs no writable layer.
fn layered_root(
    spec: &ContainerSpec,
    stage: &Path,
    root: &Path,
    layers: &[OwnedFd],
    scratch: Option<&Path>,
) -> Result<(), Failure> {
    let top = stage.join("top");
    make_dir(&top)?;
    skeleton(spec, &top)?;
    // Short names, since all of them have to fit into one page of mount options.
    let mut lower = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let target = stage.join(format!("l{index}"));
        make_dir(&target)?;
        attach(layer, &target)?;
        lower.push(target);
    }
    lower.reverse();
    let mut options = String::from("userxattr,lowerdir=");
    for (index, folder) in std::iter::once(&top).chain(&lower).enumerate() {
        if index > 0 {
            options.push(':');
        }
        options.push_str(&folder.to_string_lossy());
    }
    if let Some(scratch) = scratch {
        let (upper, work) = (scratch.join(".upper"), scratch.join(".work"));
        make_dir(&upper)?;
        make_dir(&work)?;
        options.push_str(&format!(",upperdir={},workdir={}", upper.display(), work.display()));
    }
    let options = std::ffi::CString::new(options)
        .map_err(io::Error::other)
        .context("bad overlay options")?;
    mount(
        "overlay",
        root,
        "overlay",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(options.as_c_str()),
    )
    .context("cannot mount the image's layers over each other")
}

/// The mount points and the few files that every root needs.
fn skeleton(spec: &ContainerSpec, root: &Path) -> Result<(), Failure> {
    for folder in ["dev", "proc", "sys", "run", "tmp", "var", "root", "home"] {
        make_dir(&root.join(folder))?;
    }
    if spec.root == Root::Host {
        symlink("/tmp", root.join("var/tmp")).context("cannot make /var/tmp")?;
        symlink("/run", root.join("var/run")).context("cannot make /var/run")?;
    } else {
        let etc = root.join("etc");
        make_dir(&etc)?;
        write_file(&etc.join("hosts"), b"127.0.0.1 localhost\n::1 localhost\n", 0o644)?;
        write_file(&etc.join("hostname"), format!("{}\n", hostname(spec)).as_bytes(), 0o644)?;
        write_file(&etc.join("resolv.conf"), b"", 0o644)?;
    }
    for item in &spec.mounts {
        let target = inside(root, &item.destination);
        match &item.source {
            Source::Bind { is_dir: false, .. } => {
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent).context(format_args!("cannot make {}", item.destination))?;
                }
                write_file(&target, b"", 0o644)?;
            }
            _ => make_all(&target, &item.destination)?,
        }
    }
    Ok(())
}

fn make_all(target: &Path, destination: &str) -> Result<(), Failure> {
    match fs::create_dir_all(target) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Err(Failure::new(
            ErrorKind::ConfigInvalid,
            format!("the mount point {destination} lies in a folder of the host that is not there; choose another one"),
        )),
        other => other.context(format_args!("cannot make the mount point {destination}")),
    }
}

pub(crate) fn hostname(spec: &ContainerSpec) -> String {
    let id: String = spec.identity.id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("agent-{}", &id[id.len().saturating_sub(12)..])
}

/// A path of the container below a folder. The destination is clean, so that no part of it leads outside.
fn inside(root: &Path, destination: &str) -> PathBuf {
    let mut path = root.to_owned();
    path.extend(
        Path::new(destination)
            .components()
            .filter(|part| matches!(part, Component::Normal(_))),
    );
    path
}

fn make_dir(path: &Path) -> Result<(), Failure> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.context(format_args!("cannot make {}", path.display())),
    }
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, content))
        .context(format_args!("cannot write {}", path.display()))
}

/// A copy of a mount, with everything below it.
fn bind(source: &Path, recursive: bool) -> Result<OwnedFd, Failure> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    match open_tree(CWD, source, flags) {
        // In a user namespace the mounts below are locked to their parent, so that they come along or nothing does.
        Err(rustix::io::Errno::INVAL) if !recursive => bind(source, true),
        other => other.context(format_args!("cannot mount {}", source.display())),
    }
}

/// What is to be mounted, as it was found when the container was planned: whoever may write to a folder above it, another
/// agent for example, has not put a link or something of another kind in its place meanwhile.
pub(crate) fn open_source(path: &Path, is_dir: bool) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .context(format_args!("cannot mount {}", path.display()))?;
    let stat = rustix::fs::fstat(&source).context(format_args!("cannot mount {}", path.display()))?;
    let wanted = if is_dir {
        FileType::Directory
    } else {
        FileType::RegularFile
    };
    if FileType::from_raw_mode(stat.st_mode) != wanted {
        return Err(replaced(path));
    }
    Ok(source)
}

pub(crate) fn replaced(path: &Path) -> Failure {
    let message = format!(
        "cannot mount {}: something else has taken its place meanwhile",
        path.display()
    );
    Failure::new(ErrorKind::Conflict, message)
}

/// A copy of the mount of an open file or folder.
pub(crate) fn copy_mount(source: &OwnedFd, path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    match open_tree(source, "", flags) {
        // In a user namespace the mounts below are locked to their parent, so that they come along or nothing does.
        Err(rustix::io::Errno::INVAL) => open_tree(source, "", flags | OpenTreeFlags::AT_RECURSIVE),
        other => other,
    }
    .context(format_args!("cannot mount {}", path.display()))
}

/// An empty file that can be read and not written to, by anybody. A device would not do: writing to one is no writing to
/// the file system that it lies in.
fn empty_file(stage: &Path) -> Result<PathBuf, Failure> {
    let empty = stage.join("empty");
    write_file(&empty, b"", 0o444)?;
    rustix::mount::mount_bind(&empty, &empty).context("cannot mount an empty file")?;
    let open = clone_root(&empty)?;
    let attributes = MountAttributes {
        read_only: true,
        no_dev: true,
        no_exec: true,
        id_map: None,
    };
    mount_setattr(open.as_fd(), false, attributes).context("cannot protect an empty file")?;
    Ok(empty)
}

/// Hides a file or a folder behind nothing.
fn mask(path: &Path, empty: &Path) -> Result<(), Failure> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if metadata.is_symlink() {
        return Ok(());
    }
    if metadata.is_dir() {
        return tmpfs(path, "mode=555,size=4k,nr_inodes=2", true);
    }
    // The copy of a mount is as read-only as the mount.
    rustix::mount::mount_bind(empty, path).context(format_args!("cannot hide {}", path.display()))
}

fn dev(root: &Path) -> Result<(), Failure> {
    let dev = root.join("dev");
    mount(
        "tmpfs",
        &dev,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"mode=755,size=64k"),
    )
    .context("cannot mount /dev")?;
    for name in DEVICES {
        let target = dev.join(name);
        write_file(&target, b"", 0o666)?;
        rustix::mount::mount_bind(format!("/dev/{name}"), &target).context(format_args!("cannot add /dev/{name}"))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name)).context(format_args!("cannot make /dev/{name}"))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let pts = dev.join("pts");
    make_dir(&pts)?;
    mount(
        "devpts",
        &pts,
        "devpts",
        flags,
        // The kernel has 4,096 terminals for all containers together by default.
        Some(c"newinstance,ptmxmode=0666,mode=0620,max=256"),
    )
    .context("cannot mount /dev/pts")?;
    let shm = dev.join("shm");
    make_dir(&shm)?;
    let flags = flags | MountFlags::NODEV;
    mount("tmpfs", &shm, "tmpfs", flags, Some(c"mode=1777,size=64m")).context("cannot mount /dev/shm")?;
    let mqueue = dev.join("mqueue");
    make_dir(&mqueue)?;
    mount("mqueue", &mqueue, "mqueue", flags, None).context("cannot mount /dev/mqueue")?;
    let open = clone_root(&dev)?;
    mount_setattr(
        open.as_fd(),
        false,
        MountAttributes {
            read_only: true,
            no_exec: true,
            ..Default::default()
        },
    )
    .context("cannot protect /dev")
}

fn proc(root: &Path, empty: &Path) -> Result<(), Failure> {
    let proc = root.join("proc");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", &proc, "proc", flags, None).context("cannot mount /proc")?;
    let sys = bind(&proc.join("sys"), true)?;
    let attributes = MountAttributes {
        read_only: true,
        no_dev: true,
        no_exec: true,
        id_map: None,
    };
    mount_setattr(sys.as_fd(), true, attributes).context("cannot protect /proc/sys")?;
    attach(&sys, &proc.join("sys"))?;
    MASKED_PROC.iter().try_for_each(|name| mask(&proc.join(name), empty))
}

/// `/run`, with the secrets.
fn run(spec: &ContainerSpec, root: &Path) -> Result<(), Failure> {
    let run = root.join("run");
    tmpfs(&run, "mode=755,size=64m", false)?;
    let owner = Some((Uid::from_raw(spec.uid), Gid::from_raw(spec.gid)));
    if !spec.secrets.is_empty() {
        let folder = run.join("secrets");
        make_dir(&folder)?;
        for (name, value) in &spec.secrets {
            let path = folder.join(name);
            write_file(&path, value, 0o400)?;
            give(&path, owner)?;
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).context("cannot protect /run/secrets")?;
        give(&folder, owner)?;
    }
    for item in &spec.mounts {
        // A mount point below /run, which has just been covered.
        if item.destination.starts_with("/run/") {
            make_all(&inside(root, &item.destination), &item.destination)?;
        }
    }
    let open = clone_root(&run)?;
    mount_setattr(
        open.as_fd(),
        false,
        MountAttributes {
            read_only: true,
            no_dev: true,
            ..Default::default()
        },
    )
    .context("cannot protect /run")
}

fn give(path: &Path, owner: Option<(Uid, Gid)>) -> Result<(), Failure> {
    let (uid, gid) = owner.unzip();
    rustix::fs::chown(path, uid, gid).context(format_args!("cannot give {} to the agent", path.display()))
}

fn add_mount(
    spec: &ContainerSpec,
    item: &MountSpec,
    root: &Path,
    scratch: Option<&Path>,
    open: Option<OwnedFd>,
) -> Result<(), Failure> {
    let target = inside(root, &item.destination);
    let owner = Some((Uid::from_raw(spec.uid), Gid::from_raw(spec.gid)));
    let open = match (&item.source, open) {
        (_, Some(open)) => open,
        (Source::Bind { path, .. }, None) => {
            return Err(Failure::new(
                ErrorKind::Unexpected,
                format!("{} was not opened", path.display()),
            ));
        }
        (Source::Tmpfs { size_bytes }, None) => {
            let mode = if item.destination == "/tmp" { "1777" } else { "755" };
            tmpfs(&target, &format!("mode={mode},size={size_bytes}"), false)?;
            if mode == "755" {
                give(&target, owner)?;
            }
            if item.read_only {
                let open = clone_root(&target)?;
                mount_setattr(
                    open.as_fd(),
                    false,
                    MountAttributes {
                        read_only: true,
                        no_dev: true,
                        ..Default::default()
                    },
                )
                .context(format_args!("cannot protect {}", item.destination))?;
            }
            return Ok(());
        }
        (Source::Scratch, None) => {
            // Named by the destination, with what could be a separator made safe.
            let Some(scratch) = scratch else {
                return Err(Failure::new(ErrorKind::Unexpected, "there is no writable space"));
            };
            let folder = scratch.join(item.destination.trim_start_matches('/').replace('/', "%"));
            make_dir(&folder)?;
            give(&folder, owner)?;
            bind(&folder, false)?
        }
    };
    let attributes = MountAttributes {
        read_only: item.read_only,
        no_dev: true,
        ..Default::default()
    };
    mount_setattr(open.as_fd(), true, attributes).context(format_args!("cannot protect {}", item.destination))?;
    attach(&open, &target)
}
