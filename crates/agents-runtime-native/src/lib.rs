#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod adapter;
mod cgroup;
mod config;
mod connection;
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
    os::unix::ffi::OsStrExt,
    sync::atomic::{AtomicBool, Ordering},
};

pub use adapter::NativeRuntime;
pub use config::{NativeConfig, NativeFactory};

/// The name under which a program that calls [`init`] runs as the helper.
pub(crate) const HELPER_NAME: &str = "isolated-agents-helper";

static INITIALISED: AtomicBool = AtomicBool::new(false);

/// Turns this process into the runtime's helper if it was started as one; otherwise returns at once.
///
/// The runtime starts the running program again under another name to get its helper, so **this must be the first call of
/// `main`**, before any thread is started. A program that cannot do that installs `agents-native-helper` beside itself or
/// names it in [`NativeConfig::helper`].
pub fn init() {
    INITIALISED.store(true, Ordering::SeqCst);
    let name = std::env::args_os().next();
    if name.is_some_and(|name| name.as_bytes() == HELPER_NAME.as_bytes()) {
        helper::main();
    }
}

/// Whether [`init`] was called, so that this program can be started as the helper.
pub(crate) fn is_initialised() -> bool {
    INITIALISED.load(Ordering::SeqCst)
}
