//! The long-lived form: [`Session`], and [`SessionHandle`], which works from any process.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use agents_core::{ArtifactInfo, ByteStream, ContainerHandle, ContainerStats, ExecSession, Process, Result, SessionId};

use crate::{AgentResult, Engine, RefusedArtifact, SessionInfo};

/// What is copied into a container.
#[non_exhaustive]
pub enum Upload {
    /// A file or a folder of the host. Links are copied as links.
    Path(PathBuf),
    /// A tar stream, unpacked into the destination.
    Tar(ByteStream),
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Tar(_) => f.write_str("Tar"),
        }
    }
}

/// What was copied out of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Downloaded {
    /// How many files were written.
    pub files: u64,
    /// How many bytes they hold.
    pub bytes: u64,
    /// What was left out, and why.
    pub refused: Vec<RefusedArtifact>,
}

/// Artifacts that were stored while the session goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// What was stored.
    pub artifacts: Vec<ArtifactInfo>,
    /// What was left out, and why.
    pub refused: Vec<RefusedArtifact>,
}

/// A running session, seen from any process that uses the same state folder.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    pub(crate) engine: Engine,
    pub(crate) info: SessionInfo,
    pub(crate) container: ContainerHandle,
}

impl SessionHandle {
    /// The session.
    pub fn id(&self) -> &SessionId {
        &self.info.session_id
    }

    /// What was known of it when the handle was made.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// Its container.
    pub fn container(&self) -> &ContainerHandle {
        &self.container
    }

    /// Runs a process in its container.
    ///
    /// # Errors
    ///
    /// The audit sink's, when the intent cannot be recorded; the runtime's.
    pub async fn exec(&self, process: Process, deadline: Option<Duration>) -> Result<ExecSession> {
        let _ = (process, deadline);
        Err(not_yet())
    }

    /// Copies into the container. A path goes into the destination when that is a folder, and becomes the destination
    /// otherwise.
    pub async fn upload(&self, source: Upload, destination: &str) -> Result<()> {
        let _ = (source, destination);
        Err(not_yet())
    }

    /// Copies a file or a folder of the container into a folder of the host, by the hardened extractor.
    pub async fn download(&self, path: &str, host_dir: &Path) -> Result<Downloaded> {
        let _ = (path, host_dir);
        Err(not_yet())
    }

    /// What the container has used.
    pub async fn stats(&self) -> Result<ContainerStats> {
        self.engine.adapters().runtime.stats(&self.container).await
    }

    /// As [`Engine::stop`].
    pub async fn stop(&self) -> Result<SessionInfo> {
        self.engine.stop(self.id()).await
    }
}

/// A long-lived session: a container in which processes are run until [`finish`](Self::finish).
///
/// Dropping it destroys the container in the background, without collecting artifacts.
#[derive(Debug)]
pub struct Session {
    handle: SessionHandle,
}

impl Session {
    /// The part that works from any process.
    pub fn handle(&self) -> &SessionHandle {
        &self.handle
    }

    /// The session.
    pub fn id(&self) -> &SessionId {
        self.handle.id()
    }

    /// As [`SessionHandle::exec`]. Without a deadline, the policy's `timeout_seconds` is one.
    pub async fn exec(&self, process: Process, deadline: Option<Duration>) -> Result<ExecSession> {
        self.handle.exec(process, deadline).await
    }

    /// As [`SessionHandle::upload`].
    pub async fn upload(&self, source: Upload, destination: &str) -> Result<()> {
        self.handle.upload(source, destination).await
    }

    /// As [`SessionHandle::download`].
    pub async fn download(&self, path: &str, host_dir: &Path) -> Result<Downloaded> {
        self.handle.download(path, host_dir).await
    }

    /// As [`SessionHandle::stats`].
    pub async fn stats(&self) -> Result<ContainerStats> {
        self.handle.stats().await
    }

    /// Stores what is in the output folder now, as new versions.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        Err(not_yet())
    }

    /// Collects the artifacts, destroys the container and ends the session.
    pub async fn finish(self) -> AgentResult {
        unreachable!("no session can be opened yet")
    }
}

pub(crate) fn not_yet() -> agents_core::Error {
    agents_core::Error::unsupported("the engine is being written")
}
