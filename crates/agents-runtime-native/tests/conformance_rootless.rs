//! The same suite as an ordinary user, also when root runs it: it becomes another user first.

mod support;

use std::{
    fs, io,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::ExitCode,
};

use rustix::{
    fs::{Gid, Uid},
    thread::{set_thread_gid, set_thread_groups, set_thread_uid},
};

/// A user that owns nothing and has no name.
const NOBODY: u32 = 54321;

fn main() -> ExitCode {
    agents_runtime_native::init();
    let mut runsc = support::runsc();
    let folder = tempfile::tempdir().expect("a folder");
    if rustix::process::geteuid().is_root() {
        runsc = runsc.map(|runsc| lay_open(&runsc, folder.path()).expect("a copy of runsc"));
        // There is one thread yet, so that the whole process changes its user.
        let changed = set_thread_groups(&[])
            .and_then(|()| set_thread_gid(Gid::from_raw(NOBODY)))
            .and_then(|()| set_thread_uid(Uid::from_raw(NOBODY)));
        if let Err(error) = changed {
            eprintln!("cannot become an ordinary user: {error}");
            return ExitCode::FAILURE;
        }
    }
    support::run("rootless", runsc)
}

/// Puts a program of root's where the other user finds it, in a folder that is that user's to remove.
fn lay_open(program: &Path, folder: &Path) -> io::Result<PathBuf> {
    let copy = folder.join("runsc");
    fs::hard_link(program, &copy).or_else(|_| fs::copy(program, &copy).map(drop))?;
    chown(folder, Some(NOBODY), Some(NOBODY))?;
    Ok(copy)
}
