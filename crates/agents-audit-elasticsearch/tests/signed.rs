//! Requests signed for Amazon OpenSearch Service, against a real server behind a proxy that checks signatures.

mod common;

use std::{net::SocketAddr, sync::Arc};

use agents_audit_elasticsearch::{ElasticsearchAuditConfig, ElasticsearchAuditFactory, IndexLayout};
use agents_core::{
    AuditLogger, BuildContext, Error, ErrorKind, Factory, SecretBytes, SecretRef, SecretResolver, SessionId,
};
use agents_testkit::fakes::SignedProxy;
use common::{endpoint, event, index, numbers};
use serde_json::json;

#[derive(Debug)]
struct Secrets;

#[async_trait::async_trait]
impl SecretResolver for Secrets {
    async fn resolve(&self, reference: &SecretRef) -> agents_core::Result<SecretBytes> {
        match reference.key() {
            "ID" => Ok(SecretBytes::new("AKIDEXAMPLE\n")),
            "KEY" => Ok(SecretBytes::new("secret-hunter2\n")),
            "WRONG" => Ok(SecretBytes::new("wrong-hunter2")),
            "TOKEN" => Ok(SecretBytes::new("token-hunter2\n")),
            _ => Err(Error::not_found(format!("{reference} is not set"))),
        }
    }
}

async fn build(endpoint: &str, layout: IndexLayout, key: &str) -> Arc<dyn AuditLogger> {
    let layout = if layout == IndexLayout::Daily {
        "daily"
    } else {
        "data_stream"
    };
    let config: ElasticsearchAuditConfig = serde_json::from_value(json!({
        "endpoint": endpoint, "index": index("signed"), "layout": layout, "aws_region": "eu-central-1",
        "access_key_id": "env:ID", "secret_access_key": key, "session_token": "env:TOKEN", "timeout_seconds": 10,
    }))
    .unwrap();
    let context = BuildContext::new("/state", "/data", Arc::new(Secrets));
    ElasticsearchAuditFactory::build(config, &context).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_rightly_is_taken_and_nothing_else() {
    let server: SocketAddr = endpoint()
        .trim_end_matches('/')
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap();
    let key = ("AKIDEXAMPLE", "secret-hunter2");
    let proxy = SignedProxy::start(server, "eu-central-1", "es", key).await.unwrap();
    proxy.set_session_token(Some("token-hunter2"));
    for layout in [IndexLayout::DataStream, IndexLayout::Daily] {
        let (audit, session) = (build(&proxy.url(), layout, "env:KEY").await, SessionId::generate());
        // Small, and large enough to be compressed; paths with a wildcard, and with a query.
        audit.emit(event(&session, 0)).await.unwrap();
        for outcome in audit
            .emit_batch((1..50).map(|n| event(&session, n)).collect())
            .await
            .unwrap()
        {
            outcome.unwrap();
        }
        assert_eq!(numbers(&*audit, &session).await, (0..50).collect::<Vec<_>>());
        assert!(audit.check_availability().await.unwrap().available);

        proxy.set_session_token(Some("another"));
        let error = audit.emit(event(&session, 50)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
        let printed = format!("{error:?} {} {audit:?}", error.report());
        assert!(!printed.contains("hunter2"), "{printed}");
        proxy.set_session_token(Some("token-hunter2"));
        audit.emit(event(&session, 50)).await.unwrap();

        let wrong = build(&proxy.url(), layout, "env:WRONG").await;
        let error = wrong.emit(event(&session, 51)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
    }
}
