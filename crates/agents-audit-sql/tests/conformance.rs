//! The conformance cases, over real servers and over an SQLite file.

mod common;

use std::{process::ExitCode, sync::Arc};

use agents_audit_sql::{DatabaseAudit, DatabaseAuditConfig};
use agents_core::AuditLogger;
use agents_testkit::{
    audit::{AuditFixture, cases},
    run, trials,
};
use common::{Server, config};

fn fixture(config: DatabaseAuditConfig, url: Option<String>) -> AuditFixture {
    let open = move || -> agents_core::Result<Arc<dyn AuditLogger>> {
        Ok(Arc::new(DatabaseAudit::new(config.clone(), url.as_deref())?))
    };
    let audit = open().unwrap_or_else(|error| panic!("{}", error.report()));
    AuditFixture::new(audit).with_reopen(move || Box::pin(std::future::ready(open())))
}

fn main() -> ExitCode {
    run([
        trials("postgres", cases(), || async {
            Ok(fixture(config(), Some(Server::Postgres.url())))
        }),
        trials("mariadb", cases(), || async {
            Ok(fixture(config(), Some(Server::MariaDb.url())))
        }),
        trials("sqlite", cases(), || async {
            let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            let path = folder.path().join("audit.db");
            Ok(fixture(DatabaseAuditConfig::file(path), None).keeping(folder))
        }),
    ])
}
