//! What is on disk.
//!
//! ```text
//! audit.key                 the key of the HMACs that stand in the place of secrets in the trail
//! active/ID.json            the ownership record of a session that has not ended
//! sessions/ID/              the session's folder; making it claims the identifier
//!     .active.json          the ownership record while it is written
//!     container.json        the container, once it is verified
//!     output.log[.1]        the agent's output
//!     stop                  somebody asks the owner to stop
//!     result.json           the result, once it has ended
//!     session.json          the ending, with the event that closes the session
//! ```
//!
//! A session has begun when `active/ID.json` is there, and has ended when `session.json` is. `active/ID.json` goes only
//! when the container is gone *and* the closing event is on record, so whatever a crash leaves undone can be done later:
//! the closing event is in `session.json` with its identifier, and writing it twice is harmless.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use agents_core::{
    AgentId, AuditEvent, ContainerHandle, ContainerId, ContainerInfo, Error, ErrorKind, Result, SessionId,
};
use agents_layers::audit::Scope;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::OutputStream;

/// In a session's folder: an ownership record that is being written.
const UNFINISHED: &str = ".active.json";

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

impl SessionInfo {
    pub(crate) fn is_running(&self) -> bool {
        self.status == SessionStatus::Running
    }
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

/// The ownership record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The process that owns the session; `None` when it gave up and anyone may clean up.
    pub(crate) owner: Option<Owner>,
    pub(crate) session_id: SessionId,
    pub(crate) agent_id: AgentId,
    pub(crate) user_id: Option<String>,
    pub(crate) runtime: String,
    /// The name of the first attempt's container.
    pub(crate) container_name: ContainerId,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) started_at: Timestamp,
}

impl Record {
    /// Whose operations those of the session are. Its secrets are known to its owner alone.
    pub(crate) fn scope(&self) -> Scope {
        Scope::new()
            .with_session(Some(self.session_id.clone()))
            .with_agent(Some(self.agent_id.clone()))
            .with_user(self.user_id.clone())
    }

    pub(crate) fn info(&self, container: Option<&ContainerNote>) -> SessionInfo {
        let alive = self.owner.as_ref().is_some_and(Owner::is_alive);
        SessionInfo {
            session_id: self.session_id.clone(),
            container_id: container.map(|note| note.handle.id.clone()),
            agent_id: self.agent_id.clone(),
            started_at: self.started_at,
            ended_at: None,
            status: if alive {
                SessionStatus::Running
            } else {
                SessionStatus::Lost
            },
            error: (!alive).then(|| "its owner is gone; run agents gc".to_owned()),
            sub_sessions: Vec::new(),
            image: self.image.clone(),
            command: self.command.clone(),
            runtime: self.runtime.clone(),
            owner_pid: self.owner.as_ref().map(|owner| owner.pid),
        }
    }
}

/// The container that was verified last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerNote {
    pub(crate) handle: ContainerHandle,
    pub(crate) attempt: u32,
}

/// The ending of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ending {
    pub(crate) info: SessionInfo,
    pub(crate) closing: AuditEvent,
}

/// A process, told apart from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
    /// The process namespace that the number belongs to.
    pub(crate) pid_namespace: String,
}

impl Owner {
    /// This process.
    pub(crate) fn current() -> Result<Self> {
        let read = || {
            let pid = std::process::id();
            let (_, start_time) = process_state(pid)?
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no /proc entry of our own"))?;
            Ok(Self {
                pid,
                start_time,
                boot_id: boot_id()?,
                pid_namespace: pid_namespace()?,
            })
        };
        read().map_err(|error| Error::io("cannot read this process's identity from /proc; mount it", error))
    }

    /// Whether the process lives. What cannot be judged lives: a process of another namespace, or an unreadable /proc.
    pub(crate) fn is_alive(&self) -> bool {
        if boot_id().is_ok_and(|boot| boot != self.boot_id) {
            return false;
        }
        if pid_namespace().ok().as_ref() != Some(&self.pid_namespace) {
            return true;
        }
        match process_state(self.pid) {
            Ok(Some((state, start_time))) => start_time == self.start_time && !matches!(state, b'Z' | b'X' | b'x'),
            Ok(None) => false,
            Err(_) => true,
        }
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn pid_namespace() -> io::Result<String> {
    Ok(fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned())
}

/// The state and the start time of a process; `None` when there is none.
fn process_state(pid: u32) -> io::Result<Option<(u8, u64)>> {
    let stat = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        // ESRCH (3) when it went away while being read.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => return Ok(None),
        Err(error) => return Err(error),
    };
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is malformed");
    // The second field is the command in parentheses, which may hold anything.
    let after = stat.iter().rposition(|byte| *byte == b')').ok_or_else(malformed)?;
    let fields: Vec<_> = stat[after + 1..]
        .split(|byte| *byte == b' ')
        .filter(|field| !field.is_empty())
        .collect();
    let state = fields.first().and_then(|field| field.first()).copied();
    let start_time = fields
        .get(19)
        .and_then(|field| std::str::from_utf8(field).ok())
        .and_then(|text| text.trim().parse().ok());
    Ok(Some(state.zip(start_time).ok_or_else(malformed)?))
}

/// The state folder.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
    /// The value of the label that says which state folder a container belongs to.
    pub(crate) label: String,
}

