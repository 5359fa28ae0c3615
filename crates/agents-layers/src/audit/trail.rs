//! The records of one session: in order, in as few durable appends as possible, and without secrets.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agents_core::{
    AgentId, AuditClass, AuditEvent, AuditLogger, AuditSettings, CommandRecord, EnvironmentRecord, Error, EventType,
    Requirement, Result, SecretBytes, SessionId, Severity,
};
use serde_json::{Map, Value};

use super::{AuditKey, Redactor};

/// How long a record that nobody waits for may wait for company.
const COMPANY: Duration = Duration::from_millis(50);

/// Whose operations a trail records, and what must not be shown in it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Scope {
    /// The session.
    pub session_id: Option<SessionId>,
    /// The agent.
    pub agent_id: Option<AgentId>,
    /// Who asked for it.
    pub user_id: Option<String>,
    /// Values that are replaced by their HMAC wherever they appear. Those of less than four bytes cannot be found.
    pub secrets: Vec<SecretBytes>,
}

impl Scope {
    /// Of nobody in particular.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the session.
    #[must_use]
    pub fn with_session(mut self, session_id: Option<SessionId>) -> Self {
        self.session_id = session_id;
        self
    }

    /// Sets the agent.
    #[must_use]
    pub fn with_agent(mut self, agent_id: Option<AgentId>) -> Self {
        self.agent_id = agent_id;
        self
    }

    /// Sets who asked for it.
    #[must_use]
    pub fn with_user(mut self, user_id: Option<String>) -> Self {
        self.user_id = user_id;
        self
    }

    /// Adds values that must not be shown.
    #[must_use]
    pub fn with_secrets(mut self, secrets: impl IntoIterator<Item = SecretBytes>) -> Self {
        self.secrets.extend(secrets);
        self
    }
}

/// Writes the records of one session into a sink. Clones are the same trail.
///
/// Records keep the order in which they are given. [`record`](Self::record) returns once all so far are durable;
/// [`note`](Self::note) does not wait: what is noted is durable with the next record that somebody waits for, or after 50 ms.
/// What the sink refuses stays, and goes with the next write; repeating an event is harmless. Only records of operations
/// that are all `best_effort` are given up then, and counted.
#[derive(Clone)]
pub struct Trail(Arc<Inner>);

struct Inner {
    logger: Arc<dyn AuditLogger>,
    settings: AuditSettings,
    key: AuditKey,
    scope: Scope,
    redactor: Redactor,
    queue: Mutex<Queue>,
    /// Whose turn it is to write; those who wait for it find that much of theirs is written.
    turn: tokio::sync::Mutex<()>,
    scheduled: AtomicBool,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    /// The number of the next item.
    next: u64,
    losses: BTreeMap<AuditClass, u64>,
}

#[derive(Clone)]
struct Item {
    number: u64,
    event: AuditEvent,
    /// It may be lost, and counts here then.
    best_effort: Option<AuditClass>,
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trail")
            .field("logger", &self.0.logger)
            .field("session", &self.0.scope.session_id)
            .finish_non_exhaustive()
    }
}

impl Trail {
    /// A trail in a sink.
    pub fn new(logger: Arc<dyn AuditLogger>, settings: AuditSettings, key: AuditKey, scope: Scope) -> Self {
        let secrets = scope.secrets.iter().map(SecretBytes::expose);
        let redactor = Redactor::showing(secrets, |value| key.conceal(value).into_bytes());
        Self(Arc::new(Inner {
            logger,
            settings,
            key,
            scope,
            redactor,
            queue: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            scheduled: AtomicBool::new(false),
        }))
    }

    /// The sink.
    pub fn logger(&self) -> &Arc<dyn AuditLogger> {
        &self.0.logger
    }

    pub(super) fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// An event of this session that happens now.
    pub fn event(&self, event_type: EventType) -> AuditEvent {
        let scope = &self.0.scope;
        let mut event = AuditEvent::now(event_type).with_severity(severity(event_type));
        event.session_id.clone_from(&scope.session_id);
        event.agent_id.clone_from(&scope.agent_id);
        event.user_id.clone_from(&scope.user_id);
        event
    }

