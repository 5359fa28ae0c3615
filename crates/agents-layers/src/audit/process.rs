//! A process whose end, and what is done to it meanwhile, is on record.

use std::sync::Arc;

use agents_core::{
    AuditClass, ContainerId, Error, ErrorKind, ExecControl, ExecEvent, ExecSession, Exit, KillReason, Result,
    StartFailure,
};
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{
    Trail,
    operation::{Intent, Operation, facts},
};

/// The session, with the outcome where it ends.
pub(super) fn record(
    trail: &Trail,
    container: ContainerId,
    operation: Operation,
    started: Result<ExecSession>,
) -> Result<ExecSession> {
    let mut session = match started {
        Ok(session) => session,
        Err(error) => {
            operation.fail(&error);
            return Err(error);
        }
    };
    let stdin = session.take_stdin();
    let control = RecordedControl {
        inner: session.control(),
        trail: trail.clone(),
        container,
    };
    let events = stream::unfold((session, Some(operation)), |(mut session, mut operation)| async move {
        let event = session.next().await;
        let is_output = matches!(event, Some(Ok(ExecEvent::Stdout(_) | ExecEvent::Stderr(_))));
        if !is_output && let Some(operation) = operation.take() {
            match &event {
                Some(Ok(ExecEvent::Exit(exit))) => end(operation, exit),
                Some(Err(error)) => operation.fail(error),
                _ => operation.unknown("the output ended without an exit"),
            }
        }
        event.map(|event| (event, (session, operation)))
    });
    Ok(ExecSession::new(events.boxed(), stdin, Arc::new(control)))
}

fn end(operation: Operation, exit: &Exit) {
    match exit {
        Exit::RuntimeLost { reason } => operation.unknown(reason),
        Exit::NotStarted { reason, message } => {
            let kind = match reason {
                StartFailure::NotFound => ErrorKind::NotFound,
                StartFailure::NotExecutable => ErrorKind::PermissionDenied,
                StartFailure::Refused => ErrorKind::Unexpected,
            };
            operation.fail(&Error::new(kind, message.as_str()));
        }
        _ => operation.succeed(facts(json!({"ending": exit, "exit_code": exit.code()}))),
    }
}

#[derive(Debug)]
struct RecordedControl {
    inner: Arc<dyn ExecControl>,
    trail: Trail,
    container: ContainerId,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ExecControl for RecordedControl {
    async fn kill(&self, reason: KillReason) -> Result<()> {
        let known = json!({"container_id": self.container, "reason": reason});
        let intent = Intent::new("runtime.kill", AuditClass::Destroy, known);
        let operation = Operation::begin_unwaited(&self.trail, intent);
        self.trail.flush_now();
        operation.settle(self.inner.kill(reason).await, |()| Value::Null)
    }

    async fn signal(&self, signal: i32) -> Result<()> {
        let known = json!({"container_id": self.container, "signal": signal});
        let intent = Intent::new("runtime.signal", AuditClass::Exec, known);
        let operation = Operation::begin(&self.trail, intent).await?;
        operation.settle(self.inner.signal(signal).await, |()| Value::Null)
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        self.inner.resize(rows, columns).await
    }

    /// The session inside is dropped with the one outside, and abandons by itself.
    fn abandon(&self) {}
}
