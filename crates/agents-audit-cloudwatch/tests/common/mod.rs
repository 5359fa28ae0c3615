//! moto behind the strict proxy, and groups of a test's own.
#![allow(dead_code, reason = "each test program uses its part")]

use std::net::SocketAddr;

use agents_audit_cloudwatch::{CloudWatchAudit, CloudWatchAuditConfig, Credentials};
use agents_core::{AuditEvent, AuditLogger, AuditQuery, EventType, SessionId};
use agents_testkit::{fakes::StrictCloudWatch, proxy::FaultProxy};

pub(crate) const REGION: &str = "eu-central-1";
const KEY: (&str, &str) = ("AKIDEXAMPLE", "secret-hunter2");

/// Where moto is. Fails the test when the environment does not name it.
fn moto() -> SocketAddr {
    let url = std::env::var("AGENTS_TEST_MOTO").unwrap_or_else(|_| {
        panic!(
            "AGENTS_TEST_MOTO is not set; start a server with `cargo xtask services up moto` and take what `cargo xtask \
             services env` prints"
        )
    });
    let host = url.trim_end_matches('/').strip_prefix("http://").unwrap_or(&url);
    host.replace("localhost", "127.0.0.1").parse().unwrap()
}

pub(crate) async fn strict() -> StrictCloudWatch {
    StrictCloudWatch::start(moto(), REGION, KEY).await.unwrap()
}

/// A proxy that fails on purpose before the strict one.
pub(crate) async fn faulty(strict: &StrictCloudWatch) -> (FaultProxy, String) {
    let server = strict.url().strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = FaultProxy::start(server).await.unwrap();
    let url = format!("http://{}", proxy.address());
    (proxy, url)
}

pub(crate) fn credentials() -> Credentials {
    Credentials::keys(KEY.0, KEY.1, None)
}

/// A name that no other test uses.
pub(crate) fn group(purpose: &str) -> String {
    format!("/audit/{purpose}/{}", SessionId::generate())
}

pub(crate) fn config(endpoint: &str, group: &str) -> CloudWatchAuditConfig {
    CloudWatchAuditConfig::new(group)
        .with_region(Some(REGION.to_owned()))
        .with_endpoint(Some(endpoint.to_owned()))
}

pub(crate) async fn open(config: CloudWatchAuditConfig) -> CloudWatchAudit {
    CloudWatchAudit::new(config, credentials()).await.unwrap()
}

pub(crate) fn event(session: &SessionId, n: usize) -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning)
        .with_session(session.clone())
        .with_fact("n", n)
}

/// The numbers of the events of a session.
pub(crate) async fn numbers(audit: &dyn AuditLogger, session: &SessionId, limit: usize) -> Vec<u64> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let query = AuditQuery::new().with_session(Some(session.clone())).with_limit(limit);
        let page = audit.query(query.with_cursor(cursor)).await.unwrap();
        found.extend(page.events.iter().map(|event| event.payload["n"].as_u64().unwrap()));
        match page.next {
            Some(next) => cursor = Some(next),
            None => return found,
        }
    }
}
