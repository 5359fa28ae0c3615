//! What is on disk: ownership records, results and logs.

use agents_core::{AgentId, ContainerId, ContainerInfo, SessionId};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::OutputStream;

/// What is known of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session.
    pub session_id: SessionId,
    /// The runtime's identifier of its container, once there is one.
    pub container_id: Option<ContainerId>,
    /// The agent.
    pub agent_id: AgentId,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Its state.
    pub status: SessionStatus,
    /// What went wrong.
    pub error: Option<String>,
    /// Sessions that it started. Always empty, since sub-agents are refused.
    pub sub_sessions: Vec<SessionId>,
    /// The image.
    pub image: String,
    /// The command, entrypoint included; empty for a long-lived session.
    pub command: Vec<String>,
    /// The type of its runtime.
    pub runtime: String,
    /// The process that owns it.
    pub owner_pid: Option<u32>,
}

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionStatus {
    /// Its owner lives.
    Running,
    /// It ended with success.
    Completed,
    /// It ended without success, or was refused.
    Failed,
    /// Somebody stopped it.
    Terminated,
    /// Its owner died, or its runtime went away.
    Lost,
}

impl SessionStatus {
    /// The name, for example `running`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Terminated => "terminated",
            Self::Lost => "lost",
        }
    }
}

/// Everything that is known of a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The session.
    #[serde(flatten)]
    pub info: SessionInfo,
    /// Its container as the runtime knows it, while there is one.
    pub container: Option<ContainerInfo>,
    /// The object of [`AgentResult::to_json`](crate::AgentResult::to_json), once it has ended.
    pub result: Option<Value>,
}

/// A piece of a session's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// Which output.
    pub stream: OutputStream,
    /// The bytes, secrets redacted.
    pub bytes: Bytes,
}

/// What a clean-up did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GcReport {
    /// The sessions that were ended because their owner is gone.
    pub ended_sessions: Vec<SessionId>,
    /// What was removed, a line each.
    pub removed: Vec<String>,
    /// What could not be cleaned up, and what to do about it.
    pub problems: Vec<String>,
}
