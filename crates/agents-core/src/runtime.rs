//! Where containers run: the [`ContainerRuntime`] trait and its requests.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    AdapterInfo, Admitted, Availability, ContainerId, Error, ExecSession, Provisioned, Result, SessionId, Support,
};

/// A stream of bytes, such as a tar archive.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// Where containers run.
///
/// # For adapter authors
///
/// - You **must** enforce everything in a request that [`capabilities`](Self::capabilities) declares as
///   [`Support::Enforced`], and you **must not** declare what you cannot prove: the conformance suite tries each one from
///   inside the container.
/// - `provision` **must** leave nothing behind when it fails or when its future is dropped. With a name that exists it
///   **must** return `AlreadyExists`, so that repeating it after a lost answer is safe.
/// - You **must** read the effective state back from the kernel or the engine after creation, never copy the request.
/// - `exec` and `start` **must** yield exactly one `Exit`, **must** bound their memory, and **must** kill the whole
///   process tree, not a client, on [`ExecControl::kill`](crate::ExecControl::kill) and on drop.
/// - `copy_from` **must not** parse what a tool inside the container prints, and `copy_to` **must not** write with more
///   rights than the agent has.
/// - `destroy` **must** be idempotent and **must not** wait for a grace period.
///
/// # For callers
///
/// Go through [`ContainerRuntimeExt::provision_verified`]: a container that has not been verified cannot be used, since
/// only a verified one gives its [`ContainerHandle`] away. Every other operation takes the handle, which is plain data and
/// can be stored, so that another process can go on with it.
#[async_trait]
pub trait ContainerRuntime: fmt::Debug + Send + Sync + 'static {
    /// What this adapter is. Never changes, and layers forward it untouched.
    fn info(&self) -> AdapterInfo;

    /// What this runtime can enforce on this host, found out once. Layers may narrow it.
    fn capabilities(&self) -> RuntimeCapabilities;

    /// Whether the runtime is installed, reachable and usable, with a reason and a remedy when it is not.
    ///
    /// # Errors
    ///
    /// Only when the question itself could not be asked; "not available" is a value.
    async fn check_availability(&self) -> Result<Availability>;

    /// Creates a container, with its main process not started yet, and reads back what is in force.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown image or mount source, `AlreadyExists` for a name in use, `Unsupported` for what this
    /// host cannot do, `Unavailable` (temporary) when the engine or the registry cannot be reached.
    async fn provision(&self, request: Admitted) -> Result<Provisioned>;

    /// Starts the main process of a container that was provisioned with one, with its streams attached. Once a container.
    ///
    /// # Errors
    ///
    /// `Conflict` when it has started already or the container has no main process. A command that cannot be executed is
    /// not an error but the stream's [`Exit::NotStarted`](crate::Exit::NotStarted).
    async fn start(&self, request: StartRequest) -> Result<ExecSession>;

    /// Runs a further process in a running container.
    ///
    /// # Errors
    ///
    /// `NotFound` when the container is gone, `Conflict` when it is not running.
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession>;

    /// Reads a file or a folder of the container as a tar stream whose names are relative to the path's parent, so that
    /// `/output` gives `output/…`. With [`CopyFromRequest::quiesce`] the container's processes are stopped meanwhile.
    /// Works on a container whose processes have ended, until it is destroyed. The stream is hostile input.
    ///
    /// # Errors
    ///
    /// `NotFound` when the path does not exist.
    async fn copy_from(&self, request: CopyFromRequest) -> Result<ByteStream>;

    /// Unpacks a tar stream into a folder of the container, with the agent's rights. Returns when all is written.
    ///
    /// # Errors
    ///
    /// `NotFound` when the folder does not exist, `ResourceExhausted` when the writable space is full.
    async fn copy_to(&self, request: CopyToRequest) -> Result<()>;

    /// What the container has used. Works on a container whose processes have ended, until it is destroyed.
    async fn stats(&self, container: &ContainerHandle) -> Result<ContainerStats>;

    /// The containers with all of these labels, in any state, whoever created them.
    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerInfo>>;

    /// What is known of one container.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none of this id.
    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo>;

    /// Kills the container's processes and removes everything that belongs to it. Succeeds when it is gone already.
    async fn destroy(&self, id: &ContainerId) -> Result<()>;

    /// Removes what crashed creations left behind that no container of [`list`](Self::list) stands for, such as stray
    /// cgroups, mounts and folders, and says what was removed. Never touches what a living process owns.
    async fn reap(&self) -> Result<Vec<String>>;

    /// Builds an image from a folder with a Containerfile, and returns the reference to ask for it by. A convenience of
    /// runtimes whose engine can build; the others refuse it.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the runtime has no builder, `ConfigInvalid` for a folder without a Containerfile or one that
    /// the engine rejects.
    async fn build_image(&self, request: BuildImageRequest) -> Result<String> {
        drop(request);
        Err(Error::unsupported(format!(
            "the {} runtime cannot build images; build it with a runtime that can (podman, docker), or give it a folder or \
             an archive",
            self.info().adapter_type
        ))
        .with_operation("build_image"))
    }
}

