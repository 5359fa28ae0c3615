//! The audit layer over adapters that pass the suites: they pass them still, so that nothing is lost on the way.

use std::{process::ExitCode, sync::Arc};

use agents_core::{AuditSettings, Finding, Layer, Policy};
use agents_layers::audit::{AuditKey, AuditLayer, Scope, Trail};
use agents_storage_objectstore::MemoryStorage;
use agents_testkit::{
    fakes::{FixedPolicy, MemoryAudit, ScriptedRuntime},
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
        trials("recorded_runtime", runtime::scripted_cases(), || async {
            let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
            let runtime = ScriptedRuntime::new()
                .with_images(["scripted".to_owned()])
                .with_handler(runtime::script);
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
        trials("recorded_denial", policy::denying_cases(), || async {
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
