//! The container's first process: builds the file system, gives every privilege up, starts the agent, and takes ended
//! processes off. It stays our own code, without a program of its own, so that the image needs none.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use agents_core::{EffectiveState, ErrorKind};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Gid, Uid},
    process::{DumpableBehavior, Pid, Resource, Rlimit, Signal, WaitOptions, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
        remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_gid,
        set_thread_groups, set_thread_uid,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    process::{Ended, Launch, Left, Streams, launch, open_terminal, reap},
    rootfs::{self, Mounts},
    walk,
};
use crate::{
    readback,
    seccomp::Filters,
    spec::{ContainerSpec, Context, Failure, IdMap, ProcessSpec, Source},
    sys::{child_signals, exit_now, kill_all_others, loopback_up, unshare_cgroups},
    wire,
};

/// What the helper tells the first process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The ids are mapped. Comes with the open mounts: the layers, then the binds.
    Build { layers: usize, binds: Vec<usize> },
    /// The process is in its cgroups, and the writable space is there. Comes with it when it is on disk.
    Join { scratch: bool },
    /// Starts the agent. Comes with its streams, or none for a terminal.
    Start,
    /// Sends a signal to the agent.
    Signal(i32),
    /// Kills the process tree of a supervisor.
    Kill,
    /// Asks for the use of the writable space.
    Disk,
}

/// Whose processes are looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The container's first process: with its agent everything else ends.
    First,
    /// The supervisor of a further process: what its process leaves behind lives on.
    Supervisor,
}

/// What the first process answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Comes with the cgroup namespace, which nobody can open from outside any more.
    Ready(Box<EffectiveState>),
    Failed(Failure),
    /// Comes with our side of the terminal when there is one.
    Launched(Launch),
    Ended(Ended, Left),
    Disk(Option<(u64, u64)>),
}

/// The first process from its birth to its end.
pub(crate) fn run(spec: &ContainerSpec, filters: &Filters, socket: &UnixStream) -> ! {
    match become_container(spec, filters, socket) {
        Ok((state, cgroup)) => {
            if wire::send(socket, &Answer::Ready(Box::new(state)), &[cgroup.as_fd()]).is_ok() {
                serve(spec, spec.process.as_ref(), socket, Role::First);
            }
        }
        Err(failure) => {
            let _ = wire::send(socket, &Answer::Failed(failure), &[]);
        }
    }
    exit_now(1)
}

fn become_container(
    spec: &ContainerSpec,
    filters: &Filters,
    socket: &UnixStream,
) -> Result<(EffectiveState, OwnedFd), Failure> {
    bind_to_helper()?;
    let order = wire::receive::<Order>(socket).context("the helper is gone")?;
    let Some((Order::Build { layers, binds }, fds)) = order else {
        exit_now(1)
    };
    let mut fds = fds.into_iter();
    let mounts = Mounts {
        layers: fds.by_ref().take(layers).collect(),
        binds: binds.into_iter().zip(fds).collect(),
    };
    if matches!(spec.ids, IdMap::Range { .. }) {
        set_thread_groups(&[]).context("cannot leave the groups")?;
        set_thread_gid(Gid::ROOT).context("cannot become the container's root group")?;
        set_thread_uid(Uid::ROOT).context("cannot become the container's root")?;
        // A change of the user has undone it.
        bind_to_helper()?;
    }
    rustix::system::sethostname(rootfs::hostname(spec).as_bytes()).context("cannot set the host name")?;
    loopback_up().context("cannot bring the loopback interface up")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rootfs::build(spec, mounts, || {
        match wire::receive::<Order>(socket).context("the helper is gone")? {
            Some((Order::Join { scratch }, fds)) => Ok(fds.into_iter().next().filter(|_| scratch)),
            _ => exit_now(1),
        }
    })?;
    // Programs see their own groups as the root of the hierarchy, not where they lie on the host.
    unshare_cgroups().context("cannot make a cgroup namespace")?;
    let cgroup = fs::File::open("/proc/self/ns/cgroup")
        .context("cannot open the cgroup namespace")?
        .into();
    restrict(spec, filters)?;
    Ok((readback::inside(spec), cgroup))
}

/// Lets the process end with its parent.
fn bind_to_helper() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("cannot bind the process")
}

