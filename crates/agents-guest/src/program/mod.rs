//! The program: one thread, since its threads would count as the agent's.

mod connect;
mod counters;
mod failure;
mod frames;
mod process;
mod read;
mod report;
mod serve;
mod setup;
mod streams;
mod tree;
mod write;

use std::{ffi::OsString, process::ExitCode};

use agents_guest::protocol::{FailureKind, FromGuest, State};

use self::failure::{Fault, fault};

/// What a command line that makes no sense exits with, EX_USAGE of sysexits.h.
const USAGE: u8 = 64;

pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let done = match words[..] {
        ["init", ref limits @ ..] => match setup::Limits::parse(limits) {
            Some(limits) => serve::first(limits),
            None => return usage(),
        },
        ["exec"] => serve::supervisor(),
        ["report"] => setup::prepare(setup::limits_of_first()).and_then(|()| frames::say(&report::report())),
        ["status"] => status(),
        ["read", "--", path] => read::read(path, false),
        ["read", "--quiesce", "--", path] => read::read(path, true),
        ["write", "--", path] => write::write(path),
        ["connect", port] => match port.parse() {
            Ok(port) => connect::connect(port),
            Err(_) => return usage(),
        },
        // Between a supervisor and its process, see there.
        ["terminal", ..] => return process::take_terminal(&arguments[1..]),
        _ => return usage(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // When this cannot be said either, the connection's end says it.
            let _ = frames::say(&FromGuest::Failed(fault.into()));
            // Engines forget what was said when they cannot pass the input on, so it is taken until the host has heard.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "this is the guest program of the Isolated Agents SDK, protocol {}; it is started by it alone",
        agents_guest::protocol::VERSION
    );
    ExitCode::from(USAGE)
}

fn status() -> Result<(), Fault> {
    let state = first_state().ok_or_else(|| fault(FailureKind::Unavailable, "this is no container of the SDK"))?;
    frames::say(&FromGuest::State(state))
}

/// The state that the container's first process says by its name, when that is ours. Nobody else can give it one.
fn first_state() -> Option<State> {
    State::of_comm(&std::fs::read_to_string("/proc/1/comm").ok()?)
}
