//! Where the audit trail goes: the [`AuditLogger`] trait and its events.

use std::{fmt, str::FromStr};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::{AdapterInfo, AgentId, Availability, Error, Result, SessionId};

/// Where the audit trail goes.
///
/// # For adapter authors
///
/// - An event **must** be durable by the sink's own promise before it is acknowledged.
/// - Repeated delivery of the same `event_id` **must** be harmless.
/// - Events of one call **must** be kept in their order, and a call that starts after another was acknowledged comes after it.
/// - Dropping the future of an `emit` **must not** damage what is stored; whether the event is stored is unknown then.
///
/// # For callers
///
/// An error means that the event may not be on record. The engine does not act without a record.
#[async_trait]
pub trait AuditLogger: fmt::Debug + Send + Sync + 'static {
    /// What this adapter is.
    fn info(&self) -> AdapterInfo;

    /// What this sink can do.
    fn capabilities(&self) -> AuditCapabilities;

    /// Whether the sink can be written to.
    ///
    /// # Errors
    ///
    /// Only when the question itself could not be asked; "not available" is a value.
    async fn check_availability(&self) -> Result<Availability>;

    /// Where the trail is, for people: a file, a table, a URL.
    fn location(&self) -> String;

    /// Writes one event, and returns once it is durable.
    async fn emit(&self, event: AuditEvent) -> Result<()>;

    /// Writes several events in their order, and reports on each.
    ///
    /// # Errors
    ///
    /// When none was written. Otherwise the result has an entry for each event.
    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>>;

    /// A page of the events that match, oldest first.
    ///
    /// # Errors
    ///
    /// `Unsupported` when [`AuditCapabilities::query`] is off; `ConfigInvalid` for a cursor that is not this sink's.
    async fn query(&self, query: AuditQuery) -> Result<AuditPage>;

    /// Returns once everything that was accepted is durable.
    async fn flush(&self) -> Result<()>;

    /// Flushes and releases what is held; later calls fail with `Conflict`.
    async fn shutdown(&self) -> Result<()>;
}

/// What a sink can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuditCapabilities {
    /// `query` works.
    pub query: bool,
    /// What was acknowledged survives a crash of this process and of the machine.
    pub durable: bool,
}

impl AuditCapabilities {
    /// Only writing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sets `query`.
    #[must_use]
    pub fn with_query(mut self, query: bool) -> Self {
        self.query = query;
        self
    }

    /// Sets `durable`.
    #[must_use]
    pub fn with_durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }
}

macro_rules! event_types {
    ($($variant:ident = $name:literal: $doc:literal,)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum EventType {
            $(#[doc = $doc] $variant,)*
        }

        impl EventType {
            /// Every type.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name, as in a record.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

event_types! {
    SessionCreated = "session_created": "A session has begun.",
    PolicyValidated = "policy_validated": "The policy was accepted.",
    PolicyViolation = "policy_violation": "The policy was refused.",
    PolicyCapClamped = "policy_cap_clamped": "The validator narrowed the policy.",
    ContainerCreated = "container_created": "A container was created and verified.",
    ContainerStarted = "container_started": "A container's main process was started.",
    ContainerStopped = "container_stopped": "A container's processes have ended.",
    ContainerDestroyed = "container_destroyed": "A container was removed.",
    AgentLaunched = "agent_launched": "The agent is about to be started.",
    AgentStarted = "agent_started": "The agent runs.",
    AgentCompleted = "agent_completed": "The agent ended with success.",
    AgentFailed = "agent_failed": "The agent did not end with success.",
    AgentTimeout = "agent_timeout": "The agent ran past its deadline.",
    AgentRetry = "agent_retry": "The agent is tried again, in a fresh container.",
    AgentInteractiveStart = "agent_interactive_start": "An interactive agent runs.",
    ResourceLimitExceeded = "resource_limit_exceeded": "A limit was hit; `violation_type` in the payload says which.",
    OutputSizeExceeded = "output_size_exceeded": "The output was larger than allowed.",
    ArtifactStored = "artifact_stored": "An artifact was stored.",
    ArtifactRetrieved = "artifact_retrieved": "An artifact was read.",
    ArtifactDeleted = "artifact_deleted": "An artifact was deleted.",
    NetworkConnectionDenied = "network_connection_denied": "A connection was refused.",
    FilesystemAccessDenied = "filesystem_access_denied": "An access to files was refused.",
    PrivilegeEscalationAttempt = "privilege_escalation_attempt": "Something tried to gain privileges.",
    SecurityViolation = "security_violation": "A safety rule was broken.",
    UnauthorizedAccess = "unauthorized_access": "Somebody without the right tried something.",
    SessionClosed = "session_closed": "A session has ended.",
    OperationIntended = "operation_intended": "An operation that changes something is about to be done; `operation_id` and `operation` in the payload say which.",
    OperationEnded = "operation_ended": "The intended operation of the same `operation_id` has ended; `outcome` in the payload says how.",
    SystemError = "system_error": "Our own part failed.",
    SystemWarning = "system_warning": "Our own part is limited.",
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for EventType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|known| known.as_str() == text)
            .ok_or_else(|| {
                let nearest = crate::nearest(text, Self::ALL.iter().map(|known| known.as_str()));
                let hint = nearest
                    .map(|name| format!("; did you mean {name:?}?"))
                    .unwrap_or_default();
                Error::invalid(format!("event type {text:?} is unknown{hint}"))
            })
    }
}

impl Serialize for EventType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for EventType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// How grave an event is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For those who look for faults.
    Debug,
    /// The usual course of things.
    #[default]
    Info,
    /// Worth a look.
    Warning,
    /// Something failed.
    Error,
    /// A safety promise is at stake.
    Critical,
}

impl Severity {
    /// The name, as in a record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Severity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Debug, Self::Info, Self::Warning, Self::Error, Self::Critical]
            .into_iter()
            .find(|known| known.as_str() == text)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "severity {text:?} is unknown; use debug, info, warning, error or critical"
                ))
            })
    }
}

