//! An event as a log.
//!
//! The event itself is the text `audit.record`, letter by letter: Datadog changes attributes (it drops nulls, rounds numbers and
//! has limits for names and depth), and a query must give back what was written. The other attributes are there to find it by.

use agents_core::{AuditEvent, Error, ErrorKind, Result, Severity};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::config::DatadogAuditConfig;

/// What logs are filed under as their source, and looked for.
pub(crate) const SOURCE: &str = "isolated-agents";

/// Datadog cuts a log that is larger, and a record that was cut is none. It does not say which megabyte it means.
pub(crate) const MAX_LOG: usize = 1_000_000;

/// The longest event id, which is a UUID of 36 characters.
const MAX_ID: usize = 64;

#[derive(Serialize)]
struct Log<'e> {
    ddsource: &'static str,
    service: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'e str>,
    ddtags: String,
    message: String,
    status: &'static str,
    /// In milliseconds; a default attribute for the official time.
    timestamp: i64,
    audit: Attributes<'e>,
}

#[derive(Serialize)]
struct Attributes<'e> {
    event_id: &'e str,
    event_type: &'static str,
    session_id: Option<&'e str>,
    agent_id: Option<&'e str>,
    user_id: Option<&'e str>,
    user_hash: Option<String>,
    severity: &'static str,
    /// A text, since a number of this size would be rounded.
    place: String,
    record: String,
}

/// The log of an event, as JSON.
///
/// # Errors
///
/// `DataInvalid` for one that cannot be stored whole.
pub(crate) fn log(event: &AuditEvent, place: i64, config: &DatadogAuditConfig) -> Result<String> {
    let refuse = |what: String| Err(Error::new(ErrorKind::DataInvalid, what));
    let id = &event.event_id;
    if id.is_empty()
        || id.len() > MAX_ID
        || !id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        return refuse(format!(
            "the event id {id:?} must have 1 to {MAX_ID} letters, digits, '-', '_' and '.'; use a UUID"
        ));
    }
    let no_json = |error| Error::unexpected(format!("the {} event is no JSON", event.event_type)).with_source(error);
    let log = Log {
        ddsource: SOURCE,
        service: &config.service,
        hostname: config.hostname.as_deref(),
        ddtags: tags(event, &config.tags),
        message: message(event),
        status: status(event.severity),
        timestamp: place / 1_000_000,
        audit: Attributes {
            event_id: id,
            event_type: event.event_type.as_str(),
            session_id: event.session_id.as_ref().map(AsRef::as_ref),
            agent_id: event.agent_id.as_ref().map(AsRef::as_ref),
            user_id: event.user_id.as_deref(),
            user_hash: event.user_id.as_deref().map(user_hash),
            severity: event.severity.as_str(),
            place: place.to_string(),
            record: serde_json::to_string(event).map_err(no_json)?,
        },
    };
    let json = serde_json::to_string(&log).map_err(no_json)?;
    if json.len() > MAX_LOG {
        return refuse(format!(
            "the {} event has {} bytes as a log, and a log has at most {MAX_LOG}; put large data into an artifact",
            event.event_type,
            json.len()
        ));
    }
    Ok(json)
}

/// Tags, for people: Datadog writes their letters small.
fn tags(event: &AuditEvent, more: &str) -> String {
    let mut tags = format!("event_type:{},severity:{}", event.event_type, event.severity);
    for (key, value) in [
        ("session_id", event.session_id.as_ref().map(ToString::to_string)),
        ("agent_id", event.agent_id.as_ref().map(ToString::to_string)),
    ] {
        if let Some(value) = value {
            tags.push_str(&format!(",{key}:{value}"));
        }
    }
    for tag in more.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
        tags.push(',');
        tags.push_str(tag);
    }
    tags
}

/// A line for people. Not the event's JSON, which Datadog would take apart.
fn message(event: &AuditEvent) -> String {
    let mut line = event.event_type.to_string();
    if let Some(session) = &event.session_id {
        line.push_str(&format!(" session {session}"));
    }
    if let Some(agent) = &event.agent_id {
        line.push_str(&format!(" agent {agent}"));
    }
    line
}

/// A user's name may be any text, which a search could not hold.
pub(crate) fn user_hash(user: &str) -> String {
    let digest = Sha256::digest(user.as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The status that Datadog knows.
fn status(severity: Severity) -> &'static str {
    match severity {
        Severity::Debug => "debug",
        Severity::Info => "info",
        Severity::Warning => "warn",
        Severity::Error => "error",
        Severity::Critical => "critical",
    }
}

#[cfg(test)]
mod tests {
    use agents_core::{EventType, SessionId};
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_log_holds_the_event_as_it_is() {
        let event = AuditEvent::now(EventType::AgentFailed)
            .with_session(SessionId::new("S-1").unwrap())
            .with_user(Some("a \"b\"\0".to_owned()))
            .with_severity(Severity::Warning)
            .with_fact("n", 1.5);
        let config = DatadogAuditConfig::default().with_tags(" env:prod, ,team:x");
        let json: Value = serde_json::from_str(&log(&event, 1_700_000_000_123_456_789, &config).unwrap()).unwrap();
        assert_eq!(json["timestamp"], 1_700_000_000_123_i64);
        assert_eq!(json["status"], "warn");
        assert_eq!(
            json["ddtags"],
            "event_type:agent_failed,severity:warning,session_id:S-1,env:prod,team:x"
        );
        assert_eq!(json["message"], "agent_failed session S-1");
        assert_eq!(json["audit"]["place"], "1700000000123456789");
        assert_eq!(json["audit"]["user_hash"].as_str().unwrap().len(), 32);
        let record = json["audit"]["record"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<AuditEvent>(record).unwrap(), event);
    }

    #[test]
    fn what_cannot_be_stored_whole_is_refused() {
        let config = DatadogAuditConfig::default();
        let huge = AuditEvent::now(EventType::AgentFailed).with_fact("x", "\"".repeat(300_000));
        let error = log(&huge, 1, &config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataInvalid);
        assert!(error.message().contains("artifact"), "{error}");
        for id in ["", "a b", "a\"b", &"x".repeat(65)] {
            let mut event = AuditEvent::now(EventType::AgentFailed);
            event.event_id = id.to_owned();
            assert!(log(&event, 1, &config).is_err(), "{id:?}");
        }
    }
}
