//! What every [`AuditLogger`] must do.

use std::{any::Any, collections::BTreeSet, fmt, sync::Arc};

use agents_core::{AgentId, AuditEvent, AuditLogger, AuditQuery, ChainLink, ErrorKind, EventType, SessionId, Severity};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::{
    Case, CaseResult, Failure, Fixture,
    case::{cases, failed, skipped},
};

type Reopen = Arc<dyn Fn() -> BoxFuture<'static, agents_core::Result<Arc<dyn AuditLogger>>> + Send + Sync>;

/// A sink to judge.
pub struct AuditFixture {
    /// The sink. Cases use sessions of their own, so what it stores may be shared; the sink itself may be shut down.
    pub audit: Arc<dyn AuditLogger>,
    reopen: Option<Reopen>,
    kept: Vec<Box<dyn Any + Send + Sync>>,
}

impl AuditFixture {
    /// Judges a sink.
    pub fn new(audit: Arc<dyn AuditLogger>) -> Self {
        Self {
            audit,
            reopen: None,
            kept: Vec::new(),
        }
    }

    /// Gives a way to open the same trail again, as after a restart.
    #[must_use]
    pub fn with_reopen(
        mut self,
        reopen: impl Fn() -> BoxFuture<'static, agents_core::Result<Arc<dyn AuditLogger>>> + Send + Sync + 'static,
    ) -> Self {
        self.reopen = Some(Arc::new(reopen));
        self
    }

    /// Keeps something, such as a temporary folder, until the case has ended.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self.kept.push(Box::new(kept));
        self
    }

    fn needs_query(&self) -> CaseResult {
        if self.audit.capabilities().query {
            return Ok(());
        }
        skipped("this sink declares that it cannot be queried")
    }

    /// The events of a session, without the links that a sink with a chain of its own has added.
    async fn of_session(&self, session: &SessionId) -> Result<Vec<AuditEvent>, Failure> {
        let events = all_pages(&*self.audit, AuditQuery::new().with_session(Some(session.clone()))).await?;
        Ok(without_links(events))
    }
}

impl fmt::Debug for AuditFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditFixture({:?}, {} kept)", self.audit, self.kept.len())
    }
}

#[async_trait]
impl Fixture for AuditFixture {}

/// All cases.
pub fn cases() -> Vec<Case<AuditFixture>> {
    cases![
        identity_and_availability,
        emit_then_query,
        query_as_declared,
        a_batch_keeps_its_order_and_is_reported_on,
        order_across_calls,
        filters,
        time_range,
        paging_with_a_stable_cursor,
        a_foreign_cursor_is_refused,
        repeated_delivery_is_harmless,
        repeated_delivery_is_harmless_across_pages,
        what_is_written_late_comes_late,
        text_and_sizes_survive,
        the_link_of_a_chain_survives,
        concurrent_emitters_lose_nothing,
        a_dropped_emit_does_no_damage,
        flush_then_shutdown,
        what_was_acknowledged_is_there_after_a_restart,
    ]
}

type Fx = Arc<AuditFixture>;

async fn all_pages(audit: &dyn AuditLogger, query: AuditQuery) -> Result<Vec<AuditEvent>, Failure> {
    let mut events = Vec::new();
    let mut cursor = None;
    // A cursor that does not move on must not make the case endless.
    for _ in 0..10_000 {
        let page = audit.query(query.clone().with_cursor(cursor)).await?;
        events.extend(page.events);
        if page.next.is_none() {
            return Ok(events);
        }
        cursor = page.next;
    }
    failed("the pages never end")
}

fn without_links(events: Vec<AuditEvent>) -> Vec<AuditEvent> {
    events.into_iter().map(|event| event.with_chain(None)).collect()
}

fn event(session: &SessionId, n: usize) -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning)
        .with_session(session.clone())
        .with_fact("n", n)
}

fn numbers(events: &[AuditEvent]) -> Vec<u64> {
    events
        .iter()
        .filter_map(|event| event.payload.get("n")?.as_u64())
        .collect()
}

async fn identity_and_availability(fx: Fx) -> CaseResult {
    let info = fx.audit.info();
    assert!(info.adapter_type.starts_with(|c: char| c.is_ascii_lowercase()));
    assert_eq!(fx.audit.info(), info, "info must not change");
    assert!(!fx.audit.location().is_empty());
    let availability = fx.audit.check_availability().await?;
    assert!(availability.available, "{availability:?}");
    Ok(())
}

async fn emit_then_query(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    let session = SessionId::generate();
    let event = AuditEvent::now(EventType::ArtifactStored)
        .with_session(session.clone())
        .with_agent(AgentId::new("agent-1")?)
        .with_user(Some("user@example.com".to_owned()))
        .with_severity(Severity::Critical)
        .with_fact("size", 12)
        .with_fact("nested", json!({"a": [1, 2.5, null, true, "x"]}))
        .with_tag("one")
        .with_tag("two");
    fx.audit.emit(event.clone()).await?;
    assert_eq!(
        fx.of_session(&session).await?,
        [event],
        "what comes back must be what was given"
    );
    Ok(())
}

