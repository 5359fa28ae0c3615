//! How a command ends, and how a failure is told.

use std::ffi::OsString;

use agents_sdk::core::{Error, ErrorKind, Exit, PolicyErrors, StartFailure};
use agents_sdk::session::{AgentResult, RunStatus};
use clap::error::ErrorKind as Usage;
use serde_json::{Value, json};

use crate::output;

/// A command other than `run` failed.
pub(crate) const CODE_FAILED: u8 = 1;
/// The command line is wrong.
pub(crate) const CODE_USAGE: u8 = 2;
/// The agent ran past its deadline.
pub(crate) const CODE_DEADLINE: u8 = 124;
/// The SDK could not or would not run the agent.
pub(crate) const CODE_REFUSED: u8 = 125;
/// Cancelled, as after `Ctrl-C`.
pub(crate) const CODE_CANCELLED: u8 = 130;
/// 128 + SIGPIPE: nobody reads what is printed.
pub(crate) const CODE_PIPE: u8 = 141;

/// The exit code, or what went wrong.
pub(crate) type Outcome = Result<u8, Failure>;

#[derive(Debug)]
pub(crate) enum Failure {
    Error(Error),
    /// Wrong flags that only came to light after parsing.
    Usage(Error),
    /// Nobody reads our standard output.
    Pipe,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<PolicyErrors> for Failure {
    fn from(errors: PolicyErrors) -> Self {
        Self::Error(errors.into())
    }
}

impl Failure {
    /// Tells it, and returns the exit code.
    pub(crate) fn report(self, json: bool, is_run: bool) -> u8 {
        let (error, code) = match self {
            Self::Pipe => return CODE_PIPE,
            Self::Usage(error) => (error, CODE_USAGE),
            Self::Error(error) if !is_run && error.kind() == ErrorKind::Cancelled => (error, CODE_CANCELLED),
            Self::Error(error) => (error, if is_run { CODE_REFUSED } else { CODE_FAILED }),
        };
        let text = error.report();
        output::error(&text);
        if json {
            let object = match is_run {
                true => refusal(&text, error.kind()),
                false => json!({"error": text, "error_kind": error.kind()}),
            };
            let _ = output::json(&object);
        }
        code
    }
}

/// The object of `agents run --json` for a run that did not begin.
fn refusal(text: &str, kind: ErrorKind) -> Value {
    let status = match kind {
        ErrorKind::Unexpected | ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::ResourceExhausted => {
            RunStatus::Failed
        }
        _ => RunStatus::Refused,
    };
    let ending = Exit::NotStarted {
        reason: StartFailure::Refused,
        message: text.to_owned(),
    };
    json!({
        "session_id": null,
        "agent_id": null,
        "status": status,
        "exit_code": null,
        "ending": ending,
        "artifacts": {},
        "artifact_details": [],
        "refused_artifacts": [],
        "output": null,
        "error": text,
        "error_kind": kind,
        "stdout": "",
        "stderr": "",
        "stdout_truncated": false,
        "stderr_truncated": false,
        "timings_ms": {},
        "usage": {"cpu_seconds": null, "memory_peak_bytes": null},
        "audit": null,
    })
}

/// The exit code of `agents run`.
pub(crate) fn exit_code(result: &AgentResult) -> u8 {
    match ending_code(&result.ending) {
        // The agent was content, but what was to be done with its output was not done.
        0 if result.status != RunStatus::Completed => CODE_REFUSED,
        code => code,
    }
}

/// Whether the run failed by what we require of it, and not by what its agent did or said of itself.
pub(crate) fn is_ours(result: &AgentResult) -> bool {
    result.status != RunStatus::Completed && (result.ending.is_success() || result.ending == Exit::OutputLimit)
}

/// The exit code for how a process ended.
pub(crate) fn ending_code(ending: &Exit) -> u8 {
    match ending {
        Exit::Deadline => CODE_DEADLINE,
        Exit::Cancelled => CODE_CANCELLED,
        Exit::PidsLimit { code: None | Some(0) } | Exit::DiskLimit { code: None | Some(0) } => CODE_REFUSED,
        _ => ending
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(CODE_REFUSED),
    }
}

/// Tells what is wrong with the command line, on one line; help and version are no errors.
pub(crate) fn report_usage(error: &clap::Error, arguments: &[OsString]) -> u8 {
    if matches!(error.kind(), Usage::DisplayHelp | Usage::DisplayVersion) {
        let _ = error.print();
        return 0;
    }
    if error.kind() == Usage::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return CODE_USAGE;
    }
    let flags = || arguments.iter().take_while(|argument| *argument != "--");
    let is_run = flags().any(|argument| argument == "run");
    let runs = is_run || flags().any(|argument| argument == "exec");
    let separated = arguments.iter().any(|argument| argument == "--");
    let text = one_line(&error.to_string(), runs && !separated);
    output::error(&text);
    if flags().any(|argument| argument == "--json") {
        let object = match is_run {
            true => refusal(&text, ErrorKind::ConfigInvalid),
            false => json!({"error": text, "error_kind": ErrorKind::ConfigInvalid}),
        };
        let _ = output::json(&object);
    }
    CODE_USAGE
}

