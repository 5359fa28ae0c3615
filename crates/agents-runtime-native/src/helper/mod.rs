//! The helper: one process a container, between the runtime and the container's first process.
//!
//! It has a single thread from its start to its end, so that it may fork, and it ends with its owner: when the runtime's
//! process goes away, however it does, the container goes with it.

mod archive;
mod exec;
mod init;
mod prepare;
mod process;
mod rootfs;
mod server;
mod walk;

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use agents_core::{EffectiveState, ErrorKind};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use self::init::{Answer, Order};
pub(crate) use self::rootfs::{HOST_FOLDERS, HOST_SECRETS};
use crate::{
    cgroup::Group,
    readback, seccomp,
    seccomp::Filters,
    spec::{ContainerSpec, Context, Failure, IdMap, Reply},
    state,
    sys::{self, CloneFlags, exit_now, fork},
    wire,
};

/// Runs the helper over a connection to the runtime, which is its standard input. Never returns.
pub(crate) fn main() -> ! {
    match owner() {
        Ok(owner) => run(&owner),
        Err(_) => exit_now(125),
    }
}

/// Forks a helper ahead of its first use, and returns the connection to it. `None` when the process has threads already,
/// so that forking it would not be safe, or when it fails: the helper is started as a program then.
pub(crate) fn fork_ahead() -> Option<UnixStream> {
    if fs::read_dir("/proc/self/task").ok()?.count() != 1 {
        return None;
    }
    let (ours, theirs) = UnixStream::pair().ok()?;
    match fork(CloneFlags::NONE).ok()? {
        Some(child) => {
            // It only forks the helper, so that nobody has to take that off later.
            let status = waitpid(Some(child), WaitOptions::empty()).ok()??.1;
            (status.exit_status() == Some(0)).then_some(ours)
        }
        None => match fork(CloneFlags::NONE) {
            Ok(None) => {
                let ready = become_helper(&theirs);
                if ready.is_err() {
                    exit_now(125);
                }
                run(&theirs)
            }
            forked => exit_now(i32::from(forked.is_err())),
        },
    }
}

/// What starting a program would do: another name, no arguments, no environment, no descriptors, a process group.
fn become_helper(owner: &UnixStream) -> std::io::Result<()> {
    rustix::process::setsid()?;
    sys::overwrite_arguments(crate::HELPER_NAME)?;
    sys::keep_only(owner)?;
    rustix::process::chdir("/")?;
    lead_nowhere()
}

fn run(owner: &UnixStream) -> ! {
    // A forked process that unwinds would run destructors that are its parent's.
    std::panic::set_hook(Box::new(|_| exit_now(101)));
    let code = match wire::receive::<ContainerSpec>(owner) {
        Ok(Some((spec, _))) => serve(spec, owner),
        _ => 125,
    };
    exit_now(code)
}

/// Moves the connection away from standard input, and lets the three standard descriptors lead nowhere.
fn owner() -> std::io::Result<UnixStream> {
    let owner = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    lead_nowhere()?;
    Ok(owner)
}

fn lead_nowhere() -> std::io::Result<()> {
    let nothing = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    (0..3).try_for_each(|number| sys::install_stdio(&nothing, number))
}

/// A container's first process and what leads to it.
#[derive(Debug)]
struct Container {
    spec: ContainerSpec,
    filters: Filters,
    pid: Pid,
    socket: UnixStream,
    namespaces: Namespaces,
    /// The writable space, when it is a file system on disk.
    scratch: Option<OwnedFd>,
}

impl Drop for Container {
    /// Nobody needs what is in the writable space any more, so that it is not written to disk first, which may take long.
    fn drop(&mut self) {
        // 7 is the major number of loop devices (Documentation/admin-guide/devices.txt): nothing else is ever given up.
        if let Some(scratch) = &self.scratch
            && rustix::fs::fstat(scratch).is_ok_and(|stat| rustix::fs::major(stat.st_dev) == 7)
        {
            let _ = sys::discard_file_system(scratch.as_fd());
        }
    }
}

