//! The cases that a scripted runtime can play.

use agents_core::Process;

use super::{RuntimeFixture, lifecycle_cases, process_cases};
use crate::{Case, fakes::Script};

/// The cases that ask for no more than what [`script`] can play, for wrappers of runtimes.
pub fn scripted_cases() -> Vec<Case<RuntimeFixture>> {
    let mut cases = lifecycle_cases();
    cases.retain(|case| case.name() != "containers_do_not_see_each_other");
    let played = [
        "output_and_exit_of_the_main_process",
        "output_and_exit_of_an_exec",
        "exit_codes",
        "a_missing_command_is_not_found",
        "stdin_is_echoed",
        "without_stdin_the_end_is_read",
        "start_works_once",
    ];
    let processes = process_cases().into_iter();
    cases.extend(processes.filter(|case| played.contains(&case.name())));
    cases
}

/// What a [`ScriptedRuntime`](crate::fakes::ScriptedRuntime) plays for the commands of [`scripted_cases`]; `None` for a
/// program that is not there.
pub fn script(process: &Process) -> Option<Script> {
    let command: Vec<_> = process.command.iter().map(String::as_str).collect();
    let text = match command.as_slice() {
        ["cat"] => return Some(Script::new().echo_stdin()),
        ["sh", "-c", text] => *text,
        _ => return None,
    };
    if let Some(code) = text.strip_prefix("exit ").and_then(|code| code.parse().ok()) {
        return Some(Script::new().exit(code));
    }
    Some(match text {
        "true" => Script::new(),
        "echo again" => Script::new().stdout("again\n"),
        "echo out; echo err >&2; exit 7" => Script::new().stdout("out\n").stderr("err\n").exit(7),
        "cat; echo end" => Script::new().echo_stdin().stdout("end\n"),
        "echo ready; read line; exit 3" => Script::new().stdout("ready\n").echo_stdin().exit(3),
        text if text.ends_with("echo ready; while :; do sleep 1; done") => Script::new().stdout("ready\n").hang(),
        _ => return None,
    })
}
