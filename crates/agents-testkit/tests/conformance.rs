//! The fakes pass the suite that they are used to test others with.

use std::{process::ExitCode, sync::Arc};

use agents_core::{Finding, Policy, Process};
use agents_testkit::{
    Case, audit,
    audit::AuditFixture,
    fakes::{FixedPolicy, MemoryAudit, Script, ScriptedRuntime},
    policy,
    policy::PolicyFixture,
    run, runtime,
    runtime::RuntimeFixture,
    trials,
};
use futures_util::FutureExt;

fn main() -> ExitCode {
    run([
        trials("memory_audit", audit::cases(), || async {
            let audit = MemoryAudit::new();
            let again = audit.clone();
            let reopen = move || {
                let again: Arc<dyn agents_core::AuditLogger> = Arc::new(again.reopened());
                async { Ok(again) }.boxed()
            };
            Ok(AuditFixture::new(Arc::new(audit)).with_reopen(reopen))
        }),
        trials("allow_all", policy::cases(), || async {
            Ok(PolicyFixture::new(
                Arc::new(FixedPolicy::allow_all()),
                Policy::default(),
            ))
        }),
        trials("deny", denying(), || async {
            let finding = Finding::error("NOT_TODAY", "base_image", "nothing runs today; come back tomorrow");
            let validator = FixedPolicy::deny(vec![finding]);
            Ok(PolicyFixture::new(Arc::new(validator), Policy::default()).with_denied(Policy::default()))
        }),
        trials("scripted", scripted(), || async {
            let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
            let runtime = ScriptedRuntime::new()
                .with_images(["scripted".to_owned()])
                .with_handler(script);
            Ok(RuntimeFixture::new(Arc::new(runtime), "scripted", dir.path()).keeping(dir))
        }),
    ])
}

/// Who denies everything has no policy to allow.
fn denying() -> Vec<Case<PolicyFixture>> {
    let mut cases = policy::cases();
    cases.retain(|case| case.name() != "findings_are_values");
    cases
}

/// The cases that ask for no more than what scripts can play.
fn scripted() -> Vec<Case<RuntimeFixture>> {
    let mut cases = runtime::lifecycle_cases();
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
    let processes = runtime::process_cases().into_iter();
    cases.extend(processes.filter(|case| played.contains(&case.name())));
    cases
}

fn script(process: &Process) -> Option<Script> {
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
