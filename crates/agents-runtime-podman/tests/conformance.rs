//! The conformance suite and the probe from inside on a podman that root runs, plain and with gVisor.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let url = support::variable("AGENTS_TEST_PODMAN", "podman");
    let gvisor = support::variable("AGENTS_TEST_PODMAN_RUNSC", "podman-runsc");
    let image = support::variable("AGENTS_TEST_ENGINE_IMAGE", "podman");
    match (url, gvisor, image) {
        (Ok(url), Ok(gvisor), Ok(image)) => support::run("podman", &url, &gvisor, &image),
        (Err(code), ..) | (_, Err(code), _) | (.., Err(code)) => code,
    }
}
