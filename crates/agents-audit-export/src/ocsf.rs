//! The Open Cybersecurity Schema Framework.

use agents_core::{AuditEvent, Severity};
use serde_json::{Map, Value, json};

/// The version of the schema that [`ocsf`] writes.
pub const OCSF_VERSION: &str = "1.6.0";

const PRODUCT: &str = "Isolated Agents SDK";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    ProcessActivity,
    DetectionFinding,
    ApplicationLifecycle,
    ApiActivity,
    FileHosting,
    ApplicationError,
}

impl Class {
    const fn uid(self) -> u32 {
        match self {
            Self::ProcessActivity => 1007,
            Self::DetectionFinding => 2004,
            Self::ApplicationLifecycle => 6002,
            Self::ApiActivity => 6003,
            Self::FileHosting => 6006,
            Self::ApplicationError => 6008,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::ProcessActivity => "Process Activity",
            Self::DetectionFinding => "Detection Finding",
            Self::ApplicationLifecycle => "Application Lifecycle",
            Self::ApiActivity => "API Activity",
            Self::FileHosting => "File Hosting Activity",
            Self::ApplicationError => "Application Error",
        }
    }

    const fn category(self) -> (u32, &'static str) {
        match self {
            Self::ProcessActivity => (1, "System Activity"),
            Self::DetectionFinding => (2, "Findings"),
            _ => (6, "Application Activity"),
        }
    }
}

const OTHER: u32 = 99;

/// The class and the activity of an event type. What is not known here is a call of ours.
fn class(event_type: &str) -> (Class, u32, &str) {
    match event_type {
        "session_created" | "container_started" => (Class::ApplicationLifecycle, 3, "Start"),
        "session_closed" | "container_stopped" => (Class::ApplicationLifecycle, 4, "Stop"),
        "container_created" => (Class::ApplicationLifecycle, 1, "Install"),
        "container_destroyed" => (Class::ApplicationLifecycle, 2, "Remove"),
        "agent_retry" => (Class::ApplicationLifecycle, 5, "Restart"),
        "agent_launched" | "agent_started" | "agent_interactive_start" => (Class::ProcessActivity, 1, "Launch"),
        "agent_completed" | "agent_failed" | "agent_timeout" => (Class::ProcessActivity, 2, "Terminate"),
        "artifact_stored" => (Class::FileHosting, 1, "Upload"),
        "artifact_retrieved" => (Class::FileHosting, 2, "Download"),
        "artifact_deleted" => (Class::FileHosting, 4, "Delete"),
        "policy_violation"
        | "resource_limit_exceeded"
        | "output_size_exceeded"
        | "network_connection_denied"
        | "filesystem_access_denied"
        | "privilege_escalation_attempt"
        | "security_violation"
        | "unauthorized_access" => (Class::DetectionFinding, 1, "Create"),
        "system_error" | "system_warning" => (Class::ApplicationError, 1, "General Error"),
        "policy_cap_clamped" => (Class::ApiActivity, 3, "Update"),
        other => (Class::ApiActivity, OTHER, other),
    }
}

/// The event in the class of OCSF that fits it. The whole payload and the place in a hash chain are in `unmapped`, so that
/// nothing is lost.
pub fn ocsf(event: &AuditEvent) -> Value {
    let event_type = event.event_type.as_str();
    let (class, activity, activity_name) = class(event_type);
    let (category, category_name) = class.category();
    let (severity_id, severity) = severity(event.severity);
    let mut out = json!({
        "activity_id": activity,
        "activity_name": activity_name,
        "category_uid": category,
        "category_name": category_name,
        "class_uid": class.uid(),
        "class_name": class.name(),
        "type_uid": class.uid() * 100 + activity,
        "type_name": format!("{}: {activity_name}", class.name()),
        "severity_id": severity_id,
        "severity": severity,
        "time": event.timestamp.as_millisecond(),
        "timezone_offset": 0,
        "message": message(event),
        "metadata": metadata(event),
        "unmapped": unmapped(event),
    });
    if let Some((id, name)) = status(event, class) {
        out["status_id"] = id.into();
        out["status"] = name.into();
    }
    if let Some(error) = text(event, "error") {
        out["status_detail"] = error.into();
    }
    match class {
        Class::ProcessActivity => {
            out["actor"] = actor(event);
            out["device"] = device(event);
            out["process"] = process(event);
            if let Some(code) = event.payload.get("exit_code").and_then(Value::as_i64) {
                out["exit_code"] = code.into();
            }
        }
        Class::DetectionFinding => {
            out["finding_info"] = json!({
                "uid": event.event_id,
                "title": title(event_type),
                "types": [event_type],
                "created_time": event.timestamp.as_millisecond(),
                "desc": text(event, "error").or_else(|| text(event, "violation_type")).unwrap_or(event_type),
            });
        }
        Class::ApplicationLifecycle => out["app"] = application(event),
        Class::ApiActivity => {
            out["actor"] = actor(event);
            out["api"] = json!({"operation": text(event, "operation").unwrap_or(event_type)});
            out["src_endpoint"] = source();
        }
        Class::FileHosting => {
            out["actor"] = actor(event);
            out["src_endpoint"] = source();
            out["file"] = file(event);
        }
        Class::ApplicationError => {}
    }
    out
}

