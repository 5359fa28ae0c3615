//! The fake of Datadog, with faults in between: what was acknowledged is there, and is found once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use agents_audit_datadog::{DatadogAudit, DatadogAuditConfig, DatadogAuditFactory, Keys};
use agents_core::{
    AuditEvent, AuditLogger, AuditQuery, BuildContext, Error, ErrorKind, EventType, Factory, RetryStatus, SecretBytes,
    SecretRef, SecretResolver, SessionId,
};
use agents_testkit::{
    fakes::FakeDatadog,
    proxy::{Fault, FaultProxy, during, http_response},
};

struct World {
    fake: FakeDatadog,
    proxy: FaultProxy,
    audit: DatadogAudit,
    session: SessionId,
}

fn config(intake: &str, api: &str) -> DatadogAuditConfig {
    DatadogAuditConfig::new("datadoghq.com", "env:DD_API_KEY".parse().unwrap())
        .with_app_key(Some("env:DD_APP_KEY".parse().unwrap()))
        .with_urls(Some(intake.to_owned()), Some(api.to_owned()))
}

/// A fake behind a proxy.
async fn world(timeout_seconds: u64) -> World {
    let fake = FakeDatadog::start("api", "app").await.unwrap();
    let server = fake.url().strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = FaultProxy::start(server).await.unwrap();
    let through = format!("http://{}", proxy.address());
    let config = config(&through, &through).with_timeout_seconds(timeout_seconds);
    World {
        audit: DatadogAudit::new(config, Keys::new("api", Some("app")).unwrap()).unwrap(),
        fake,
        proxy,
        session: SessionId::generate(),
    }
}

impl World {
    fn event(&self, n: usize) -> AuditEvent {
        AuditEvent::now(EventType::SystemWarning)
            .with_session(self.session.clone())
            .with_fact("n", n)
    }

