//! Searches and their answers.

use agents_core::{AuditEvent, AuditQuery, Error, ErrorKind, Result, Severity};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    cursor::Cursor,
    log::{SOURCE, user_hash},
};

/// The most logs of an answer.
pub(crate) const MAX_PAGE: usize = 1000;

/// How far an event's time may be ahead of its writing, by clocks that differ, and still be found by `start_time`.
const AHEAD: SignedDuration = SignedDuration::from_hours(24);

/// What is searched for, and from which millisecond on.
pub(crate) struct Search {
    query: String,
    from: i64,
    to: Option<i64>,
    limit: usize,
}

impl Search {
    /// The search for what may match, from a cursor on. What it finds is checked against the event again.
    ///
    /// Logs are filed under the time of their writing. So the range has no end: an event may have been written late.
    pub(crate) fn new(query: &AuditQuery, after: Option<&Cursor>, service: &str) -> Self {
        let mut terms = filed(service);
        let attribute = |key: &str, value: &str| format!(" @audit.{key}:\"{value}\"");
        if let Some(session) = &query.session_id {
            terms.push_str(&attribute("session_id", session.as_str()));
        }
        if let Some(agent) = &query.agent_id {
            terms.push_str(&attribute("agent_id", agent.as_str()));
        }
        if let Some(user) = &query.user_id {
            terms.push_str(&attribute("user_hash", &user_hash(user)));
        }
        if !query.event_types.is_empty() {
            let names: Vec<_> = query.event_types.iter().map(|name| name.as_str()).collect();
            terms.push_str(&format!(" @audit.event_type:({})", names.join(" OR ")));
        }
        if let Some(least) = query.severity {
            let all = [
                Severity::Debug,
                Severity::Info,
                Severity::Warning,
                Severity::Error,
                Severity::Critical,
            ];
            let names: Vec<_> = all
                .iter()
                .filter(|severity| **severity >= least)
                .map(|severity| severity.as_str())
                .collect();
            terms.push_str(&format!(" @audit.severity:({})", names.join(" OR ")));
        }
        let start = query.start_time.and_then(|start| start.checked_sub(AHEAD).ok());
        let start = start.map_or(0, |start| start.as_millisecond().max(0));
        Self {
            query: terms,
            from: start.max(after.map_or(0, Cursor::millisecond)),
            to: None,
            // One more than wanted tells whether there is a next page. The number of requests is limited, not their size.
            limit: query.limit.saturating_add(1).clamp(100, MAX_PAGE),
        }
    }

    /// The search for these events, since a millisecond and up to a cursor.
    pub(crate) fn of_events(ids: &[&str], since: i64, until: &Cursor, service: &str) -> Self {
        Self {
            query: format!("{} @audit.event_id:({})", filed(service), ids.join(" OR ")),
            from: since.max(0),
            to: Some(until.millisecond() + 1),
            limit: MAX_PAGE,
        }
    }

    pub(crate) fn body(&self, page: Option<&str>) -> Value {
        // Clocks may differ; Datadog takes logs from up to two hours ahead.
        let to = self
            .to
            .unwrap_or_else(|| Timestamp::now().as_millisecond() + 2 * 3_600_000);
        let mut body = json!({
            "filter": {"query": self.query, "from": self.from.to_string(), "to": to.to_string()},
            "sort": "timestamp",
            "page": {"limit": self.limit},
        });
        if let Some(page) = page {
            body["page"]["cursor"] = page.into();
        }
        body
    }
}

fn filed(service: &str) -> String {
    format!("source:{SOURCE} service:{service}")
}

/// A log that was found.
#[derive(Debug)]
pub(crate) struct Hit {
    /// The official time, by which Datadog sorts.
    pub(crate) millisecond: i64,
    pub(crate) at: Cursor,
    /// `None` for what is no event of this version.
    pub(crate) event: Option<AuditEvent>,
}

/// # Errors
///
/// Temporary when Datadog gave up in the middle of the search.
pub(crate) fn complete(answer: Value) -> Result<Value> {
    match answer["meta"]["status"].as_str() {
        Some("timeout") => Err(Error::new(
            ErrorKind::Timeout,
            "Datadog gave up in the middle of the search; ask for a shorter time",
        )
        .temporary(None)),
        _ => Ok(answer),
    }
}

