//! Spools in front of real servers, and of the fakes of those that cannot be had, with faults in between: what was
//! acknowledged is there, once, its chain verifies, and whatever somebody without the key does to it afterwards is found.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use agents_journal::{Chain, ChainKey, CheckpointKind, EventVerifier, Keys, Reading};
use agents_sdk::{
    config::Environment,
    configure_adapters,
    core::{AuditEvent, AuditLogger, AuditQuery, BuildContext, EventType, SessionId},
    layers::spool::{SpoolReport, inspect_all},
};
use agents_testkit::{
    fakes::{FakeDatadog, StrictCloudWatch},
    proxy::{Fault, FaultProxy, http_response},
    tamper,
};
use serde_json::{Value, json};

/// Seals the chain of every spool here.
const CHAIN_KEY: &str = "of a spool, and known to nobody else";

/// What the environment says of a server. Fails the test when it does not.
fn server(variable: &str, service: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set; start a server with `cargo xtask services up {service}` and take what `cargo xtask \
             services env` prints"
        )
    })
}

fn postgres() -> String {
    server("AGENTS_TEST_POSTGRES", "postgres")
}

fn opensearch() -> String {
    server("AGENTS_TEST_OPENSEARCH", "opensearch")
}

/// A proxy before the server of a URL, and the URL that leads through it.
async fn through_proxy(url: &str) -> (FaultProxy, String) {
    let authority = url.split_once("://").unwrap().1.split('/').next().unwrap();
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (format!("{user}@"), host),
        None => (String::new(), authority),
    };
    let server: SocketAddr = host.replace("localhost", "127.0.0.1").parse().unwrap();
    let proxy = FaultProxy::start(server).await.unwrap();
    let through = url.replace(authority, &format!("{user}{}", proxy.address()));
    (proxy, through)
}

/// The audit logger of a configuration, as a program gets it.
async fn open(state: &Path, adapter: &str, mut config: Value, secrets: &[(&str, &str)]) -> Arc<dyn AuditLogger> {
    config["spool"] = json!({"chain_key": "env:CHAIN_KEY"});
    let file = state.join("c.json");
    let logger = json!({"type": adapter, "config": config});
    let document = json!({"adapters": {"storage_backend": {"type": "memory"}, "audit_logger": logger}});
    std::fs::write(&file, document.to_string()).unwrap();
    let home = [("HOME", state.to_str().unwrap()), ("CHAIN_KEY", CHAIN_KEY)];
    let environment: Environment = secrets.iter().copied().chain(home).collect();
    let loaded = configure_adapters()
        .with_environment(environment)
        .with_state_dir(Some(state.to_owned()))
        .with_container_runtime("native")
        .with_file(Some(file))
        .load()
        .unwrap();
    let context = BuildContext::new(state, state, loaded.secrets);
    loaded.config.build(&context).await.unwrap().adapters.audit
}

async fn report(state: &Path) -> SpoolReport {
    inspect_all(&state.join("audit/spool")).await.unwrap().remove(0)
}

/// The report that says that so many wait. It is written down a little later how far delivery is.
async fn waiting(state: &Path, events: u64) -> SpoolReport {
    for _ in 0..100 {
        let found = report(state).await;
        if found.events() == events {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{events} do not wait: {:?}", report(state).await);
}

/// The report that says that the sink does not take events.
async fn failing(state: &Path) -> SpoolReport {
    for _ in 0..400 {
        let found = report(state).await;
        if found.failing().is_some() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing fails: {:?}", report(state).await);
}

fn event(session: &SessionId, n: u64) -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning)
        .with_session(session.clone())
        .with_fact("n", n)
}

/// Each must be acknowledged at once, whatever the sink does.
async fn emit(audit: &dyn AuditLogger, session: &SessionId, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let emitted = tokio::time::timeout(Duration::from_secs(20), audit.emit(event(session, n)));
        emitted.await.unwrap().unwrap();
    }
}

async fn delivered(audit: &dyn AuditLogger) {
    let mut tries = 0;
    while let Err(error) = audit.flush().await {
        tries += 1;
        assert!(tries < 4, "{error:?}");
    }
}

