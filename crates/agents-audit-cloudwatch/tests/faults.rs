//! moto behind the strict proxy, with faults in between: what was acknowledged is there, and is found once.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use agents_audit_cloudwatch::{CloudWatchAudit, CloudWatchAuditConfig, CloudWatchAuditFactory, Credentials};
use agents_core::{
    AuditEvent, AuditLogger, AuditQuery, BuildContext, Error, ErrorKind, EventType, Factory, SecretBytes, SecretRef,
    SecretResolver, SessionId,
};
use agents_testkit::proxy::{Fault, during, http_response};
use common::{config, event, faulty, group, numbers, open, strict};

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_out() {
    let strict = strict().await;
    let (proxy, url) = faulty(&strict).await;
    let (audit, session) = (open(config(&url, &group("outage"))).await, SessionId::generate());
    audit.emit(event(&session, 0)).await.unwrap();
    let emit = audit.emit(event(&session, 1));
    during(&proxy, Fault::Reset, Duration::from_secs(4), emit)
        .await
        .unwrap();
    audit.emit(event(&session, 2)).await.unwrap();
    assert!(proxy.faults() > 0);
    assert_eq!(numbers(&audit, &session, 100).await, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_is_a_temporary_error_and_ends_by_itself() {
    let strict = strict().await;
    let (proxy, url) = faulty(&strict).await;
    let config = config(&url, &group("long")).with_timeout_seconds(4);
    let (audit, session) = (open(config).await, SessionId::generate());
    audit.emit(event(&session, 0)).await.unwrap();
    for fault in [Fault::Reset, Fault::Hang] {
        proxy.set(fault.clone());
        let start = Instant::now();
        let error = audit.emit(event(&session, 1)).await.unwrap_err();
        assert!(error.is_temporary(), "{fault:?}: {error:?}");
        assert!(
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout),
            "{error:?}"
        );
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        let batch = audit.emit_batch(vec![event(&session, 1), event(&session, 2)]).await;
        assert!(batch.unwrap_err().is_temporary());
        let availability = audit.check_availability().await.unwrap();
        assert!(!availability.available && !availability.problems[0].remedy.is_empty());
    }
    proxy.set(Fault::None);
    audit.emit(event(&session, 3)).await.unwrap();
    let found = numbers(&audit, &session, 100).await;
    assert_eq!((found.first(), found.last()), (Some(&0), Some(&3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_twice_is_found_once_also_across_pages() {
    let strict = strict().await;
    let (proxy, url) = faulty(&strict).await;
    let (audit, session) = (open(config(&url, &group("twice"))).await, SessionId::generate());
    audit.emit(event(&session, 0)).await.unwrap();
    let events: Vec<_> = (1..30).map(|n| event(&session, n)).collect();
    // The service has it, and nobody was told.
    proxy.set(Fault::LoseAnswerTo(b"PutLogEvents".to_vec()));
    for outcome in audit.emit_batch(events.clone()).await.unwrap() {
        outcome.unwrap();
    }
    assert_eq!(proxy.faults(), 1);
    // And delivered again later, as by a spool.
    audit.emit(event(&session, 30)).await.unwrap();
    audit.emit_batch(events).await.unwrap();
    audit.emit(event(&session, 31)).await.unwrap();
    let expected: Vec<_> = (0..32).collect();
    for limit in [1, 7, 31, 32, 100] {
        assert_eq!(numbers(&audit, &session, limit).await, expected, "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_at_random_lose_and_double_nothing() {
    let strict = strict().await;
    let (proxy, url) = faulty(&strict).await;
    let (audit, session) = (open(config(&url, &group("resets"))).await, SessionId::generate());
    let mut count = 0;
    let writing = async {
        while count < 200 || proxy.faults() < 8 {
            let events = (0..10).map(|n| event(&session, count + n)).collect();
            for outcome in audit.emit_batch(events).await.unwrap() {
                outcome.unwrap();
            }
            count += 10;
        }
    };
    let breaking = async {
        for pause in (0..).map(|n: u64| 100 + n * 37 % 200) {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            proxy.set(Fault::Reset);
            tokio::time::sleep(Duration::from_millis(5)).await;
            proxy.set(Fault::None);
        }
    };
    tokio::select! {
        () = writing => {}
        () = breaking => {}
    }
    proxy.set(Fault::None);
    assert_eq!(
        numbers(&audit, &session, 97).await,
        (0..count as u64).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_and_faults_of_the_service_are_waited_out() {
    let strict = strict().await;
    let (proxy, url) = faulty(&strict).await;
    let (audit, session) = (open(config(&url, &group("status"))).await, SessionId::generate());
    strict.throttle(3);
    audit.emit(event(&session, 0)).await.unwrap();
    for status in [500, 502, 503, 504] {
        proxy.set(Fault::Respond(http_response(status, &[], "<html>"), 2));
        audit.emit(event(&session, status.into())).await.unwrap();
    }
    strict.throttle(3);
    assert_eq!(numbers(&audit, &session, 100).await, [0, 500, 502, 503, 504]);
    strict.throttle(1000);
    let config = config(&url, &group("throttled")).with_timeout_seconds(2);
    let error = open(config).await.emit(event(&session, 1)).await.unwrap_err();
    assert_eq!((error.kind(), error.is_temporary()), (ErrorKind::RateLimited, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_keep_the_limits_and_each_event_has_its_result() {
    let strict = strict().await;
    let audit = open(config(&strict.url(), &group("limits")).with_timeout_seconds(60)).await;
    let sessions = [SessionId::generate(), SessionId::generate()];
    // More than a request may have by number, for two streams by turns.
    let events = (0..22_000).map(|n| event(&sessions[n % 2], n)).collect();
    for outcome in audit.emit_batch(events).await.unwrap() {
        outcome.unwrap();
    }
    // And by size, with one that is larger than any may be.
    let mut large: Vec<_> = (22_000..22_006)
        .map(|n| event(&sessions[0], n).with_fact("x", "y".repeat(700_000)))
        .collect();
    large[3] = event(&sessions[0], 22_003).with_fact("x", "y".repeat(1 << 20));
    let outcomes = audit.emit_batch(large).await.unwrap();
    let refused: Vec<_> = outcomes
        .iter()
        .enumerate()
        .filter(|(_, outcome)| outcome.is_err())
        .collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(
        (refused[0].0, refused[0].1.as_ref().err().map(Error::kind)),
        (3, Some(ErrorKind::DataInvalid))
    );
    let odd: Vec<_> = (0..22_000).filter(|n| n % 2 == 1).collect();
    assert_eq!(numbers(&audit, &sessions[1], 20_000).await, odd);
    let even = (0..22_006).filter(|n| (*n < 22_000 && n % 2 == 0) || (*n >= 22_000 && *n != 22_003));
    assert_eq!(numbers(&audit, &sessions[0], 20_000).await, even.collect::<Vec<_>>());
    // Of all sessions together, in the order of the batch.
    let page = audit.query(AuditQuery::new().with_limit(10)).await.unwrap();
    let first: Vec<_> = page
        .events
        .iter()
        .map(|event| event.payload["n"].as_u64().unwrap())
        .collect();
    assert_eq!(first, (0..10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_long_ago_is_kept_and_found_by_its_time() {
    let strict = strict().await;
    let (audit, session) = (open(config(&strict.url(), &group("old"))).await, SessionId::generate());
    // The spool has had it for weeks, and the service takes nothing that is older than 14 days.
    let mut old = event(&session, 0);
    old.timestamp = "2020-01-02T03:04:05.678901234Z".parse().unwrap();
    audit.emit(old.clone()).await.unwrap();
    audit.emit(event(&session, 1)).await.unwrap();
    audit.emit(AuditEvent::now(EventType::SystemError)).await.unwrap();
    let query = AuditQuery::new()
        .with_start_time(Some(old.timestamp))
        .with_end_time(Some("2020-01-03T00:00:00Z".parse().unwrap()));
    assert_eq!(audit.query(query).await.unwrap().events, [old]);
    let nobody = AuditQuery::new().with_event_types(vec![EventType::SystemError]);
    assert_eq!(
        audit.query(nobody).await.unwrap().events.len(),
        1,
        "an event without a session"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_created_only_when_that_is_wanted() {
    let strict = strict().await;
    let name = group("create");
    let closed = open(config(&strict.url(), &name).with_create_log_group(false)).await;
    let session = SessionId::generate();
    let error = closed.emit(event(&session, 0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("create_log_group: true"), "{error}");
    let availability = closed.check_availability().await.unwrap();
    assert!(!availability.available, "{availability:?}");
    assert_eq!(closed.query(AuditQuery::new()).await.unwrap().events, []);

    let opening = open(config(&strict.url(), &name).with_retention_days(Some(30))).await;
    assert!(opening.check_availability().await.unwrap().available);
    // The check left nothing behind but the group.
    assert!(closed.check_availability().await.unwrap().available);
    assert_eq!(closed.query(AuditQuery::new()).await.unwrap().events, []);
    closed.emit(event(&session, 1)).await.unwrap();
    assert_eq!(numbers(&opening, &session, 10).await, [1]);
}

#[derive(Debug)]
struct Secrets;

#[async_trait::async_trait]
impl SecretResolver for Secrets {
    async fn resolve(&self, reference: &SecretRef) -> agents_core::Result<SecretBytes> {
        match reference.key() {
            "ID" => Ok(SecretBytes::new("AKIDEXAMPLE\n")),
            "KEY" => Ok(SecretBytes::new("secret-hunter2\n")),
            "TOKEN" => Ok(SecretBytes::new("token-hunter2\n")),
            "ODD" => Ok(SecretBytes::new("hunter2 hunter2")),
            _ => Err(Error::not_found(format!("{reference} is not set"))),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_are_told_as_such_and_never_printed() {
    let strict = strict().await;
    strict.set_session_token(Some("token-hunter2"));
    let context = BuildContext::new("/state", "/data", Arc::new(Secrets));
    let with = |key: &str| -> CloudWatchAuditConfig {
        serde_json::from_value(serde_json::json!({
            "log_group": group("keys"), "region": common::REGION, "endpoint": strict.url(),
            "access_key_id": "env:ID", "secret_access_key": key, "session_token": "env:TOKEN",
        }))
        .unwrap()
    };
    let audit = CloudWatchAuditFactory::build(with("env:KEY"), &context).await.unwrap();
    let session = SessionId::generate();
    audit.emit(event(&session, 0)).await.unwrap();
    strict.set_session_token(Some("another"));
    let error = audit.emit(event(&session, 1)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_temporary()),
        (ErrorKind::Unauthenticated, false),
        "{error:?}"
    );
    assert!(error.to_string().contains("expired"), "{error}");
    let availability = audit.check_availability().await.unwrap();
    assert!(!availability.available);
    strict.set_session_token(Some("token-hunter2"));
    audit.emit(event(&session, 2)).await.unwrap();
    assert_eq!(numbers(&*audit, &session, 10).await, [0, 2]);
    let printed = format!(
        "{error:?} {} {audit:?} {} {:?} {availability:?}",
        error.report(),
        audit.location(),
        audit.info()
    );
    assert!(!printed.contains("hunter2"), "{printed}");
    let error = CloudWatchAuditFactory::build(with("env:ODD"), &context)
        .await
        .unwrap_err();
    assert!(error.message().contains("secret_access_key") && !format!("{error:?}").contains("hunter2"));
    assert!(CloudWatchAuditFactory::build(with("env:NONE"), &context).await.is_err());

    // A key that signs wrongly.
    let config = config(&strict.url(), &group("wrong"));
    let audit = CloudWatchAudit::new(
        config,
        Credentials::keys("AKIDEXAMPLE", "wrong", Some("token-hunter2".to_owned())),
    );
    let error = audit.await.unwrap().emit(event(&session, 3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
}
