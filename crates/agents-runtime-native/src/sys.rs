//! The system calls that have no safe wrapper: the one module of the workspace that may hold `unsafe`.
//!
//! Everything here is called from the helper process, which has a single thread from its start to its end, unless the
//! function says otherwise.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use rustix::process::Pid;

/// Namespaces for [`fork`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct CloneFlags(libc::c_int);

impl CloneFlags {
    /// A plain fork.
    pub(crate) const NONE: Self = Self(0);
    /// A user namespace only.
    pub(crate) const USER: Self = Self(libc::CLONE_NEWUSER);
    /// Every namespace of a container.
    pub(crate) const CONTAINER: Self = Self(
        libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS,
    );
}

/// Forks, with new namespaces for the child. `None` is returned in the child.
///
/// # Errors
///
/// The kernel's: `EPERM` where user namespaces are switched off, `ENOSPC` where there are too many.
pub(crate) fn fork(flags: CloneFlags) -> io::Result<Option<Pid>> {
    // As wide as registers, since a variadic call fills no more of a register than its argument has.
    let flags = libc::c_long::from(flags.0 | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: a `clone` without CLONE_VM and with a null stack behaves as `fork`. The helper has one thread, so no lock of
    // the allocator or of std can be held by a thread that the child lacks.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// Ends the process at once, without running destructors or exit handlers that belong to the parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Replaces the process image. Returns only on failure.
pub(crate) fn execve(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |words: &[CString]| -> Vec<*const libc::c_char> {
        words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: path, both arrays and every string in them end with NUL or null, and outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Gives every signal its default action and unblocks all, so that a program starts as from a shell.
pub(crate) fn reset_signals() {
    // SAFETY: setting SIG_DFL and an empty mask hands no function or memory of ours to the kernel. Failures for SIGKILL,
    // SIGSTOP and the numbers that libc reserves are expected and harmless.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut empty: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, ptr::null_mut());
    }
}

/// Makes ended children wait to be taken off, also when the program that started this one ignores them.
pub(crate) fn keep_ended_children() {
    // SAFETY: setting SIG_DFL hands no function or memory of ours to the kernel.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable when one is pending.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by `sigemptyset` before it is read, and a descriptor that `signalfd` returns belongs
    // to nobody else.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Kills every process of the pid namespace but the caller, which must be its first process.
pub(crate) fn kill_all_others() {
    // SAFETY: `kill` touches no memory. In a pid namespace of its own, -1 reaches only that namespace.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// What [`mount_setattr`] changes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountAttributes<'a> {
    pub(crate) read_only: bool,
    pub(crate) no_dev: bool,
    pub(crate) no_exec: bool,
    /// The user namespace whose mapping applies to the mount.
    pub(crate) id_map: Option<BorrowedFd<'a>>,
}

/// `mount_setattr(2)` on an open mount. `nosuid` is always set.
///
/// # Errors
///
/// `EINVAL` where the file system does not allow an id mapping, `ENOSYS` before Linux 5.12.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attributes: MountAttributes<'_>) -> io::Result<()> {
    let mut set = libc::MOUNT_ATTR_NOSUID;
    for (wanted, flag) in [
        (attributes.read_only, libc::MOUNT_ATTR_RDONLY),
        (attributes.no_dev, libc::MOUNT_ATTR_NODEV),
        (attributes.no_exec, libc::MOUNT_ATTR_NOEXEC),
        (attributes.id_map.is_some(), libc::MOUNT_ATTR_IDMAP),
    ] {
        if wanted {
            set |= flag;
        }
    }
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: attributes
            .id_map
            .map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(0)),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string, and the structure and its size belong together and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Brings the loopback interface of the network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero `ifreq` is valid; the name fits and ends with NUL; the kernel reads and writes one `ifreq`.
    unsafe {
        let mut request: libc::ifreq = mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// The number of a free loop device.
pub(crate) fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: this ioctl takes no argument and returns a number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Puts a file behind a loop device, which frees itself with its last user.
///
/// # Errors
///
/// `EBUSY` when somebody else has taken the device meanwhile: ask for another one.
pub(crate) fn configure_loop_device(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both structures are plain numbers, for which all-zero is valid.
    let mut config: LoopConfig = unsafe { mem::zeroed() };
    config.fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    config.block_size = 4096;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    // SAFETY: the kernel reads one `loop_config`, laid out as in its header, that outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `EXT4_IOC_SHUTDOWN` of `fs/ext4/ext4.h`, and its flag that flushes nothing.
const EXT4_IOC_SHUTDOWN: u64 = 0x8004_587D;
const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;

/// Gives an ext4 file system up: what has not been written to disk never will be.
pub(crate) fn discard_file_system(folder: BorrowedFd<'_>) -> io::Result<()> {
    let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
    // SAFETY: the kernel reads one 32-bit number that outlives the call.
    let result = unsafe { libc::ioctl(folder.as_raw_fd(), EXT4_IOC_SHUTDOWN as _, &raw const flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Moves the process into the namespace behind a descriptor.
pub(crate) fn setns(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `setns` touches no memory; the helper has one thread, which a user namespace demands.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives the process a mount namespace of its own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: `unshare(CLONE_NEWNS)` touches no memory and closes no descriptor.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives the process a cgroup namespace of its own, rooted at its present cgroups.
pub(crate) fn unshare_cgroups() -> io::Result<()> {
    // SAFETY: `unshare(CLONE_NEWCGROUP)` touches no memory and closes no descriptor.
    let result = unsafe { libc::unshare(libc::CLONE_NEWCGROUP) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes a descriptor one of the three standard ones, open across `execve`.
pub(crate) fn install_stdio(fd: impl AsFd, number: i32) -> io::Result<()> {
    // SAFETY: `dup2` replaces a standard descriptor in a process that is about to execute a program and uses none of them.
    let result = unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Closes every descriptor from `first` on, when a program is executed.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: marking descriptors close-on-exec frees nothing and leaves every owner valid.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Overwrites the arguments and the environment that the process was started with, which `/proc/PID/cmdline` and
/// `/proc/PID/environ` show, by a name and zeros.
///
/// Only for a forked child that reads neither any more.
pub(crate) fn overwrite_arguments(name: &str) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Fields 48 to 51, proc_pid_stat(5), counted from the end of the name in parentheses: 3 is the first after it.
    let fields = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace())
        .ok_or(io::ErrorKind::InvalidData)?;
    let bounds: Vec<usize> = fields.skip(45).take(4).filter_map(|field| field.parse().ok()).collect();
    let &[arg_start, arg_end, env_start, env_end] = bounds.as_slice() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    for (start, end) in [(arg_start, arg_end), (env_start, env_end)] {
        if start == 0 || end < start {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: the kernel says that this range of our own stack holds the strings that the process was started with. It
        // is mapped and writable, a string of zeros stays a string for whoever has a pointer to it, and there is no other
        // thread.
        unsafe { ptr::write_bytes(ptr::with_exposed_provenance_mut::<u8>(start), 0, end - start) };
    }
    let len = name.len().min((arg_end - arg_start).saturating_sub(1));
    // SAFETY: the same range, and no longer than it.
    unsafe { ptr::copy_nonoverlapping(name.as_ptr(), ptr::with_exposed_provenance_mut::<u8>(arg_start), len) };
    Ok(())
}

/// Closes every descriptor above the standard ones, but one.
///
/// Only for a child that has been forked to become another kind of process: it must never use or drop an owner of the
/// closed descriptors, and end with [`exit_now`] or [`execve`].
pub(crate) fn keep_only(kept: impl AsFd) -> io::Result<()> {
    let kept = u32::try_from(kept.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.max(2) + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: the owners of these descriptors live on in the parent; the child promises not to touch them.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Watches a descriptor from the runtime's process.
pub(crate) fn register(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open, and always the same one, for as long as it lives.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(fd) }?)
}