/// Conveniences over every [`ContainerRuntime`].
#[async_trait]
pub trait ContainerRuntimeExt {
    /// Admits the request, provisions, and verifies the effective state; on a difference the container is destroyed.
    ///
    /// # Errors
    ///
    /// As [`Admitted::new`], [`ContainerRuntime::provision`] and [`Provisioned::verify`].
    async fn provision_verified(&self, request: ProvisionRequest) -> Result<VerifiedContainer>;
}

#[async_trait]
impl ContainerRuntimeExt for dyn ContainerRuntime {
    async fn provision_verified(&self, request: ProvisionRequest) -> Result<VerifiedContainer> {
        let admitted = Admitted::new(self, request)?;
        let asked = admitted.request().clone();
        let provisioned = self.provision(admitted).await?;
        let id = provisioned.id().clone();
        match provisioned.verify(&asked) {
            Ok(verified) => Ok(verified),
            Err(mismatch) => {
                self.destroy(&id).await?;
                Err(mismatch)
            }
        }
    }
}

/// A container whose effective state was compared with its request.
#[derive(Clone, Debug)]
pub struct VerifiedContainer {
    /// How to use the container.
    pub handle: ContainerHandle,
    /// What was compared, for the audit trail.
    pub comparison: Vec<crate::Comparison>,
}

/// The plain-data reference to a verified container. Can be stored and used by another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContainerHandle {
    /// The runtime's identifier.
    pub id: ContainerId,
    /// The session that it belongs to.
    pub session_id: SessionId,
}

impl ContainerHandle {
    pub(crate) fn new(id: ContainerId, session_id: SessionId) -> Self {
        Self { id, session_id }
    }
}

/// When an image is fetched from a registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagePullPolicy {
    /// Ask the registry each time.
    Always,
    /// Only when it is not here.
    #[default]
    Missing,
    /// Never: an image that is not here is an error.
    Never,
}

/// Where a mount's content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MountSource {
    /// A folder or a file of the host. When it is writable, what the agent makes there belongs to the caller on the host.
    Bind {
        /// An absolute path.
        path: PathBuf,
    },
    /// A memory-backed file system of its own, which counts towards the memory limit.
    Tmpfs {
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// A folder in the container's writable space, which `disk_bytes` bounds.
    Scratch,
}

/// A mount of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Mount {
    /// Where the content comes from.
    pub source: MountSource,
    /// The absolute path in the container.
    pub destination: String,
    /// Whether writing is refused.
    pub read_only: bool,
}

impl Mount {
    /// A read-only mount of a host path.
    pub fn bind(path: impl Into<PathBuf>, destination: impl Into<String>) -> Self {
        Self {
            source: MountSource::Bind { path: path.into() },
            destination: destination.into(),
            read_only: true,
        }
    }

    /// A writable memory-backed mount.
    pub fn tmpfs(size_bytes: u64, destination: impl Into<String>) -> Self {
        Self {
            source: MountSource::Tmpfs { size_bytes },
            destination: destination.into(),
            read_only: false,
        }
    }

    /// A writable folder in the container's own space.
    pub fn scratch(destination: impl Into<String>) -> Self {
        Self {
            source: MountSource::Scratch,
            destination: destination.into(),
            read_only: false,
        }
    }

    /// Makes it writable.
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.read_only = false;
        self
    }
}

