//! Where the servers are.

use std::process::ExitCode;

/// The address of a server that `cargo xtask services` starts, or an end with what to do.
pub(crate) fn variable(name: &str, server: &str) -> Result<String, ExitCode> {
    std::env::var(name).map_err(|_| {
        eprintln!(
            "{name} is not set; run `cargo xtask services up {server}` and `eval \"$(cargo xtask services env)\"` first"
        );
        ExitCode::FAILURE
    })
}
