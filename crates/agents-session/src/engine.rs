//! The [`Engine`].

use std::{path::PathBuf, sync::Arc, time::Duration};

use agents_core::{Adapters, Result, SessionId};
use futures_core::stream::BoxStream;

use crate::{
    AgentResult, GcReport, Inspection, LogChunk, Session, SessionHandle, SessionInfo, SessionRequest, session::not_yet,
};

/// Settings of an [`Engine`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineConfig {
    /// Where ownership records, logs and results are. Made when it is missing.
    pub state_dir: PathBuf,
    /// The most bytes that are kept of each of the two outputs in a result; 64 KiB.
    pub capture_limit: usize,
    /// The most bytes of a session's log file; 16 MiB. The oldest half goes when it is full.
    pub log_limit: u64,
    /// The most entries that are taken from an output folder; 10,000.
    pub max_artifacts: u64,
    /// How long [`Engine::stop`] waits for the owner; 30 s.
    pub stop_timeout: Duration,
}

impl EngineConfig {
    /// The defaults over a state folder.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            capture_limit: 64 << 10,
            log_limit: 16 << 20,
            max_artifacts: 10_000,
            stop_timeout: Duration::from_secs(30),
        }
    }

    /// Sets the most bytes that are kept of each output.
    #[must_use]
    pub fn with_capture_limit(mut self, bytes: usize) -> Self {
        self.capture_limit = bytes;
        self
    }

    /// Sets the most bytes of a log file.
    #[must_use]
    pub fn with_log_limit(mut self, bytes: u64) -> Self {
        self.log_limit = bytes;
        self
    }

    /// Sets the most entries that are taken from an output folder.
    #[must_use]
    pub fn with_max_artifacts(mut self, entries: u64) -> Self {
        self.max_artifacts = entries;
        self
    }

    /// Sets how long [`Engine::stop`] waits.
    #[must_use]
    pub fn with_stop_timeout(mut self, timeout: Duration) -> Self {
        self.stop_timeout = timeout;
        self
    }
}

/// Runs agents. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    adapters: Adapters,
    config: EngineConfig,
}

impl Engine {
    /// An engine over adapters and a state folder, which is made when it is missing.
    ///
    /// # Errors
    ///
    /// When the state folder cannot be made.
    pub fn new(adapters: Adapters, config: EngineConfig) -> Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared { adapters, config }),
        })
    }

    /// The adapters.
    pub fn adapters(&self) -> &Adapters {
        &self.shared.adapters
    }

    /// The settings.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Runs an agent from the validation of its policy to the destruction of its container.
    ///
    /// # Errors
    ///
    /// Only when the session could not even begin: its identifier is in use, or the state folder cannot be written.
    /// Everything else is in the result.
    pub async fn run(&self, request: SessionRequest) -> Result<AgentResult> {
        let _ = request;
        Err(not_yet())
    }

    /// Opens a long-lived session. The agent has no command, input or terminal of its own ([`Agent::idle`](crate::Agent::idle)).
    ///
    /// # Errors
    ///
    /// Whatever keeps the container from being created; the session has an ending on record then.
    pub async fn open(&self, request: SessionRequest) -> Result<Session> {
        let _ = request;
        Err(not_yet())
    }

    /// The running sessions, oldest first, and with `include_ended` those that have ended.
    pub async fn list(&self, include_ended: bool) -> Result<Vec<SessionInfo>> {
        let _ = include_ended;
        Err(not_yet())
    }

    /// Everything that is known of a session.
    ///
    /// # Errors
    ///
    /// `NotFound` for a session that is not in the state folder.
    pub async fn inspect(&self, id: &SessionId) -> Result<Inspection> {
        let _ = id;
        Err(not_yet())
    }

    /// A handle on a running session of any process.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown session, `Conflict` for one that has ended or has no container yet.
    pub async fn attach(&self, id: &SessionId) -> Result<SessionHandle> {
        let _ = id;
        Err(not_yet())
    }

    /// Asks the owner to stop, so that it still collects artifacts, and waits for the end. When the owner is dead, ends
    /// the session in its place. Stopping what has ended succeeds.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown session, `Timeout` when the owner does not react.
    pub async fn stop(&self, id: &SessionId) -> Result<SessionInfo> {
        let _ = id;
        Err(not_yet())
    }

    /// A session's output so far, and with `follow` everything until its end.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown session.
    pub async fn logs(&self, id: &SessionId, follow: bool) -> Result<BoxStream<'static, Result<LogChunk>>> {
        let _ = (id, follow);
        Err(not_yet())
    }

    /// Ends the sessions of dead owners and removes their containers. Costs the reading of one folder when there are
    /// none, so every start can call it.
    pub async fn recover(&self) -> Result<GcReport> {
        Err(not_yet())
    }

    /// [`recover`](Self::recover), and then asks runtime and storage to remove what crashes left behind.
    pub async fn gc(&self) -> Result<GcReport> {
        Err(not_yet())
    }
}
