//! What every process of the program does before anything else.

use std::fs;

use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};

use super::{
    failure::{Context, Fault},
    first_state,
};

/// Limits that this program sets itself, and every process inherits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    nofile: Option<u64>,
    /// Processes and threads of the user, who is the only one in the container.
    nproc: Option<u64>,
}

impl Limits {
    /// From `--nofile=N` and `--nproc=N`.
    pub(super) fn parse(words: &[&str]) -> Option<Self> {
        let mut limits = Self::default();
        for word in words {
            let (name, most) = word.split_once('=')?;
            let limit = match name {
                "--nofile" => &mut limits.nofile,
                "--nproc" => &mut limits.nproc,
                _ => return None,
            };
            *limit = Some(most.parse().ok()?);
        }
        Some(limits)
    }
}

/// Protects the process, and sets what its children inherit.
pub(super) fn prepare(limits: Limits) -> Result<(), Fault> {
    // Nobody inside may look into this process or trace it, although it has the same user. Where the program's file has the
    // mode that it should have, the kernel has seen to it before.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot protect the process")?;
    rustix::thread::set_no_new_privs(true).context("cannot set no_new_privs")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    limit(Resource::Core, 0)?;
    if let Some(most) = limits.nofile {
        limit(Resource::Nofile, most)?;
    }
    if let Some(most) = limits.nproc {
        limit(Resource::Nproc, most)?;
    }
    Ok(())
}

fn limit(resource: Resource, most: u64) -> Result<(), Fault> {
    let had = rustix::process::getrlimit(resource).maximum;
    // What is stricter already stays so; raising it is not ours to do.
    let most = had.map_or(most, |had| had.min(most));
    setrlimit(
        resource,
        Rlimit {
            current: Some(most),
            maximum: Some(most),
        },
    )
    .context(format_args!("cannot limit {resource:?} to {most}"))
}

/// The limits of the container's first process, which hold for all of them.
pub(super) fn limits_of_first() -> Limits {
    let limits = first_state().and_then(|_| fs::read_to_string("/proc/1/limits").ok());
    let limits = limits.unwrap_or_default();
    let hard = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        // The soft limit and the hard one, proc_pid_limits(5).
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Limits {
        nofile: hard("Max open files"),
        nproc: hard("Max processes"),
    }
}

/// Whether there are as many processes and threads as [`Limits`] allows, or all but one; `None` without such a limit.
pub(super) fn processes_are_used_up() -> Option<bool> {
    let most = rustix::process::getrlimit(Resource::Nproc).maximum?;
    Some(super::tree::threads() + 1 >= most)
}
