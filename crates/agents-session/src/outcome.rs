//! What a run gives back.

use std::{collections::BTreeMap, time::Duration};

use agents_core::{AgentId, ArtifactInfo, Captured, ErrorKind, Exit, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::Phase;

/// How a run ended as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// The agent ended with code 0, and its result and artifacts were accepted.
    Completed,
    /// The agent, or what was to be done with its output, failed.
    Failed,
    /// It was not run: the policy, the host or the request did not allow it.
    Refused,
    /// The runtime or the container went away under it.
    Lost,
}

impl RunStatus {
    /// The name, for example `completed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }
}

/// An entry of the output folder that was not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedArtifact {
    /// Its name in the output folder; bytes that are not UTF-8, and control characters, are percent-encoded.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// How long each phase took. Attempts add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    phases: [Duration; 5],
    /// From the call to the end.
    pub total: Duration,
}

impl Timings {
    /// The time that a phase took.
    pub fn phase(&self, phase: Phase) -> Duration {
        self.phases[phase as usize]
    }

    pub(crate) fn add(&mut self, phase: Phase, time: Duration) {
        self.phases[phase as usize] += time;
    }

    /// An object with the milliseconds of each phase and `total`.
    pub fn to_json(&self) -> Value {
        let milliseconds = |time: Duration| Value::from((time.as_secs_f64() * 1e6).round() / 1e3);
        let mut object: Map<_, _> = Phase::ALL
            .into_iter()
            .map(|phase| (phase.as_str().to_owned(), milliseconds(self.phase(phase))))
            .collect();
        object.insert("total".to_owned(), milliseconds(self.total));
        Value::Object(object)
    }
}

/// What a run used, as far as the runtime knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// The most memory that was in use, in bytes.
    pub memory_peak_bytes: Option<u64>,
}

/// The result of a run or of a session.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AgentResult {
    /// The session.
    pub session_id: SessionId,
    /// The agent.
    pub agent_id: AgentId,
    /// How it ended as a whole.
    pub status: RunStatus,
    /// How the agent ended.
    pub ending: Exit,
    /// What was stored, in the order of names.
    pub artifacts: Vec<ArtifactInfo>,
    /// What was in the output folder and was not stored.
    pub refused_artifacts: Vec<RefusedArtifact>,
    /// The agent's `result.json`, when there is one that is JSON; with `structured_output`, one that the schema accepts.
    pub output: Option<Value>,
    /// What went wrong.
    pub error: Option<String>,
    /// The kind of what went wrong in the SDK; `None` when the agent failed by itself.
    pub error_kind: Option<ErrorKind>,
    /// The last attempt's standard output, bounded, secrets redacted.
    pub stdout: Captured,
    /// The last attempt's standard error, bounded, secrets redacted.
    pub stderr: Captured,
    /// How long each phase took.
    pub timings: Timings,
    /// What was used.
    pub usage: Usage,
    /// How often the agent was started.
    pub attempts: u32,
    /// Where the audit trail is.
    pub audit: String,
}

impl AgentResult {
    /// The agent's own exit code, when it has one.
    pub fn exit_code(&self) -> Option<i32> {
        self.ending.code()
    }

    /// The URI of each stored artifact by its name.
    pub fn artifacts(&self) -> BTreeMap<&str, &str> {
        self.artifacts
            .iter()
            .map(|artifact| (artifact.name.as_str(), artifact.uri.as_str()))
            .collect()
    }

    /// The object that `agents run --json` prints.
    pub fn to_json(&self) -> Value {
        let details: Vec<_> = self
            .artifacts
            .iter()
            .map(|artifact| {
                json!({
                    "name": artifact.name,
                    "uri": artifact.uri,
                    "size": artifact.size,
                    "sha256": artifact.sha256,
                    "version": artifact.version,
                })
            })
            .collect();
        json!({
            "session_id": self.session_id,
            "agent_id": self.agent_id,
            "status": self.status,
            "exit_code": self.exit_code(),
            "ending": self.ending,
            "artifacts": self.artifacts(),
            "artifact_details": details,
            "refused_artifacts": self.refused_artifacts,
            "output": self.output,
            "error": self.error,
            "error_kind": self.error_kind,
            "stdout": self.stdout.to_text(),
            "stderr": self.stderr.to_text(),
            "stdout_truncated": self.stdout.truncated(),
            "stderr_truncated": self.stderr.truncated(),
            "timings_ms": self.timings.to_json(),
            "usage": self.usage,
            "audit": self.audit,
        })
    }
}
