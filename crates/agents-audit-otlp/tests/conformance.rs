//! The conformance cases, over the fake of a collector.

use std::{process::ExitCode, sync::Arc};

use agents_audit_otlp::{Headers, OtlpAudit, OtlpAuditConfig};
use agents_core::AuditLogger;
use agents_testkit::{
    audit::{AuditFixture, cases},
    fakes::FakeCollector,
    run, trials,
};

async fn fixture() -> Result<AuditFixture, String> {
    let fake = FakeCollector::start().await.map_err(|error| error.to_string())?;
    let config = OtlpAuditConfig::new(fake.url());
    let open = move || -> agents_core::Result<Arc<dyn AuditLogger>> {
        Ok(Arc::new(OtlpAudit::new(config.clone(), Headers::none())?))
    };
    let audit = open().map_err(|error| error.report())?;
    let fixture = AuditFixture::new(audit).keeping(fake);
    Ok(fixture.with_reopen(move || Box::pin(std::future::ready(open()))))
}

fn main() -> ExitCode {
    run([trials("otlp", cases(), fixture)])
}
