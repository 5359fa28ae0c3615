//! No record, no action.

use std::sync::Arc;

use agents_core::{AgentId, AuditEvent, AuditLogger, Error, EventType, Result, SessionId, Severity};
use serde_json::Value;

use crate::redact::Redactor;

/// Writes a session's events.
#[derive(Clone, Debug)]
pub(crate) struct Auditor {
    pub(crate) logger: Arc<dyn AuditLogger>,
    pub(crate) session_id: SessionId,
    pub(crate) agent_id: AgentId,
    pub(crate) user_id: Option<String>,
    pub(crate) redactor: Redactor,
}

impl Auditor {
    pub(crate) fn event(&self, event_type: EventType) -> AuditEvent {
        AuditEvent::now(event_type)
            .with_session(self.session_id.clone())
            .with_agent(self.agent_id.clone())
            .with_user(self.user_id.clone())
            .with_severity(severity(event_type))
    }

    /// Returns once all events are durable.
    pub(crate) async fn emit(&self, mut events: Vec<AuditEvent>) -> Result<()> {
        for event in &mut events {
            if let Value::Object(payload) = self.redactor.value(Value::Object(std::mem::take(&mut event.payload))) {
                event.payload = payload;
            }
        }
        emit(&*self.logger, events).await
    }
}

/// Writes events as they are, and returns once all are durable.
pub(crate) async fn emit(logger: &dyn AuditLogger, events: Vec<AuditEvent>) -> Result<()> {
    let written = match logger.emit_batch(events).await {
        Ok(results) => results.into_iter().collect::<Result<Vec<()>>>().map(drop),
        Err(error) => Err(error),
    };
    written.map_err(|error| {
        Error::new(
            error.kind(),
            "the audit trail cannot be written, and nothing is done without a record; make the audit sink work",
        )
        .with_context("audit", logger.location())
        .with_operation("audit")
        .with_source(error)
    })
}

fn severity(event_type: EventType) -> Severity {
    match event_type {
        EventType::PolicyViolation
        | EventType::AgentFailed
        | EventType::AgentTimeout
        | EventType::ResourceLimitExceeded
        | EventType::OutputSizeExceeded
        | EventType::AgentRetry
        | EventType::PolicyCapClamped
        | EventType::SystemWarning => Severity::Warning,
        EventType::SystemError => Severity::Error,
        EventType::SecurityViolation => Severity::Critical,
        _ => Severity::Info,
    }
}