/// The logs of an answer, and the cursor of the next.
pub(crate) fn hits(answer: &Value) -> (Vec<Hit>, Option<String>) {
    let data = answer["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let after = answer["meta"]["page"]["after"].as_str().map(str::to_owned);
    (
        data.iter().filter_map(hit).collect(),
        after.filter(|_| !data.is_empty()),
    )
}

fn hit(log: &Value) -> Option<Hit> {
    let attributes = &log["attributes"];
    let time: Timestamp = attributes["timestamp"].as_str()?.parse().ok()?;
    let audit = &attributes["attributes"]["audit"];
    Some(Hit {
        millisecond: time.as_millisecond(),
        at: Cursor {
            place: audit["place"].as_str()?.parse().ok()?,
            id: audit["event_id"].as_str()?.to_owned(),
        },
        event: serde_json::from_str(audit["record"].as_str()?).ok(),
    })
}

/// Those of the hits behind a cursor that may have been written before it too, and since when: an event is not written before it
/// happens. So what happened behind the cursor was written there for the first time, and takes no search.
pub(crate) fn suspects<'h>(hits: &'h [Hit], after: &Cursor) -> (Vec<&'h str>, i64) {
    let (mut ids, mut since) = (Vec::new(), after.millisecond());
    for hit in hits {
        let happened = hit.event.as_ref().map_or(0, |event| event.timestamp.as_millisecond());
        // Its clock is not to be trusted.
        let ahead = happened > hit.at.millisecond();
        if ahead || happened <= after.millisecond() {
            let earliest = if ahead {
                after.millisecond() - AHEAD.as_secs() * 1000
            } else {
                happened
            };
            ids.push(hit.at.id.as_str());
            since = since.min(earliest);
        }
    }
    (ids, since)
}

#[cfg(test)]
mod tests {
    use agents_core::{EventType, SessionId};

    use super::*;

    #[test]
    fn a_search_has_every_condition() {
        let query = AuditQuery::new()
            .with_session(Some(SessionId::new("s").unwrap()))
            .with_user(Some("u".to_owned()))
            .with_event_types(vec![EventType::AgentFailed, EventType::AgentStarted])
            .with_severity(Some(Severity::Error))
            .with_start_time(Some("2026-01-02T00:00:00Z".parse().unwrap()));
        let search = Search::new(&query, None, "svc");
        let hash = user_hash("u");
        assert_eq!(
            search.query,
            format!(
                "source:isolated-agents service:svc @audit.session_id:\"s\" @audit.user_hash:\"{hash}\" \
                 @audit.event_type:(agent_failed OR agent_started) @audit.severity:(error OR critical)"
            )
        );
        let body = search.body(Some("c"));
        assert_eq!(body["filter"]["from"], "1767225600000");
        assert_eq!(
            (&body["page"], &body["sort"]),
            (&json!({"limit": 101, "cursor": "c"}), &json!("timestamp"))
        );
        let later = Search::new(&query, Some(&Cursor::parse("dd:1800000000000123456:e").unwrap()), "svc");
        assert_eq!(later.body(None)["filter"]["from"], "1800000000000");
    }

    #[test]
    fn only_what_happened_before_the_cursor_may_be_there_twice() {
        let event = |place_ms: i64, happened_ms: i64| {
            let mut event = AuditEvent::now(EventType::AgentFailed);
            event.timestamp = Timestamp::from_millisecond(happened_ms).unwrap();
            event.event_id = format!("e{happened_ms}");
            Hit {
                millisecond: place_ms,
                at: Cursor {
                    place: place_ms * 1_000_000,
                    id: event.event_id.clone(),
                },
                event: Some(event),
            }
        };
        let after = Cursor::parse("dd:100000000000000:c").unwrap();
        let hits = [
            event(100_000_005, 100_000_004),
            event(100_000_006, 7),
            event(100_000_007, 200_000_000),
        ];
        assert_eq!(suspects(&hits, &after), (vec!["e7", "e200000000"], 7));
        assert_eq!(suspects(&hits[..1], &after).0, Vec::<&str>::new());
    }

    #[test]
    fn an_answer_is_read() {
        let log = |place: &str| {
            json!({"type": "log", "id": "x", "attributes": {
                "timestamp": "2026-01-02T00:00:00.123Z",
                "attributes": {"audit": {"place": place, "event_id": "e", "record": "{}"}},
            }})
        };
        let answer = json!({"data": [log("7"), log("x"), {}], "meta": {"page": {"after": "next"}}});
        let (found, next) = hits(&answer);
        assert_eq!((found.len(), next.as_deref()), (1, Some("next")));
        assert_eq!((found[0].at.place, found[0].millisecond), (7, 1_767_312_000_123));
        assert!(found[0].event.is_none());
        assert!(
            complete(json!({"meta": {"status": "timeout"}}))
                .unwrap_err()
                .is_temporary()
        );
        assert!(complete(json!({"meta": {"status": "done"}})).is_ok());
    }
}
