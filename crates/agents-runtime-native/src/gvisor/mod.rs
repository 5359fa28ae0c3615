//! `runtime_class: gvisor`: a container in a sandbox of gVisor, whose kernel is a program of its own, run by `runsc` from
//! an OCI bundle without any daemon.
//!
//! The container's folder, its owner and its cgroup are as those of the embedded runtime's own containers, so that they are
//! listed, reaped and limited by the same code. What runs inside is the guest program, over pipes.

mod bundle;
mod judge;
pub(crate) mod launcher;
mod rootfs;

use std::{
    collections::HashMap,
    fs,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use agents_core::{
    ByteStream, ContainerId, ContainerState, CopyFromRequest, CopyToRequest, EffectiveState, Error, ErrorKind,
    ExecRequest, ExecSession, ProvisionRequest, Result, RuntimeCapabilities, StartRequest, Support, User,
};
use agents_guest::{Afterwards, Connection, PROGRAM, PROGRAM_SHA256, Plan, SpawnRequest, StartOptions};
use agents_image::Resolved;
use serde_json::Value;

use self::judge::CgroupJudge;
use crate::{
    cgroup::{Group, Limits, Usage},
    host::Host,
    spec::Identity,
    state,
};

/// The class's name.
pub(crate) const CLASS: &str = agents_guest::GVISOR;

/// How long a sandbox may take to start, or to answer a question.
const PATIENCE: Duration = Duration::from_secs(30);

/// The sandboxes of one runtime.
#[derive(Debug)]
pub(crate) struct Gvisor {
    runsc: PathBuf,
    root: bool,
    /// The connections to the first processes, which start the main processes.
    waiting: Mutex<HashMap<ContainerId, Connection>>,
    /// The same connections, once the main processes have started over them.
    started: Mutex<HashMap<ContainerId, Afterwards>>,
    execs: AtomicU64,
}

/// A sandbox that has started.
pub(crate) struct Started {
    pub(crate) effective: EffectiveState,
    /// The sandbox ends when this is closed.
    pub(crate) link: OwnedFd,
    connection: Connection,
}

impl Gvisor {
    /// The `runsc` that is named, or the one of the search path.
    pub(crate) fn find(named: Option<&Path>, host: &Host) -> Option<Self> {
        let runsc = match named {
            Some(path) => path.to_owned(),
            None => {
                let path = std::env::var_os("PATH")?;
                std::env::split_paths(&path)
                    .map(|folder| folder.join("runsc"))
                    .find(|path| path.is_absolute() && path.is_file())?
            }
        };
        Some(Self {
            runsc,
            root: host.root,
            waiting: Mutex::default(),
            started: Mutex::default(),
            execs: AtomicU64::new(0),
        })
    }

    /// What can be enforced in a sandbox.
    pub(crate) fn capabilities(&self, own: &RuntimeCapabilities) -> RuntimeCapabilities {
        let mut class = own.clone();
        class.runtime_classes.clear();
        class
            // A limit that gVisor's own kernel enforces, on the only user that there is.
            .with_pids_limit(Support::Enforced)
            .with_writable_rootfs(Support::refused(
                "the root of a gVisor sandbox is served read-only",
                "leave read_only_rootfs true and write to the workspace, /output or /tmp",
            ))
            .with_writable_bind_mounts(Support::refused(
                "what a gVisor sandbox makes in a host folder would not belong to the caller",
                "mount it read-only, and let the agent write to /output",
            ))
            // The guest program stops the processes itself.
            .with_quiesce(Support::Enforced)
    }

    /// Makes the bundle and starts the sandbox. The container's folder exists, and the caller removes it on failure.
    pub(crate) async fn start_sandbox(
        &self,
        request: &ProvisionRequest,
        user: User,
        image: &Resolved,
        identity: &Identity,
        launcher: &Path,
    ) -> Result<Started> {
        let mut request = request.clone();
        request.security.user = Some(user);
        let of_image = image.config.env.iter().filter_map(|entry| entry.split_once('='));
        let of_image = of_image.map(|(name, value)| (name.to_owned(), value.to_owned()));
        request.env = of_image.chain(request.env).collect();
        let plan = Plan::new(&request, None)?.on_gvisor();
        let (layers, folder) = (image.layers.clone(), identity.folder.clone());
        let prepared = tokio::task::spawn_blocking(move || {
            let rootfs = rootfs::prepare(&layers, &folder)?;
            let program = guest_program(&folder).map_err(|error| Error::io("cannot write the guest program", error))?;
            Ok::<_, Error>((rootfs, program))
        });
        let (rootfs, program) = prepared
            .await
            .map_err(|error| Error::unexpected("the preparation of a sandbox panicked").with_source(error))??;
        let config = bundle::config(&bundle::Parts {
            plan: &plan,
            user,
            rootfs: &rootfs,
            program: &program,
        })?;
        write(&identity.folder.join("config.json"), &config)?;
        write(&identity.folder.join(PROCESS), &bundle::process(&plan, user, &[]))?;
        if let Some(group) = &identity.group {
            let limits = Limits {
                memory_bytes: plan.memory_bytes,
                cpu_cores: request.resources.cpu_cores,
                // The threads of gVisor's own kernel are no processes of the container.
                pids: None,
            };
            group
                .create(&limits)
                .map_err(|error| Error::io("cannot make the sandbox's cgroup", error))?;
        }
        let (mut connection, link) = self.launch(identity, launcher)?;
        let report = tokio::time::timeout(PATIENCE, connection.report()).await;
        let report = match report {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => return Err(self.not_started(identity, error)),
            Err(_) => return Err(self.not_started(identity, silent())),
        };
        plan.check(&report)?;
        let mut effective = plan.effective(&report);
        let limits = identity.group.as_ref().map(Group::limits).unwrap_or_default();
        effective.memory_bytes = limits.memory_bytes;
        effective.cpu_cores = limits.cpu_cores;
        if !report.is_gvisor() {
            return Err(Error::new(
                ErrorKind::EnforcementMismatch,
                "runtime_class: requested gvisor, and the kernel inside is another",
            ));
        }
        connection.deliver_secrets(&request.secrets).await?;
        if let Some(process) = &request.process {
            let spawn = SpawnRequest::new(process.clone()).with_default_working_dir(&request.working_dir);
            connection.prepare(spawn).await?;
        }
        Ok(Started {
            effective,
            link,
            connection,
        })
    }

    /// Keeps the connection of a sandbox that is to be used.
    pub(crate) fn keep(&self, id: ContainerId, started: Started) -> (EffectiveState, OwnedFd) {
        self.waiting().insert(id, started.connection);
        (started.effective, started.link)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Connection>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn started(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Afterwards>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The words that every call of `runsc` begins with.
    fn words(&self, folder: &Path) -> Vec<String> {
        let mut words = vec![
            format!("--root={}", folder.join("runsc").display()),
            format!("--log={}", folder.join("runsc.log").display()),
            "--network=none".to_owned(),
            // The launcher puts the sandbox into the cgroup.
            "--ignore-cgroups".to_owned(),
            "--oci-seccomp".to_owned(),
            "--overlay2=none".to_owned(),
        ];
        if !self.root {
            words.push("--rootless".to_owned());
        }
        words
    }

    fn launch(&self, identity: &Identity, launcher: &Path) -> Result<(Connection, OwnedFd)> {
        let folder = &identity.folder;
        let mut command = std::process::Command::new(launcher);
        command
            .arg0(launcher::NAME)
            .arg(folder)
            .arg(&self.runsc)
            .args(self.words(folder))
            .args(["run", "--bundle"])
            .arg(folder)
            .arg("--")
            .arg(&identity.id)
            .env_clear()
            .envs(std::env::var_os("XDG_RUNTIME_DIR").map(|dir| ("XDG_RUNTIME_DIR", dir)))
            .current_dir("/")
            .process_group(0)
            .stderr(Stdio::null());
        let broken = |error| Error::io(format!("cannot start {}", launcher.display()), error);
        // A second descriptor of the guest's standard input, which keeps the sandbox alive.
        let (stdin, ours) = std::io::pipe().map_err(broken)?;
        let link = OwnedFd::from(ours.try_clone().map_err(broken)?);
        let writer = tokio::net::unix::pipe::Sender::from_owned_fd(OwnedFd::from(ours)).map_err(broken)?;
        command.stdin(OwnedFd::from(stdin)).stdout(Stdio::piped());
        let mut child = tokio::process::Command::from(command).spawn().map_err(broken)?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| Error::unexpected("the launcher has no output"))?;
        tokio::spawn(async move {
            // Only takes the ended launcher off.
            let _ = child.wait().await;
        });
        Ok((Connection::new(stdout, writer), link))
    }

    /// Why a sandbox has not started, in the words of `runsc`.
    fn not_started(&self, identity: &Identity, error: Error) -> Error {
        let words = fs::read_to_string(identity.folder.join(launcher::MESSAGES)).unwrap_or_default();
        let last: String = words.lines().last().unwrap_or_default().chars().take(500).collect();
        let reason = if last.is_empty() {
            String::new()
        } else {
            format!(": {last}")
        };
        Error::new(
            ErrorKind::Unavailable,
            format!("runsc ({}) could not start the sandbox{reason}", self.runsc.display()),
        )
        .with_source(error)
    }

    /// A connection to the guest program, started with some words in a running sandbox.
    fn connect(&self, identity: &Identity, arguments: &[String]) -> Result<Connection> {
        let folder = &identity.folder;
        if !state::running(folder).is_some_and(|running| running.helper.is_alive()) {
            return Err(
                Error::new(ErrorKind::Conflict, "the container is not running: its sandbox is gone")
                    .with_context("container", &identity.id),
            );
        }
        let mut process: Value = fs::read(folder.join(PROCESS))
            .and_then(|text| serde_json::from_slice(&text).map_err(std::io::Error::other))
            .map_err(|error| Error::io("cannot read the sandbox's process", error))?;
        process["args"] = arguments.into();
        let number = self.execs.fetch_add(1, Ordering::Relaxed);
        let file = folder.join(format!("exec-{}-{number}.json", std::process::id()));
        write(&file, &process)?;
        let mut command = std::process::Command::new(&self.runsc);
        command
            .args(self.words(folder))
            .args(["exec", "--process"])
            .arg(&file)
            .arg("--")
            .arg(&identity.id)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = tokio::process::Command::from(command)
            .spawn()
            .map_err(|error| Error::io(format!("cannot start {}", self.runsc.display()), error))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        tokio::spawn(async move {
            let _ = child.wait().await;
            let _ = fs::remove_file(file);
        });
        match (stdin, stdout) {
            (Some(stdin), Some(stdout)) => Ok(Connection::new(stdout, stdin)),
            _ => Err(Error::unexpected("runsc has no streams")),
        }
    }

    pub(crate) async fn start(&self, identity: &Identity, request: &StartRequest) -> Result<ExecSession> {
        let id = &request.container.id;
        let connection = if identity.main.is_some() {
            self.waiting().remove(id)
        } else {
            None
        };
        let Some(connection) = connection else {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the container has no main process, or it has started already, or another process has made the container and \
                 has to start it",
            ));
        };
        let options = StartOptions::new().with_deadline(request.deadline);
        let (session, afterwards) = connection.start(options, self.judge(identity)).await?;
        self.started().insert(id.clone(), afterwards);
        Ok(session)
    }

    pub(crate) async fn exec(&self, identity: &Identity, request: ExecRequest) -> Result<ExecSession> {
        let spawn = SpawnRequest::new(request.process)
            .with_default_working_dir(&identity.working_dir)
            .with_deadline(request.deadline);
        self.connect(identity, &agents_guest::exec_command())?
            .spawn(spawn, self.judge(identity))
            .await
    }

    pub(crate) async fn copy_from(&self, identity: &Identity, request: &CopyFromRequest) -> Result<ByteStream> {
        let afterwards = self.started().get(&request.container.id).cloned();
        if let Some(afterwards) = afterwards {
            match afterwards.read(&request.path).await {
                None => {}
                // It is looked at once more why.
                Some(Err(error)) if error.kind() == ErrorKind::Unavailable => {}
                Some(read) => return read,
            }
        }
        let words = agents_guest::read_command(&request.path, request.quiesce);
        self.connect(identity, &words)?.read().await
    }

    pub(crate) async fn copy_to(&self, identity: &Identity, request: CopyToRequest) -> Result<()> {
        let words = agents_guest::write_command(&request.path);
        self.connect(identity, &words)?.write(request.archive).await
    }

    pub(crate) async fn state(&self, identity: &Identity) -> (ContainerState, Option<u32>) {
        let pid = state::running(&identity.folder).and_then(|running| running.first);
        let pid = pid.map(|first| first.pid);
        let asked = async { self.connect(identity, &agents_guest::status_command())?.status().await };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(ContainerState::Exited)) | Ok(Err(_)) | Err(_) => (ContainerState::Exited, None),
            Ok(Ok(state)) => (state, pid),
        }
    }

    /// What the cgroup has counted, or what gVisor has where there is none.
    pub(crate) async fn usage(&self, identity: &Identity) -> Result<(Usage, Option<u64>)> {
        if let Some(group) = &identity.group {
            let usage = Usage {
                // The threads of gVisor's own kernel are no processes of the container.
                pids: None,
                ..group.usage()
            };
            return Ok((usage, group.limits().memory_bytes));
        }
        let output = tokio::process::Command::new(&self.runsc)
            .args(self.words(&identity.folder))
            .args(["events", "--stats", "--", &identity.id])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let output = tokio::time::timeout(PATIENCE, output)
            .await
            .map_err(|_| silent())?
            .map_err(|error| Error::io(format!("cannot start {}", self.runsc.display()), error))?;
        let stats: Value = serde_json::from_slice(&output.stdout).map_err(|error| silent().with_source(error))?;
        let number = |path: &str| stats.pointer(path).and_then(Value::as_u64);
        let usage = Usage {
            cpu_seconds: number("/data/cpu/usage/total").map(|nanoseconds| nanoseconds as f64 / 1e9),
            memory_bytes: number("/data/memory/usage/usage"),
            pids: number("/data/pids/current"),
            ..Usage::default()
        };
        Ok((usage, None))
    }

    /// Forgets a container that is destroyed.
    pub(crate) fn forget(&self, id: &ContainerId) {
        self.waiting().remove(id);
        self.started().remove(id);
    }

    fn judge(&self, identity: &Identity) -> Arc<CgroupJudge> {
        Arc::new(CgroupJudge::new(identity.clone()))
    }
}

/// The file with the process that `runsc exec` runs, but for its words.
const PROCESS: &str = "process.json";

fn silent() -> Error {
    Error::new(ErrorKind::Unavailable, "the sandbox does not answer").temporary(None)
}

fn write(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, value.to_string()).map_err(|error| Error::io(format!("cannot write {}", path.display()), error))
}

/// The folder with the guest program, one for all containers of a store.
fn guest_program(folder: &Path) -> std::io::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;

    let store = folder.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    let place = store.join(format!(".guest-{}", &PROGRAM_SHA256[..16]));
    if !place.join("guest").is_file() {
        let made = store.join(format!(".new-guest-{}", std::process::id()));
        fs::create_dir_all(&made)?;
        fs::write(made.join("guest"), PROGRAM)?;
        fs::set_permissions(made.join("guest"), fs::Permissions::from_mode(0o555))?;
        fs::set_permissions(&made, fs::Permissions::from_mode(0o755))?;
        match fs::rename(&made, &place) {
            Err(_) if place.join("guest").is_file() => fs::remove_dir_all(&made)?,
            other => other?,
        }
    }
    Ok(place)
}
