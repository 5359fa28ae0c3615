//! An event as a log event.
//!
//! The message is the event's own JSON, with `severity_rank` and `place` behind its keys. Its time is that of the writing.

use std::{
    ops::Range,
    sync::atomic::{AtomicI64, Ordering},
};

use agents_core::{AuditEvent, Error, ErrorKind, Result, SessionId, Severity};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The documented limits of a request: its size is that of the messages in UTF-8, and so much for each.
const BATCH_BYTES: usize = 1_048_576;
const EVENT_OVERHEAD: usize = 26;
const BATCH_EVENTS: usize = 10_000;

/// The largest message: one that fills a request.
pub(crate) const MAX_MESSAGE: usize = BATCH_BYTES - EVENT_OVERHEAD;

/// The longest event id, which is a UUID of 36 characters.
const MAX_ID: usize = 64;

/// The last place that this process gave.
static LAST: AtomicI64 = AtomicI64::new(0);

/// The first of so many places in the trail, which nobody else in this process gets.
///
/// A place is a time in nanoseconds, so that those of several processes mix as their clocks do. It is that of the writing and
/// not of the event: an event that is written after another comes after it, the events of a request are in the order of their
/// time and near to each other, as they must be, and one that waited for weeks is not refused as too old.
pub(crate) fn places(count: usize) -> i64 {
    let count = i64::try_from(count.max(1)).unwrap_or(i64::MAX);
    let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default();
    let first = |last: i64| now.max(last + 1);
    // Always `Some`, so always `Ok`.
    let last = LAST.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| {
        Some(first(last) + count - 1)
    });
    first(last.unwrap_or_default())
}

/// The name of the log stream of a session. A session's name starts with a letter or a digit, so none has the other name.
pub(crate) fn stream(prefix: &str, session: Option<&SessionId>) -> String {
    match session {
        Some(session) => format!("{prefix}{session}"),
        None => format!("{prefix}_none"),
    }
}

/// A log event.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) millisecond: i64,
    pub(crate) text: String,
}

#[derive(Serialize)]
struct Body<'e> {
    #[serde(flatten)]
    event: &'e AuditEvent,
    severity_rank: u8,
    /// A text, since a number of this size may be rounded.
    place: String,
}

/// What a message holds beside the event.
#[derive(Deserialize)]
pub(crate) struct Placed {
    pub(crate) place: String,
    pub(crate) event_id: String,
}

impl Message {
    /// The log event of an event.
    ///
    /// # Errors
    ///
    /// `DataInvalid` for one that cannot be stored.
    pub(crate) fn new(event: &AuditEvent, place: i64) -> Result<Self> {
        let refuse = |what: String| Err(Error::new(ErrorKind::DataInvalid, what));
        let id = &event.event_id;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(plain) {
            return refuse(format!(
                "the event id {id:?} must have 1 to {MAX_ID} letters, digits, '-', '_' and '.'; use a UUID"
            ));
        }
        let body = Body {
            event,
            severity_rank: severity_rank(event.severity),
            place: place.to_string(),
        };
        let text = serde_json::to_string(&body).map_err(|error| {
            Error::unexpected(format!("the {} event is no JSON", event.event_type)).with_source(error)
        })?;
        if text.len() > MAX_MESSAGE {
            return refuse(format!(
                "the {} event has {} bytes, and a log event has at most {MAX_MESSAGE}; put large data into an artifact",
                event.event_type,
                text.len()
            ));
        }
        Ok(Self {
            millisecond: place / 1_000_000,
            text,
        })
    }
}

/// Splits log events into what fits into a request each.
pub(crate) fn chunks(messages: &[Message]) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (n, message) in messages.iter().enumerate() {
        let size = message.text.len() + EVENT_OVERHEAD;
        if n > start && (n - start == BATCH_EVENTS || bytes + size > BATCH_BYTES) {
            chunks.push(start..n);
            (start, bytes) = (n, 0);
        }
        bytes += size;
    }
    if start < messages.len() {
        chunks.push(start..messages.len());
    }
    chunks
}

pub(crate) fn severity_rank(severity: Severity) -> u8 {
    match severity {
        Severity::Debug => 0,
        Severity::Info => 1,
        Severity::Warning => 2,
        Severity::Error => 3,
        Severity::Critical => 4,
    }
}

#[cfg(test)]
mod tests {
    use agents_core::EventType;

    use super::*;

    #[test]
    fn a_message_is_the_event_and_more() {
        let event = AuditEvent::now(EventType::SystemWarning).with_fact("a", 1.5);
        let message = Message::new(&event, 1_700_000_000_123_456_789).unwrap();
        assert_eq!(message.millisecond, 1_700_000_000_123);
        assert_eq!(serde_json::from_str::<AuditEvent>(&message.text).unwrap(), event);
        let placed: Placed = serde_json::from_str(&message.text).unwrap();
        assert_eq!(
            (placed.place.as_str(), &placed.event_id),
            ("1700000000123456789", &event.event_id)
        );
        let error = Message::new(&event.with_fact("x", "y".repeat(MAX_MESSAGE)), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataInvalid);
    }

    #[test]
    fn requests_have_limits() {
        let message = |bytes: usize| Message {
            millisecond: 0,
            text: "x".repeat(bytes),
        };
        assert!(chunks(&[]).is_empty());
        assert_eq!(
            chunks(&vec![message(1); 20_001]),
            [0..10_000, 10_000..20_000, 20_000..20_001]
        );
        assert_eq!(chunks(&vec![message(MAX_MESSAGE); 2]), [0..1, 1..2]);
        // Two of exactly half, with what is counted for each.
        assert_eq!(
            chunks(&vec![message(BATCH_BYTES / 2 - EVENT_OVERHEAD); 3]),
            [0..2, 2..3]
        );
        assert_eq!(
            chunks(&vec![message(BATCH_BYTES / 2 - EVENT_OVERHEAD + 1); 2]),
            [0..1, 1..2]
        );
    }

    #[test]
    fn places_only_grow_and_streams_have_their_names() {
        let (a, b, c) = (places(1), places(10), places(1));
        assert!(a < b && b + 9 < c, "{a} {b} {c}");
        assert_eq!(stream("session-", Some(&SessionId::new("x").unwrap())), "session-x");
        assert_eq!(stream("session-", None), "session-_none");
    }
}
