//! An event as a log record of the OpenTelemetry data model, in the JSON of protocol buffers.

use agents_core::{AuditEvent, Error, ErrorKind, Result, Severity};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::OtlpAuditConfig;

/// What stands before the event type in the name of the event.
const NAME: &str = "isolated_agents.";

/// One log record. The body is the event as JSON, its place in a hash chain included, so that nothing is lost whatever a
/// backend does with attributes.
pub(crate) fn log_record(event: &AuditEvent, observed: Timestamp) -> Result<String> {
    let body = serde_json::to_string(event).map_err(|error| {
        Error::new(ErrorKind::DataInvalid, "the event cannot be written as JSON").with_source(error)
    })?;
    let (number, text) = severity(event.severity);
    let mut record = json!({
        "timeUnixNano": nanoseconds(event.timestamp),
        "observedTimeUnixNano": nanoseconds(observed),
        "severityNumber": number,
        "severityText": text,
        "eventName": format!("{NAME}{}", event.event_type),
        "body": {"stringValue": body},
        "attributes": attributes(event),
    });
    if let Some((trace, span)) = trace(event) {
        record["traceId"] = trace.into();
        record["spanId"] = span.into();
    }
    Ok(record.to_string())
}

/// A request with log records that are JSON already.
pub(crate) fn request(records: &[String], config: &OtlpAuditConfig) -> String {
    let mut resource = vec![attribute("service.name", string(&config.service_name))];
    let further = config.resource_attributes.iter();
    resource.extend(further.map(|(key, value)| attribute(key, string(value))));
    let scope = json!({"name": "agents-audit-otlp", "version": env!("CARGO_PKG_VERSION")});
    // Put together by hand, since the records were written to know their size.
    format!(
        r#"{{"resourceLogs":[{{"resource":{{"attributes":{}}},"scopeLogs":[{{"scope":{scope},"logRecords":[{}]}}]}}]}}"#,
        Value::Array(resource),
        records.join(",")
    )
}

/// The ranges of the data model: DEBUG, INFO, WARN, ERROR, FATAL.
fn severity(severity: Severity) -> (u32, &'static str) {
    match severity {
        Severity::Debug => (5, "DEBUG"),
        Severity::Info => (9, "INFO"),
        Severity::Warning => (13, "WARN"),
        Severity::Error => (17, "ERROR"),
        Severity::Critical => (21, "FATAL"),
    }
}

/// A `fixed64`, which is a string in JSON. Before 1970 there is only "unknown".
fn nanoseconds(time: Timestamp) -> String {
    u64::try_from(time.as_nanosecond()).unwrap_or(0).to_string()
}

/// The trace and the span that the payload names, if they are those of W3C.
fn trace(event: &AuditEvent) -> Option<(&str, &str)> {
    let id = |key: &str, digits| {
        let id = event.payload.get(key)?.as_str()?;
        let hex = id.len() == digits && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (hex && id.bytes().any(|byte| byte != b'0')).then_some(id)
    };
    Some((id("trace_id", 32)?, id("span_id", 16)?))
}

fn attributes(event: &AuditEvent) -> Vec<Value> {
    let mut attributes = vec![
        attribute("log.record.uid", string(&event.event_id)),
        attribute("isolated_agents.event_type", string(event.event_type.as_str())),
    ];
    let mut add = |key: &str, value: Option<&str>| {
        attributes.extend(value.map(|value| attribute(key, string(value))));
    };
    add("session.id", event.session_id.as_ref().map(AsRef::as_ref));
    add("isolated_agents.agent.id", event.agent_id.as_ref().map(AsRef::as_ref));
    add("user.id", event.user_id.as_deref());
    if !event.tags.is_empty() {
        let tags: Vec<_> = event.tags.iter().map(|tag| string(tag)).collect();
        attributes.push(attribute("isolated_agents.tags", array(tags)));
    }
    // What is nested is for the body: hardly a backend lets anybody look for it.
    for (key, value) in &event.payload {
        if let Some(value) = simple(value) {
            attributes.push(attribute(&format!("isolated_agents.payload.{key}"), value));
        }
    }
    attributes
}

fn attribute(key: &str, value: Value) -> Value {
    json!({"key": key, "value": value})
}

fn string(text: &str) -> Value {
    json!({"stringValue": text})
}

fn array(values: Vec<Value>) -> Value {
    json!({"arrayValue": {"values": values}})
}

