//! The fakes pass the suite that they are used to test others with.

use std::{process::ExitCode, sync::Arc};

use agents_core::{Finding, Policy};
use agents_testkit::{
    audit,
    audit::AuditFixture,
    fakes::{FixedPolicy, MemoryAudit, ScriptedRuntime},
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
        trials("deny", policy::denying_cases(), || async {
            let finding = Finding::error("NOT_TODAY", "base_image", "nothing runs today; come back tomorrow");
            let validator = FixedPolicy::deny(vec![finding]);
            Ok(PolicyFixture::new(Arc::new(validator), Policy::default()).with_denied(Policy::default()))
        }),
        trials("scripted", runtime::scripted_cases(), || async {
            let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
            let runtime = ScriptedRuntime::new()
                .with_images(["scripted".to_owned()])
                .with_handler(runtime::script);
            Ok(RuntimeFixture::new(Arc::new(runtime), "scripted", dir.path()).keeping(dir))
        }),
    ])
}