/// The limits of a container. `None` means that no limit is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResourceLimits {
    /// Memory of all processes, in bytes, with swap not exceeding it.
    pub memory_bytes: Option<u64>,
    /// CPU time, in cores: 1.5 is one and a half.
    pub cpu_cores: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Open files of each process.
    pub nofile: Option<u64>,
    /// Writable space outside of bind mounts and tmpfs, in bytes.
    pub disk_bytes: Option<u64>,
}

impl ResourceLimits {
    /// No limit at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sets the memory limit.
    #[must_use]
    pub fn with_memory_bytes(mut self, bytes: Option<u64>) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Sets the CPU limit.
    #[must_use]
    pub fn with_cpu_cores(mut self, cores: Option<f64>) -> Self {
        self.cpu_cores = cores;
        self
    }

    /// Sets the limit on processes.
    #[must_use]
    pub fn with_pids(mut self, pids: Option<u64>) -> Self {
        self.pids = pids;
        self
    }

    /// Sets the limit on open files.
    #[must_use]
    pub fn with_nofile(mut self, nofile: Option<u64>) -> Self {
        self.nofile = nofile;
        self
    }

    /// Sets the limit on writable space.
    #[must_use]
    pub fn with_disk_bytes(mut self, bytes: Option<u64>) -> Self {
        self.disk_bytes = bytes;
        self
    }
}

/// What the container may reach, and what may reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkConfig {
    /// Endpoints that it may reach; empty means no network at all.
    pub allowed_endpoints: Vec<String>,
    /// Ports that are published on the host's loopback interface.
    pub ingress_ports: Vec<u16>,
}

impl NetworkConfig {
    /// No network.
    pub fn disabled() -> Self {
        Self::default()
    }

    /// Sets the endpoints that may be reached.
    #[must_use]
    pub fn with_allowed_endpoints(mut self, endpoints: Vec<String>) -> Self {
        self.allowed_endpoints = endpoints;
        self
    }

    /// Sets the published ports.
    #[must_use]
    pub fn with_ingress_ports(mut self, ports: Vec<u16>) -> Self {
        self.ingress_ports = ports;
        self
    }
}

/// A numeric user and group in the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The primary group's number. There are no supplementary groups.
    pub gid: u32,
}

/// What the processes in the container may do. `no_new_privs` and a seccomp filter are always on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SecurityConfig {
    /// Capabilities that are kept, by name (`CAP_NET_BIND_SERVICE`); none by default.
    pub capabilities: Vec<String>,
    /// A seccomp profile in the OCI or Docker JSON format instead of the default filter.
    pub seccomp_profile: Option<PathBuf>,
    /// The user; `None` takes the image's user when that is not root, and 1000:1000 otherwise.
    pub user: Option<User>,
    /// Whether the root file system is read-only.
    pub read_only_rootfs: bool,
    /// Another isolation technology of the runtime, by name.
    pub runtime_class: Option<String>,
    /// Graphics processors, in the engine's own notation.
    pub gpus: Option<String>,
}

impl Default for SecurityConfig {
    fn default() -> Self {
        Self {
            capabilities: Vec::new(),
            seccomp_profile: None,
            user: None,
            read_only_rootfs: true,
            runtime_class: None,
            gpus: None,
        }
    }
}

impl SecurityConfig {
    /// Sets the capabilities that are kept.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Vec<String>) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Sets a seccomp profile.
    #[must_use]
    pub fn with_seccomp_profile(mut self, profile: Option<PathBuf>) -> Self {
        self.seccomp_profile = profile;
        self
    }

    /// Sets the user.
    #[must_use]
    pub fn with_user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// Makes the root file system writable or read-only.
    #[must_use]
    pub fn with_read_only_rootfs(mut self, read_only: bool) -> Self {
        self.read_only_rootfs = read_only;
        self
    }

    /// Sets the runtime class.
    #[must_use]
    pub fn with_runtime_class(mut self, class: Option<String>) -> Self {
        self.runtime_class = class;
        self
    }

    /// Sets the graphics processors.
    #[must_use]
    pub fn with_gpus(mut self, gpus: Option<String>) -> Self {
        self.gpus = gpus;
        self
    }
}