/// Gives up every privilege that the agent must not have. What is set here is inherited by all that follows.
pub(crate) fn restrict(spec: &ContainerSpec, filters: &Filters) -> Result<(), Failure> {
    limit(Resource::Core, 0)?;
    if let Some(most) = spec.nofile {
        limit(Resource::Nofile, most)?;
    }
    if spec.identity.group.is_none()
        && let Some(most) = spec.limits.pids
    {
        // Counted per user and user namespace since Linux 5.14, so that it is a limit of this container alone.
        limit(Resource::Nproc, most)?;
    }
    drop_privileges(spec, filters, CapabilitySet::empty())
}

/// Becomes the agent's user with the capabilities of the specification, and a few more for our own use.
pub(crate) fn drop_privileges(spec: &ContainerSpec, filters: &Filters, own: CapabilitySet) -> Result<(), Failure> {
    let mut kept = CapabilitySet::empty();
    for number in &spec.capabilities {
        kept |= CapabilitySet::from_bits_retain(1 << number);
    }
    for number in 0..64u32 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        // The kernel knows fewer than 64 of them and refuses the rest.
        if !kept.contains(capability) && remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    if matches!(spec.ids, IdMap::Range { .. }) {
        set_keep_capabilities(true).context("cannot keep capabilities")?;
        set_thread_groups(&[]).context("cannot leave the groups")?;
        set_thread_gid(Gid::from_raw(spec.gid)).context("cannot become the agent's group")?;
        set_thread_uid(Uid::from_raw(spec.uid)).context("cannot become the agent's user")?;
        set_keep_capabilities(false).context("cannot reset the keeping of capabilities")?;
    }
    // Nobody inside may look into a process that is our own code, or trace it; said before the capabilities go, since they
    // are all that protects it from another process of the same user until then.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot protect the process")?;
    clear_ambient_capability_set().context("cannot clear the ambient capabilities")?;
    let sets = CapabilitySets {
        effective: kept | own,
        permitted: kept | own,
        inheritable: kept,
    };
    set_capabilities(None, sets).context("cannot drop the capabilities")?;
    for number in &spec.capabilities {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        configure_capability_in_ambient_set(capability, true).context("cannot keep a capability")?;
    }
    bind_to_helper()?;
    set_no_new_privs(true).context("cannot set no_new_privs")?;
    for program in filters {
        seccompiler::apply_filter(program).map_err(|error| {
            Failure::new(
                ErrorKind::Unexpected,
                format!("cannot install the seccomp filter: {error}"),
            )
        })?;
    }
    Ok(())
}

fn limit(resource: Resource, most: u64) -> Result<(), Failure> {
    setrlimit(
        resource,
        Rlimit {
            current: Some(most),
            maximum: Some(most),
        },
    )
    .context(format_args!("cannot limit {resource:?} to {most}"))
}

/// Starts a process when told to, and takes ended ones off until its end.
pub(crate) fn serve(spec: &ContainerSpec, process: Option<&ProcessSpec>, socket: &UnixStream, role: Role) {
    let Ok(signals) = child_signals() else { return };
    let mut agent = None;
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let (ordered, ended) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if ended {
            drain(&signals);
            if let Some(ending) = reap(agent) {
                let left = Left {
                    disk: disk(spec),
                    no_processes: processes_are_used_up(spec),
                };
                if role == Role::First {
                    kill_all_others();
                }
                let _ = wire::send(socket, &Answer::Ended(ending, left), &[]);
                exit_now(0);
            }
        }
        if ordered {
            match wire::receive::<Order>(socket) {
                Ok(Some((Order::Start, fds))) => {
                    let (answer, ours) = start(spec, process, fds);
                    if let Answer::Launched(Launch::Running(pid)) = answer {
                        agent = Pid::from_raw(i32::try_from(pid).unwrap_or(0));
                    }
                    let ours: Vec<_> = ours.iter().map(AsFd::as_fd).collect();
                    let _ = wire::send(socket, &answer, &ours);
                }
                Ok(Some((Order::Signal(number), _))) => {
                    if let (Some(agent), Some(signal)) = (agent, Signal::from_named_raw(number)) {
                        let _ = rustix::process::kill_process(agent, signal);
                    }
                }
                Ok(Some((Order::Disk, _))) => {
                    let _ = wire::send(socket, &Answer::Disk(disk(spec)), &[]);
                }
                Ok(Some((Order::Build { .. } | Order::Join { .. }, _))) => {}
                Ok(Some((Order::Kill, _))) => {
                    kill_tree();
                    let _ = wire::send(
                        socket,
                        &Answer::Ended(Ended::Signal(libc::SIGKILL), Left::default()),
                        &[],
                    );
                    exit_now(0);
                }
                // The helper is gone: so is everything here.
                Ok(None) | Err(_) => {
                    if role == Role::Supervisor {
                        kill_tree();
                    }
                    return;
                }
            }
        }
    }
}