/// Everything of a session is there, once and in order, and the chain verifies.
async fn check(audit: &dyn AuditLogger, session: &SessionId, count: u64) {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let query = AuditQuery::new()
            .with_session(Some(session.clone()))
            .with_cursor(cursor);
        let page = audit.query(query).await.unwrap();
        found.extend(page.events);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let numbers: Vec<_> = found.iter().map(|event| event.payload["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    let key = ChainKey::hmac(CHAIN_KEY.as_bytes()).unwrap();
    let keys = Keys::none().with(&key);
    let mut verifier = EventVerifier::new(keys.clone(), Reading::Unordered, Vec::new());
    found.iter().for_each(|event| verifier.push(event));
    let verified = verifier.finish();
    assert_eq!((verified.fault, verified.events), (None, count));

    let mut writers = BTreeMap::<String, Vec<AuditEvent>>::new();
    for event in found {
        let writer = event.chain.as_ref().unwrap().writer.clone();
        writers.entry(writer).or_default().push(event);
    }
    let mut tried = 0;
    for mut events in writers
        .into_values()
        .filter(|events| events.len() >= tamper::MIN_EVENTS)
    {
        events.sort_by_key(|event| event.chain.as_ref().unwrap().sequence);
        let last = events.last().and_then(|event| event.chain.as_ref()).unwrap();
        // What the writer would have said of its end, to somebody who keeps it elsewhere.
        let known = Chain::resume(key.clone(), last)
            .unwrap()
            .checkpoint(CheckpointKind::Point);
        let missed = tamper::missed(&events, |events| {
            let mut verifier = EventVerifier::new(keys.clone(), Reading::Unordered, vec![known.clone()]);
            events.iter().for_each(|event| verifier.push(event));
            verifier.finish().fault.map(|fault| fault.sequence.unwrap())
        });
        assert_eq!(missed, [""; 0]);
        tried += 1;
    }
    assert!(tried > 0, "no writer has events enough to tamper with");
}

/// A minute and more without the server, with events all the while, and a restart in the middle of it.
async fn long_outage(adapter: &str, config: Value, secrets: &[(&str, &str)], proxy: FaultProxy) {
    let (state, session) = (tempfile::tempdir().unwrap(), SessionId::generate());
    let audit = open(state.path(), adapter, config.clone(), secrets).await;
    emit(&*audit, &session, 0..20).await;
    delivered(&*audit).await;
    proxy.set(Fault::Reset);
    let start = tokio::time::Instant::now();
    let mut count = 20;
    while start.elapsed() < Duration::from_secs(45) {
        emit(&*audit, &session, count..count + 5).await;
        count += 5;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let found = waiting(state.path(), count - 20).await;
    assert!(found.failing().is_some_and(|failing| failing.attempts > 0), "{found:?}");
    let answer = audit.check_availability().await.unwrap();
    assert!(answer.available && !answer.problems.is_empty(), "{answer:?}");
    // The process ends, and the next one finds the sink still away.
    audit.shutdown().await.unwrap();
    assert_eq!(report(state.path()).await.left(), count - 20);
    let audit = open(state.path(), adapter, config, secrets).await;
    while start.elapsed() < Duration::from_secs(65) {
        emit(&*audit, &session, count..count + 5).await;
        count += 5;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    proxy.set(Fault::None);
    delivered(&*audit).await;
    check(&*audit, &session, count).await;
    waiting(state.path(), 0).await;
    audit.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_away_for_more_than_a_minute() {
    let (proxy, url) = through_proxy(&postgres()).await;
    let config = json!({"url": "env:URL", "timeout_seconds": 12});
    long_outage("database", config, &[("URL", &url)], proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opensearch_is_away_for_more_than_a_minute() {
    let (proxy, url) = through_proxy(&opensearch()).await;
    let index = format!("audit-spool-{}", SessionId::generate());
    let config = json!({"endpoint": url, "index": index, "timeout_seconds": 12});
    long_outage("elasticsearch", config, &[], proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opensearch_answers_badly() {
    let (proxy, url) = through_proxy(&opensearch()).await;
    let index = format!("audit-spool-{}", SessionId::generate());
    let config = json!({"endpoint": url, "index": index, "timeout_seconds": 12});
    let (state, session) = (tempfile::tempdir().unwrap(), SessionId::generate());
    let audit = open(state.path(), "elasticsearch", config, &[]).await;
    emit(&*audit, &session, 0..5).await;
    delivered(&*audit).await;
    let mut count = 5;
    for fault in [
        Fault::Respond(http_response(503, &[], "{}"), 4),
        Fault::Respond(http_response(429, &[("retry-after", "1")], "{}"), 4),
        // What is behind a wrong password is not lost.
        Fault::Respond(http_response(401, &[], "{}"), 2),
        Fault::Hang,
        Fault::LoseAnswerTo(b"_bulk".to_vec()),
    ] {
        let hangs = fault == Fault::Hang;
        proxy.set(fault);
        emit(&*audit, &session, count..count + 10).await;
        count += 10;
        if hangs {
            tokio::time::sleep(Duration::from_secs(8)).await;
            waiting(state.path(), 10).await;
            proxy.set(Fault::Reset);
            tokio::time::sleep(Duration::from_millis(500)).await;
            proxy.set(Fault::None);
        }
        delivered(&*audit).await;
    }
    assert!(proxy.faults() > 8);
    check(&*audit, &session, count).await;
    assert_eq!(report(state.path()).await.lost(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn datadog_revokes_keys_and_takes_no_event_that_is_too_large() {
    let fake = FakeDatadog::start("api", "app").await.unwrap();
    let (proxy, url) = through_proxy(&fake.url()).await;
    let config = json!({
        "api_key": "env:API", "app_key": "env:APP", "intake_url": url, "api_url": url, "timeout_seconds": 4,
    });
    let (state, session) = (tempfile::tempdir().unwrap(), SessionId::generate());
    let audit = open(state.path(), "datadog", config, &[("API", "api"), ("APP", "app")]).await;
    emit(&*audit, &session, 0..5).await;
    fake.set_keys("other", "app");
    emit(&*audit, &session, 5..10).await;
    let found = failing(state.path()).await;
    assert!(found.events() > 0 && found.lost() == 0, "{found:?}");
    fake.set_keys("api", "app");
    delivered(&*audit).await;
    proxy.set(Fault::Respond(
        http_response(429, &[("x-ratelimit-reset", "1")], "{}"),
        3,
    ));
    emit(&*audit, &session, 10..15).await;
    delivered(&*audit).await;
    // Datadog would cut it.
    let other = SessionId::generate();
    audit
        .emit(event(&other, 0).with_fact("text", "x".repeat(1_020_000)))
        .await
        .unwrap();
    audit.emit(event(&other, 1)).await.unwrap();
    delivered(&*audit).await;
    let found = waiting(state.path(), 0).await;
    assert_eq!(found.lost(), 1, "{found:?}");
    check(&*audit, &session, 15).await;
    assert_eq!(fake.count(), 16, "nothing was sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn cloudwatch_throttles_and_its_credentials_expire() {
    const KEY: (&str, &str) = ("AKIDEXAMPLE", "secret-hunter2");
    let moto = server("AGENTS_TEST_MOTO", "moto");
    let moto = moto
        .trim_end_matches('/')
        .strip_prefix("http://")
        .unwrap()
        .replace("localhost", "127.0.0.1");
    let strict = StrictCloudWatch::start(moto.parse().unwrap(), "eu-central-1", KEY)
        .await
        .unwrap();
    let (proxy, url) = through_proxy(&strict.url()).await;
    let config = json!({
        "log_group": format!("/audit/spool/{}", SessionId::generate()), "region": "eu-central-1", "endpoint": url,
        "access_key_id": "env:ID", "secret_access_key": "env:SECRET", "timeout_seconds": 10,
    });
    let (state, session) = (tempfile::tempdir().unwrap(), SessionId::generate());
    let audit = open(state.path(), "cloudwatch", config, &[("ID", KEY.0), ("SECRET", KEY.1)]).await;
    emit(&*audit, &session, 0..5).await;
    delivered(&*audit).await;
    strict.throttle(10);
    emit(&*audit, &session, 5..10).await;
    delivered(&*audit).await;
    strict.set_session_token(Some("a token that we do not have"));
    emit(&*audit, &session, 10..15).await;
    failing(state.path()).await;
    let found = waiting(state.path(), 5).await;
    assert_eq!(found.lost(), 0, "{found:?}");
    strict.set_session_token(None);
    delivered(&*audit).await;
    proxy.set(Fault::LoseAnswerTo(b"PutLogEvents".to_vec()));
    emit(&*audit, &session, 15..20).await;
    delivered(&*audit).await;
    check(&*audit, &session, 20).await;
}
