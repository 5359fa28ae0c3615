//! The audit layer over adapters that pass the suites: they pass them still, so that nothing is lost on the way.

use std::{process::ExitCode, sync::Arc};

use agents_core::{AuditSettings, Finding, Layer, Policy, Process};
use agents_layers::audit::{AuditKey, AuditLayer, Scope, Trail};
use agents_storage_objectstore::MemoryStorage;
use agents_testkit::{
    Case,
    fakes::{FixedPolicy, MemoryAudit, Script, ScriptedRuntime},
    policy,
    policy::PolicyFixture,
    run, runtime,
    runtime::RuntimeFixture,
    storage,
    storage::StorageFixture,
    trials,
};

fn main() -> ExitCode {
    run([
        trials("recorded_runtime", scripted(), || async {
            let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
            let runtime = ScriptedRuntime::new()
                .with_images(["scripted".to_owned()])
                .with_handler(script);
            let runtime = layer()?.wrap_runtime(Arc::new(runtime));
            Ok(RuntimeFixture::new(runtime, "scripted", dir.path()).keeping(dir))
        }),
        trials("recorded_storage", storage::cases(), || async {
            let layer = layer()?;
            let storage = layer.wrap_storage(Arc::new(MemoryStorage::new()));
            Ok(StorageFixture::new(storage).with_other(layer.wrap_storage(Arc::new(MemoryStorage::new()))))
        }),
        trials("recorded_policy", policy::cases(), || async {
            let validator = layer()?.wrap_policy(Arc::new(FixedPolicy::allow_all()));
            Ok(PolicyFixture::new(validator, Policy::default()))
        }),
        trials("recorded_denial", denying(), || async {
            let finding = Finding::error("NOT_TODAY", "base_image", "nothing runs today; come back tomorrow");
            let validator = layer()?.wrap_policy(Arc::new(FixedPolicy::deny(vec![finding])));
            Ok(PolicyFixture::new(validator, Policy::default()).with_denied(Policy::default()))
        }),
    ])
}

fn layer() -> Result<AuditLayer, String> {
    let key = AuditKey::random().map_err(|error| error.to_string())?;
    let trail = Trail::new(Arc::new(MemoryAudit::new()), AuditSettings::new(), key, Scope::new());
    Ok(AuditLayer::new(trail))
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