/// clap's message without its usage, which `--help` prints. A command that does not stand behind `--` is told to.
fn one_line(message: &str, unseparated: bool) -> String {
    let mut text = String::new();
    for line in message
        .strip_prefix("error: ")
        .unwrap_or(message)
        .lines()
        .map(str::trim)
    {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        match line.strip_prefix("tip: ") {
            // Of no use to whoever slipped, and misleading to whoever did not.
            Some(tip) if tip.starts_with("to pass") => {}
            Some(tip) => text.push_str(&format!("; {tip}")),
            None if line.is_empty() => {}
            None if text.is_empty() => text.push_str(line),
            None => text.push_str(&format!(" {line}")),
        }
    }
    let misplaced = text.starts_with("unexpected argument") && !text.contains(';') || text.contains("<COMMAND>");
    if unseparated && misplaced {
        text.push_str("; put the command after --");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_has_the_code_of_the_contract() {
        let not_started = |reason| Exit::NotStarted {
            reason,
            message: String::new(),
        };
        let table = [
            (Exit::Exited { code: 0 }, 0),
            (Exit::Exited { code: 3 }, 3),
            (Exit::Exited { code: 255 }, 255),
            (Exit::Signalled { signal: 15 }, 143),
            (Exit::OutOfMemory, 137),
            (Exit::PidsLimit { code: Some(2) }, 2),
            (Exit::PidsLimit { code: Some(0) }, 125),
            (Exit::DiskLimit { code: None }, 125),
            (Exit::OutputLimit, 125),
            (Exit::Deadline, 124),
            (Exit::Cancelled, 130),
            (Exit::RuntimeLost { reason: String::new() }, 125),
            (not_started(StartFailure::NotFound), 127),
            (not_started(StartFailure::NotExecutable), 126),
            (not_started(StartFailure::Refused), 125),
        ];
        for (ending, code) in table {
            assert_eq!(ending_code(&ending), code, "{ending:?}");
        }
    }

    #[test]
    fn usage_errors_are_one_line() {
        let clap = "error: unexpected argument '--memry' found\n\n  tip: a similar argument exists: '--memory'\n  tip: to pass '--memry' as a value, use '-- --memry'\n\nUsage: agents run\n\nFor more information, try '--help'.\n";
        assert_eq!(
            one_line(clap, true),
            "unexpected argument '--memry' found; a similar argument exists: '--memory'"
        );
        let clap = "error: unexpected argument 'echo' found\n\nUsage: agents run\n";
        assert_eq!(
            one_line(clap, true),
            "unexpected argument 'echo' found; put the command after --"
        );
        assert_eq!(one_line(clap, false), "unexpected argument 'echo' found");
    }
}
