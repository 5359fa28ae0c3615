//! The conformance suite, the probe from inside and this runtime's own cases, as the user who runs them.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    agents_runtime_native::init();
    let name = if rustix::process::geteuid().is_root() {
        "root"
    } else {
        "user"
    };
    support::run(name, support::runsc())
}