/// Bytes that are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Arc<[u8]>);

impl SecretBytes {
    /// Takes the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into().into())
    }

    /// The bytes, for the one place that delivers them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A secret of the container: a memory-backed file `/run/secrets/NAME`, mode 0400, of the agent's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// The file's name.
    pub name: String,
    /// The file's content.
    pub value: SecretBytes,
}

/// A process to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// The command and its arguments, passed as they are, never split.
    pub command: Vec<String>,
    /// Environment beyond the container's own. Later entries win.
    pub env: Vec<(String, String)>,
    /// The working directory, absolute; `None` is the container's.
    pub working_dir: Option<String>,
    /// Whether it gets a standard input; otherwise it reads nothing.
    pub stdin: bool,
    /// Its terminal's size as rows and columns; `None` gives it no terminal.
    pub tty: Option<(u16, u16)>,
}

impl Process {
    /// A process without input and terminal.
    pub fn new<I, S>(command: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Adds environment.
    #[must_use]
    pub fn with_env(mut self, env: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env.extend(env);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn with_working_dir(mut self, dir: Option<String>) -> Self {
        self.working_dir = dir;
        self
    }

    /// Asks for a standard input.
    #[must_use]
    pub fn with_stdin(mut self, stdin: bool) -> Self {
        self.stdin = stdin;
        self
    }

    /// Asks for a terminal.
    #[must_use]
    pub fn with_tty(mut self, size: Option<(u16, u16)>) -> Self {
        self.tty = size;
        self
    }
}

/// What happens during a slow `provision`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProvisionProgress {
    /// The image is looked up.
    Resolving {
        /// The image.
        image: String,
    },
    /// A layer is fetched.
    Pulling {
        /// The layer's digest.
        layer: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, when known.
        total: Option<u64>,
    },
    /// A layer is unpacked.
    Unpacking {
        /// The layer's digest.
        layer: String,
    },
    /// The image is complete.
    ImageReady,
    /// The builder said something.
    Building {
        /// A line of its output.
        line: String,
    },
}

/// A listener for [`ProvisionProgress`].
#[derive(Clone)]
pub struct ProgressListener(Arc<dyn Fn(ProvisionProgress) + Send + Sync>);

impl ProgressListener {
    /// Wraps a function. It is called from any thread and must not block.
    pub fn new(listener: impl Fn(ProvisionProgress) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }

    /// Tells the listener.
    pub fn tell(&self, progress: ProvisionProgress) {
        (self.0)(progress);
    }
}

impl fmt::Debug for ProgressListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressListener")
    }
}

/// What a container is to be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProvisionRequest {
    /// The session that it belongs to.
    pub session_id: SessionId,
    /// The name, chosen by the caller and unique in the runtime.
    pub name: ContainerId,
    /// The image, in the runtime's notation.
    pub image: String,
    /// When to fetch it.
    pub pull_policy: ImagePullPolicy,
    /// The main process, whose end is the container's end; `None` keeps the container idle until it is destroyed.
    pub process: Option<Process>,
    /// Mounts beyond the root. The destinations are unique.
    pub mounts: Vec<Mount>,
    /// Limits.
    pub resources: ResourceLimits,
    /// Network.
    pub network: NetworkConfig,
    /// Privileges.
    pub security: SecurityConfig,
    /// Environment of every process.
    pub env: Vec<(String, String)>,
    /// The default working directory.
    pub working_dir: String,
    /// Labels to find it by.
    pub labels: BTreeMap<String, String>,
    /// Secrets, as files.
    pub secrets: Vec<Secret>,
    /// Who hears of the progress.
    pub progress: Option<ProgressListener>,
}

impl ProvisionRequest {
    /// An idle container of an image with secure defaults, no limits and `/` as its working directory.
    pub fn new(session_id: SessionId, name: ContainerId, image: impl Into<String>) -> Self {
        Self {
            session_id,
            name,
            image: image.into(),
            pull_policy: ImagePullPolicy::default(),
            process: None,
            mounts: Vec::new(),
            resources: ResourceLimits::none(),
            network: NetworkConfig::disabled(),
            security: SecurityConfig::default(),
            env: Vec::new(),
            working_dir: "/".to_owned(),
            labels: BTreeMap::new(),
            secrets: Vec::new(),
            progress: None,
        }
    }