async fn query_as_declared(fx: Fx) -> CaseResult {
    let result = fx.audit.query(AuditQuery::new().with_limit(1)).await;
    if fx.audit.capabilities().query {
        assert!(result?.events.len() <= 1);
    } else {
        assert_eq!(result.err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
    }
    Ok(())
}

async fn a_batch_keeps_its_order_and_is_reported_on(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    assert!(fx.audit.emit_batch(Vec::new()).await?.is_empty());
    // The same time for all, so that no order by time can pass for the order of the batch.
    let time = Timestamp::now();
    let events: Vec<_> = (0..150)
        .map(|n| {
            let mut event = event(&session, n);
            event.timestamp = time;
            event
        })
        .collect();
    let report = fx.audit.emit_batch(events.clone()).await?;
    assert_eq!(report.len(), events.len());
    for result in report {
        result?;
    }
    fx.needs_query()?;
    let found = fx.of_session(&session).await?;
    assert_eq!(numbers(&found), numbers(&events));
    assert!(found == events, "events changed");
    Ok(())
}

async fn order_across_calls(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    let session = SessionId::generate();
    for n in 0..20 {
        fx.audit.emit(event(&session, n)).await?;
    }
    for result in fx
        .audit
        .emit_batch((20..30).map(|n| event(&session, n)).collect())
        .await?
    {
        result?;
    }
    assert_eq!(numbers(&fx.of_session(&session).await?), (0..30).collect::<Vec<_>>());
    Ok(())
}

async fn filters(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    let session = SessionId::generate();
    let (agent, other) = (
        AgentId::new(format!("a{session}"))?,
        AgentId::new(format!("b{session}"))?,
    );
    let user = Some(format!("u{session}"));
    let ours = |n| event(&session, n).with_agent(agent.clone()).with_user(user.clone());
    let mut events = vec![
        ours(0),
        ours(1).with_severity(Severity::Debug),
        ours(2).with_severity(Severity::Error),
        ours(3).with_agent(other.clone()),
        ours(4).with_user(Some("somebody else".to_owned())),
        ours(5).with_user(None),
        event(&SessionId::generate(), 6).with_agent(agent.clone()),
    ];
    events[1].event_type = EventType::AgentStarted;
    events[2].event_type = EventType::AgentFailed;
    for event in events {
        fx.audit.emit(event).await?;
    }
    let query = || AuditQuery::new().with_session(Some(session.clone()));
    let table: Vec<(AuditQuery, Vec<u64>)> = vec![
        (query(), vec![0, 1, 2, 3, 4, 5]),
        (query().with_agent(Some(agent.clone())), vec![0, 1, 2, 4, 5]),
        (
            AuditQuery::new().with_agent(Some(agent.clone())),
            vec![0, 1, 2, 4, 5, 6],
        ),
        (query().with_user(user.clone()), vec![0, 1, 2, 3]),
        (query().with_severity(Some(Severity::Warning)), vec![2]),
        (query().with_severity(Some(Severity::Info)), vec![0, 2, 3, 4, 5]),
        (query().with_severity(Some(Severity::Critical)), vec![]),
        (query().with_event_types(vec![EventType::AgentStarted]), vec![1]),
        (
            query().with_event_types(vec![EventType::AgentFailed, EventType::AgentStarted]),
            vec![1, 2],
        ),
        (query().with_event_types(vec![EventType::SessionClosed]), vec![]),
        (query().with_agent(Some(other)).with_user(user), vec![3]),
    ];
    for (query, expected) in table {
        assert_eq!(
            numbers(&all_pages(&*fx.audit, query.clone()).await?),
            expected,
            "{query:?}"
        );
    }
    Ok(())
}

async fn time_range(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    let session = SessionId::generate();
    let start = Timestamp::now();
    let at = |seconds| start + SignedDuration::from_secs(seconds);
    for n in 0..5 {
        let mut event = event(&session, n);
        event.timestamp = at(n as i64);
        fx.audit.emit(event).await?;
    }
    for (from, to, expected) in [
        (None, None, vec![0, 1, 2, 3, 4]),
        (Some(1), None, vec![1, 2, 3, 4]),
        (None, Some(1), vec![0]),
        (Some(1), Some(3), vec![1, 2]),
        (Some(2), Some(2), vec![]),
        (Some(5), None, vec![]),
    ] {
        let query = AuditQuery::new()
            .with_session(Some(session.clone()))
            .with_start_time(from.map(at))
            .with_end_time(to.map(at));
        assert_eq!(
            numbers(&all_pages(&*fx.audit, query).await?),
            expected,
            "{from:?}..{to:?}"
        );
    }
    Ok(())
}

async fn paging_with_a_stable_cursor(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    let (session, other) = (SessionId::generate(), SessionId::generate());
    for n in 0..25 {
        fx.audit.emit(event(&session, n)).await?;
        fx.audit.emit(event(&other, n)).await?;
    }
    let query = |cursor: &Option<String>| {
        AuditQuery::new()
            .with_session(Some(session.clone()))
            .with_limit(10)
            .with_cursor(cursor.clone())
    };
    let first = fx.audit.query(query(&None)).await?;
    assert_eq!(numbers(&first.events), (0..10).collect::<Vec<_>>());
    assert!(
        first.next.is_some(),
        "a full page with events after it must have a cursor"
    );
    let second = fx.audit.query(query(&first.next)).await?;
    assert_eq!(numbers(&second.events), (10..20).collect::<Vec<_>>());
    // What is written meanwhile comes after, and moves nothing.
    for n in 25..27 {
        fx.audit.emit(event(&session, n)).await?;
    }
    assert_eq!(
        fx.audit.query(query(&first.next)).await?.events,
        second.events,
        "a cursor can be used again"
    );
    let third = fx.audit.query(query(&second.next)).await?;
    assert_eq!(numbers(&third.events), (20..27).collect::<Vec<_>>());
    Ok(())
}

async fn a_foreign_cursor_is_refused(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    fx.audit.emit(event(&SessionId::generate(), 0)).await?;
    for cursor in ["nonsense", "", "../../etc/passwd", "-1", "{}"] {
        let result = fx
            .audit
            .query(AuditQuery::new().with_cursor(Some(cursor.to_owned())))
            .await;
        let kind = result.err().map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::ConfigInvalid), "{cursor:?}");
    }
    Ok(())
}

