//! An event as a document.
//!
//! A document is the event's own JSON, with keys of ours behind it: `@timestamp`, which data streams want, `severity_rank`, and
//! `place`, which pages are sorted by.

use agents_core::{AuditEvent, Error, ErrorKind, Result, Severity};
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use crate::config::{ElasticsearchAuditConfig, IndexLayout};

/// The largest event.
const MAX_EVENT: usize = 1 << 20;

/// The longest event id, which is a UUID of 36 characters.
const MAX_ID: usize = 64;

/// The longest user's name that is indexed, and so can be asked for.
pub(crate) const MAX_USER: usize = 1024;

/// A document with where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) id: String,
    pub(crate) index: String,
    pub(crate) json: String,
}

#[derive(Serialize)]
struct Body<'e> {
    #[serde(flatten)]
    event: &'e AuditEvent,
    #[serde(rename = "@timestamp")]
    timestamp: Timestamp,
    severity_rank: u8,
    place: i64,
}

impl Document {
    /// The document of an event.
    ///
    /// # Errors
    ///
    /// `DataInvalid` for one that cannot be stored.
    pub(crate) fn new(event: &AuditEvent, place: i64, config: &ElasticsearchAuditConfig) -> Result<Self> {
        let refuse = |what: String| Err(Error::new(ErrorKind::DataInvalid, what));
        let id = &event.event_id;
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse(format!(
                "the event id {id:?} must have 1 to {MAX_ID} visible ASCII characters; use a UUID"
            ));
        }
        let timestamp = indexed_time(event.timestamp);
        let body = Body {
            event,
            timestamp,
            severity_rank: severity_rank(event.severity),
            place,
        };
        let json = serde_json::to_string(&body).map_err(|error| {
            Error::unexpected(format!("the {} event is no JSON", event.event_type)).with_source(error)
        })?;
        if json.len() > MAX_EVENT {
            return refuse(format!(
                "the {} event has {} bytes, and an event has at most {MAX_EVENT}; put large data into an artifact",
                event.event_type,
                json.len()
            ));
        }
        Ok(Self {
            id: id.clone(),
            index: match config.layout {
                IndexLayout::DataStream => config.index.clone(),
                // By the event's own day, so that one that is delivered again meets itself.
                IndexLayout::Daily => {
                    let day = timestamp.to_zoned(TimeZone::UTC).date();
                    format!("{}-{:04}.{:02}.{:02}", config.index, day.year(), day.month(), day.day())
                }
            },
            json,
        })
    }
}

/// The time as an index of nanoseconds can hold it, which keeps the order.
pub(crate) fn indexed_time(time: Timestamp) -> Timestamp {
    // 2262-04-11, where 64 bits of nanoseconds end.
    let latest = Timestamp::from_second(i64::MAX / 1_000_000_000 - 1).unwrap_or(Timestamp::MAX);
    time.clamp(Timestamp::UNIX_EPOCH, latest)
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
    fn a_document_is_the_event_and_more() {
        let mut event = AuditEvent::now(EventType::SystemWarning).with_fact("a", 1);
        event.timestamp = "2026-02-28T23:59:59.123456789Z".parse().unwrap();
        let config = ElasticsearchAuditConfig::default();
        let document = Document::new(&event, 7, &config).unwrap();
        assert_eq!(document.index, "agents-audit");
        assert_eq!(serde_json::from_str::<AuditEvent>(&document.json).unwrap(), event);
        let json: serde_json::Value = serde_json::from_str(&document.json).unwrap();
        assert_eq!(json["@timestamp"], "2026-02-28T23:59:59.123456789Z");
        assert_eq!((&json["place"], &json["severity_rank"]), (&7.into(), &1.into()));
        let daily = Document::new(&event, 7, &config.clone().with_layout(IndexLayout::Daily)).unwrap();
        assert_eq!(daily.index, "agents-audit-2026.02.28");

        event.timestamp = "9999-01-01T00:00:00Z".parse().unwrap();
        assert!(
            Document::new(&event, 7, &config)
                .unwrap()
                .json
                .contains("\"@timestamp\":\"2262-04-11T")
        );
        for id in ["", "a b", "ä", &"x".repeat(65)] {
            event.event_id = id.to_owned();
            assert_eq!(
                Document::new(&event, 7, &config).unwrap_err().kind(),
                ErrorKind::DataInvalid
            );
        }
    }
}
