//! The conformance cases, over moto behind a proxy that enforces what the service documents.

mod common;

use std::{process::ExitCode, sync::Arc};

use agents_audit_cloudwatch::CloudWatchAudit;
use agents_core::AuditLogger;
use agents_testkit::{
    audit::{AuditFixture, cases},
    run, trials,
};
use futures_util::future::BoxFuture;

/// Cases use sessions of their own, so all share one group.
async fn fixture(group: String) -> AuditFixture {
    let strict = common::strict().await;
    let config = common::config(&strict.url(), &group);
    let open = move || -> BoxFuture<'static, agents_core::Result<Arc<dyn AuditLogger>>> {
        let config = config.clone();
        Box::pin(async move {
            let audit = CloudWatchAudit::new(config, common::credentials()).await?;
            Ok(Arc::new(audit) as Arc<dyn AuditLogger>)
        })
    };
    let audit = open().await.unwrap_or_else(|error| panic!("{}", error.report()));
    AuditFixture::new(audit).with_reopen(open).keeping(strict)
}

fn main() -> ExitCode {
    let group = common::group("conformance");
    run([trials("cloudwatch", cases(), move || {
        let group = group.clone();
        async move { Ok(fixture(group).await) }
    })])
}
