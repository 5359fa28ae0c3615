//! An event as a row.
//!
//! The column `record` holds the event as it was given, and is what a query gives back. The other columns are there to
//! find it by, and may be coarser than the event: a time in microseconds, a user's name that is cut or has no NUL. So what
//! they find is checked against the event again, by [`agents_core::AuditQuery::matches`].

use agents_core::{AuditEvent, Error, ErrorKind, Result, Severity};
use jiff::{Timestamp, tz::TimeZone};

/// The largest record.
pub(crate) const MAX_RECORD: usize = 1 << 20;

/// The longest event id, which is a UUID of 36 characters.
const MAX_ID: usize = 64;

/// The most characters of a user's name that are kept to find an event by.
const MAX_USER: usize = 191;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) event_id: String,
    pub(crate) event_type: &'static str,
    pub(crate) timestamp: String,
    pub(crate) session_id: Option<String>,
    pub(crate) agent_id: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) severity: i16,
    pub(crate) record: String,
}

impl Row {
    /// The row of an event.
    ///
    /// # Errors
    ///
    /// `DataInvalid` for one that cannot be stored.
    pub(crate) fn new(event: AuditEvent) -> Result<Self> {
        let refuse = |what: String| Err(Error::new(ErrorKind::DataInvalid, what));
        let id = &event.event_id;
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse(format!(
                "the event id {id:?} must have 1 to {MAX_ID} visible ASCII characters; use a UUID"
            ));
        }
        let record = serde_json::to_string(&event).map_err(|error| {
            Error::unexpected(format!("the {} event is no JSON", event.event_type)).with_source(error)
        })?;
        if record.len() > MAX_RECORD {
            return refuse(format!(
                "the {} event has {} bytes, and a record has at most {MAX_RECORD}; put large data into an artifact",
                event.event_type,
                record.len()
            ));
        }
        Ok(Self {
            event_type: event.event_type.as_str(),
            timestamp: time_text(event.timestamp),
            session_id: event.session_id.map(|id| id.to_string()),
            agent_id: event.agent_id.map(|id| id.to_string()),
            user_id: event.user_id.as_deref().map(user_text),
            severity: severity_rank(event.severity),
            event_id: event.event_id,
            record,
        })
    }
}

/// UTC with six digits, which all databases read and which sorts as text. Cut to microseconds and to the years that all
/// databases know, both of which keep the order.
pub(crate) fn time_text(time: Timestamp) -> String {
    let time = time.to_zoned(TimeZone::UTC).datetime();
    if time.year() < 1000 {
        return "1000-01-01 00:00:00.000000".to_owned();
    }
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.subsec_nanosecond() / 1000
    )
}

/// PostgreSQL's text has no NUL, and MySQL's indexes have a limit.
pub(crate) fn user_text(user: &str) -> String {
    user.chars()
        .take(MAX_USER)
        .map(|c| if c == '\0' { '\u{fffd}' } else { c })
        .collect()
}

pub(crate) fn severity_rank(severity: Severity) -> i16 {
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
    fn times_keep_their_order_as_text() {
        let times = [
            "-009999-01-02T01:59:59Z",
            "0999-12-31T23:59:59Z",
            "1969-12-31T23:59:59.9999999Z",
            "1970-01-01T00:00:00Z",
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00.5Z",
            "9999-12-30T22:00:00.999999999Z",
        ];
        let texts: Vec<_> = times.iter().map(|time| time_text(time.parse().unwrap())).collect();
        assert!(texts.is_sorted(), "{texts:?}");
        assert_eq!(texts[2], "1969-12-31 23:59:59.999999");
        assert_eq!(texts[5], "2026-01-01 00:00:00.500000");
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        let event = || AuditEvent::now(EventType::SystemWarning);
        assert!(Row::new(event()).is_ok());
        for id in ["", "a b", "ä", &"x".repeat(65)] {
            let mut event = event();
            event.event_id = id.to_owned();
            let error = Row::new(event).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DataInvalid, "{id:?}");
        }
        let error = Row::new(event().with_fact("huge", "x".repeat(MAX_RECORD))).unwrap_err();
        assert!(error.message().contains("artifact"), "{error}");
    }
}