/// The namespaces of a container, which also keep its mounts when its processes have ended.
#[derive(Debug)]
struct Namespaces {
    user: OwnedFd,
    mnt: OwnedFd,
    pid: OwnedFd,
    net: OwnedFd,
    ipc: OwnedFd,
    uts: OwnedFd,
    /// Made after the process has been moved into its cgroups, so that it is opened last.
    cgroup: Option<OwnedFd>,
}

impl Namespaces {
    fn open(pid: Pid) -> Result<Self, Failure> {
        let open = |kind| prepare::open_namespace(pid, kind);
        Ok(Self {
            user: open("user")?,
            mnt: open("mnt")?,
            pid: open("pid")?,
            net: open("net")?,
            ipc: open("ipc")?,
            uts: open("uts")?,
            cgroup: None,
        })
    }

    /// Each with its kind, as in `/proc/PID/ns`.
    fn all(&self) -> Vec<(&'static str, &OwnedFd)> {
        let mut all = vec![
            ("user", &self.user),
            ("mnt", &self.mnt),
            ("pid", &self.pid),
            ("net", &self.net),
            ("ipc", &self.ipc),
            ("uts", &self.uts),
        ];
        all.extend(self.cgroup.as_ref().map(|cgroup| ("cgroup", cgroup)));
        all
    }
}

fn serve(spec: ContainerSpec, owner: &UnixStream) -> i32 {
    let identity = spec.identity.clone();
    // Before anything that may hang, such as a mount of a network that is down, so that a clean-up finds us.
    let noted = state::write_running(&identity.folder, None).context("cannot write the container's state");
    let outcome = noted.and_then(|()| create(spec)).and_then(|(container, effective)| {
        let listener = state::listen(&identity.folder).context("cannot listen for requests")?;
        state::write_running(&identity.folder, Some(container.pid)).context("cannot write the container's state")?;
        Ok((container, effective, listener))
    });
    match outcome {
        Ok((container, effective, listener)) => {
            if wire::send(owner, &Reply::Created(Box::new(effective)), &[]).is_ok() {
                server::serve(container, owner, &listener);
            } else {
                end(container.pid);
            }
            let _ = state::remove(&identity);
            0
        }
        Err(failure) => {
            let _ = state::remove(&identity);
            let _ = wire::send(owner, &Reply::Failed(failure), &[]);
            1
        }
    }
}

fn create(spec: ContainerSpec) -> Result<(Container, EffectiveState), Failure> {
    if let Some(group) = &spec.identity.group {
        group.create(&spec.limits).context("cannot make the cgroups")?;
    }
    if matches!(spec.ids, IdMap::Range { .. }) {
        prepare::own_mounts()?;
    }
    let capabilities: Vec<String> = spec
        .capabilities
        .iter()
        .map(|number| agents_core::policy::capability_name(*number))
        .collect();
    let filters = match &spec.seccomp_profile {
        Some(text) => seccomp::profile_filters(text, &capabilities),
        None => seccomp::default_filters(),
    }
    .map_err(|error| Failure::new(error.kind(), error.report()))?;
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
    let child = fork(CloneFlags::CONTAINER).map_err(|error| no_namespaces(&error))?;
    let Some(pid) = child else {
        // Nothing of the helper may stay open in the container, the owner's connection least of all.
        if sys::keep_only(&theirs).is_err() {
            exit_now(1);
        }
        init::run(&spec, &filters, &theirs);
    };
    drop(theirs);
    let started = start_first(&spec, pid, &ours);
    match started {
        Ok((namespaces, scratch, effective)) => Ok((
            Container {
                spec,
                filters,
                pid,
                socket: ours,
                namespaces,
                scratch,
            },
            effective,
        )),
        Err(failure) => {
            end(pid);
            Err(failure)
        }
    }
}

