//! The same suite as an ordinary user, also when root runs it: it becomes another user first.

mod support;

use std::process::ExitCode;

use rustix::{
    fs::{Gid, Uid},
    thread::{set_thread_gid, set_thread_groups, set_thread_uid},
};

/// A user that owns nothing and has no name.
const NOBODY: u32 = 54321;

fn main() -> ExitCode {
    agents_runtime_native::init();
    if rustix::process::geteuid().is_root() {
        // There is one thread yet, so that the whole process changes its user.
        let changed = set_thread_groups(&[])
            .and_then(|()| set_thread_gid(Gid::from_raw(NOBODY)))
            .and_then(|()| set_thread_uid(Uid::from_raw(NOBODY)));
        if let Err(error) = changed {
            eprintln!("cannot become an ordinary user: {error}");
            return ExitCode::FAILURE;
        }
    }
    support::run("rootless")
}
