//! An event as a log event.
//!
//! The message is the event's own JSON, with `severity_rank` and `place` behind its keys. Its time is that of the writing.

use std::ops::Range;

use agents_audit_remote::chunks;
use agents_core::{AuditEvent, Error, ErrorKind, Result, SessionId, Severity};
use serde::{Deserialize, Serialize};

/// The documented limits of a request: its size is that of the messages in UTF-8, and so much for each.
const BATCH_BYTES: usize = 1_048_576;
const EVENT_OVERHEAD: usize = 26;
const BATCH_EVENTS: usize = 10_000;

/// The largest message: one that fills a request.
pub(crate) const MAX_MESSAGE: usize = BATCH_BYTES - EVENT_OVERHEAD;

/// The longest event id, which is a UUID of 36 characters.
const MAX_ID: usize = 64;

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
pub(crate) fn requests(messages: &[Message]) -> Vec<Range<usize>> {
    chunks(messages, (BATCH_EVENTS, BATCH_BYTES), |message| {
        message.text.len() + EVENT_OVERHEAD
    })
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
        assert!(requests(&[]).is_empty());
        assert_eq!(
            requests(&vec![message(1); 20_001]),
            [0..10_000, 10_000..20_000, 20_000..20_001]
        );
        assert_eq!(requests(&vec![message(MAX_MESSAGE); 2]), [0..1, 1..2]);
        // Two of exactly half, with what is counted for each.
        assert_eq!(
            requests(&vec![message(BATCH_BYTES / 2 - EVENT_OVERHEAD); 3]),
            [0..2, 2..3]
        );
        assert_eq!(
            requests(&vec![message(BATCH_BYTES / 2 - EVENT_OVERHEAD + 1); 2]),
            [0..1, 1..2]
        );
    }

    #[test]
    fn streams_have_their_names() {
        assert_eq!(stream("session-", Some(&SessionId::new("x").unwrap())), "session-x");
        assert_eq!(stream("session-", None), "session-_none");
    }
}