    /// A command line as the settings want it shown; `null` when they do not.
    pub fn command(&self, words: &[String]) -> Value {
        match self.0.settings.commands {
            CommandRecord::Full => words.into(),
            CommandRecord::Hash => self.0.key.conceal_words(words).into(),
            CommandRecord::Omit => Value::Null,
        }
    }

    /// An environment as the settings want it shown; `null` when they do not.
    pub fn environment(&self, variables: &[(String, String)]) -> Value {
        let names = variables.iter().map(|(name, _)| name.clone());
        match self.0.settings.environment {
            EnvironmentRecord::Names => names.collect(),
            EnvironmentRecord::Hash => {
                let shown = variables.iter().map(|(_, value)| self.0.key.conceal(value.as_bytes()));
                Value::Object(names.zip(shown.map(Value::String)).collect::<Map<_, _>>())
            }
            EnvironmentRecord::Omit => Value::Null,
        }
    }

    pub(super) fn is_best_effort(&self, class: AuditClass) -> bool {
        self.0.settings.requirement(class) == Requirement::BestEffort
    }

    /// Puts an event on record without waiting.
    pub fn note(&self, event: AuditEvent) {
        let class = class_of(event.event_type);
        self.push(event, class.filter(|class| self.is_best_effort(*class)));
        self.flush_after(COMPANY);
    }

    /// Puts events on record, and returns once these and all before them are durable.
    ///
    /// # Errors
    ///
    /// The sink's. What happened has happened; the error names what is done and not on record.
    pub async fn record(&self, events: impl IntoIterator<Item = AuditEvent> + Send) -> Result<()> {
        for event in events {
            let class = class_of(event.event_type);
            self.push(event, class.filter(|class| self.is_best_effort(*class)));
        }
        self.flush().await
    }

    /// Returns once everything so far is durable.
    ///
    /// # Errors
    ///
    /// As [`record`](Self::record).
    pub async fn flush(&self) -> Result<()> {
        let end = self.queue().next;
        self.write(end).await.map_err(|error| {
            let advice =
                "the audit trail cannot be written, and nothing is done without a record; make the audit sink work";
            self.refusal(advice.to_owned(), error)
        })
    }

    /// How many records of each class were lost.
    pub fn losses(&self) -> BTreeMap<AuditClass, u64> {
        self.queue().losses.clone()
    }

