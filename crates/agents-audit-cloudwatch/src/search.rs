//! Searches.

use agents_core::{AuditEvent, AuditQuery};
use jiff::{SignedDuration, Timestamp};

use crate::{
    client::Found,
    config::CloudWatchAuditConfig,
    cursor::Cursor,
    message::{Placed, severity_rank, stream},
};

/// The longest filter pattern that the service takes.
const MAX_PATTERN: usize = 1024;

/// The most events of a page.
const MAX_PAGE: usize = 10_000;

/// How far an event's time may be ahead of its writing, by clocks that differ, and still be found by `start_time`.
const AHEAD: SignedDuration = SignedDuration::from_hours(24);

/// What is searched for. What it finds is checked against the event again.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    pub(crate) stream: Option<String>,
    pub(crate) prefix: Option<String>,
    pub(crate) pattern: Option<String>,
    pub(crate) from: i64,
    pub(crate) to: Option<i64>,
    pub(crate) limit: i32,
}

impl Search {
    /// The search for what may match, from a cursor on.
    ///
    /// Log events have the time of their writing. So the range has no end: an event may have been written late.
    pub(crate) fn new(query: &AuditQuery, after: Option<&Cursor>, config: &CloudWatchAuditConfig) -> Self {
        let mut terms = Vec::new();
        if let Some(agent) = &query.agent_id {
            terms.push(format!("$.agent_id = \"{agent}\""));
        }
        // Any other text may mean something in a pattern.
        if let Some(user) = query.user_id.as_deref().filter(|user| is_plain(user)) {
            terms.push(format!("$.user_id = \"{user}\""));
        }
        if let Some(severity) = query.severity {
            terms.push(format!("$.severity_rank >= {}", severity_rank(severity)));
        }
        let types: Vec<_> = query
            .event_types
            .iter()
            .map(|event_type| format!("$.event_type = \"{event_type}\""))
            .collect();
        let types = (!types.is_empty()).then(|| format!("({})", types.join(" || ")));
        let start = query.start_time.and_then(|start| start.checked_sub(AHEAD).ok());
        let start = start.map_or(0, |start| start.as_millisecond().max(0));
        Self {
            stream: query
                .session_id
                .as_ref()
                .map(|id| stream(&config.stream_prefix, Some(id))),
            pattern: pattern(terms.clone().into_iter().chain(types)).or_else(|| pattern(terms.into_iter())),
            from: start.max(after.map_or(0, Cursor::millisecond)),
            to: None,
            // One more than wanted tells whether there is a next page.
            limit: i32::try_from(query.limit.saturating_add(1).clamp(100, MAX_PAGE)).unwrap_or(i32::MAX),
            prefix: None,
        }
        .in_group(config)
    }

    /// The search for what is written from now on by anybody, which is next to nothing.
    pub(crate) fn latest() -> Self {
        Self {
            stream: None,
            prefix: None,
            pattern: None,
            from: Timestamp::now().as_millisecond(),
            to: None,
            limit: 1,
        }
    }

    /// The searches for these events in a time.
    pub(crate) fn of_events(ids: &[&str], from: i64, to: i64, config: &CloudWatchAuditConfig) -> Vec<Self> {
        // As many as fit into a pattern, with ids of the longest kind.
        let searches = ids.chunks(MAX_PATTERN / 90).map(|ids| {
            let terms: Vec<_> = ids.iter().map(|id| format!("$.event_id = \"{id}\"")).collect();
            Self {
                stream: None,
                prefix: None,
                pattern: pattern(std::iter::once(terms.join(" || "))),
                from: from.max(0),
                to: Some(to),
                limit: i32::try_from(MAX_PAGE).unwrap_or(i32::MAX),
            }
            .in_group(config)
        });
        searches.collect()
    }