impl StateDir {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let open = || {
            let mut builder = fs::DirBuilder::new();
            // Commands, output and results are the user's own business.
            builder.recursive(true).mode(0o700);
            builder.create(root.join("active"))?;
            builder.create(root.join("sessions"))?;
            fs::canonicalize(root)
        };
        let root = open().map_err(|error| {
            Error::io(
                "cannot use the state folder; name another one that can be written to",
                error,
            )
            .with_context("path", root.display())
        })?;
        let hash = Sha256::digest(root.as_os_str().as_encoded_bytes());
        let label = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { root, label })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn session(&self, id: &SessionId) -> SessionDir {
        SessionDir {
            active: self.root.join("active").join(format!("{id}.json")),
            path: self.root.join("sessions").join(id.as_str()),
        }
    }

    /// Claims the identifier and writes the ownership record, durably.
    pub(crate) fn begin(&self, record: &Record) -> Result<SessionDir> {
        let dir = self.session(&record.session_id);
        let fault = |error: io::Error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                return Error::new(ErrorKind::AlreadyExists, "the session id is in use; choose another one")
                    .with_context("session", &record.session_id);
            }
            Error::io("cannot write the ownership record", error).with_context("path", dir.active.display())
        };
        fs::DirBuilder::new().mode(0o700).create(&dir.path).map_err(fault)?;
        let written = replace(&dir.unfinished(), &dir.active, record, true)
            .and_then(|()| fs::File::open(self.root.join("active"))?.sync_all());
        if let Err(error) = written {
            // Nothing has begun, so the identifier is given back.
            for file in [&dir.unfinished(), &dir.active] {
                let _ = fs::remove_file(file);
            }
            let _ = fs::remove_dir(&dir.path);
            return Err(fault(error));
        }
        Ok(dir)
    }

    /// Removes the folders of identifiers that were claimed, and whose session has not begun since: their claimant died in
    /// between. Younger ones may still begin.
    pub(crate) fn remove_unbegun(&self, age: Duration) -> Result<Vec<SessionId>> {
        let mut removed = Vec::new();
        for id in self
            .names("sessions")?
            .into_iter()
            .filter_map(|name| SessionId::new(name).ok())
        {
            let dir = self.session(&id);
            // Whatever a session leaves, it leaves after its record.
            let holds_more = self
                .names(&format!("sessions/{id}"))?
                .iter()
                .any(|name| name != UNFINISHED);
            let claimed = fs::metadata(&dir.path).and_then(|metadata| metadata.modified()).ok();
            let is_old = claimed
                .and_then(|time| time.elapsed().ok())
                .is_some_and(|elapsed| elapsed > age);
            if is_old && !holds_more && dir.record()?.is_none() {
                fs::remove_dir_all(&dir.path).map_err(|error| {
                    Error::io("cannot remove the folder of a session that never began", error)
                        .with_context("path", dir.path.display())
                })?;
                removed.push(id);
            }
        }
        Ok(removed)
    }

    /// The ownership records, of dead and living owners.
    pub(crate) fn active(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for name in self.names("active")? {
            if let Some(id) = name.strip_suffix(".json").and_then(|id| SessionId::new(id).ok())
                && let Some(record) = read_json(&self.session(&id).active)?
            {
                records.push(record);
            }
        }
        Ok(records)
    }

    /// The endings of the sessions that have one.
    pub(crate) fn ended(&self) -> Result<Vec<Ending>> {
        let mut endings = Vec::new();
        for name in self.names("sessions")? {
            if let Ok(id) = SessionId::new(name)
                && let Some(ending) = self.session(&id).ending()?
            {
                endings.push(ending);
            }
        }
        Ok(endings)
    }

    fn names(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.root.join(folder);
        let read = || {
            fs::read_dir(&path)?
                .map(|entry| Ok(entry?.file_name()))
                .collect::<io::Result<Vec<_>>>()
        };
        let names = read()
            .map_err(|error| Error::io("cannot read the state folder", error).with_context("path", path.display()))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// Keeps two clean-ups from doing the same.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        let path = self.root.join("gc.lock");
        let lock = || {
            let file = fs::File::options().create(true).append(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(|error: io::Error| {
            Error::io("cannot lock the state folder", error).with_context("path", path.display())
        })
    }
}

/// A session's files.
#[derive(Clone, Debug)]
pub(crate) struct SessionDir {
    active: PathBuf,
    path: PathBuf,
}

impl SessionDir {
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("output.log")
    }

    /// Where the ownership record is written before it takes its place.
    fn unfinished(&self) -> PathBuf {
        self.path.join(UNFINISHED)
    }

    pub(crate) fn stop_file(&self) -> PathBuf {
        self.path.join("stop")
    }

    pub(crate) fn record(&self) -> Result<Option<Record>> {
        read_json(&self.active)
    }

    pub(crate) fn container(&self) -> Result<Option<ContainerNote>> {
        read_json(&self.path.join("container.json"))
    }

    pub(crate) fn ending(&self) -> Result<Option<Ending>> {
        read_json(&self.path.join("session.json"))
    }

    pub(crate) fn result(&self) -> Result<Option<Value>> {
        read_json(&self.path.join("result.json"))
    }

    pub(crate) fn note_container(&self, note: &ContainerNote) -> Result<()> {
        self.write("container.json", note, false)
    }

    /// Writes the result, which may go with the machine's power, and the ending, which may not.
    pub(crate) fn end(&self, ending: &Ending, result: Option<&Value>) -> Result<()> {
        if let Some(result) = result {
            self.write("result.json", result, false)?;
        }
        self.write("session.json", ending, true)
    }

    /// The session is over, and nothing of it is left to do.
    pub(crate) fn release(&self) -> Result<()> {
        match fs::remove_file(&self.active) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("cannot remove the ownership record", error).with_context("path", self.active.display()))
            }
            _ => Ok(()),
        }
    }

    /// The owner gives up: a clean-up may do the rest at once.
    pub(crate) fn abandon(&self) -> Result<()> {
        let Some(record) = self.record()? else {
            return Ok(());
        };
        let record = Record { owner: None, ..record };
        replace(&self.unfinished(), &self.active, &record, false).map_err(|error| {
            Error::io("cannot write the ownership record", error).with_context("path", self.active.display())
        })
    }

    pub(crate) fn request_stop(&self) -> Result<()> {
        let path = self.stop_file();
        fs::write(&path, b"")
            .map_err(|error| Error::io("cannot ask the owner to stop", error).with_context("path", path.display()))
    }

    fn write(&self, name: &str, value: &impl Serialize, durable: bool) -> Result<()> {
        let path = self.path.join(name);
        write_json(&path, value, durable)
            .map_err(|error| Error::io("cannot write the session's record", error).with_context("path", path.display()))
    }
}