    pub(super) fn refusal(&self, message: String, error: Error) -> Error {
        let mut refusal = Error::new(error.kind(), message).with_context("audit", self.0.logger.location());
        let missing: Vec<_> = {
            let queue = self.queue();
            let done = queue.items.iter().filter_map(|item| done(&item.event));
            done.map(str::to_owned).collect()
        };
        if !missing.is_empty() {
            refusal = refusal.with_context("done and not on record", missing.join(", "));
        }
        refusal.with_operation("audit").with_source(error)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event, and returns the number behind it.
    pub(super) fn push(&self, mut event: AuditEvent, best_effort: Option<AuditClass>) -> u64 {
        let payload = Value::Object(std::mem::take(&mut event.payload));
        if let Value::Object(payload) = self.0.redactor.value(payload) {
            event.payload = payload;
        }
        let mut queue = self.queue();
        let number = queue.next;
        queue.next += 1;
        queue.items.push_back(Item {
            number,
            event,
            best_effort,
        });
        queue.next
    }

    /// Makes everything before `end` durable, or, if it may be, counts it as lost. Whoever drops this in the middle leaves
    /// what is not written for the next one.
    pub(super) async fn write(&self, end: u64) -> Result<()> {
        let _turn = self.0.turn.lock().await;
        let items: Vec<Item> = {
            let queue = self.queue();
            if queue.items.front().is_none_or(|item| item.number >= end) {
                return Ok(());
            }
            queue.items.iter().cloned().collect()
        };
        let numbers: Vec<_> = items.iter().map(|item| item.number).collect();
        let events = items.into_iter().map(|item| item.event).collect();
        let (results, whole) = match self.0.logger.emit_batch(events).await {
            Ok(results) => (results, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut results = results.into_iter();
        let answers = numbers.into_iter().map(|number| (number, results.next()));
        self.settle(end, answers.collect(), whole)
    }

    /// After a write: what was written goes, what may be lost is lost, and what is left is told to whoever waits for it.
    fn settle(&self, end: u64, mut answers: BTreeMap<u64, Option<Result<()>>>, mut whole: Option<Error>) -> Result<()> {
        let mut first = None;
        let mut lost = BTreeMap::<AuditClass, u64>::new();
        let mut queue = self.queue();
        for item in std::mem::take(&mut queue.items) {
            let error = match answers.remove(&item.number) {
                Some(Some(Ok(()))) => continue,
                // It came while the others were written.
                None => {
                    queue.items.push_back(item);
                    continue;
                }
                Some(Some(Err(error))) => Some(error),
                Some(None) => None,
            };
            if let Some(class) = item.best_effort {
                *lost.entry(class).or_default() += 1;
                continue;
            }
            if item.number < end && first.is_none() {
                let silence = || Error::unexpected("the audit sink did not answer for every event");
                first = Some(error.or_else(|| whole.take()).unwrap_or_else(silence));
            }
            queue.items.push_back(item);
        }
        for (class, count) in lost {
            *queue.losses.entry(class).or_default() += count;
            tracing::warn!(
                class = class.as_str(),
                count,
                "records were lost, since the audit sink refused them"
            );
        }
        match first {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// For what is pushed: as [`note`](Self::note) does.
    pub(super) fn flush_soon(&self) {
        self.flush_after(COMPANY);
    }

    /// For what is pushed: without delay, and without waiting for it.
    pub(super) fn flush_now(&self) {
        self.flush_after(Duration::ZERO);
    }

    /// Writes in the background, so that what is noted does not lag behind for long.
    fn flush_after(&self, delay: Duration) {
        if self.0.scheduled.swap(true, Ordering::SeqCst) && !delay.is_zero() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            // It is written with the next record that somebody waits for.
            self.0.scheduled.store(false, Ordering::SeqCst);
            return;
        };
        let trail = self.clone();
        runtime.spawn(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            trail.0.scheduled.store(false, Ordering::SeqCst);
            // What is refused stays, and whoever waits for the next record hears of it.
            if let Err(error) = trail.flush().await {
                tracing::warn!("records wait for the audit sink: {}", error.report());
            }
        });
    }
}

/// The operation that an event says is done.
fn done(event: &AuditEvent) -> Option<&str> {
    let fact = |key: &str| event.payload.get(key).and_then(Value::as_str);
    let is_done = event.event_type == EventType::OperationEnded && fact("outcome") == Some("succeeded");
    fact("operation").filter(|_| is_done)
}

/// The class whose requirement holds for an event that is not of an operation.
fn class_of(event_type: EventType) -> Option<AuditClass> {
    Some(match event_type {
        EventType::SessionCreated | EventType::ContainerCreated => AuditClass::Provision,
        EventType::ContainerStarted
        | EventType::ContainerStopped
        | EventType::AgentLaunched
        | EventType::AgentStarted
        | EventType::AgentCompleted
        | EventType::AgentFailed
        | EventType::AgentTimeout
        | EventType::AgentRetry
        | EventType::AgentInteractiveStart
        | EventType::ResourceLimitExceeded => AuditClass::Exec,
        EventType::OutputSizeExceeded | EventType::ArtifactRetrieved => AuditClass::Copy,
        EventType::ContainerDestroyed | EventType::SessionClosed => AuditClass::Destroy,
        EventType::ArtifactStored => AuditClass::Store,
        EventType::ArtifactDeleted => AuditClass::Delete,
        EventType::NetworkConnectionDenied => AuditClass::Egress,
        EventType::PolicyValidated | EventType::PolicyViolation | EventType::PolicyCapClamped => AuditClass::Policy,
        // What concerns safety, and our own faults, is never given up.
        _ => return None,
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
