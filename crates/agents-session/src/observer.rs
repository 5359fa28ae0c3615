//! Who hears of a run while it goes on.

use std::{fmt, sync::Arc, time::Duration};

use agents_core::{ExecControl, ProvisionProgress, SessionId};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Hears of a run while it goes on. Every method has a default that does nothing.
#[async_trait]
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// The session has begun.
    fn session(&self, session_id: &SessionId) {
        let _ = session_id;
    }

    /// A phase begins or ends.
    fn phase(&self, phase: Phase, state: PhaseState) {
        let _ = (phase, state);
    }

    /// The image is prepared. Called from any thread.
    fn progress(&self, progress: ProvisionProgress) {
        let _ = progress;
    }

    /// The agent's process runs; the control sends it signals and tells its terminal's size. Called for each attempt.
    fn started(&self, control: Arc<dyn ExecControl>) {
        let _ = control;
    }

    /// The agent wrote something: the bytes as they are, secrets included. The agent waits while this waits.
    async fn output(&self, stream: OutputStream, bytes: Bytes) {
        let _ = (stream, bytes);
    }

    /// The agent failed and is tried again, in a fresh container.
    fn retry(&self, attempt: u32, reason: &str) {
        let _ = (attempt, reason);
    }

    /// Something is limited or was left out, and the run goes on.
    fn warning(&self, message: &str) {
        let _ = message;
    }
}

/// One of the two outputs of a process. With a terminal, everything is standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The ownership record is written and the policy decided.
    Validate,
    /// The container is created and verified.
    Provision,
    /// The agent runs.
    Run,
    /// Artifacts are taken out and stored.
    Collect,
    /// The container is destroyed.
    Destroy,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 5] = [Self::Validate, Self::Provision, Self::Run, Self::Collect, Self::Destroy];

    /// The name, for example `provision`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Provision => "provision",
            Self::Run => "run",
            Self::Collect => "collect",
            Self::Destroy => "destroy",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether a phase begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseState {
    /// It begins.
    Begin,
    /// It has ended, after this time.
    End(Duration),
}
