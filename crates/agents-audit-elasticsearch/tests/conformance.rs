//! The conformance cases, over a data stream and over daily indices of a real server.

mod common;

use std::{process::ExitCode, sync::Arc};

use agents_audit_elasticsearch::{Credentials, ElasticsearchAudit, ElasticsearchAuditConfig, IndexLayout};
use agents_core::AuditLogger;
use agents_testkit::{
    audit::{AuditFixture, cases},
    run, trials,
};

/// Cases use sessions of their own, so all share the indices of this run.
fn fixture(index: String, layout: IndexLayout) -> AuditFixture {
    let config = ElasticsearchAuditConfig::new(common::endpoint())
        .with_index(index)
        .with_layout(layout);
    let open = move || -> agents_core::Result<Arc<dyn AuditLogger>> {
        Ok(Arc::new(ElasticsearchAudit::new(config.clone(), Credentials::none())?))
    };
    let audit = open().unwrap_or_else(|error| panic!("{}", error.report()));
    AuditFixture::new(audit).with_reopen(move || Box::pin(std::future::ready(open())))
}

fn main() -> ExitCode {
    let (stream, daily) = (common::index("stream"), common::index("daily"));
    run([
        trials("data_stream", cases(), move || {
            std::future::ready(Ok(fixture(stream.clone(), IndexLayout::DataStream)))
        }),
        trials("daily", cases(), move || {
            std::future::ready(Ok(fixture(daily.clone(), IndexLayout::Daily)))
        }),
    ])
}
