//! The server, and indices of a test's own.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{net::SocketAddr, sync::Arc};

use agents_audit_elasticsearch::{Credentials, ElasticsearchAudit, ElasticsearchAuditConfig};
use agents_core::{AuditEvent, AuditLogger, AuditQuery, EventType, SessionId};
use agents_testkit::proxy::FaultProxy;

/// The server that the environment names. Fails the test when it does not.
pub(crate) fn endpoint() -> String {
    std::env::var("AGENTS_TEST_OPENSEARCH").unwrap_or_else(|_| {
        panic!(
            "AGENTS_TEST_OPENSEARCH is not set; start a server with `cargo xtask services up opensearch` and take what \
             `cargo xtask services env` prints"
        )
    })
}

/// A proxy before the server, and the URL that leads through it.
pub(crate) async fn through_proxy() -> (FaultProxy, String) {
    let endpoint = endpoint();
    let host = endpoint.trim_end_matches('/').strip_prefix("http://").unwrap();
    let server: SocketAddr = host.replace("localhost", "127.0.0.1").parse().unwrap();
    let proxy = FaultProxy::start(server).await.unwrap();
    let through = format!("http://{}", proxy.address());
    (proxy, through)
}

/// A name that no other test uses.
pub(crate) fn index(purpose: &str) -> String {
    format!("audit-{purpose}-{}", SessionId::generate().as_str())
}

pub(crate) fn open(config: ElasticsearchAuditConfig) -> Arc<ElasticsearchAudit> {
    Arc::new(ElasticsearchAudit::new(config, Credentials::none()).unwrap())
}

pub(crate) fn event(session: &SessionId, n: usize) -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning)
        .with_session(session.clone())
        .with_fact("n", n)
}

/// The numbers of the events of a session, by pages of 100.
pub(crate) async fn numbers(audit: &dyn AuditLogger, session: &SessionId) -> Vec<u64> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let query = AuditQuery::new()
            .with_session(Some(session.clone()))
            .with_cursor(cursor);
        let page = audit.query(query).await.unwrap();
        found.extend(page.events.iter().map(|event| event.payload["n"].as_u64().unwrap()));
        match page.next {
            Some(next) => cursor = Some(next),
            None => return found,
        }
    }
}
