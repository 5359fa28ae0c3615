//! What every process of the program does before anything else.

use std::fs;

use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};

use super::{
    failure::{Context, Fault},
    first_state,
};

/// Protects the process, and sets what its children inherit.
pub(super) fn prepare(nofile: Option<u64>) -> Result<(), Fault> {
    // Nobody inside may look into this process or trace it, although it has the same user. Where the program's file has the
    // mode that it should have, the kernel has seen to it before.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot protect the process")?;
    rustix::thread::set_no_new_privs(true).context("cannot set no_new_privs")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    limit(Resource::Core, 0)?;
    if let Some(most) = nofile {
        limit(Resource::Nofile, most)?;
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

/// The limit on open files of the container's first process, which holds for all of them.
pub(super) fn nofile_of_first() -> Option<u64> {
    first_state()?;
    let limits = fs::read_to_string("/proc/1/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    // The soft limit and the hard one, proc_pid_limits(5).
    line.split_whitespace().nth(1)?.parse().ok()
}