    /// Sets when to fetch the image.
    #[must_use]
    pub fn with_pull_policy(mut self, policy: ImagePullPolicy) -> Self {
        self.pull_policy = policy;
        self
    }

    /// Sets the main process.
    #[must_use]
    pub fn with_process(mut self, process: Option<Process>) -> Self {
        self.process = process;
        self
    }

    /// Adds mounts.
    #[must_use]
    pub fn with_mounts(mut self, mounts: impl IntoIterator<Item = Mount>) -> Self {
        self.mounts.extend(mounts);
        self
    }

    /// Sets the limits.
    #[must_use]
    pub fn with_resources(mut self, resources: ResourceLimits) -> Self {
        self.resources = resources;
        self
    }

    /// Sets the network.
    #[must_use]
    pub fn with_network(mut self, network: NetworkConfig) -> Self {
        self.network = network;
        self
    }

    /// Sets the privileges.
    #[must_use]
    pub fn with_security(mut self, security: SecurityConfig) -> Self {
        self.security = security;
        self
    }

    /// Adds environment.
    #[must_use]
    pub fn with_env(mut self, env: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env.extend(env);
        self
    }

    /// Sets the default working directory.
    #[must_use]
    pub fn with_working_dir(mut self, dir: impl Into<String>) -> Self {
        self.working_dir = dir.into();
        self
    }

    /// Adds labels.
    #[must_use]
    pub fn with_labels(mut self, labels: impl IntoIterator<Item = (String, String)>) -> Self {
        self.labels.extend(labels);
        self
    }

    /// Adds secrets.
    #[must_use]
    pub fn with_secrets(mut self, secrets: impl IntoIterator<Item = Secret>) -> Self {
        self.secrets.extend(secrets);
        self
    }

    /// Sets who hears of the progress.
    #[must_use]
    pub fn with_progress(mut self, progress: Option<ProgressListener>) -> Self {
        self.progress = progress;
        self
    }
}

/// Builds an image.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BuildImageRequest {
    /// The folder that is sent to the builder, without what its `.containerignore` or `.dockerignore` leaves out.
    pub context: PathBuf,
    /// The recipe, relative to the folder; `None` is `Containerfile`, else `Dockerfile`.
    pub containerfile: Option<PathBuf>,
    /// The name that the image gets, as `name:tag`.
    pub tag: String,
    /// Whether the steps of the recipe may use the network; they may not by default.
    pub network: bool,
    /// Who hears of the progress.
    pub progress: Option<ProgressListener>,
}

impl BuildImageRequest {
    /// Builds a folder under a name, without network.
    pub fn new(context: impl Into<PathBuf>, tag: impl Into<String>) -> Self {
        Self {
            context: context.into(),
            containerfile: None,
            tag: tag.into(),
            network: false,
            progress: None,
        }
    }

    /// Sets the recipe.
    #[must_use]
    pub fn with_containerfile(mut self, path: Option<PathBuf>) -> Self {
        self.containerfile = path;
        self
    }

    /// Lets the steps use the network.
    #[must_use]
    pub fn with_network(mut self, network: bool) -> Self {
        self.network = network;
        self
    }

    /// Sets who hears of the progress.
    #[must_use]
    pub fn with_progress(mut self, progress: Option<ProgressListener>) -> Self {
        self.progress = progress;
        self
    }
}

/// Starts a container's main process.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StartRequest {
    /// The container.
    pub container: ContainerHandle,
    /// After this time the whole process tree is killed, and the stream ends with `Deadline`.
    pub deadline: Option<Duration>,
}

impl StartRequest {
    /// Starts without a deadline.
    pub fn new(container: ContainerHandle) -> Self {
        Self {
            container,
            deadline: None,
        }
    }

    /// Sets the deadline.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline;
        self
    }
}

/// Runs a further process.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecRequest {
    /// The container.
    pub container: ContainerHandle,
    /// The process.
    pub process: Process,
    /// After this time the whole process tree is killed, and the stream ends with `Deadline`.
    pub deadline: Option<Duration>,
}

impl ExecRequest {
    /// Runs without a deadline.
    pub fn new(container: ContainerHandle, process: Process) -> Self {
        Self {
            container,
            process,
            deadline: None,
        }
    }

