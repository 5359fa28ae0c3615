//! CloudEvents 1.0 in the JSON format.

use agents_core::AuditEvent;
use serde_json::{Map, Value, json};

use crate::TraceContext;

/// The `source` of every event: the trail. Together with the `id` it is unique, since the `id` alone is.
pub const CLOUDEVENTS_SOURCE: &str = "/isolated-agents/audit";

/// What stands before the event type in `type`.
pub const CLOUDEVENTS_TYPE_PREFIX: &str = "dev.isolated-agents.audit.";

/// The event as a CloudEvent in structured mode. `data` is the record as it is, its place in a hash chain included, so
/// that the trail can be verified at the other end.
pub fn cloudevent(event: &AuditEvent) -> Value {
    let mut out = Map::new();
    let mut set = |key: &str, value: Value| out.insert(key.to_owned(), value);
    set("specversion", "1.0".into());
    set("id", event.event_id.as_str().into());
    set("source", CLOUDEVENTS_SOURCE.into());
    set("type", format!("{CLOUDEVENTS_TYPE_PREFIX}{}", event.event_type).into());
    set("time", event.timestamp.to_string().into());
    if let Some(session) = &event.session_id {
        set("subject", session.as_str().into());
    }
    // Names of extension attributes are lower-case letters and digits alone.
    set("severity", event.severity.as_str().into());
    if let Some(trace) = TraceContext::of(event) {
        let traceparent = format!("00-{}-{}-01", trace.trace_id(), trace.span_id());
        set("traceparent", traceparent.into());
    }
    set("datacontenttype", "application/json".into());
    set("data", json!(event));
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use agents_core::{AgentId, ChainLink, EventType, SessionId};

    use super::*;

    /// The rules of the JSON Schema that the specification publishes, with the formats checked, and those for the names of
    /// attributes, which are only in its words.
    fn schema() -> jsonschema::Validator {
        let schema = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "required": ["id", "source", "specversion", "type"],
            "propertyNames": {"pattern": "^([a-z0-9]{1,20}|data_base64)$"},
            "properties": {
                "id": {"type": "string", "minLength": 1},
                "source": {"type": "string", "format": "uri-reference", "minLength": 1},
                "specversion": {"const": "1.0"},
                "type": {"type": "string", "minLength": 1, "pattern": "^[a-z][a-z0-9-]*(\\.[a-z][a-z0-9_-]*)+$"},
                "datacontenttype": {"type": ["string", "null"], "minLength": 1},
                "dataschema": {"type": ["string", "null"], "format": "uri", "minLength": 1},
                "subject": {"type": ["string", "null"], "minLength": 1},
                "time": {"type": ["string", "null"], "format": "date-time", "minLength": 1},
                "data": {"type": ["object", "string", "number", "array", "boolean", "null"]},
                "data_base64": {"type": ["string", "null"], "contentEncoding": "base64"},
                "traceparent": {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"}
            },
            "not": {"required": ["data", "data_base64"]}
        });
        jsonschema::options()
            .should_validate_formats(true)
            .build(&schema)
            .unwrap()
    }

    #[test]
    fn every_event_keeps_the_rules_of_the_specification() {
        let schema = schema();
        for event_type in EventType::ALL {
            let bare = AuditEvent::now(*event_type);
            let full = bare
                .clone()
                .with_session(SessionId::generate())
                .with_agent(AgentId::new("a").unwrap())
                .with_user(Some("me".to_owned()))
                .with_fact("trace_id", "0af7651916cd43dd8448eb211c80319c")
                .with_fact("span_id", "b7ad6b7169203331")
                .with_chain(Some(ChainLink::new("w", 1, "a", "b")));
            for event in [bare, full] {
                let made = cloudevent(&event);
                let faults: Vec<_> = schema.iter_errors(&made).map(|fault| fault.to_string()).collect();
                assert!(faults.is_empty(), "{faults:?} in {made}");
                let back: AuditEvent = serde_json::from_value(made["data"].clone()).unwrap();
                assert_eq!(back, event, "nothing is lost");
                assert_eq!(
                    made.get("subject").and_then(Value::as_str),
                    event.session_id.as_ref().map(SessionId::as_str)
                );
                assert_eq!(made.get("traceparent").is_some(), event.chain.is_some());
            }
        }
    }

    #[test]
    fn the_rules_can_be_broken() {
        let schema = schema();
        for (key, value) in [
            ("id", json!("")),
            ("specversion", json!("0.3")),
            ("subject", json!("")),
            ("time", json!("yesterday")),
            ("Type", json!("x")),
            ("data_base64", json!("")),
        ] {
            let mut made = cloudevent(&AuditEvent::now(EventType::SystemError));
            made[key] = value;
            assert!(!schema.is_valid(&made), "{key}");
        }
    }
}
