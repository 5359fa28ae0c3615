//! The conformance cases, over daily files and over one file.

use std::{process::ExitCode, sync::Arc};

use agents_audit_file::{FileAudit, FileAuditConfig};
use agents_core::AuditLogger;
use agents_testkit::{
    audit::{AuditFixture, cases},
    run, trials,
};

fn fixture(config: fn(&std::path::Path) -> FileAuditConfig) -> Result<AuditFixture, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let config = config(folder.path());
    let open = move || -> agents_core::Result<Arc<dyn AuditLogger>> { Ok(Arc::new(FileAudit::new(config.clone())?)) };
    let audit = open().map_err(|error| error.report())?;
    Ok(AuditFixture::new(audit)
        .with_reopen(move || Box::pin(std::future::ready(open())))
        .keeping(folder))
}

fn main() -> ExitCode {
    run([
        trials("file_daily", cases(), || async {
            fixture(|folder| FileAuditConfig::folder(folder.join("audit")))
        }),
        trials("file_single", cases(), || async {
            fixture(|folder| FileAuditConfig::file(folder.join("audit.jsonl")))
        }),
    ])
}
