//! What the runtime tells its helper, and what the helper answers.

use std::{collections::BTreeMap, path::PathBuf};

use agents_core::{ContainerState, EffectiveState, Exit, KillReason};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Group, Limits, Usage};

/// How numbers of users and groups inside stand for numbers on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IdMap {
    /// All of 0 to 65535 stand for a range of the host that nobody else uses. Needs root.
    Range { base: u32 },
    /// The agent's numbers stand for the caller's; there are no others.
    Caller { uid: u32, gid: u32 },
}

/// How many numbers a range has.
pub(crate) const RANGE: u32 = 65536;

/// What the root file system is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Root {
    /// The programs and libraries of the host, read-only.
    Host,
    /// Folders, the lowest first.
    Layers(Vec<PathBuf>),
}

/// A mount of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountSpec {
    pub(crate) source: Source,
    pub(crate) destination: String,
    pub(crate) read_only: bool,
}

/// Where a mount's content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    Bind {
        path: PathBuf,
        is_dir: bool,
        uid: u32,
        gid: u32,
    },
    Tmpfs {
        size_bytes: u64,
    },
    Scratch,
}

/// Everything that a container is made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    pub(crate) identity: Identity,
    pub(crate) ids: IdMap,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) root: Root,
    pub(crate) read_only_root: bool,
    pub(crate) mounts: Vec<MountSpec>,
    pub(crate) limits: Limits,
    pub(crate) nofile: Option<u64>,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) capabilities: Vec<u8>,
    pub(crate) seccomp_profile: Option<String>,
    pub(crate) secrets: BTreeMap<String, Vec<u8>>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: String,
    pub(crate) process: Option<ProcessSpec>,
}

/// A process to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessSpec {
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: Option<String>,
    pub(crate) stdin: bool,
    pub(crate) tty: Option<(u16, u16)>,
}

/// What stays known of a container while its folder exists: `container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) session_id: String,
    pub(crate) image: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created_at: String,
    /// The container's folder.
    pub(crate) folder: PathBuf,
    pub(crate) group: Option<Group>,
    /// The process that asked for the container.
    pub(crate) owner: ProcessId,
    /// Whether there is a main process, and its streams.
    pub(crate) main: Option<MainStreams>,
    /// Whether it runs in a sandbox of gVisor.
    #[serde(default)]
    pub(crate) sandboxed: bool,
    /// The working directory of processes that name none.
    #[serde(default)]
    pub(crate) working_dir: String,
}

impl Identity {
    /// How long ago it was made.
    pub(crate) fn age_seconds(&self) -> f64 {
        let created: jiff::Timestamp = self.created_at.parse().unwrap_or_default();
        jiff::Timestamp::now().duration_since(created).as_secs_f64()
    }
}

/// The streams of a main process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MainStreams {
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
}

/// A process number that cannot be mistaken for a later process with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot, combined with a number that stands for the boot.
    pub(crate) started: u64,
}

impl ProcessId {
    /// A living process.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, so fields are counted from its end: 3 is the first after it.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        if matches!(state, "Z" | "X") {
            return None;
        }
        Some(Self {
            pid,
            started: fields.nth(18)?.parse::<u64>().ok()? ^ boot(),
        })
    }

    /// The calling process.
    pub(crate) fn own() -> Self {
        let pid = std::process::id();
        Self::of(pid).unwrap_or(Self { pid, started: 0 })
    }

    /// Whether the process still runs.
    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

/// A number that no other boot of this machine has.
fn boot() -> u64 {
    static BOOT: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *BOOT.get_or_init(|| {
        // A random UUID, of which half is enough.
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        u64::from_str_radix(&digits, 16).unwrap_or(0)
    })
}

/// What a connection asks the helper for. One request a connection, and [`Control`] may follow.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Starts the main process. Comes with the descriptors of standard input, output and error, or none for a terminal.
    Start { deadline_ms: Option<u64> },
    /// Runs a further process, likewise.
    Exec {
        process: ProcessSpec,
        deadline_ms: Option<u64>,
    },
    /// Writes a tar archive to the descriptor that comes with it.
    CopyFrom { path: String, quiesce: bool },
    /// Reads a tar archive from the descriptor that comes with it.
    CopyTo { path: String },
    /// Reads the counters.
    Stats,
    /// Says whether the main process has started and ended.
    State,
    /// Removes the container and ends the helper.
    Destroy,
}

/// What may follow `Start` and `Exec`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Control {
    Kill(KillReason),
    Signal(i32),
}

/// What the helper answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The container is there.
    Created(Box<EffectiveState>),
    /// The process runs. Comes with the terminal's descriptor when one was asked for.
    Started,
    /// The process has ended; the last reply to `Start` and `Exec`.
    Exited(Exit),
    Done,
    Stats(Counters),
    State {
        state: ContainerState,
        pid: u32,
    },
    Failed(Failure),
}

/// Why a request failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: agents_core::ErrorKind,
    pub(crate) message: String,
}

/// The counters of a container.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) usage: Usage,
    pub(crate) disk_used_bytes: Option<u64>,
    pub(crate) memory_limit_bytes: Option<u64>,
    /// How long the container has been there.
    pub(crate) age_seconds: f64,
}

impl Failure {
    pub(crate) fn new(kind: agents_core::ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn io(what: impl std::fmt::Display, error: std::io::Error) -> Self {
        let kind = agents_core::Error::io("", std::io::Error::from(error.kind())).kind();
        Self {
            kind,
            message: format!("{what}: {error}"),
        }
    }
}

impl From<Failure> for agents_core::Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, failure.message)
    }
}

/// Adds what was tried to a failed system call.
pub(crate) trait Context<T> {
    fn context(self, what: impl std::fmt::Display) -> Result<T, Failure>;
}

impl<T, E: Into<std::io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl std::fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::io(what, error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = ProcessId::own();
        assert!(own.is_alive());
        assert!(
            !ProcessId {
                started: own.started + 1,
                ..own
            }
            .is_alive()
        );
    }
}
