//! The conformance cases, over the fake of Datadog's intake and search: there is no server of Datadog's to be had.

use std::{process::ExitCode, sync::Arc};

use agents_audit_datadog::{DatadogAudit, DatadogAuditConfig, Keys};
use agents_core::AuditLogger;
use agents_testkit::{
    audit::{AuditFixture, cases},
    fakes::FakeDatadog,
    run, trials,
};

async fn fixture(app_key: Option<&'static str>) -> Result<AuditFixture, String> {
    let fake = FakeDatadog::start("api", "app")
        .await
        .map_err(|error| error.to_string())?;
    let config = DatadogAuditConfig::new("datadoghq.com", "env:UNUSED".parse().map_err(|_| "no reference")?)
        .with_urls(Some(fake.url()), Some(fake.url()));
    let open = move || -> agents_core::Result<Arc<dyn AuditLogger>> {
        Ok(Arc::new(DatadogAudit::new(config.clone(), Keys::new("api", app_key)?)?))
    };
    let audit = open().map_err(|error| error.report())?;
    let fixture = AuditFixture::new(audit).keeping(fake);
    Ok(fixture.with_reopen(move || Box::pin(std::future::ready(open()))))
}

fn main() -> ExitCode {
    run([
        trials("datadog", cases(), || fixture(Some("app"))),
        // Without an application key nothing can be read.
        trials("write_only", cases(), || fixture(None)),
    ])
}
