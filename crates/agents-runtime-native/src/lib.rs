#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod adapter;
mod cgroup;
mod config;
mod connection;
mod gvisor;
mod helper;
mod host;
mod plan;
mod readback;
mod seccomp;
mod spec;
mod state;
mod streams;
mod sys;
mod wire;

use std::{
    os::unix::{ffi::OsStrExt, net::UnixStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

pub use adapter::NativeRuntime;
pub use config::{NativeConfig, NativeFactory};

/// The name under which a program that calls [`init`] runs as the helper.
pub(crate) const HELPER_NAME: &str = "isolated-agents-helper";

static INITIALISED: AtomicBool = AtomicBool::new(false);

static AHEAD: Mutex<Option<UnixStream>> = Mutex::new(None);

/// Turns this process into the runtime's helper if it was started as one; otherwise returns at once.
///
/// The runtime starts the running program again under another name to get its helper, so **this must be the first call of
/// `main`**, before any thread is started. A program that cannot do that installs `agents-native-helper` beside itself or
/// names it in [`NativeConfig::helper`].
pub fn init() {
    INITIALISED.store(true, Ordering::SeqCst);
    let name = std::env::args_os().next();
    if name
        .as_ref()
        .is_some_and(|name| name.as_bytes() == HELPER_NAME.as_bytes())
    {
        sys::keep_ended_children();
        helper::main();
    }
    if name.is_some_and(|name| name.as_bytes() == gvisor::launcher::NAME.as_bytes()) {
        sys::keep_ended_children();
        gvisor::launcher::main();
    }
}

/// Forks the helper of the first container ahead, which saves that container the start of a program.
///
/// Call it after [`init`] and before any thread is started; with threads it does nothing. A helper that is not used ends
/// with the process.
pub fn prefork() {
    if let Some(link) = helper::fork_ahead() {
        *AHEAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
    }
}

/// The helper that was forked ahead, once.
pub(crate) fn take_ahead() -> Option<UnixStream> {
    AHEAD.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Whether [`init`] was called, so that this program can be started as the helper.
pub(crate) fn is_initialised() -> bool {
    INITIALISED.load(Ordering::SeqCst)
}
