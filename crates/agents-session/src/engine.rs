//! The [`Engine`].

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use agents_core::{
    Adapters, AuditSettings, ContainerId, ContainerRuntime, Error, ErrorKind, EventType, Result, SecretBytes,
    SessionId, Severity,
};
use agents_layers::audit::{AuditKey, Scope, end_open, is_on_record};
use futures_core::stream::BoxStream;
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::time::sleep;

use crate::{
    AgentResult, GcReport, Inspection, LogChunk, Session, SessionHandle, SessionInfo, SessionRequest, SessionStatus,
    active,
    audit::Recorded,
    blocking,
    log::LogReader,
    plan::{LABEL_SESSION, LABEL_STATE},
    record::{Ending, Owner, Record, StateDir},
};

/// How often a file of another process is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long it may take from claiming an identifier to the ownership record; in truth some milliseconds.
const BEGINNING: Duration = Duration::from_secs(3600);
/// What is said of a session whose owner is gone.
const LOST: &str = "the process that owned the session is gone";

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
    /// What must be on record before it is done, and how much of it is shown.
    pub audit: AuditSettings,
    /// The key that `audit` refers to; without a reference it is `audit.key` in the state folder, which is made when it is
    /// missing.
    pub audit_key: Option<SecretBytes>,
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
            audit: AuditSettings::new(),
            audit_key: None,
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

    /// Sets what must be on record before it is done.
    #[must_use]
    pub fn with_audit(mut self, settings: AuditSettings) -> Self {
        self.audit = settings;
        self
    }

    /// Sets the key of the HMACs that stand in the place of secrets in the audit trail.
    #[must_use]
    pub fn with_audit_key(mut self, key: Option<SecretBytes>) -> Self {
        self.audit_key = key;
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
    state: StateDir,
    audit_key: AuditKey,
}