fn start_first(
    spec: &ContainerSpec,
    pid: Pid,
    socket: &UnixStream,
) -> Result<(Namespaces, Option<OwnedFd>, EffectiveState), Failure> {
    init::write_id_maps(pid, spec)?;
    let mut namespaces = Namespaces::open(pid)?;
    let mounts = prepare::mounts(spec, &namespaces.user)?;
    let order = Order::Build {
        layers: mounts.layers.len(),
        binds: mounts.binds.iter().map(|(index, _)| *index).collect(),
    };
    let binds = mounts.binds.iter().map(|(_, open)| open);
    let fds: Vec<_> = mounts.layers.iter().chain(binds).map(AsFd::as_fd).collect();
    if fds.len() > wire::MAX_FDS {
        let (layers, binds) = (mounts.layers.len(), mounts.binds.len());
        let message = format!("an image with {layers} layers and {binds} mounts is too much");
        return Err(Failure::new(ErrorKind::Unsupported, message));
    }
    wire::send(socket, &order, &fds).context("cannot reach the container")?;
    drop(mounts);
    // The container builds its file system meanwhile. Moving a process between groups of version 1 waits for every
    // processor of the machine, and mounting a file system waits likewise, so that the two wait at the same time.
    let joining = spec.identity.group.as_ref().map(|group| join_groups(group, pid));
    let mounted = prepare::scratch(spec)?;
    if let Some(joining) = joining {
        joining?.wait()?;
    }
    // Opened for itself, since the mount is a path only.
    let scratch = mounted.as_ref().and_then(|mounted| {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::openat(mounted, ".", flags, rustix::fs::Mode::empty()).ok()
    });
    let fds: Vec<_> = mounted.iter().map(AsFd::as_fd).collect();
    let join = Order::Join {
        scratch: mounted.is_some(),
    };
    // When it is gone already, its last words say why.
    let _ = wire::send(socket, &join, &fds);
    drop(mounted);
    match wire::receive::<Answer>(socket).context("cannot hear from the container")? {
        Some((Answer::Ready(inside), fds)) => {
            namespaces.cgroup = fds.into_iter().next();
            let private = readback::private_namespaces(&namespaces.all());
            Ok((namespaces, scratch, readback::outside(*inside, spec, pid, private)))
        }
        Some((Answer::Failed(failure), _)) => Err(failure),
        _ => Err(Failure::new(
            ErrorKind::Unexpected,
            "the container's first process ended before it was ready; the memory limit may be too low",
        )),
    }
}

/// A child that moves a process into its groups.
struct Joining<'a> {
    child: Pid,
    group: &'a Group,
    pid: Pid,
}

fn join_groups(group: &Group, pid: Pid) -> Result<Joining<'_>, Failure> {
    let number = pid.as_raw_nonzero().get().unsigned_abs();
    match fork(CloneFlags::NONE).context("cannot start a process")? {
        None => exit_now(i32::from(group.add(number).is_err())),
        Some(child) => Ok(Joining { child, group, pid }),
    }
}

impl Joining<'_> {
    fn wait(self) -> Result<(), Failure> {
        let status = waitpid(Some(self.child), WaitOptions::empty()).context("cannot wait for a process")?;
        if status.is_some_and(|(_, status)| status.exit_status() == Some(0)) {
            return Ok(());
        }
        // Tried again for the reason, or for good.
        let number = self.pid.as_raw_nonzero().get().unsigned_abs();
        self.group
            .add(number)
            .context("cannot move the container into its cgroups")
    }
}

/// Kills the first process, and with it the whole pid namespace, and takes it off.
fn end(pid: Pid) {
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitpid(Some(pid), WaitOptions::empty());
}

fn no_namespaces(error: &std::io::Error) -> Failure {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "user namespaces are switched off for this user; set kernel.unprivileged_userns_clone=1 or \
             kernel.apparmor_restrict_unprivileged_userns=0, or run as root"
        }
        Some(libc::ENOSPC) => "the host's limit is reached; raise user.max_user_namespaces",
        Some(libc::EAGAIN) => "the limit on processes is reached; raise it, or run fewer containers at once",
        _ => "see `agents doctor`",
    };
    Failure::new(
        ErrorKind::Unsupported,
        format!("cannot make the container's namespaces: {error}; {remedy}"),
    )
}
