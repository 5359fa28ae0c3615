//! The same suites on a podman that an ordinary user runs, as that user.

mod support;

use std::{os::unix::fs::MetadataExt, process::ExitCode};

use rustix::{
    fs::{Gid, Uid},
    thread::{set_thread_gid, set_thread_groups, set_thread_uid},
};

fn main() -> ExitCode {
    let url = support::variable("AGENTS_TEST_PODMAN_ROOTLESS", "podman-rootless");
    let gvisor = support::variable("AGENTS_TEST_PODMAN_ROOTLESS_RUNSC", "podman-rootless-runsc");
    let image = support::variable("AGENTS_TEST_ENGINE_IMAGE", "podman-rootless");
    let (url, gvisor, image) = match (url, gvisor, image) {
        (Ok(url), Ok(gvisor), Ok(image)) => (url, gvisor, image),
        (Err(code), ..) | (_, Err(code), _) | (.., Err(code)) => return code,
    };
    if let Err(error) = become_the_owner(&url) {
        eprintln!("cannot become the user who runs {url}: {error}");
        return ExitCode::FAILURE;
    }
    support::run("podman-rootless", &url, &gvisor, &image)
}

/// Becomes the user whose socket it is, for the tests of root.
fn become_the_owner(url: &str) -> std::io::Result<()> {
    let socket = std::fs::metadata(url.trim_start_matches("unix://"))?;
    if !rustix::process::geteuid().is_root() || socket.uid() == 0 {
        return Ok(());
    }
    // There is one thread yet, so that the whole process changes its user.
    set_thread_groups(&[])?;
    set_thread_gid(Gid::from_raw(socket.gid()))?;
    set_thread_uid(Uid::from_raw(socket.uid()))?;
    Ok(())
}