impl Engine {
    /// An engine over adapters and a state folder, which is made when it is missing.
    ///
    /// # Errors
    ///
    /// When the state folder or the key of the audit trail cannot be made; `ConfigInvalid` for a key that is too short, or
    /// that the settings refer to and that was not resolved.
    pub fn new(adapters: Adapters, config: EngineConfig) -> Result<Self> {
        let state = StateDir::open(&config.state_dir)?;
        let audit_key = match (&config.audit_key, &config.audit.key) {
            (Some(key), _) => AuditKey::new(key.expose())?,
            (None, None) => AuditKey::load_or_create(&state.root().join("audit.key"))?,
            (None, Some(reference)) => {
                return Err(Error::invalid(format!(
                    "audit_trail.key: {reference} was not resolved; pass what it refers to with EngineConfig::with_audit_key"
                )));
            }
        };
        Ok(Self {
            shared: Arc::new(Shared {
                adapters,
                config,
                state,
                audit_key,
            }),
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

    /// The adapters with everything that is done through them on record, for what is done beside the engine's own work.
    pub fn recorded(&self, scope: Scope) -> Recorded {
        let Shared {
            adapters,
            config,
            audit_key,
            ..
        } = &*self.shared;
        Recorded::new(adapters, &config.audit, audit_key, scope)
    }

    pub(crate) fn state(&self) -> &StateDir {
        &self.shared.state
    }

    /// Runs an agent from the validation of its policy to the destruction of its container.
    ///
    /// When the future is dropped before its end, the container is destroyed in the background, and the session ends as
    /// `terminated`.
    ///
    /// # Errors
    ///
    /// Only when the session could not even begin: its identifier is in use, or the state folder or the export folder
    /// cannot be written. Everything else is in the result.
    pub async fn run(&self, request: SessionRequest) -> Result<AgentResult> {
        active::run(self, request).await
    }

    /// Opens a long-lived session. The agent has no command, input or terminal of its own ([`Agent::idle`](crate::Agent::idle)).
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), and whatever keeps the container from being created; the session has an ending on record
    /// then.
    pub async fn open(&self, request: SessionRequest) -> Result<Session> {
        Session::open(self, request).await
    }

    /// The running sessions, oldest first, and with `include_ended` those that have ended.
    pub async fn list(&self, include_ended: bool) -> Result<Vec<SessionInfo>> {
        let state = self.state().clone();
        blocking(move || {
            let mut sessions = BTreeMap::new();
            // The running ones first: one that ends meanwhile is then found among the ended ones, and not missed.
            for record in state.active()? {
                let info = known(&state, &record.session_id)?;
                if let Some(info) = info.filter(|info| include_ended || info.ended_at.is_none()) {
                    sessions.insert(record.session_id, info);
                }
            }
            if include_ended {
                for ending in state.ended()? {
                    sessions.insert(ending.info.session_id.clone(), ending.info);
                }
            }
            let mut sessions: Vec<_> = sessions.into_values().collect();
            sessions.sort_by(|a, b| (a.started_at, &a.session_id).cmp(&(b.started_at, &b.session_id)));
            Ok(sessions)
        })
        .await
    }

    /// Everything that is known of a session.
    ///
    /// # Errors
    ///
    /// `NotFound` for a session that is not in the state folder.
    pub async fn inspect(&self, id: &SessionId) -> Result<Inspection> {
        let info = self.info(id).await?;
        let container = match &info.container_id {
            Some(container) if info.ended_at.is_none() && self.is_mine(&info.runtime) => {
                match self.adapters().runtime.inspect(container).await {
                    Ok(container) => Some(container),
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) => return Err(error),
                }
            }
            _ => None,
        };
        let dir = self.state().session(id);
        let result = blocking(move || dir.result()).await?;
        Ok(Inspection {
            info,
            container,
            result,
        })
    }

    pub(crate) async fn info(&self, id: &SessionId) -> Result<SessionInfo> {
        let (state, id) = (self.state().clone(), id.clone());
        blocking(move || {
            known(&state, &id)?.ok_or_else(|| {
                Error::not_found("there is no such session; agents ps -a lists them").with_context("session", &id)
            })
        })
        .await
    }

    fn is_mine(&self, runtime: &str) -> bool {
        self.adapters().runtime.info().adapter_type == runtime
    }

    fn check_mine(&self, info: &SessionInfo) -> Result<()> {
        if self.is_mine(&info.runtime) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "the session belongs to the {0} runtime; choose it with --runtime {0}",
                info.runtime
            ),
        )
        .with_context("session", &info.session_id))
    }

    /// A handle on a running session of any process.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown session, `Conflict` for one that has ended, has no container yet, or belongs to another
    /// runtime.
    pub async fn attach(&self, id: &SessionId) -> Result<SessionHandle> {
        let info = self.info(id).await?;
        if info.status != SessionStatus::Running {
            let message = format!("the session is {}, and no longer running", info.status.as_str());
            return Err(Error::new(ErrorKind::Conflict, message).with_context("session", id));
        }
        self.check_mine(&info)?;
        let dir = self.state().session(id);
        let (note, record) = blocking(move || Ok((dir.container()?, dir.record()?))).await?;
        let Some((note, record)) = note.zip(record) else {
            let message = "the session has no container yet; try again in a moment";
            return Err(Error::new(ErrorKind::Conflict, message)
                .temporary(None)
                .with_context("session", id));
        };
        Ok(SessionHandle {
            recorded: self.recorded(record.scope()),
            engine: self.clone(),
            info,
            container: note.handle,
            deadline: None,
        })
    }

    /// Asks the owner to stop, so that it still collects artifacts, and waits for the end. When the owner is dead, ends
    /// the session in its place. Stopping what has ended succeeds.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown session, `Timeout` when the owner does not react.
    pub async fn stop(&self, id: &SessionId) -> Result<SessionInfo> {
        let dir = self.state().session(id);
        let asked = Instant::now();
        let mut info = self.info(id).await?;
        if info.ended_at.is_none() {
            dir.request_stop()?;
        }
        loop {
            match info.status {
                SessionStatus::Lost if info.ended_at.is_none() => {
                    self.check_mine(&info)?;
                    let record = {
                        let dir = dir.clone();
                        blocking(move || dir.record()).await?
                    };
                    if let Some(record) = record {
                        self.end_lost(&record).await?;
                    }
                }
                SessionStatus::Running => {}
                _ => return Ok(info),
            }
            if asked.elapsed() > self.config().stop_timeout {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "the owner of the session did not stop it in {:?}; end process {} and run agents gc",
                        self.config().stop_timeout,
                        info.owner_pid.unwrap_or_default()
                    ),
                )
                .with_context("session", id));
            }
            sleep(POLL).await;
            info = self.info(id).await?;
        }
    }

    /// A session's output so far, and with `follow` everything until its end. The latest
    /// [`log_limit`](EngineConfig::log_limit) bytes are there; a follower that falls behind by more misses some.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown session.
    pub async fn logs(&self, id: &SessionId, follow: bool) -> Result<BoxStream<'static, Result<LogChunk>>> {
        self.info(id).await?;
        let dir = self.state().session(id);
        let reader = LogReader::new(dir.log());
        // The end is noted before the log is read to its end, so that the last words are not missed.
        let state = Some((reader, dir, !follow));
        let chunks = futures_util::stream::unfold(state, |state| async {
            let (mut reader, dir, mut ended) = state?;
            loop {
                match reader.next() {
                    Ok(Some(chunk)) => return Some((Ok(chunk), Some((reader, dir, ended)))),
                    Ok(None) if ended => return None,
                    Ok(None) => match dir.record() {
                        Ok(record) => {
                            ended = record.is_none_or(|record| !record.info(None).is_running());
                            if !ended {
                                sleep(POLL).await;
                            }
                        }
                        Err(error) => return Some((Err(error), None)),
                    },
                    Err(error) => return Some((Err(error), None)),
                }
            }
        });
        Ok(chunks.boxed())
    }

    /// Ends the sessions of dead owners and removes their containers. Costs the reading of one folder when there are
    /// none, so every start can call it. What belongs to a living owner is not touched.
    ///
    /// # Errors
    ///
    /// When the state folder cannot be read; what could not be cleaned up is in the report.
    pub async fn recover(&self) -> Result<GcReport> {
        let mut report = GcReport::default();
        let dead = |state: &StateDir| -> Result<Vec<Record>> {
            let records = state.active()?;
            let is_dead = |record: &Record| !record.owner.as_ref().is_some_and(Owner::is_alive);
            Ok(records.into_iter().filter(is_dead).collect())
        };
        let state = self.state().clone();
        let found = blocking(move || {
            if dead(&state)?.is_empty() {
                return Ok(None);
            }
            // Another clean-up may have been at it while we waited for the lock.
            let lock = state.lock()?;
            Ok(Some((lock, dead(&state)?)))
        })
        .await?;
        let Some((_lock, records)) = found else {
            return Ok(report);
        };
        for record in records {
            let id = &record.session_id;
            if !self.is_mine(&record.runtime) {
                report.problems.push(format!(
                    "session {id} belongs to the {0} runtime; run agents gc --runtime {0}",
                    record.runtime
                ));
                continue;
            }
            match self.end_lost(&record).await {
                Ok(removed) => {
                    report.ended_sessions.push(id.clone());
                    report
                        .removed
                        .extend(removed.into_iter().map(|container| format!("container {container}")));
                }
                Err(error) => report.problems.push(format!("session {id}: {}", error.report())),
            }
        }
        Ok(report)
    }

    /// [`recover`](Self::recover), then removes the containers of this state folder that no session stands for, and asks
    /// runtime and storage to remove what crashes left behind.
    ///
    /// # Errors
    ///
    /// As [`recover`](Self::recover).
    pub async fn gc(&self) -> Result<GcReport> {
        let mut report = self.recover().await?;
        let Recorded { adapters, trail } = self.recorded(Scope::new());
        if let Err(error) = self.remove_strays(&mut report).await {
            report.problems.push(format!("runtime: {}", error.report()));
        }
        let state = self.state().clone();
        match blocking(move || state.remove_unbegun(BEGINNING)).await {
            Ok(ids) => report
                .removed
                .extend(ids.iter().map(|id| format!("session {id}, which never began"))),
            Err(error) => report.problems.push(error.report()),
        }
        for (what, reaped) in [
            ("runtime", adapters.runtime.reap().await),
            ("storage", adapters.storage.reap().await),
        ] {
            match reaped {
                Ok(removed) => report.removed.extend(removed),
                Err(error) => report.problems.push(format!("{what}: {}", error.report())),
            }
        }
        if let Err(error) = trail.flush().await {
            report.problems.push(error.report());
        }
        Ok(report)
    }

    /// Removes containers without an ownership record, such as one that an engine went on to create after we had given
    /// up. The record is there before the container and goes after it, so nobody can be about to use such a container.
    async fn remove_strays(&self, report: &mut GcReport) -> Result<()> {
        let runtime = &self.adapters().runtime;
        let labels = [(LABEL_STATE.to_owned(), self.state().label.clone())].into();
        for container in runtime.list(&labels).await? {
            let dir = self.state().session(&container.handle.session_id);
            if blocking(move || dir.record()).await?.is_none() {
                let scope = Scope::new().with_session(Some(container.handle.session_id));
                let Recorded { adapters, trail } = self.recorded(scope);
                adapters.runtime.destroy(&container.handle.id).await?;
                report.removed.push(format!("container {}", container.handle.id));
                trail.flush().await?;
            }
        }
        Ok(())
    }

    /// Destroys every container of a session, and says which there were.
    pub(crate) async fn sweep(
        &self,
        runtime: &Arc<dyn ContainerRuntime>,
        record: &Record,
        attempts: u32,
    ) -> Result<Vec<ContainerId>> {
        let labels = [
            (LABEL_SESSION, record.session_id.as_str()),
            (LABEL_STATE, self.state().label.as_str()),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mut ids = Vec::new();
        for container in runtime.list(&labels).await? {
            runtime.destroy(&container.handle.id).await?;
            ids.push(container.handle.id);
        }
        // A creation that was cut off may have left something under the name that no list shows.
        for attempt in 1..=attempts.max(1) {
            let name = container_name(record, attempt)?;
            if !ids.contains(&name) {
                runtime.destroy(&name).await?;
            }
        }
        Ok(ids)
    }

    /// Ends a session whose owner is gone, and with `unknown` the operations that it left open.
    async fn end_lost(&self, record: &Record) -> Result<Vec<ContainerId>> {
        let recorded = self.recorded(record.scope());
        self.end_in_place(record, &recorded, SessionStatus::Lost, LOST).await
    }

    /// Ends a session whose owner cannot: removes its containers, writes its ending unless there is one, and puts the
    /// closing event on record. Doing it again is harmless.
    pub(crate) async fn end_in_place(
        &self,
        record: &Record,
        recorded: &Recorded,
        status: SessionStatus,
        error: &str,
    ) -> Result<Vec<ContainerId>> {
        let Recorded { adapters, trail } = recorded;
        let dir = self.state().session(&record.session_id);
        let (container, ending) = {
            let dir = dir.clone();
            blocking(move || Ok((dir.container()?, dir.ending()?))).await?
        };
        // The owner may have died while it created the next attempt's container.
        let attempts = container.as_ref().map_or(1, |note| note.attempt.saturating_add(1));
        let removed = self.sweep(&adapters.runtime, record, attempts).await?;
        let is_repeated = ending.is_some();
        let ending = match ending {
            Some(ending) => ending,
            None => {
                let mut info = record.info(container.as_ref());
                info.status = status;
                info.ended_at = Some(Timestamp::now());
                info.error = Some(error.to_owned());
                let closing = trail
                    .event(EventType::SessionClosed)
                    .with_severity(Severity::Warning)
                    .with_fact("status", status.as_str())
                    .with_fact("error", error);
                let ending = Ending { info, closing };
                let (dir, written) = (dir.clone(), ending.clone());
                blocking(move || dir.end(&written, None)).await?;
                ending
            }
        };
        let mut events: Vec<_> = removed
            .iter()
            .map(|id| {
                trail
                    .event(EventType::ContainerDestroyed)
                    .with_fact("container_id", id.as_str())
            })
            .collect();
        // Those of a session that only its caller gave up have ended with its futures.
        if status == SessionStatus::Lost {
            trail.flush().await?;
            end_open(trail, record.started_at, error).await?;
        }
        // The owner may have died after this was on record, and before it gave the session up.
        if !is_repeated || !is_on_record(trail, &ending.closing).await? {
            events.push(ending.closing);
        }
        trail.record(events).await?;
        dir.release()?;
        Ok(removed)
    }
}

/// The name of an attempt's container.
pub(crate) fn container_name(record: &Record, attempt: u32) -> Result<ContainerId> {
    match attempt {
        0 | 1 => Ok(record.container_name.clone()),
        _ => ContainerId::new(format!("{}-{attempt}", record.container_name)),
    }
}

/// What the state folder knows of a session: its ending when there is one, else its ownership record.
fn known(state: &StateDir, id: &SessionId) -> Result<Option<SessionInfo>> {
    let dir = state.session(id);
    // Before the ending, so that a session that ends between the two looks is found.
    let record = dir.record()?;
    if let Some(ending) = dir.ending()? {
        return Ok(Some(ending.info));
    }
    match record {
        Some(record) => Ok(Some(record.info(dir.container()?.as_ref()))),
        None => Ok(None),
    }
}
