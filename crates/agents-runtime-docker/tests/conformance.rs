//! The conformance suite and the probe from inside, on every engine that there is and with each of its runtime classes.

mod support;

use std::process::ExitCode;

use agents_testkit::{probe, runtime, trials};

fn main() -> ExitCode {
    let mut all = Vec::new();
    for target in support::targets() {
        let name = target.name();
        let make = move || {
            let target = target;
            async move { target.fixture().await }
        };
        all.push(trials(&name, runtime::cases(), make));
        all.push(trials(&format!("{name}::probe"), probe::grouped_cases(), make));
    }
    agents_testkit::run(all)
}