    /// Without a stream, in all that are ours. The service takes one or the other.
    fn in_group(mut self, config: &CloudWatchAuditConfig) -> Self {
        if self.stream.is_none() && !config.stream_prefix.is_empty() {
            self.prefix = Some(config.stream_prefix.clone());
        }
        self
    }
}

/// A pattern of all these terms, if it is not too long; without terms everything is found.
fn pattern(terms: impl Iterator<Item = String>) -> Option<String> {
    let terms: Vec<_> = terms.collect();
    let pattern = format!("{{ {} }}", terms.join(" && "));
    (!terms.is_empty() && pattern.len() <= MAX_PATTERN).then_some(pattern)
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 200
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
}

/// An event that was found.
#[derive(Debug)]
pub(crate) struct Hit {
    /// The log event's time, by which the service sorts.
    pub(crate) millisecond: i64,
    pub(crate) at: Cursor,
    /// `None` for what is no event of this version.
    pub(crate) event: Option<AuditEvent>,
}

/// `None` for what others have written to the group.
pub(crate) fn hit(found: &Found) -> Option<Hit> {
    let placed: Placed = serde_json::from_str(&found.text).ok()?;
    Some(Hit {
        millisecond: found.millisecond,
        at: Cursor {
            place: placed.place.parse().ok()?,
            id: placed.event_id,
        },
        event: serde_json::from_str(&found.text).ok(),
    })
}

/// Those of the hits behind a cursor that may have been written before it too, and since when: an event is not written before it
/// happens. So what happened behind the cursor was written there for the first time.
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
    use agents_core::{AgentId, EventType, SessionId, Severity};

    use super::*;

    #[test]
    fn a_search_has_every_condition() {
        let config = CloudWatchAuditConfig::default();
        let query = AuditQuery::new()
            .with_session(Some(SessionId::new("s").unwrap()))
            .with_agent(Some(AgentId::new("a").unwrap()))
            .with_user(Some("u@example.com".to_owned()))
            .with_event_types(vec![EventType::AgentFailed, EventType::AgentStarted])
            .with_severity(Some(Severity::Error))
            .with_start_time(Some("2026-01-02T00:00:00Z".parse().unwrap()));
        let search = Search::new(&query, None, &config);
        assert_eq!(
            search.pattern.as_deref(),
            Some(
                "{ $.agent_id = \"a\" && $.user_id = \"u@example.com\" && $.severity_rank >= 3 && \
                 ($.event_type = \"agent_failed\" || $.event_type = \"agent_started\") }"
            )
        );
        assert_eq!((search.stream.as_deref(), search.prefix), (Some("session-s"), None));
        assert_eq!((search.from, search.limit), (1_767_225_600_000, 101));
        let all = Search::new(&AuditQuery::new().with_user(Some("a*".to_owned())), None, &config);
        assert_eq!(
            (all.pattern, all.stream, all.prefix.as_deref()),
            (None, None, Some("session-"))
        );
        // Too long with all types, so those are looked at here.
        let types = AuditQuery::new()
            .with_agent(Some(AgentId::new("a").unwrap()))
            .with_event_types(EventType::ALL.to_vec());
        let search = Search::new(&types, None, &config);
        assert_eq!(search.pattern.as_deref(), Some("{ $.agent_id = \"a\" }"));
        let longest = "x".repeat(64);
        let searches = Search::of_events(&[longest.as_str(); 25], 5, 9, &config);
        assert!(searches.len() > 1 && searches.iter().all(|search| search.pattern.is_some()));
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
        let after = Cursor {
            place: 100_000_000 * 1_000_000,
            id: "c".to_owned(),
        };
        let hits = [
            event(100_000_005, 100_000_004),
            event(100_000_006, 7),
            event(100_000_007, 200_000_000),
        ];
        let (ids, since) = suspects(&hits, &after);
        assert_eq!((ids, since), (vec!["e7", "e200000000"], 7));
        assert_eq!(suspects(&hits[..1], &after).0, Vec::<&str>::new());
    }
}