/// A value without structure, or a list of such.
fn simple(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => Some(string(text)),
        Value::Bool(is) => Some(json!({"boolValue": is})),
        Value::Number(number) => Some(match (number.as_i64(), number.as_f64()) {
            // An `int64` is a string in JSON.
            (Some(whole), _) => json!({"intValue": whole.to_string()}),
            (None, Some(float)) => json!({"doubleValue": float}),
            (None, None) => return None,
        }),
        Value::Array(items) => {
            let strings: Option<Vec<_>> = items.iter().map(|item| item.as_str().map(string)).collect();
            strings.map(array)
        }
        Value::Null | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use agents_core::{AgentId, ChainLink, EventType, SessionId};

    use super::*;

    fn event() -> AuditEvent {
        let mut event = AuditEvent::now(EventType::ArtifactStored)
            .with_session(SessionId::new("s1").unwrap())
            .with_agent(AgentId::new("a").unwrap())
            .with_user(Some("me".to_owned()))
            .with_severity(Severity::Critical)
            .with_fact("size", 7)
            .with_fact("share", 0.5)
            .with_fact("huge", u64::MAX)
            .with_fact("command", json!(["a", "b"]))
            .with_fact("nested", json!({"x": 1}))
            .with_fact("nothing", Value::Null)
            .with_fact("trace_id", "0af7651916cd43dd8448eb211c80319c")
            .with_fact("span_id", "b7ad6b7169203331")
            .with_tag("t")
            .with_chain(Some(ChainLink::new("w", 1, "p", "h")));
        event.timestamp = "2026-11-24T12:00:00.000000001Z".parse().unwrap();
        event
    }

    #[test]
    fn an_event_is_a_record_of_the_data_model() {
        let event = event();
        let record: Value = serde_json::from_str(&log_record(&event, Timestamp::UNIX_EPOCH).unwrap()).unwrap();
        assert_eq!(record["timeUnixNano"], "1795521600000000001");
        assert_eq!(record["observedTimeUnixNano"], "0");
        assert_eq!(
            (&record["severityNumber"], &record["severityText"]),
            (&json!(21), &json!("FATAL"))
        );
        assert_eq!(record["eventName"], "isolated_agents.artifact_stored");
        assert_eq!(record["traceId"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(record["spanId"], "b7ad6b7169203331");
        let body: AuditEvent = serde_json::from_str(record["body"]["stringValue"].as_str().unwrap()).unwrap();
        assert_eq!(body, event, "nothing is lost");
        let of = |key: &str| {
            let found = record["attributes"]
                .as_array()
                .unwrap()
                .iter()
                .find(|attribute| attribute["key"] == key);
            found.map(|attribute| attribute["value"].clone())
        };
        assert_eq!(of("log.record.uid"), Some(json!({"stringValue": event.event_id})));
        assert_eq!(of("session.id"), Some(json!({"stringValue": "s1"})));
        assert_eq!(of("user.id"), Some(json!({"stringValue": "me"})));
        assert_eq!(of("isolated_agents.payload.size"), Some(json!({"intValue": "7"})));
        assert_eq!(of("isolated_agents.payload.share"), Some(json!({"doubleValue": 0.5})));
        assert!(of("isolated_agents.payload.huge").unwrap().get("doubleValue").is_some());
        assert_eq!(
            of("isolated_agents.payload.command"),
            Some(json!({"arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}}))
        );
        assert_eq!(of("isolated_agents.payload.nested"), None);
        assert_eq!(of("isolated_agents.payload.nothing"), None);
    }

    #[test]
    fn what_is_no_trace_of_w3c_is_none() {
        for (trace_id, span_id) in [
            ("", "b7ad6b7169203331"),
            ("0AF7651916CD43DD8448EB211C80319C", "b7ad6b7169203331"),
            ("00000000000000000000000000000000", "b7ad6b7169203331"),
            ("0af7651916cd43dd8448eb211c80319c", "b7ad"),
        ] {
            let event = event().with_fact("trace_id", trace_id).with_fact("span_id", span_id);
            let record: Value = serde_json::from_str(&log_record(&event, event.timestamp).unwrap()).unwrap();
            assert!(record.get("traceId").is_none() && record.get("spanId").is_none());
        }
    }

    #[test]
    fn a_request_says_whose_records_they_are() {
        let config = OtlpAuditConfig::default().with_resource_attribute("a\"", "b");
        let made: Value = serde_json::from_str(&request(&["{}".to_owned(), "{}".to_owned()], &config)).unwrap();
        let logs = &made["resourceLogs"][0];
        assert_eq!(
            logs["resource"]["attributes"],
            json!([
                {"key": "service.name", "value": {"stringValue": "isolated-agents"}},
                {"key": "a\"", "value": {"stringValue": "b"}}
            ])
        );
        assert_eq!(logs["scopeLogs"][0]["logRecords"], json!([{}, {}]));
    }
}
