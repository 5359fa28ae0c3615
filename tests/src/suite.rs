//! Trials, and how they are run.

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Trial};

use crate::{Caller, binary};

/// Says that this process is the one in the namespaces.
const INSIDE: &str = "AGENTS_TESTS_INSIDE";

/// Why a trial cannot judge here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip(pub String);

/// Passed, or skipped with the reason. What fails panics.
pub type Outcome = Result<(), Skip>;

/// A trial of this name.
pub fn trial(name: impl Into<String>, run: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        Ok(match run() {
            Ok(()) => Completion::Completed,
            Err(Skip(reason)) => Completion::ignored_with(reason),
        })
    })
}

/// The same trial for root and for an ordinary user.
pub fn for_callers(name: &str, run: fn(Caller) -> Outcome) -> [Trial; 2] {
    Caller::ALL.map(|caller| trial(format!("{}::{name}", caller.name()), move || run(caller)))
}

/// Skips unless root runs the tests.
///
/// # Errors
///
/// The reason.
pub fn require_root() -> Outcome {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(Skip("needs root".to_owned())),
    }
}

/// Runs trials as the test programs of cargo are run, with the same arguments; `alone` runs one at a time.
pub fn run(alone: bool, trials: Vec<Trial>) -> ExitCode {
    if rustix::process::geteuid().is_root() && std::env::var_os(INSIDE).is_none() {
        return in_namespaces();
    }
    let mut arguments = Arguments::from_args();
    if alone {
        arguments.test_threads = Some(1);
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    binary::remove_copy();
    conclusion.exit_code()
}

/// Runs this program again where it sees no process but its own.
fn in_namespaces() -> ExitCode {
    let program = std::env::current_exe().expect("this program has no path");
    let status = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        // The first process takes ended orphans off, which a test program does not.
        .args(["sh", "-c", "\"$@\"; exit $?", "sh"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .expect("cannot run unshare, which util-linux has");
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => ExitCode::from(code),
        None => ExitCode::FAILURE,
    }
}
