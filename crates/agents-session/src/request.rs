//! What a caller asks for: an [`Agent`] and how to run it.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use agents_core::{AgentId, Mount, Policy, Secret, SessionId};
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use crate::Observer;

/// What runs: a command, its files and its input. What it may use is the policy's business.
#[derive(Debug)]
#[non_exhaustive]
pub struct Agent {
    /// The agent's name.
    pub id: AgentId,
    /// The command and its arguments, which follow the policy's `entrypoint`. Never split or parsed.
    pub command: Vec<String>,
    /// The image; the policy's `base_image` without it.
    pub image: Option<String>,
    /// The host folder that becomes `/workspace`, writable; without it an empty one.
    pub workspace: Option<PathBuf>,
    /// Environment beyond the policy's. A variable that the policy blocks is refused.
    pub env: Vec<(String, String)>,
    /// Secrets, at `/run/secrets/NAME`. All that the policy's `tmpfs_secrets` names must be here, resolved.
    pub secrets: Vec<Secret>,
    /// Mounts beyond the workspace and the policy's `readonly_mounts`.
    pub mounts: Vec<Mount>,
    /// The standard input; without it the agent reads nothing.
    pub stdin: Option<Input>,
    /// The size of its terminal, in rows and columns. The policy must be `interactive`.
    pub tty: Option<(u16, u16)>,
}

impl Agent {
    /// An agent of this name that runs a command.
    pub fn new<I, S>(id: AgentId, command: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self {
            id,
            command: command.into_iter().map(Into::into).collect(),
            image: None,
            workspace: None,
            env: Vec::new(),
            secrets: Vec::new(),
            mounts: Vec::new(),
            stdin: None,
            tty: None,
        }
    }

    /// An agent without a command, for [`Engine::open`](crate::Engine::open).
    pub fn idle(id: AgentId) -> Self {
        Self::new::<_, String>(id, [])
    }

    /// Sets the image.
    #[must_use]
    pub fn with_image(mut self, image: Option<String>) -> Self {
        self.image = image;
        self
    }

    /// Sets the host folder that becomes `/workspace`.
    #[must_use]
    pub fn with_workspace(mut self, workspace: Option<PathBuf>) -> Self {
        self.workspace = workspace;
        self
    }

    /// Adds environment.
    #[must_use]
    pub fn with_env(mut self, env: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env.extend(env);
        self
    }

    /// Adds secrets.
    #[must_use]
    pub fn with_secrets(mut self, secrets: impl IntoIterator<Item = Secret>) -> Self {
        self.secrets.extend(secrets);
        self
    }

    /// Adds mounts.
    #[must_use]
    pub fn with_mounts(mut self, mounts: impl IntoIterator<Item = Mount>) -> Self {
        self.mounts.extend(mounts);
        self
    }

    /// Sets the standard input.
    #[must_use]
    pub fn with_stdin(mut self, stdin: Option<Input>) -> Self {
        self.stdin = stdin;
        self
    }

    /// Gives it a terminal of this size.
    #[must_use]
    pub fn with_tty(mut self, size: Option<(u16, u16)>) -> Self {
        self.tty = size;
        self
    }
}

/// A standard input.
#[non_exhaustive]
pub enum Input {
    /// Bytes, which every attempt reads from the start.
    Bytes(Bytes),
    /// A stream, which can be read once; a policy with retries refuses it.
    Stream(InputStream),
}

/// A stream of input, made by [`Input::stream`].
pub struct InputStream(
    /// Never locked; it makes a run's future `Send` although nobody shares the reader.
    Mutex<Box<dyn AsyncRead + Send + Unpin>>,
);

impl InputStream {
    pub(crate) fn into_reader(self) -> Box<dyn AsyncRead + Send + Unpin> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for InputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InputStream")
    }
}

impl Input {
    /// A stream.
    pub fn stream(reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self::Stream(InputStream(Mutex::new(Box::new(reader))))
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Input({} bytes)", bytes.len()),
            Self::Stream(stream) => stream.fmt(f),
        }
    }
}

/// One run of an agent, or one long-lived session.
#[derive(Debug)]
#[non_exhaustive]
pub struct SessionRequest {
    /// What runs.
    pub agent: Agent,
    /// What it may use.
    pub policy: Policy,
    /// The session's identifier; a new one without it.
    pub session_id: Option<SessionId>,
    /// Who asks for it, for the policy and the audit trail.
    pub user_id: Option<String>,
    /// Who hears of output and progress.
    pub observer: Option<Arc<dyn Observer>>,
    /// Ends the run: the process tree is killed, and what is in the output folder is still collected.
    pub cancel: CancellationToken,
    /// A host folder where the artifacts are put besides being stored. Made when it is missing; files in it are replaced
    /// one by one and atomically, and links in it are never followed.
    pub export_dir: Option<PathBuf>,
}

impl SessionRequest {
    /// An agent and its policy.
    pub fn new(agent: Agent, policy: Policy) -> Self {
        Self {
            agent,
            policy,
            session_id: None,
            user_id: None,
            observer: None,
            cancel: CancellationToken::new(),
            export_dir: None,
        }
    }

    /// Sets the session's identifier.
    #[must_use]
    pub fn with_session_id(mut self, session_id: Option<SessionId>) -> Self {
        self.session_id = session_id;
        self
    }

    /// Sets who asks for it.
    #[must_use]
    pub fn with_user_id(mut self, user_id: Option<String>) -> Self {
        self.user_id = user_id;
        self
    }

    /// Sets who hears of output and progress.
    #[must_use]
    pub fn with_observer(mut self, observer: Option<Arc<dyn Observer>>) -> Self {
        self.observer = observer;
        self
    }

    /// Sets what ends the run early.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Sets where artifacts are put besides being stored.
    #[must_use]
    pub fn with_export_dir(mut self, dir: Option<PathBuf>) -> Self {
        self.export_dir = dir;
        self
    }
}