/// One record of the trail. The keys keep this order in JSON; new keys come after these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuditEvent {
    /// A UUIDv7 (RFC 9562), so that identifiers sort by time.
    pub event_id: String,
    /// What happened.
    pub event_type: EventType,
    /// When, in UTC (RFC 3339).
    pub timestamp: Timestamp,
    /// The session.
    pub session_id: Option<SessionId>,
    /// The agent.
    pub agent_id: Option<AgentId>,
    /// Who asked for it.
    pub user_id: Option<String>,
    /// Facts. Never a secret.
    pub payload: Map<String, Value>,
    /// How grave it is.
    pub severity: Severity,
    /// Free words to find it by.
    pub tags: Vec<String>,
    /// The place in a hash chain, once a journal or a sink that keeps one has taken the event. A sink gives back what it
    /// was given, so that the trail can be verified wherever it is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainLink>,
}

/// The place of an event in the hash chain of the writer that put it on record (crate `agents-journal`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChainLink {
    /// Who put it on record: a unique name, such as a UUID. Each has a chain of its own.
    pub writer: String,
    /// The place in the chain: 1 for the first event, without gaps.
    pub sequence: u64,
    /// The hash of the event before, in lower-case hexadecimal.
    pub previous: String,
    /// The hash of this event, which covers the one before.
    pub hash: String,
}

impl ChainLink {
    /// A link.
    pub fn new(writer: impl Into<String>, sequence: u64, previous: impl Into<String>, hash: impl Into<String>) -> Self {
        Self {
            writer: writer.into(),
            sequence,
            previous: previous.into(),
            hash: hash.into(),
        }
    }
}

impl AuditEvent {
    /// An event that happens now.
    pub fn now(event_type: EventType) -> Self {
        Self {
            event_id: uuid::Uuid::now_v7().to_string(),
            event_type,
            timestamp: Timestamp::now(),
            session_id: None,
            agent_id: None,
            user_id: None,
            payload: Map::new(),
            severity: Severity::Info,
            tags: Vec::new(),
            chain: None,
        }
    }

    /// Sets the session.
    #[must_use]
    pub fn with_session(mut self, session_id: SessionId) -> Self {
        self.session_id = Some(session_id);
        self
    }

    /// Sets the agent.
    #[must_use]
    pub fn with_agent(mut self, agent_id: AgentId) -> Self {
        self.agent_id = Some(agent_id);
        self
    }

    /// Sets who asked for it.
    #[must_use]
    pub fn with_user(mut self, user_id: Option<String>) -> Self {
        self.user_id = user_id;
        self
    }

    /// Sets how grave it is.
    #[must_use]
    pub fn with_severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// Adds a fact.
    #[must_use]
    pub fn with_fact(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.payload.insert(key.to_owned(), value.into());
        self
    }

    /// Sets the place in a hash chain.
    #[must_use]
    pub fn with_chain(mut self, chain: Option<ChainLink>) -> Self {
        self.chain = chain;
        self
    }

    /// Adds a word to find it by.
    #[must_use]
    pub fn with_tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }
}