/// The use of the writable space.
fn disk(spec: &ContainerSpec) -> Option<(u64, u64)> {
    let scratch = spec.mounts.iter().find(|mount| mount.source == Source::Scratch)?;
    readback::disk_used(Path::new(&scratch.destination))
}

/// Whether the limit on processes is reached that `RLIMIT_NPROC` sets where there are no cgroups. The one that has just
/// ended counted too.
fn processes_are_used_up(spec: &ContainerSpec) -> bool {
    match spec.limits.pids {
        Some(most) if spec.identity.group.is_none() => walk::threads() + 1 >= most,
        _ => false,
    }
}

/// Kills every descendant. What a killed process leaves behind becomes our own child, since we are its subreaper, so that
/// this ends when we have no children any more.
fn kill_tree() {
    loop {
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for pid in children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .filter_map(Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => std::thread::sleep(Duration::from_micros(100)),
            Err(_) => return,
        }
    }
}

fn drain(signals: &OwnedFd) {
    // One signalfd_siginfo is 128 bytes, signalfd(2).
    let mut buffer = [0; 128 * 8];
    while rustix::io::read(signals, &mut buffer).is_ok_and(|read| read > 0) {}
}

fn start(spec: &ContainerSpec, process: Option<&ProcessSpec>, fds: Vec<OwnedFd>) -> (Answer, Option<OwnedFd>) {
    let Some(process) = process else {
        return (
            Answer::Failed(Failure::new(ErrorKind::Conflict, "the container has no main process")),
            None,
        );
    };
    let started = streams_of(process.tty, process.stdin, fds)
        .and_then(|(streams, ours)| Ok((launch(process, &spec.env, &spec.working_dir, streams)?, ours)));
    match started {
        Ok((launch, ours)) => (Answer::Launched(launch), ours),
        Err(failure) => (Answer::Failed(failure), None),
    }
}

/// The agent's streams from the descriptors that came with a request, and our side of a terminal.
fn streams_of(tty: Option<(u16, u16)>, stdin: bool, fds: Vec<OwnedFd>) -> Result<(Streams, Option<OwnedFd>), Failure> {
    if let Some((rows, columns)) = tty {
        let (ours, theirs) = open_terminal(rows, columns)?;
        return Ok((Streams::Terminal(theirs), Some(ours)));
    }
    let mut fds = fds.into_iter();
    let input = if stdin { fds.next() } else { None };
    match (fds.next(), fds.next()) {
        (Some(stdout), Some(stderr)) => Ok((
            Streams::Pipes {
                stdin: input,
                stdout,
                stderr,
            },
            None,
        )),
        _ => Err(Failure::new(
            ErrorKind::Unexpected,
            "the request came without its streams",
        )),
    }
}

/// The id maps of a container's user namespace.
pub(crate) fn write_id_maps(pid: Pid, spec: &ContainerSpec) -> Result<(), Failure> {
    let folder = format!("/proc/{}", pid.as_raw_nonzero());
    let (uids, gids) = match spec.ids {
        IdMap::Range { base } => {
            let map = format!("0 {base} {}", crate::spec::RANGE);
            (map.clone(), map)
        }
        IdMap::Caller { uid, gid } => {
            // Without this the kernel refuses a group map from an ordinary user, user_namespaces(7).
            fs::write(format!("{folder}/setgroups"), "deny").context("cannot give up the setting of groups")?;
            (format!("{} {uid} 1", spec.uid), format!("{} {gid} 1", spec.gid))
        }
    };
    fs::write(format!("{folder}/uid_map"), uids).context("cannot map the users")?;
    fs::write(format!("{folder}/gid_map"), gids).context("cannot map the groups")
}