async fn repeated_delivery_is_harmless(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let events: Vec<_> = (0..3).map(|n| event(&session, n)).collect();
    for result in fx.audit.emit_batch(events.clone()).await? {
        result?;
    }
    fx.audit.emit(events[1].clone()).await?;
    for result in fx.audit.emit_batch(events.clone()).await? {
        result?;
    }
    fx.audit.emit(event(&session, 3)).await?;
    fx.needs_query()?;
    assert_eq!(
        numbers(&fx.of_session(&session).await?),
        [0, 1, 2, 3],
        "an event must be found once"
    );
    Ok(())
}

async fn repeated_delivery_is_harmless_across_pages(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    let session = SessionId::generate();
    let events: Vec<_> = (0..7).map(|n| event(&session, n)).collect();
    for batch in [&events[..4], &events[..], &events[2..5]] {
        for result in fx.audit.emit_batch(batch.to_vec()).await? {
            result?;
        }
    }
    for limit in [1, 2, 3, 7, 8] {
        let query = AuditQuery::new().with_session(Some(session.clone())).with_limit(limit);
        let found = all_pages(&*fx.audit, query).await?;
        assert_eq!(numbers(&found), (0..7).collect::<Vec<_>>(), "pages of {limit}");
    }
    Ok(())
}

async fn what_is_written_late_comes_late(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    let session = SessionId::generate();
    let query = || AuditQuery::new().with_session(Some(session.clone()));
    fx.audit.emit(event(&session, 0)).await?;
    fx.audit.emit(event(&session, 1)).await?;
    let page = fx.audit.query(query().with_limit(1)).await?;
    assert!(page.next.is_some());
    // As one that waited in a spool. Who follows by cursor must find it.
    let mut late = event(&session, 2);
    late.timestamp -= SignedDuration::from_hours(30);
    let time = late.timestamp;
    fx.audit.emit(late).await?;
    assert_eq!(numbers(&fx.of_session(&session).await?), [0, 1, 2]);
    let next = fx.audit.query(query().with_cursor(page.next)).await?;
    assert_eq!(numbers(&next.events), [1, 2]);
    let of_then = query()
        .with_start_time(Some(time))
        .with_end_time(Some(time + SignedDuration::from_hours(1)));
    assert_eq!(numbers(&all_pages(&*fx.audit, of_then).await?), [2]);
    Ok(())
}

async fn text_and_sizes_survive(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let texts = [
        "line\nfeed\r\n\t",
        "\u{2028}\u{2029}\u{85}",
        "späße 日本語 🦀 \u{202e}",
        "\0\u{1b}[31m\u{7f}",
        "\"quotes\" \\ {\"event_id\": \"x\"}",
        "'; drop table audit_events; --",
    ];
    let mut events: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| {
            event(&session, n)
                .with_fact(text, *text)
                .with_tag(*text)
                .with_user(Some((*text).to_owned()))
        })
        .collect();
    events.push(event(&session, 6).with_fact("huge", "x".repeat(512 << 10)));
    for event in &events {
        fx.audit.emit(event.clone()).await?;
    }
    fx.needs_query()?;
    let found = fx.of_session(&session).await?;
    assert_eq!(found.len(), events.len());
    for (found, event) in found.iter().zip(&events) {
        assert!(found == event, "event {:?} changed", event.payload.get("n"));
    }
    Ok(())
}