/// Which events to read. Every condition that is set must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditQuery {
    /// Of this session.
    pub session_id: Option<SessionId>,
    /// Of this agent.
    pub agent_id: Option<AgentId>,
    /// Asked for by this user.
    pub user_id: Option<String>,
    /// Of one of these types; of any type when empty.
    pub event_types: Vec<EventType>,
    /// At this time or later.
    pub start_time: Option<Timestamp>,
    /// Before this time.
    pub end_time: Option<Timestamp>,
    /// At least this grave.
    pub severity: Option<Severity>,
    /// The most events of a page.
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

impl Default for AuditQuery {
    fn default() -> Self {
        Self {
            session_id: None,
            agent_id: None,
            user_id: None,
            event_types: Vec::new(),
            start_time: None,
            end_time: None,
            severity: None,
            limit: 100,
            cursor: None,
        }
    }
}

impl AuditQuery {
    /// All events, in pages of 100.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only of this session.
    #[must_use]
    pub fn with_session(mut self, session_id: Option<SessionId>) -> Self {
        self.session_id = session_id;
        self
    }

    /// Only of this agent.
    #[must_use]
    pub fn with_agent(mut self, agent_id: Option<AgentId>) -> Self {
        self.agent_id = agent_id;
        self
    }

    /// Only asked for by this user.
    #[must_use]
    pub fn with_user(mut self, user_id: Option<String>) -> Self {
        self.user_id = user_id;
        self
    }

    /// Only of these types.
    #[must_use]
    pub fn with_event_types(mut self, types: Vec<EventType>) -> Self {
        self.event_types = types;
        self
    }

    /// Only at this time or later.
    #[must_use]
    pub fn with_start_time(mut self, time: Option<Timestamp>) -> Self {
        self.start_time = time;
        self
    }

    /// Only before this time.
    #[must_use]
    pub fn with_end_time(mut self, time: Option<Timestamp>) -> Self {
        self.end_time = time;
        self
    }

    /// Only at least this grave.
    #[must_use]
    pub fn with_severity(mut self, severity: Option<Severity>) -> Self {
        self.severity = severity;
        self
    }

    /// Sets the most events of a page.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Goes on where a page ended.
    #[must_use]
    pub fn with_cursor(mut self, cursor: Option<String>) -> Self {
        self.cursor = cursor;
        self
    }

    /// Whether an event meets every condition, leaving limit and cursor aside.
    pub fn matches(&self, event: &AuditEvent) -> bool {
        fn wanted<T: PartialEq>(asked: Option<&T>, have: Option<&T>) -> bool {
            asked.is_none() || asked == have
        }
        wanted(self.session_id.as_ref(), event.session_id.as_ref())
            && wanted(self.agent_id.as_ref(), event.agent_id.as_ref())
            && wanted(self.user_id.as_ref(), event.user_id.as_ref())
            && (self.event_types.is_empty() || self.event_types.contains(&event.event_type))
            && self.start_time.is_none_or(|start| event.timestamp >= start)
            && self.end_time.is_none_or(|end| event.timestamp < end)
            && self.severity.is_none_or(|severity| event.severity >= severity)
    }
}

/// A page of events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuditPage {
    /// The events, oldest first.
    pub events: Vec<AuditEvent>,
    /// Where the next page begins; `None` when there is nothing after this page now.
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_keep_their_order_and_names() {
        let event = AuditEvent::now(EventType::SessionCreated).with_fact("a", 1);
        let json = serde_json::to_string(&event).unwrap();
        let keys = [
            "event_id",
            "event_type",
            "timestamp",
            "session_id",
            "agent_id",
            "user_id",
            "payload",
            "severity",
            "tags",
        ];
        let places: Vec<_> = keys
            .iter()
            .map(|key| json.find(&format!("\"{key}\":")).unwrap())
            .collect();
        assert!(places.is_sorted(), "{json}");
        assert!(json.contains("\"severity\":\"info\""));
        assert!(json.ends_with("\"tags\":[]}"), "no link, no key: {json}");
        assert_eq!(serde_json::from_str::<AuditEvent>(&json).unwrap(), event);
        let linked = event.with_chain(Some(ChainLink::new("w", 7, "aa", "bb")));
        let json = serde_json::to_string(&linked).unwrap();
        let link = r#","tags":[],"chain":{"writer":"w","sequence":7,"previous":"aa","hash":"bb"}}"#;
        assert!(json.ends_with(link), "{json}");
        assert_eq!(serde_json::from_str::<AuditEvent>(&json).unwrap(), linked);
    }

    #[test]
    fn an_unknown_type_names_the_nearest() {
        let error = "session_create".parse::<EventType>().unwrap_err();
        assert!(error.to_string().contains("session_created"), "{error}");
    }
}
