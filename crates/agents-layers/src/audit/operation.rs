//! One operation: an intent before, an outcome after.

use std::time::{Duration, Instant};

use agents_core::{AuditClass, Error, ErrorKind, EventType, Result, Severity};
use serde_json::{Map, Value};

use super::Trail;

/// What is known of an operation.
pub(super) type Facts = Map<String, Value>;

/// The facts of an object that was written with `json!`. What is null is not known, and is left out.
pub(super) fn facts(object: Value) -> Facts {
    match object {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Facts::new(),
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeeded,
    Failed,
    /// It was not done.
    Refused,
    /// Nobody was there to see.
    Unknown,
}

impl Outcome {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }

    pub(super) fn severity(self) -> Severity {
        match self {
            Self::Succeeded => Severity::Info,
            Self::Failed | Self::Refused | Self::Unknown => Severity::Warning,
        }
    }
}

/// What is about to be done.
pub(super) struct Intent {
    operation: &'static str,
    classes: Vec<AuditClass>,
    facts: Facts,
}

impl Intent {
    pub(super) fn new(operation: &'static str, class: AuditClass, known: Value) -> Self {
        Self {
            operation,
            classes: vec![class],
            facts: facts(known),
        }
    }

    /// It is of this class too.
    pub(super) fn and(mut self, class: AuditClass, also: bool) -> Self {
        self.classes.extend(also.then_some(class));
        self
    }
}

/// An operation whose intent was given to the trail. It has one outcome: when it is dropped without one, that is `unknown`,
/// or `refused` when it had not begun.
pub(super) struct Operation {
    trail: Trail,
    id: String,
    name: &'static str,
    class: AuditClass,
    best_effort: bool,
    /// When it began.
    began: Option<Instant>,
    ended: bool,
}

impl Operation {
    /// Returns once the intent is durable.
    ///
    /// # Errors
    ///
    /// The sink's, which means that the operation must not be done.
    pub(super) async fn begin(trail: &Trail, intent: Intent) -> Result<Self> {
        let (mut operation, end) = Self::announce(trail, intent);
        if let Err(error) = trail.write(end).await
            && !operation.best_effort
        {
            let class = operation.class;
            let message = format!(
                "the audit trail cannot be written, and nothing is done without a record, so {} was not done; make the \
                 audit sink work, or set audit_trail.classes.{class} to best_effort",
                operation.name
            );
            let refusal = trail.refusal(message, error);
            operation.end(Outcome::Refused, of_error(&refusal));
            return Err(refusal);
        }
        operation.began = Some(Instant::now());
        Ok(operation)
    }

    /// Does not wait: for what only makes safe, and for what changes nothing.
    pub(super) fn begin_unwaited(trail: &Trail, intent: Intent) -> Self {
        let (mut operation, _) = Self::announce(trail, intent);
        operation.began = Some(Instant::now());
        operation
    }

    fn announce(trail: &Trail, intent: Intent) -> (Self, u64) {
        let Intent {
            operation: name,
            classes,
            facts,
        } = intent;
        let required = classes.iter().copied().find(|class| !trail.is_best_effort(*class));
        let operation = Self {
            trail: trail.clone(),
            id: uuid::Uuid::now_v7().to_string(),
            name,
            // The one that holds it up, if any does.
            class: required
                .or_else(|| classes.first().copied())
                .unwrap_or(AuditClass::Provision),
            best_effort: required.is_none(),
            began: None,
            ended: false,
        };
        let mut event = trail
            .event(EventType::OperationIntended)
            .with_fact("operation_id", operation.id.as_str())
            .with_fact("operation", name)
            .with_fact(
                "classes",
                classes.iter().map(|class| class.as_str()).collect::<Vec<_>>(),
            );
        event.payload.extend(facts);
        let end = trail.push(event, operation.best_effort.then_some(operation.class));
        (operation, end)
    }

    fn end(&mut self, outcome: Outcome, facts: Facts) {
        self.ended = true;
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let mut event = self
            .trail
            .event(EventType::OperationEnded)
            .with_severity(outcome.severity())
            .with_fact("operation_id", self.id.as_str())
            .with_fact("operation", self.name)
            .with_fact("outcome", outcome.as_str());
        if let Some(began) = self.began {
            event = event.with_fact("duration_ms", milliseconds(began.elapsed()));
        }
        event.payload.extend(facts);
        self.trail.push(event, self.best_effort.then_some(self.class));
        self.trail.flush_soon();
    }

    pub(super) fn succeed(mut self, facts: Facts) {
        self.end(Outcome::Succeeded, facts);
    }

    pub(super) fn fail(mut self, error: &Error) {
        let outcome = match error.kind() {
            // Those who say so have not begun.
            ErrorKind::Unsupported | ErrorKind::ConfigInvalid | ErrorKind::PolicyDenied => Outcome::Refused,
            _ => Outcome::Failed,
        };
        self.end(outcome, of_error(error));
    }

    pub(super) fn unknown(mut self, reason: &str) {
        self.end(Outcome::Unknown, facts(serde_json::json!({ "reason": reason })));
    }

    /// Ends it by a result, with what is known of a success.
    pub(super) fn settle<T>(self, result: Result<T>, known: impl FnOnce(&T) -> Value) -> Result<T> {
        match &result {
            Ok(value) => self.succeed(facts(known(value))),
            Err(error) => self.fail(error),
        }
        result
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (outcome, reason) = match self.began {
            Some(_) => (Outcome::Unknown, "cancelled"),
            None => (Outcome::Refused, "cancelled before it began"),
        };
        self.end(outcome, facts(serde_json::json!({ "reason": reason })));
    }
}

fn of_error(error: &Error) -> Facts {
    facts(serde_json::json!({"error_kind": error.kind().as_str(), "error": error.report()}))
}