/// Replaces a file at once.
fn write_json(path: &Path, value: &impl Serialize, durable: bool) -> io::Result<()> {
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(path.file_name().unwrap_or_default());
    replace(&path.with_file_name(temporary), path, value, durable)
}

/// Replaces a file at once by way of a temporary one in the same file system.
fn replace(temporary: &Path, path: &Path, value: &impl Serialize, durable: bool) -> io::Result<()> {
    let mut file = fs::File::create(temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if durable {
        file.sync_data()?;
    }
    fs::rename(temporary, path)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(content) => serde_json::from_slice(&content).map(Some).map_err(|error| {
            Error::new(
                ErrorKind::DataInvalid,
                "a record in the state folder is damaged; move it away",
            )
            .with_context("path", path.display())
            .with_source(error)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("cannot read the session's record", error).with_context("path", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_alive_and_a_successor_with_our_number_is_not_us() {
        let owner = Owner::current().unwrap();
        assert!(owner.is_alive());
        let earlier = Owner {
            start_time: owner.start_time - 1,
            ..owner.clone()
        };
        assert!(!earlier.is_alive());
        let other_boot = Owner {
            boot_id: "other".to_owned(),
            ..owner.clone()
        };
        assert!(!other_boot.is_alive());
        let elsewhere = Owner {
            pid_namespace: "pid:[1]".to_owned(),
            start_time: 0,
            ..owner
        };
        assert!(elsewhere.is_alive(), "what cannot be judged is left alone");
    }

    #[test]
    fn an_identifier_that_was_claimed_and_not_used_is_given_back_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let session = |name: &str| folder.path().join("sessions").join(name);
        for name in ["claimed", "cut", "begun", "ended"] {
            fs::create_dir(session(name)).unwrap();
        }
        fs::write(session("cut").join(UNFINISHED), "{\"own").unwrap();
        fs::write(session("ended").join("session.json"), "").unwrap();
        let record = Record {
            owner: None,
            session_id: SessionId::new("begun").unwrap(),
            agent_id: AgentId::new("agent").unwrap(),
            user_id: None,
            runtime: "fake".to_owned(),
            container_name: ContainerId::new("begun").unwrap(),
            image: "host".to_owned(),
            command: Vec::new(),
            started_at: Timestamp::now(),
        };
        write_json(&folder.path().join("active/begun.json"), &record, false).unwrap();
        assert!(state.remove_unbegun(Duration::from_secs(60)).unwrap().is_empty());
        let mut removed = state.remove_unbegun(Duration::ZERO).unwrap();
        removed.sort();
        assert_eq!(
            removed.iter().map(SessionId::as_str).collect::<Vec<_>>(),
            ["claimed", "cut"]
        );
        assert!(session("begun").is_dir() && session("ended").is_dir());
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (_, start_time) = process_state(child.id()).unwrap().unwrap();
        let owner = Owner {
            pid: child.id(),
            start_time,
            ..Owner::current().unwrap()
        };
        for _ in 0..500 {
            if !owner.is_alive() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(!owner.is_alive());
        assert_eq!(process_state(child.id()).unwrap().unwrap().0, b'Z');
        child.wait().unwrap();
    }
}
