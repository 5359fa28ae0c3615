//! The fake of a collector, with faults: what was acknowledged is there, in order, and what is not there was not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use agents_audit_otlp::{Headers, OtlpAudit, OtlpAuditConfig, OtlpAuditFactory};
use agents_core::{
    AuditEvent, AuditLogger, AuditQuery, BuildContext, Error, ErrorKind, EventType, Factory, Result, SecretBytes,
    SecretRef, SecretResolver,
};
use agents_testkit::{
    fakes::FakeCollector,
    proxy::{Fault, FaultProxy, during},
};
use async_trait::async_trait;

async fn world(timeout_seconds: u64) -> (FakeCollector, OtlpAudit) {
    let fake = FakeCollector::start().await.unwrap();
    let config = OtlpAuditConfig::new(fake.url()).with_timeout_seconds(timeout_seconds);
    (fake, OtlpAudit::new(config, Headers::none()).unwrap())
}

fn events(count: usize) -> Vec<AuditEvent> {
    let event = |n: usize| AuditEvent::now(EventType::SystemWarning).with_fact("n", n);
    (0..count).map(event).collect()
}

/// The numbers of the events that the collector has, in its order.
fn taken(fake: &FakeCollector) -> Vec<u64> {
    let body = |record: serde_json::Value| -> AuditEvent {
        serde_json::from_str(record["body"]["stringValue"].as_str().unwrap()).unwrap()
    };
    let records = fake.records().into_iter().map(body);
    records.map(|event| event.payload["n"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_batch_arrives_in_order_with_its_resource() {
    let (fake, _) = world(5).await;
    let config = OtlpAuditConfig::new(fake.url())
        .with_service_name("mine")
        .with_resource_attribute("deployment.environment.name", "test");
    let audit = OtlpAudit::new(config, Headers::none()).unwrap();
    let outcomes = audit.emit_batch(events(2500)).await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(taken(&fake), (0..2500).collect::<Vec<_>>());
    assert_eq!(fake.requests(), 3, "a thousand a request");
    let resource = fake.resources()[0].to_string();
    assert!(
        resource.contains("mine") && resource.contains("deployment.environment.name"),
        "{resource}"
    );
}

#[tokio::test]
async fn what_may_be_tried_again_is_after_the_time_that_was_asked_for() {
    let (fake, audit) = world(10).await;
    for status in [429, 502, 503, 504] {
        fake.refuse_next(status, None);
    }
    audit.emit(events(1).remove(0)).await.unwrap();
    assert_eq!((fake.requests(), fake.records().len()), (5, 1));
    fake.refuse_next(503, Some("2"));
    let start = Instant::now();
    audit.emit(events(1).remove(0)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn what_may_not_be_tried_again_is_not() {
    let (fake, audit) = world(10).await;
    for (status, kind) in [
        (400, ErrorKind::DataInvalid),
        (401, ErrorKind::Unauthenticated),
        (404, ErrorKind::NotFound),
        (500, ErrorKind::Unavailable),
    ] {
        let before = fake.requests();
        fake.refuse_next(status, None);
        let error = audit.emit(events(1).remove(0)).await.unwrap_err();
        assert_eq!((error.kind(), error.is_temporary()), (kind, false), "{status}");
        assert!(error.to_string().contains("as the test wants it"), "{error}");
        assert_eq!(fake.requests(), before + 1, "{status}");
    }
    assert!(fake.records().is_empty());
}

#[tokio::test]
async fn nothing_of_a_request_with_rejects_is_acknowledged() {
    let (fake, audit) = world(5).await;
    fake.reject_next(1);
    let error = audit.emit_batch(events(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataInvalid);
    assert!(error.to_string().contains("rejected 1 of 3"), "{error}");
    assert_eq!(
        (fake.requests(), taken(&fake)),
        (1, vec![1, 2]),
        "it must not be tried again"
    );
    // The next request has nothing to do with it.
    fake.reject_next(1);
    let outcomes = audit.emit_batch(events(1001)).await.unwrap();
    assert!(outcomes[..1000].iter().all(Result::is_err) && outcomes[1000].is_ok());
}

#[tokio::test]
async fn what_is_too_large_together_goes_in_parts() {
    let (fake, audit) = world(5).await;
    fake.limit(3);
    let outcomes = audit.emit_batch(events(10)).await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(taken(&fake), (0..10).collect::<Vec<_>>());
    fake.limit(0);
    let error = audit.emit(events(1).remove(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
}

#[tokio::test]
async fn an_outage_loses_nothing_that_was_acknowledged() {
    let fake = FakeCollector::start().await.unwrap();
    let server = fake.url().strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = FaultProxy::start(server).await.unwrap();
    let config = OtlpAuditConfig::new(format!("http://{}", proxy.address())).with_timeout_seconds(10);
    let audit = OtlpAudit::new(config, Headers::none()).unwrap();
    for (n, fault) in [Fault::Reset, Fault::Hang].into_iter().enumerate() {
        let event = AuditEvent::now(EventType::SystemWarning).with_fact("n", n);
        during(&proxy, fault, Duration::from_millis(700), audit.emit(event))
            .await
            .unwrap();
    }
    assert_eq!(taken(&fake), [0, 1]);
    // For good, and then it is told.
    proxy.set(Fault::Reset);
    let config = OtlpAuditConfig::new(format!("http://{}", proxy.address())).with_timeout_seconds(1);
    let audit = OtlpAudit::new(config, Headers::none()).unwrap();
    let error = audit.emit_batch(events(3)).await.unwrap_err();
    assert_eq!((error.kind(), error.is_temporary()), (ErrorKind::Unavailable, true));
    let availability = audit.check_availability().await.unwrap();
    assert!(!availability.available);
}

#[derive(Debug)]
struct Resolver;

#[async_trait]
impl SecretResolver for Resolver {
    async fn resolve(&self, reference: &SecretRef) -> Result<SecretBytes> {
        match reference.to_string().as_str() {
            "env:TOKEN" => Ok(SecretBytes::new(b"Bearer hunter2\n".to_vec())),
            other => Err(Error::not_found(format!("no {other}"))),
        }
    }
}

#[tokio::test]
async fn headers_are_secrets() {
    let fake = FakeCollector::start().await.unwrap();
    fake.require("Bearer hunter2");
    let context = BuildContext::new("/state", "/data", Arc::new(Resolver));
    let config = OtlpAuditConfig::new(fake.url());
    let bare = OtlpAuditFactory::build(config.clone(), &context).await.unwrap();
    assert_eq!(
        bare.emit(events(1).remove(0)).await.unwrap_err().kind(),
        ErrorKind::Unauthenticated
    );
    let config = config.with_header("authorization", "env:TOKEN".parse().unwrap());
    let audit = OtlpAuditFactory::build(config.clone(), &context).await.unwrap();
    audit.emit(events(1).remove(0)).await.unwrap();
    assert!(audit.check_availability().await.unwrap().available);
    assert!(!format!("{audit:?} {config:?} {}", audit.location()).contains("hunter2"));
    let error = audit.query(AuditQuery::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
