//! Audit events in the one form that is hashed.

use agents_core::AuditEvent;
use bytes::Bytes;
use serde_json::{Map, Number, Value};

/// The event as JSON in the form that is hashed, without its place in a chain.
///
/// It is compact, has the keys in their order and those of the payload sorted, and one notation for each number: a whole
/// number has neither fraction nor exponent. So an event that a sink stored as a document of its own, with keys in another
/// order or `1.0` for `1`, still has its hash.
pub fn canonical(event: &AuditEvent) -> Bytes {
    let mut out = Vec::with_capacity(512);
    let key = |out: &mut Vec<u8>, name: &str| {
        out.extend_from_slice(if out.is_empty() { b"{\"" } else { b",\"" });
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
    };
    fn optional(out: &mut Vec<u8>, value: Option<&str>) {
        match value {
            Some(value) => text(out, value),
            None => out.extend_from_slice(b"null"),
        }
    }
    key(&mut out, "event_id");
    text(&mut out, &event.event_id);
    key(&mut out, "event_type");
    text(&mut out, event.event_type.as_str());
    key(&mut out, "timestamp");
    text(&mut out, &event.timestamp.to_string());
    key(&mut out, "session_id");
    optional(&mut out, event.session_id.as_ref().map(AsRef::as_ref));
    key(&mut out, "agent_id");
    optional(&mut out, event.agent_id.as_ref().map(AsRef::as_ref));
    key(&mut out, "user_id");
    optional(&mut out, event.user_id.as_deref());
    key(&mut out, "payload");
    object(&mut out, &event.payload);
    key(&mut out, "severity");
    text(&mut out, event.severity.as_str());
    key(&mut out, "tags");
    list(&mut out, &event.tags, |out, tag| text(out, tag));
    out.push(b'}');
    out.into()
}

/// Reads an event back.
pub(crate) fn parse(payload: &[u8]) -> Result<AuditEvent, serde_json::Error> {
    serde_json::from_slice(payload)
}

fn text(out: &mut Vec<u8>, text: &str) {
    // A string is always JSON, and a `Vec` takes everything.
    let _ = serde_json::to_writer(out, text);
}

fn list<T>(out: &mut Vec<u8>, items: &[T], mut each: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        each(out, item);
    }
    out.push(b']');
}

fn object(out: &mut Vec<u8>, map: &Map<String, Value>) {
    // Whether a map of serde_json is sorted depends on a feature that any crate may switch on.
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    out.push(b'{');
    for (n, (key, item)) in entries.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        text(out, key);
        out.push(b':');
        value(out, item);
    }
    out.push(b'}');
}

fn value(out: &mut Vec<u8>, item: &Value) {
    match item {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(item) => out.extend_from_slice(if *item { b"true" } else { b"false" }),
        Value::Number(item) => number(out, item),
        Value::String(item) => text(out, item),
        Value::Array(items) => list(out, items, value),
        Value::Object(map) => object(out, map),
    }
}

/// The largest float below which every whole number is one.
const EXACT: f64 = 9_007_199_254_740_992.0;

fn number(out: &mut Vec<u8>, number: &Number) {
    let whole = number
        .as_f64()
        .filter(|float| number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT);
    let written = match whole {
        // Exact, as the bound says.
        Some(float) => (float as i64).to_string(),
        None => number.to_string(),
    };
    out.extend_from_slice(written.as_bytes());
}

#[cfg(test)]
mod tests {
    use agents_core::{AgentId, ChainLink, EventType, SessionId};
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_the_event_as_serde_writes_it_with_keys_sorted() {
        let mut event = AuditEvent::now(EventType::ArtifactStored)
            .with_fact("a", json!({"a": [1, 2.5, null, true, "x\"\u{1}é"], "b": -7}))
            .with_fact("z", json!([]))
            .with_tag("t")
            .with_tag("u");
        assert_eq!(canonical(&event), serde_json::to_vec(&event).unwrap());
        event.session_id = Some(SessionId::generate());
        event.agent_id = Some(AgentId::new("a").unwrap());
        event.user_id = Some("me".to_owned());
        assert_eq!(canonical(&event), serde_json::to_vec(&event).unwrap());
        assert_eq!(parse(&canonical(&event)).unwrap(), event);
        let linked = event.clone().with_chain(Some(ChainLink::new("w", 1, "a", "b")));
        assert_eq!(canonical(&linked), canonical(&event));
    }

    #[test]
    fn the_notation_of_a_document_does_not_matter() {
        let notation = |json: &str| {
            let mut event: AuditEvent =
                serde_json::from_slice(&canonical(&AuditEvent::now(EventType::SystemError))).unwrap();
            event.event_id = "x".to_owned();
            event.timestamp = jiff::Timestamp::UNIX_EPOCH;
            event.payload = serde_json::from_str(json).unwrap();
            canonical(&event)
        };
        assert_eq!(
            notation(r#"{"b": 1.0, "a": {"y": 1e3, "x": 0.10}, "c": -0.0}"#),
            notation(r#"{"a":{"x":0.1,"y":1000},"b":1,"c":0}"#)
        );
        assert_ne!(notation(r#"{"a": 1}"#), notation(r#"{"a": 1.5}"#));
        assert_ne!(notation(r#"{"a": 1}"#), notation(r#"{"a": "1"}"#));
        // Beyond what floats tell apart.
        assert_ne!(
            notation(r#"{"a": 18446744073709551615}"#),
            notation(r#"{"a": 18446744073709551614}"#)
        );
    }
}