async fn the_link_of_a_chain_survives(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    let session = SessionId::generate();
    let writer = "018f4fb5-5d3c-7000-8000-0123456789ab";
    let events: Vec<_> = (1..4)
        .map(|n| {
            let hash = |n: u64| format!("{n:064x}");
            let link = ChainLink::new(writer, n, hash(n - 1), hash(n));
            event(&session, n as usize).with_chain(Some(link))
        })
        .collect();
    for result in fx.audit.emit_batch(events.clone()).await? {
        result?;
    }
    let found = all_pages(&*fx.audit, AuditQuery::new().with_session(Some(session))).await?;
    assert!(
        found == events,
        "a link changed, so nobody can verify what is stored here"
    );
    Ok(())
}

async fn concurrent_emitters_lose_nothing(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let emitters: Vec<_> = (0..64)
        .map(|emitter: u64| {
            let (fx, session) = (Arc::clone(&fx), session.clone());
            tokio::spawn(async move {
                for n in 0..20 {
                    fx.audit.emit(event(&session, n).with_fact("emitter", emitter)).await?;
                }
                Ok::<_, agents_core::Error>(())
            })
        })
        .collect();
    for emitter in emitters {
        match emitter.await {
            Ok(result) => result?,
            Err(error) => return failed(error.to_string()),
        }
    }
    fx.needs_query()?;
    let found = fx.of_session(&session).await?;
    let ids: BTreeSet<_> = found.iter().map(|event| &event.event_id).collect();
    assert_eq!((found.len(), ids.len()), (64 * 20, 64 * 20));
    for emitter in 0..64_u64 {
        let own: Vec<_> = found
            .iter()
            .filter(|event| event.payload.get("emitter") == Some(&emitter.into()))
            .cloned()
            .collect();
        assert_eq!(
            numbers(&own),
            (0..20).collect::<Vec<_>>(),
            "emitter {emitter} lost its order"
        );
    }
    Ok(())
}

async fn a_dropped_emit_does_no_damage(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    for n in 0..50 {
        let emit = fx.audit.emit(event(&session, n));
        // Polled once, then dropped.
        let _ = futures_util::FutureExt::now_or_never(emit);
        if n % 10 == 0 {
            fx.audit.emit(event(&session, 1000 + n)).await?;
        }
    }
    fx.audit.flush().await?;
    fx.needs_query()?;
    let found = numbers(&fx.of_session(&session).await?);
    let awaited: Vec<_> = found.iter().copied().filter(|n| *n >= 1000).collect();
    assert_eq!(awaited, [1000, 1010, 1020, 1030, 1040]);
    Ok(())
}

async fn flush_then_shutdown(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    fx.audit.emit(event(&session, 0)).await?;
    fx.audit.flush().await?;
    fx.audit.shutdown().await?;
    let after = [
        fx.audit.emit(event(&session, 1)).await.err(),
        fx.audit.emit_batch(vec![event(&session, 2)]).await.err(),
        fx.audit.flush().await.err(),
        fx.audit.shutdown().await.err(),
    ];
    for error in after {
        assert_eq!(
            error.map(|error| error.kind()),
            Some(ErrorKind::Conflict),
            "after shutdown"
        );
    }
    Ok(())
}

async fn what_was_acknowledged_is_there_after_a_restart(fx: Fx) -> CaseResult {
    fx.needs_query()?;
    let Some(reopen) = &fx.reopen else {
        return skipped("the fixture cannot open the same trail again");
    };
    let session = SessionId::generate();
    let events: Vec<_> = (0..5).map(|n| event(&session, n)).collect();
    for event in &events {
        fx.audit.emit(event.clone()).await?;
    }
    let query = AuditQuery::new().with_session(Some(session.clone())).with_limit(2);
    let page = fx.audit.query(query.clone()).await?;
    fx.audit.shutdown().await?;
    let again = reopen().await?;
    let all = all_pages(&*again, AuditQuery::new().with_session(Some(session.clone()))).await?;
    assert_eq!(without_links(all), events);
    let next = again.query(query.with_cursor(page.next)).await?;
    assert_eq!(numbers(&next.events), [2, 3], "a cursor outlives a restart");
    again.emit(event(&session, 5)).await?;
    let all = all_pages(&*again, AuditQuery::new().with_session(Some(session))).await?;
    assert_eq!(numbers(&all), [0, 1, 2, 3, 4, 5], "the trail goes on");
    again.shutdown().await?;
    Ok(())
}