    /// Sets the deadline.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline;
        self
    }
}

/// Reads from a container.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CopyFromRequest {
    /// The container.
    pub container: ContainerHandle,
    /// The absolute path of a file or a folder.
    pub path: String,
    /// Whether the container's processes are stopped meanwhile, so that what is read belongs together.
    pub quiesce: bool,
}

impl CopyFromRequest {
    /// Reads without stopping the processes.
    pub fn new(container: ContainerHandle, path: impl Into<String>) -> Self {
        Self {
            container,
            path: path.into(),
            quiesce: false,
        }
    }

    /// Stops the processes meanwhile.
    #[must_use]
    pub fn with_quiesce(mut self, quiesce: bool) -> Self {
        self.quiesce = quiesce;
        self
    }
}

/// Writes into a container.
#[non_exhaustive]
pub struct CopyToRequest {
    /// The container.
    pub container: ContainerHandle,
    /// The absolute path of the folder that the archive is unpacked into.
    pub path: String,
    /// A tar stream.
    pub archive: ByteStream,
}

impl CopyToRequest {
    /// Unpacks an archive into a folder.
    pub fn new(container: ContainerHandle, path: impl Into<String>, archive: ByteStream) -> Self {
        Self {
            container,
            path: path.into(),
            archive,
        }
    }
}

impl fmt::Debug for CopyToRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyToRequest")
            .field("container", &self.container)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// What a container has used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContainerStats {
    /// CPU use since the last reading of this container, or since its start, in percent of one core.
    pub cpu_percent: f64,
    /// Memory in use, in MiB.
    pub memory_mb: f64,
    /// The memory limit, in MiB; 0 without one.
    pub memory_limit_mb: f64,
    /// Bytes received over the network.
    pub network_rx_bytes: u64,
    /// Bytes sent over the network.
    pub network_tx_bytes: u64,
    /// CPU time of all processes, in seconds, when it can be known.
    pub cpu_seconds: Option<f64>,
    /// The most memory that was in use, in bytes, when it can be known.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads, when it can be known.
    pub pids: Option<u64>,
    /// Writable space in use, in bytes, when it can be known.
    pub disk_used_bytes: Option<u64>,
}

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// It is there, and its main process has not started.
    Created,
    /// Its processes run.
    Running,
    /// Its processes have ended, and its files are still there.
    Exited,
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContainerInfo {
    /// How to use it.
    pub handle: ContainerHandle,
    /// Its state.
    pub state: ContainerState,
    /// The image that it was made from.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// The process number of its first process on the host, when there is one.
    pub pid: Option<u32>,
}

impl ContainerInfo {
    /// What a runtime found. For adapter authors: it stands for a container that was verified at its creation.
    pub fn found(
        id: ContainerId,
        session_id: SessionId,
        state: ContainerState,
        image: impl Into<String>,
        created_at: Timestamp,
    ) -> Self {
        Self {
            handle: ContainerHandle::new(id, session_id),
            state,
            image: image.into(),
            labels: BTreeMap::new(),
            created_at,
            pid: None,
        }
    }

    /// Sets the labels.
    #[must_use]
    pub fn with_labels(mut self, labels: BTreeMap<String, String>) -> Self {
        self.labels = labels;
        self
    }

    /// Sets the process number.
    #[must_use]
    pub fn with_pid(mut self, pid: Option<u32>) -> Self {
        self.pid = pid;
        self
    }
}

