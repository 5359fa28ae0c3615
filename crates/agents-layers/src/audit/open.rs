//! What a crash left open.

use std::collections::{BTreeMap, HashSet};

use agents_core::{AuditEvent, AuditQuery, EventType, Result};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Trail, operation::Outcome};

const PAGE: usize = 500;
/// How much a session's first event may seem to be older than the session.
const SLACK: SignedDuration = SignedDuration::from_mins(1);

/// Ends every open intent of the trail's session as `unknown`, durably, and says how many there were. `since` is when the
/// session began.
///
/// A sink that cannot be asked gets one such event without an `operation_id`, which says so. Doing this again, or at the same
/// time in two processes, does not end anything twice: the identifiers of these events follow from those of the intents.
///
/// # Errors
///
/// The sink's.
pub async fn end_open(trail: &Trail, since: Timestamp, reason: &str) -> Result<usize> {
    if !trail.logger().capabilities().query {
        let session = trail.scope().session_id.as_ref().map_or("", |id| id.as_str());
        let event = unknown(trail, since, session, reason)
            .with_fact("operation", Value::Null)
            .with_fact("detail", "this sink cannot be asked which operations were open");
        trail.record([event]).await?;
        return Ok(0);
    }
    let intents = open_intents(trail, since).await?;
    let events = intents.iter().map(|intent| {
        let fact = |key: &str| intent.payload.get(key).cloned().unwrap_or_default();
        let id = fact("operation_id");
        unknown(trail, intent.timestamp, id.as_str().unwrap_or_default(), reason)
            .with_fact("operation_id", id.clone())
            .with_fact("operation", fact("operation"))
    });
    trail.record(events.collect::<Vec<_>>()).await?;
    Ok(intents.len())
}

/// Whether the sink has this event of the trail's session already, as far as it can be asked. Where it cannot, or has not been told yet, an event
/// that is recorded again has the same identifier.
///
/// # Errors
///
/// The sink's.
pub async fn is_on_record(trail: &Trail, event: &AuditEvent) -> Result<bool> {
    if !trail.logger().capabilities().query {
        return Ok(false);
    }
    let mut found = false;
    each(trail, vec![event.event_type], event.timestamp, |other| {
        found |= other.event_id == event.event_id;
    })
    .await?;
    Ok(found)
}

/// Looks at every event of these types of the trail's session since then.
async fn each(trail: &Trail, types: Vec<EventType>, since: Timestamp, mut look: impl FnMut(AuditEvent)) -> Result<()> {
    let mut query = AuditQuery::new()
        .with_session(trail.scope().session_id.clone())
        .with_event_types(types)
        .with_start_time(since.checked_sub(SLACK).ok())
        .with_limit(PAGE);
    loop {
        let page = trail.logger().query(query.clone()).await?;
        page.events.into_iter().for_each(&mut look);
        match page.next {
            None => return Ok(()),
            next => query.cursor = next,
        }
    }
}

/// The intents without an outcome, oldest first. What is held in memory is what is open, not the trail.
async fn open_intents(trail: &Trail, since: Timestamp) -> Result<Vec<AuditEvent>> {
    let mut open: BTreeMap<String, AuditEvent> = BTreeMap::new();
    // A sink that sorts by time may give an outcome before its intent.
    let mut ended = HashSet::new();
    let types = vec![EventType::OperationIntended, EventType::OperationEnded];
    each(trail, types, since, |event| {
        let Some(id) = event.payload.get("operation_id").and_then(Value::as_str) else {
            return;
        };
        let id = id.to_owned();
        match event.event_type {
            EventType::OperationIntended if !ended.remove(&id) => drop(open.insert(id, event)),
            EventType::OperationEnded if open.remove(&id).is_none() => drop(ended.insert(id)),
            _ => {}
        }
    })
    .await?;
    // Identifiers sort by time.
    Ok(open.into_values().collect())
}

/// An outcome whose identifier follows from what it ends.
fn unknown(trail: &Trail, at: Timestamp, of: &str, reason: &str) -> AuditEvent {
    let hash = ring::digest::digest(&ring::digest::SHA256, format!("operation_ended {of}").as_bytes());
    let mut random = [0; 10];
    random.copy_from_slice(&hash.as_ref()[..10]);
    let milliseconds = u64::try_from(at.as_millisecond()).unwrap_or_default();
    let id = uuid::Builder::from_unix_timestamp_millis(milliseconds, &random).into_uuid();
    let mut event = trail
        .event(EventType::OperationEnded)
        .with_severity(Outcome::Unknown.severity())
        .with_fact("outcome", Outcome::Unknown.as_str())
        .with_fact("reason", reason);
    event.event_id = id.to_string();
    event
}