fn text<'a>(event: &'a AuditEvent, key: &str) -> Option<&'a str> {
    event.payload.get(key)?.as_str().filter(|text| !text.is_empty())
}

fn severity(severity: Severity) -> (u32, &'static str) {
    match severity {
        Severity::Debug | Severity::Info => (1, "Informational"),
        Severity::Warning => (3, "Medium"),
        Severity::Error => (4, "High"),
        Severity::Critical => (5, "Critical"),
    }
}

/// Only what the event says: an intent has no status yet.
fn status(event: &AuditEvent, class: Class) -> Option<(u32, &'static str)> {
    if class == Class::DetectionFinding {
        return Some((1, "New"));
    }
    let success = match event.event_type.as_str() {
        "session_closed" => text(event, "status")? == "completed",
        "agent_failed" | "agent_timeout" | "system_error" => false,
        "agent_completed" | "policy_validated" | "policy_cap_clamped" => true,
        "artifact_stored" | "artifact_retrieved" | "artifact_deleted" => true,
        "container_created" | "container_started" | "container_stopped" | "container_destroyed" => true,
        _ => return None,
    };
    Some(if success { (1, "Success") } else { (2, "Failure") })
}

fn title(event_type: &str) -> String {
    let words = event_type.replace('_', " ");
    let mut letters = words.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

fn message(event: &AuditEvent) -> String {
    let title = title(event.event_type.as_str());
    match text(event, "error") {
        Some(error) => format!("{title}: {error}"),
        None => title,
    }
}

fn metadata(event: &AuditEvent) -> Value {
    let mut metadata = json!({
        "version": OCSF_VERSION,
        "product": product(),
        "uid": event.event_id,
        "event_code": event.event_type,
        "original_time": event.timestamp.to_string(),
        "log_name": "audit",
        "log_provider": PRODUCT,
    });
    if let Some(session) = &event.session_id {
        metadata["correlation_uid"] = session.as_str().into();
    }
    if let Some(chain) = &event.chain {
        metadata["sequence"] = chain.sequence.into();
    }
    if !event.tags.is_empty() {
        metadata["labels"] = json!(event.tags);
    }
    metadata
}

fn product() -> Value {
    json!({"name": PRODUCT, "vendor_name": PRODUCT, "version": env!("CARGO_PKG_VERSION")})
}

fn unmapped(event: &AuditEvent) -> Value {
    let mut unmapped = Map::new();
    unmapped.insert("payload".to_owned(), Value::Object(event.payload.clone()));
    if let Some(agent) = &event.agent_id {
        unmapped.insert("agent_id".to_owned(), agent.as_str().into());
    }
    if let Some(chain) = &event.chain {
        unmapped.insert("chain".to_owned(), json!(chain));
    }
    Value::Object(unmapped)
}

fn actor(event: &AuditEvent) -> Value {
    let mut actor = json!({"app_name": PRODUCT});
    if let Some(session) = &event.session_id {
        actor["session"] = json!({"uid": session});
    }
    if let Some(user) = event.user_id.as_deref().filter(|user| !user.is_empty()) {
        actor["user"] = json!({"name": user});
    }
    actor
}

/// The session is the machine that its agent sees.
fn device(event: &AuditEvent) -> Value {
    let uid = event.session_id.as_ref().map_or(event.event_id.as_str(), AsRef::as_ref);
    json!({"type_id": OTHER, "type": "Sandbox", "uid": uid})
}

fn process(event: &AuditEvent) -> Value {
    let uid = event.session_id.as_ref().map_or(event.event_id.as_str(), AsRef::as_ref);
    let mut process = json!({"uid": uid});
    if let Some(agent) = &event.agent_id {
        process["name"] = agent.as_str().into();
    }
    match event.payload.get("command") {
        Some(Value::Array(words)) => {
            let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
            process["cmd_line"] = words.join(" ").into();
        }
        Some(Value::String(line)) => process["cmd_line"] = line.as_str().into(),
        _ => {}
    }
    process
}

/// The container where the event is about one, else the agent.
fn application(event: &AuditEvent) -> Value {
    let container = text(event, "container_id");
    let agent = event.agent_id.as_ref().map(AsRef::as_ref);
    let session = event.session_id.as_ref().map(AsRef::as_ref);
    let name = text(event, "name").or(container).or(agent).unwrap_or(PRODUCT);
    let uid = container.or(session).unwrap_or(event.event_id.as_str());
    json!({"name": name, "uid": uid, "vendor_name": PRODUCT})
}

fn source() -> Value {
    json!({"svc_name": "isolated-agents"})
}

fn file(event: &AuditEvent) -> Value {
    let name = text(event, "name").or_else(|| text(event, "uri")).unwrap_or("unknown");
    let mut file = json!({"name": name, "type_id": 1, "type": "Regular File"});
    if let Some(uri) = text(event, "uri") {
        file["path"] = uri.into();
    }
    if let Some(size) = event.payload.get("size").and_then(Value::as_u64) {
        file["size"] = size.into();
    }
    if let Some(version) = text(event, "version") {
        file["version"] = version.into();
    }
    if let Some(hash) = text(event, "sha256") {
        file["hashes"] = json!([{"algorithm_id": 3, "algorithm": "SHA-256", "value": hash}]);
    }
    file
}

#[cfg(test)]
mod tests;
