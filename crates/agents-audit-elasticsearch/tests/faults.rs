//! A real server, with faults in between: what was acknowledged is there, once, and in order.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use agents_audit_elasticsearch::{
    Credentials, ElasticsearchAudit, ElasticsearchAuditConfig, ElasticsearchAuditFactory, IndexLayout,
};
use agents_core::{
    AuditLogger, AuditQuery, BuildContext, Error, ErrorKind, Factory, RetryStatus, SecretBytes, SecretRef,
    SecretResolver, SessionId,
};
use agents_testkit::proxy::{Fault, during, http_response};
use common::{endpoint, event, index, numbers, open, through_proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

async fn post(path: &str) {
    let host = endpoint()
        .trim_end_matches('/')
        .strip_prefix("http://")
        .unwrap()
        .to_owned();
    let mut server = tokio::net::TcpStream::connect(&host).await.unwrap();
    let request = format!("POST /{path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    server.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    server.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_out() {
    let (proxy, url) = through_proxy().await;
    let config = ElasticsearchAuditConfig::new(url).with_index(index("outage"));
    let (audit, session) = (open(config), SessionId::generate());
    audit.emit(event(&session, 0)).await.unwrap();
    let emit = audit.emit(event(&session, 1));
    during(&proxy, Fault::Reset, Duration::from_secs(4), emit)
        .await
        .unwrap();
    audit.emit(event(&session, 2)).await.unwrap();
    assert!(proxy.faults() > 0);
    assert_eq!(numbers(&*audit, &session).await, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_is_a_temporary_error_and_ends_by_itself() {
    let (proxy, url) = through_proxy().await;
    let config = ElasticsearchAuditConfig::new(url)
        .with_index(index("long"))
        .with_timeout_seconds(4);
    let (audit, session) = (open(config), SessionId::generate());
    audit.emit(event(&session, 0)).await.unwrap();
    for fault in [Fault::Reset, Fault::Hang] {
        proxy.set(fault);
        let start = Instant::now();
        let error = audit.emit(event(&session, 1)).await.unwrap_err();
        assert!(error.is_temporary(), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        let batch = audit.emit_batch(vec![event(&session, 1), event(&session, 2)]).await;
        assert!(batch.unwrap_err().is_temporary());
        let availability = audit.check_availability().await.unwrap();
        assert!(!availability.available && !availability.problems[0].remedy.is_empty());
    }
    proxy.set(Fault::None);
    audit.emit(event(&session, 3)).await.unwrap();
    let found = numbers(&*audit, &session).await;
    assert_eq!((found.first(), found.last()), (Some(&0), Some(&3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_makes_no_second_event() {
    for layout in [IndexLayout::DataStream, IndexLayout::Daily] {
        let (proxy, url) = through_proxy().await;
        let config = ElasticsearchAuditConfig::new(url)
            .with_index(index("lost"))
            .with_layout(layout);
        let (audit, session) = (open(config), SessionId::generate());
        audit.emit(event(&session, 0)).await.unwrap();
        proxy.set(Fault::LoseAnswerTo(b"/_bulk".to_vec()));
        let events = (1..50).map(|n| event(&session, n)).collect();
        for outcome in audit.emit_batch(events).await.unwrap() {
            outcome.unwrap();
        }
        assert_eq!(proxy.faults(), 1);
        assert_eq!(numbers(&*audit, &session).await, (0..50).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_at_random_lose_and_double_nothing() {
    let (proxy, url) = through_proxy().await;
    let config = ElasticsearchAuditConfig::new(url).with_index(index("resets"));
    let (audit, session) = (open(config), SessionId::generate());
    audit.emit(event(&session, 0)).await.unwrap();
    let mut count = 1;
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
    assert_eq!(numbers(&*audit, &session).await, (0..count as u64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_tried_again_or_told() {
    let (proxy, url) = through_proxy().await;
    let config = ElasticsearchAuditConfig::new(url)
        .with_index(index("status"))
        .with_timeout_seconds(20);
    let (audit, session) = (open(config), SessionId::generate());
    audit.emit(event(&session, 0)).await.unwrap();

    for status in [500, 502, 503, 504] {
        proxy.set(Fault::Respond(http_response(status, &[], "<html>busy</html>"), 2));
        audit.emit(event(&session, status.into())).await.unwrap();
    }
    // The whole request is throttled, and the server says for how long.
    let start = Instant::now();
    proxy.set(Fault::Respond(http_response(429, &[("retry-after", "2")], "{}"), 1));
    audit.emit(event(&session, 1)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    // Longer than there is time for.
    proxy.set(Fault::Respond(http_response(429, &[("retry-after", "60")], "{}"), 1));
    let error = audit.emit(event(&session, 2)).await.unwrap_err();
    let retry_after = Some(Duration::from_secs(60));
    assert_eq!(error.retry_status(), RetryStatus::Temporary { retry_after });
    // Too large: sent again in halves.
    proxy.set(Fault::Respond(http_response(413, &[], ""), 1));
    for outcome in audit
        .emit_batch((3..6).map(|n| event(&session, n)).collect())
        .await
        .unwrap()
    {
        outcome.unwrap();
    }
    proxy.set(Fault::Respond(http_response(413, &[], ""), 1));
    assert_eq!(
        audit.emit(event(&session, 2)).await.unwrap_err().kind(),
        ErrorKind::ResourceExhausted
    );
    // Never sent elsewhere.
    proxy.set(Fault::Respond(
        http_response(307, &[("location", "http://127.0.0.1:1/")], ""),
        1,
    ));
    assert_eq!(
        audit.emit(event(&session, 2)).await.unwrap_err().kind(),
        ErrorKind::Unexpected
    );

    let expired = r#"{"error":{"type":"security_exception","reason":"token expired"},"status":401}"#;
    proxy.set(Fault::Respond(http_response(401, &[], expired), 1));
    let error = audit.emit(event(&session, 2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert!(error.to_string().contains("token expired"), "{error}");
    assert_eq!(numbers(&*audit, &session).await, [0, 500, 502, 503, 504, 1, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_has_its_own_result() {
    let (proxy, url) = through_proxy().await;
    let config = ElasticsearchAuditConfig::new(url).with_index(index("items"));
    let (audit, session) = (open(config), SessionId::generate());
    audit.emit(event(&session, 0)).await.unwrap();
    // One is refused, two are throttled within an answer of 200.
    let answer = r#"{"took":1,"errors":true,"items":[
        {"create":{"status":400,"error":{"type":"mapper_parsing_exception","reason":"no"}}},
        {"create":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"full"}}},
        {"create":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"full"}}}]}"#;
    proxy.set(Fault::Respond(http_response(200, &[], answer), 1));
    let outcomes = audit
        .emit_batch((1..4).map(|n| event(&session, n)).collect())
        .await
        .unwrap();
    let kinds: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().map(Error::kind))
        .collect();
    assert_eq!(kinds, [Some(ErrorKind::DataInvalid), None, None]);

    let mut events: Vec<_> = (4..7).map(|n| event(&session, n)).collect();
    events[1] = event(&session, 5).with_fact("huge", "x".repeat(1 << 20));
    let outcomes = audit.emit_batch(events).await.unwrap();
    let kinds: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().map(Error::kind))
        .collect();
    assert_eq!(kinds, [None, Some(ErrorKind::DataInvalid), None]);
    assert_eq!(numbers(&*audit, &session).await, [0, 2, 3, 4, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_delivered_again_after_a_rollover_is_found_once() {
    let name = index("rollover");
    let config = ElasticsearchAuditConfig::new(endpoint()).with_index(name.clone());
    let (audit, session) = (open(config), SessionId::generate());
    let events: Vec<_> = (0..5).map(|n| event(&session, n)).collect();
    audit.emit_batch(events.clone()).await.unwrap();
    post(&format!("{name}/_rollover")).await;
    for event in events.iter().rev() {
        audit.emit(event.clone()).await.unwrap();
    }
    audit.emit(event(&session, 5)).await.unwrap();
    assert_eq!(numbers(&*audit, &session).await, [0, 1, 2, 3, 4, 5]);
    let query = AuditQuery::new().with_session(Some(session.clone())).with_limit(2);
    let mut cursor = None;
    let mut pages = Vec::new();
    for _ in 0..3 {
        let page = audit.query(query.clone().with_cursor(cursor)).await.unwrap();
        pages.push(page.events.len());
        cursor = page.next;
    }
    assert_eq!((pages, cursor), (vec![2, 2, 2], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_before_the_first_event_and_all_of_it_is_told_after() {
    for layout in [IndexLayout::DataStream, IndexLayout::Daily] {
        let config = ElasticsearchAuditConfig::new(endpoint())
            .with_index(index("empty"))
            .with_layout(layout);
        let audit = open(config);
        assert_eq!(audit.query(AuditQuery::new()).await.unwrap().events, []);
        let availability = audit.check_availability().await.unwrap();
        assert!(availability.available, "{availability:?}");
        assert!(
            availability.facts.iter().any(|fact| fact.starts_with("OpenSearch")),
            "{availability:?}"
        );
        // The check left nothing behind.
        assert_eq!(audit.query(AuditQuery::new()).await.unwrap().events, []);
    }
}

#[derive(Debug)]
struct OneSecret;

#[async_trait::async_trait]
impl SecretResolver for OneSecret {
    async fn resolve(&self, reference: &SecretRef) -> agents_core::Result<SecretBytes> {
        match reference.key() {
            "ODD" => Ok(SecretBytes::new("hunter2\nhunter2")),
            _ => Ok(SecretBytes::new("hunter2\n")),
        }
    }
}

/// Answers one request with 401, and gives its head.
async fn refuse_one() -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let head = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 1 << 16];
        let read = client.read(&mut bytes).await.unwrap();
        client.write_all(&http_response(401, &[], "{}")).await.unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    });
    (endpoint, head)
}

#[tokio::test]
async fn credentials_are_sent_and_never_printed() {
    let context = BuildContext::new("/state", "/data", Arc::new(OneSecret));
    for (mut config, header) in [
        (
            serde_json::json!({"username": "u", "password": "env:P"}),
            "authorization: Basic dTpodW50ZXIy",
        ),
        (serde_json::json!({"api_key": "env:K"}), "authorization: ApiKey hunter2"),
    ] {
        let (endpoint, head) = refuse_one().await;
        config["endpoint"] = endpoint.into();
        let config: ElasticsearchAuditConfig = serde_json::from_value(config).unwrap();
        let audit = ElasticsearchAuditFactory::build(config, &context).await.unwrap();
        let error = audit.emit(event(&SessionId::generate(), 0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(head.await.unwrap().contains(header));
        let printed = format!(
            "{error:?} {} {audit:?} {} {:?}",
            error.report(),
            audit.location(),
            audit.info()
        );
        assert!(
            !printed.contains("hunter2") && !printed.contains("dTpodW50ZXIy"),
            "{printed}"
        );
    }
    let config = serde_json::from_value(serde_json::json!({"api_key": "env:ODD"})).unwrap();
    let error = ElasticsearchAuditFactory::build(config, &context).await.unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"));
    let missing = ElasticsearchAuditConfig::default().with_tls_ca_file(Some("/no/such/ca.pem".into()));
    let error = ElasticsearchAudit::new(missing, Credentials::none()).unwrap_err();
    assert!(error.message().contains("tls_ca_file /no/such/ca.pem"), "{error}");
}
