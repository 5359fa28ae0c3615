//! Searches and their answers.

use agents_core::{AuditEvent, AuditQuery, Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cursor::Cursor,
    document::{MAX_USER, indexed_time, severity_rank},
};

/// The search for what may match, behind a cursor. What it finds is checked against the event again, since an index may be
/// coarser.
///
/// # Errors
///
/// `ConfigInvalid` for a user's name that is too long to be indexed.
pub(crate) fn request(query: &AuditQuery, after: Option<&Cursor>, size: usize) -> Result<Value> {
    let mut filter = Vec::new();
    if let Some(session) = &query.session_id {
        filter.push(json!({"term": {"session_id": session}}));
    }
    if let Some(agent) = &query.agent_id {
        filter.push(json!({"term": {"agent_id": agent}}));
    }
    if let Some(user) = &query.user_id {
        if user.encode_utf16().count() > MAX_USER {
            return Err(Error::invalid(format!(
                "this sink finds no user by a name of more than {MAX_USER} characters; ask by session or time"
            )));
        }
        filter.push(json!({"term": {"user_id": user}}));
    }
    if !query.event_types.is_empty() {
        filter.push(json!({"terms": {"event_type": query.event_types}}));
    }
    if let Some(severity) = query.severity {
        filter.push(json!({"range": {"severity_rank": {"gte": severity_rank(severity)}}}));
    }
    if let Some(start) = query.start_time {
        filter.push(json!({"range": {"@timestamp": {"gte": indexed_time(start)}}}));
    }
    if let Some(end) = query.end_time {
        filter.push(json!({"range": {"@timestamp": {"lte": indexed_time(end)}}}));
    }
    let mut search = json!({
        "size": size,
        "track_total_hits": false,
        "query": {"bool": {"filter": filter}},
        "sort": sort(),
    });
    if let Some(after) = after {
        search["search_after"] = json!([after.place, after.id]);
    }
    Ok(search)
}

/// An index without events may have no mapping yet.
fn sort() -> Value {
    json!([
        {"place": {"order": "asc", "unmapped_type": "long"}},
        {"event_id": {"order": "asc", "unmapped_type": "keyword"}},
    ])
}

/// The search for the first place of each of these events.
pub(crate) fn first_places(hits: &[Hit]) -> Value {
    let ids: Vec<_> = hits.iter().map(|hit| &hit.at.id).collect();
    json!({
        "size": 0,
        "track_total_hits": false,
        "query": {"bool": {"filter": [{"terms": {"event_id": ids}}]}},
        "aggs": {"events": {
            "terms": {"field": "event_id", "size": ids.len()},
            "aggs": {"first": {"top_hits": {"size": 1, "_source": ["place"], "sort": sort()}}},
        }},
    })
}

/// What a search found.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(crate) at: Cursor,
    /// `None` for what is no event of this version.
    pub(crate) event: Option<AuditEvent>,
}

#[derive(Deserialize)]
struct RawHit {
    sort: (i64, String),
    #[serde(rename = "_source")]
    source: Value,
}

/// # Errors
///
/// When the answer is none to a search, or one of a part of the shards.
pub(crate) fn hits(mut answer: Value) -> Result<Vec<Hit>> {
    let complete = answer["_shards"]["failed"] == 0 && answer["timed_out"] == false;
    if !complete {
        return Err(Error::new(
            agents_core::ErrorKind::Unavailable,
            "the search server answered from a part of its data only; see whether its cluster is healthy",
        )
        .temporary(None));
    }
    let hits: Vec<RawHit> = serde_json::from_value(answer["hits"]["hits"].take()).map_err(|error| {
        Error::unexpected(
            "the hits of the search server have another form; see whether the index has the template's mapping",
        )
        .with_source(error)
    })?;
    let hit = |raw: RawHit| Hit {
        at: Cursor {
            place: raw.sort.0,
            id: raw.sort.1,
        },
        event: serde_json::from_value(raw.source).ok(),
    };
    Ok(hits.into_iter().map(hit).collect())
}

/// Drops the hits that are no event's first, by the answer to [`first_places`].
///
/// A data stream keeps ids apart within each of its indices only: what is delivered again after a rollover is there twice.
pub(crate) fn drop_repeats(hits: &mut Vec<Hit>, answer: &Value) {
    let buckets = answer["aggregations"]["events"]["buckets"].as_array();
    let firsts: std::collections::HashMap<_, _> = buckets
        .into_iter()
        .flatten()
        .filter_map(|bucket| {
            let first = &bucket["first"]["hits"]["hits"][0]["_source"]["place"];
            Some((bucket["key"].as_str()?, first.as_i64()?))
        })
        .collect();
    hits.retain(|hit| {
        firsts
            .get(hit.at.id.as_str())
            .is_none_or(|first| *first == hit.at.place)
    });
}

#[cfg(test)]
mod tests {
    use agents_core::{EventType, SessionId, Severity};

    use super::*;

    #[test]
    fn a_search_has_every_condition() {
        let query = AuditQuery::new()
            .with_session(Some(SessionId::new("s").unwrap()))
            .with_user(Some("u".to_owned()))
            .with_event_types(vec![EventType::AgentFailed])
            .with_severity(Some(Severity::Error))
            .with_start_time(Some("2026-01-01T00:00:00.000000001Z".parse().unwrap()));
        let cursor = Cursor::parse("7:e").unwrap();
        let search = request(&query, Some(&cursor), 11).unwrap();
        assert_eq!(
            search["query"]["bool"]["filter"],
            json!([
                {"term": {"session_id": "s"}},
                {"term": {"user_id": "u"}},
                {"terms": {"event_type": ["agent_failed"]}},
                {"range": {"severity_rank": {"gte": 3}}},
                {"range": {"@timestamp": {"gte": "2026-01-01T00:00:00.000000001Z"}}},
            ])
        );
        assert_eq!(
            (&search["size"], &search["search_after"]),
            (&json!(11), &json!([7, "e"]))
        );
        assert!(request(&AuditQuery::new().with_user(Some("u".repeat(1025))), None, 1).is_err());
    }

    #[test]
    fn a_part_of_the_shards_is_no_answer() {
        let answer = |failed: u64, timed_out: bool| {
            json!({"timed_out": timed_out, "_shards": {"failed": failed}, "hits": {"hits": [
                {"sort": [7, "e"], "_source": {"event_id": "e"}},
            ]}})
        };
        let found = hits(answer(0, false)).unwrap();
        assert_eq!((found.len(), found[0].at.to_string().as_str()), (1, "7:e"));
        assert!(found[0].event.is_none());
        assert!(hits(answer(1, false)).unwrap_err().is_temporary());
        assert!(hits(answer(0, true)).is_err());
    }
}
