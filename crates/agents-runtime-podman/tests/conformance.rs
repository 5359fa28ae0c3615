//! The conformance suite and the probe from inside on a podman that root runs, plain and with gVisor.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let url = support::variable("AGENTS_TEST_PODMAN", "podman");
    let image = support::variable("AGENTS_TEST_ENGINE_IMAGE", "podman");
    match (url, image) {
        (Ok(url), Ok(image)) => support::run("podman", &url, &image),
        (Err(code), _) | (_, Err(code)) => code,
    }
}