    async fn pages(&self, limit: usize) -> Vec<u64> {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let query = AuditQuery::new()
                .with_session(Some(self.session.clone()))
                .with_limit(limit);
            let page = self.audit.query(query.with_cursor(cursor)).await.unwrap();
            found.extend(page.events.iter().map(|event| event.payload["n"].as_u64().unwrap()));
            match page.next {
                Some(next) => cursor = Some(next),
                None => return found,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_out() {
    let world = world(30).await;
    world.audit.emit(world.event(0)).await.unwrap();
    let emit = world.audit.emit(world.event(1));
    during(&world.proxy, Fault::Reset, Duration::from_secs(4), emit)
        .await
        .unwrap();
    world.audit.emit(world.event(2)).await.unwrap();
    assert!(world.proxy.faults() > 0);
    assert_eq!(world.pages(100).await, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_is_a_temporary_error_and_ends_by_itself() {
    let world = world(4).await;
    world.audit.emit(world.event(0)).await.unwrap();
    for fault in [Fault::Reset, Fault::Hang] {
        world.proxy.set(fault);
        let start = Instant::now();
        let error = world.audit.emit(world.event(1)).await.unwrap_err();
        assert!(error.is_temporary(), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        let batch = world.audit.emit_batch(vec![world.event(1), world.event(2)]).await;
        assert!(batch.unwrap_err().is_temporary());
        let availability = world.audit.check_availability().await.unwrap();
        assert!(!availability.available && !availability.problems[0].remedy.is_empty());
    }
    world.proxy.set(Fault::None);
    world.audit.emit(world.event(3)).await.unwrap();
    let found = world.pages(100).await;
    assert_eq!((found.first(), found.last()), (Some(&0), Some(&3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_twice_is_found_once_also_across_pages() {
    let world = world(30).await;
    world.audit.emit(world.event(0)).await.unwrap();
    let events: Vec<_> = (1..30).map(|n| world.event(n)).collect();
    // The intake has it, and nobody was told.
    world.proxy.set(Fault::LoseAnswerTo(b"POST /api/v2/logs".to_vec()));
    for outcome in world.audit.emit_batch(events.clone()).await.unwrap() {
        outcome.unwrap();
    }
    assert_eq!((world.proxy.faults(), world.fake.count()), (1, 1 + 2 * 29));
    // And delivered again later, as by a spool.
    world.audit.emit(world.event(30)).await.unwrap();
    world.audit.emit_batch(events).await.unwrap();
    world.audit.emit(world.event(31)).await.unwrap();
    let expected: Vec<_> = (0..32).collect();
    for limit in [1, 7, 31, 32, 100] {
        assert_eq!(world.pages(limit).await, expected, "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_at_random_lose_and_double_nothing() {
    let world = world(30).await;
    let mut count = 0;
    let writing = async {
        while count < 200 || world.proxy.faults() < 8 {
            let events = (0..10).map(|n| world.event(count + n)).collect();
            for outcome in world.audit.emit_batch(events).await.unwrap() {
                outcome.unwrap();
            }
            count += 10;
        }
    };
    let breaking = async {
        for pause in (0..).map(|n: u64| 40 + n * 37 % 100) {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            world.proxy.set(Fault::Reset);
            tokio::time::sleep(Duration::from_millis(5)).await;
            world.proxy.set(Fault::None);
        }
    };
    tokio::select! {
        () = writing => {}
        () = breaking => {}
    }
    world.proxy.set(Fault::None);
    assert_eq!(world.pages(97).await, (0..count as u64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_tried_again_or_told() {
    let world = world(20).await;
    for status in [408, 500, 502, 503] {
        world.proxy.set(Fault::Respond(http_response(status, &[], ""), 2));
        world.audit.emit(world.event(status.into())).await.unwrap();
    }
    let start = Instant::now();
    let limit = [("x-ratelimit-reset", "2"), ("x-ratelimit-remaining", "0")];
    world.proxy.set(Fault::Respond(http_response(429, &limit, "{}"), 1));
    world.audit.emit(world.event(1)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    // Longer than there is time for.
    world.proxy.set(Fault::Respond(
        http_response(429, &[("x-ratelimit-reset", "60")], "{}"),
        1,
    ));
    let error = world.audit.emit(world.event(2)).await.unwrap_err();
    let retry_after = Some(Duration::from_secs(60));
    assert_eq!(error.retry_status(), RetryStatus::Temporary { retry_after });
    // Too large, or one that is refused: sent again in halves.
    for status in [413, 400] {
        world.proxy.set(Fault::Respond(http_response(status, &[], ""), 1));
        let first = usize::from(status);
        let events = (first..first + 3).map(|n| world.event(n)).collect();
        for outcome in world.audit.emit_batch(events).await.unwrap() {
            outcome.unwrap();
        }
    }
    assert_eq!(
        world.pages(100).await,
        [408, 500, 502, 503, 1, 413, 414, 415, 400, 401, 402]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_waits_until_it_is_allowed() {
    let world = world(20).await;
    world
        .audit
        .emit_batch((0..10).map(|n| world.event(n)).collect())
        .await
        .unwrap();
    world.fake.limit_searches(2, Duration::from_secs(2));
    // Five pages are nine searches: the events of a batch all happened before its first was written.
    let start = Instant::now();
    assert_eq!(world.pages(2).await, (0..10).collect::<Vec<_>>());
    assert!(start.elapsed() >= Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_split_and_each_event_has_its_result() {
    let world = world(60).await;
    // More than a request may have, by number, and by size.
    let events = (0..2500).map(|n| world.event(n)).collect();
    for outcome in world.audit.emit_batch(events).await.unwrap() {
        outcome.unwrap();
    }
    let mut large: Vec<_> = (2500..2520)
        .map(|n| world.event(n).with_fact("x", "y".repeat(700_000)))
        .collect();
    large[3] = world.event(2503).with_fact("x", "y".repeat(1_000_000));
    let outcomes = world.audit.emit_batch(large).await.unwrap();
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
    let expected: Vec<_> = (0..2520).filter(|n| *n != 2503).collect();
    assert_eq!(world.pages(1100).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_long_ago_is_kept_and_found_by_its_time() {
    let world = world(20).await;
    // The spool has had it for days, and Datadog takes nothing that is older than 18 hours.
    let mut old = world.event(0);
    old.timestamp = "2020-01-02T03:04:05.678901234Z".parse().unwrap();
    world.audit.emit(old.clone()).await.unwrap();
    world.audit.emit(world.event(1)).await.unwrap();
    let query = AuditQuery::new()
        .with_session(Some(world.session.clone()))
        .with_start_time(Some(old.timestamp))
        .with_end_time(Some("2020-01-03T00:00:00Z".parse().unwrap()));
    assert_eq!(world.audit.query(query).await.unwrap().events, [old]);
}

#[derive(Debug)]
struct OneSecret;

#[async_trait::async_trait]
impl SecretResolver for OneSecret {
    async fn resolve(&self, reference: &SecretRef) -> agents_core::Result<SecretBytes> {
        match reference.key() {
            "DD_API_KEY" => Ok(SecretBytes::new("hunter2-api\n")),
            _ => Ok(SecretBytes::new("hunter2-app\n")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_revoked_are_told_as_such_and_never_printed() {
    let fake = FakeDatadog::start("hunter2-api", "hunter2-app").await.unwrap();
    let context = BuildContext::new("/state", "/data", Arc::new(OneSecret));
    let audit = DatadogAuditFactory::build(config(&fake.url(), &fake.url()), &context)
        .await
        .unwrap();
    let event = || AuditEvent::now(EventType::SystemWarning);
    audit.emit(event()).await.unwrap();
    assert!(audit.check_availability().await.unwrap().available);

    fake.set_keys("hunter2-api", "other");
    let error = audit.query(AuditQuery::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    let availability = audit.check_availability().await.unwrap();
    assert!(availability.problems[0].remedy.contains("app_key"), "{availability:?}");
    fake.set_keys("other", "other");
    let refused = audit.emit(event()).await.unwrap_err();
    assert_eq!(
        (refused.kind(), refused.is_temporary()),
        (ErrorKind::Unauthenticated, false)
    );
    let printed = format!(
        "{error:?} {} {refused:?} {} {audit:?} {} {:?} {availability:?}",
        error.report(),
        refused.report(),
        audit.location(),
        audit.info()
    );
    assert!(!printed.contains("hunter2"), "{printed}");

    fake.set_keys("hunter2-api", "hunter2-app");
    audit.emit(event()).await.unwrap();
    assert_eq!(audit.query(AuditQuery::new()).await.unwrap().events.len(), 2);
}