macro_rules! capabilities {
    ($($(#[$doc:meta])* $field:ident: $with:ident, $reason:literal;)*) => {
        /// What a runtime can enforce on this host. Everything else is refused before anything is created.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[non_exhaustive]
        pub struct RuntimeCapabilities {
            $($(#[$doc])* pub $field: Support,)*
            /// The runtime classes that can be asked for by name, and what each of them can enforce.
            #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
            pub runtime_classes: BTreeMap<String, RuntimeCapabilities>,
        }

        impl RuntimeCapabilities {
            /// Nothing at all.
            pub fn none() -> Self {
                Self {
                    $($field: Support::refused($reason, "choose another runtime"),)*
                    runtime_classes: BTreeMap::new(),
                }
            }

            $(
                #[doc = concat!("Sets `", stringify!($field), "`.")]
                #[must_use]
                pub fn $with(mut self, support: Support) -> Self {
                    self.$field = support;
                    self
                }
            )*

            /// Adds a runtime class, with what it can enforce.
            #[must_use]
            pub fn with_runtime_class(mut self, class: impl Into<String>, capabilities: RuntimeCapabilities) -> Self {
                self.runtime_classes.insert(class.into(), capabilities);
                self
            }

            /// Every capability with its name.
            pub fn entries(&self) -> Vec<(&'static str, &Support)> {
                vec![$((stringify!($field), &self.$field),)*]
            }
        }
    };
}

capabilities! {
    /// `ResourceLimits::memory_bytes`.
    memory_limit: with_memory_limit, "this runtime cannot limit memory";
    /// `ResourceLimits::cpu_cores`.
    cpu_limit: with_cpu_limit, "this runtime cannot limit CPU time";
    /// `ResourceLimits::pids`.
    pids_limit: with_pids_limit, "this runtime cannot limit processes";
    /// `ResourceLimits::nofile`.
    nofile_limit: with_nofile_limit, "this runtime cannot limit open files";
    /// `ResourceLimits::disk_bytes`.
    disk_limit: with_disk_limit, "this runtime cannot limit writable space";
    /// A container without any network, which is the default.
    network_isolation: with_network_isolation, "this runtime cannot cut the network off";
    /// `NetworkConfig::allowed_endpoints`.
    egress_allow_list: with_egress_allow_list, "this runtime cannot filter outgoing connections";
    /// `NetworkConfig::ingress_ports`.
    ingress_ports: with_ingress_ports, "this runtime cannot publish ports";
    /// `SecurityConfig::capabilities`.
    add_capabilities: with_add_capabilities, "this runtime cannot keep capabilities";
    /// The default seccomp filter.
    seccomp: with_seccomp, "this runtime has no seccomp filter";
    /// `SecurityConfig::seccomp_profile`.
    seccomp_profile: with_seccomp_profile, "this runtime cannot load seccomp profiles";
    /// `SecurityConfig::user`.
    user: with_user, "this runtime cannot choose the user";
    /// `SecurityConfig::read_only_rootfs`.
    read_only_rootfs: with_read_only_rootfs, "this runtime cannot make the root read-only";
    /// A root that can be written to, within the writable space.
    writable_rootfs: with_writable_rootfs, "this runtime cannot make the root writable";
    /// `MountSource::Bind`, read-only.
    bind_mounts: with_bind_mounts, "this runtime cannot mount host folders";
    /// `MountSource::Bind`, writable, with what is made there belonging to the caller.
    writable_bind_mounts: with_writable_bind_mounts, "this runtime cannot mount host folders writable";
    /// `ProvisionRequest::secrets`.
    secrets: with_secrets, "this runtime cannot deliver secrets";
    /// `SecurityConfig::gpus`.
    gpus: with_gpus, "this runtime cannot give access to GPUs";
    /// `Process::tty`.
    tty: with_tty, "this runtime cannot give a terminal";
    /// `ProvisionRequest::process`: an agent as the container's main process.
    main_process: with_main_process, "this runtime cannot start a main process with attached streams";
    /// `CopyFromRequest::quiesce`.
    quiesce: with_quiesce, "this runtime cannot stop processes while files are read";
}

impl RuntimeCapabilities {
    /// What can be enforced in containers of a runtime class; `None` is the runtime's own.
    ///
    /// # Errors
    ///
    /// `Unsupported` with the list of the classes that there are.
    pub fn of_class(&self, class: Option<&str>) -> Result<&Self> {
        let Some(class) = class else { return Ok(self) };
        if let Some(capabilities) = self.runtime_classes.get(class) {
            return Ok(capabilities);
        }
        let known = if self.runtime_classes.is_empty() {
            "this runtime has none".to_owned()
        } else {
            let names: Vec<_> = self.runtime_classes.keys().map(String::as_str).collect();
            format!("known here: {}", names.join(", "))
        };
        Err(Error::unsupported(format!(
            "runtime_class: {class:?} is not available; {known}"
        )))
    }
}
