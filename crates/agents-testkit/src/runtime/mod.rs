//! What every [`ContainerRuntime`] must do. What can be proved only from inside a container is in [`probe`](crate::probe).
//!
//! The image of the fixture needs a POSIX shell and the tools of busybox. Cases that need something that the runtime does
//! not declare are ignored with the reason that the runtime gives.

mod files;
mod lifecycle;
mod limits;
mod process;
mod scripted;

use std::{
    any::Any,
    collections::BTreeMap,
    fmt, fs,
    io::Read,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agents_core::{
    Admitted, ContainerHandle, ContainerId, ContainerRuntime, ContainerRuntimeExt, CopyFromRequest, ErrorKind,
    ExecEvent, ExecOutput, ExecRequest, ExecSession, Exit, Mount, Process, ProvisionRequest, RuntimeCapabilities,
    SessionId, StartRequest, Support, VerifiedContainer,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    Case, CaseResult, Failure, Fixture,
    case::{failed, skipped},
};

pub use files::file_cases;
pub use lifecycle::lifecycle_cases;
pub use limits::limit_cases;
pub use process::process_cases;
pub use scripted::{script, scripted_cases};

/// The label that marks the containers of one fixture.
const NAMESPACE: &str = "agents-testkit-namespace";

/// How long something that is on its way may take.
const SOON: Duration = Duration::from_secs(10);

const MIB: u64 = 1 << 20;

/// A runtime to judge.
pub struct RuntimeFixture {
    /// The runtime. Cases use names and labels of their own, so it may be shared.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// An image with a POSIX shell and the tools of busybox.
    pub image: String,
    /// A folder on the host for bind mounts, as the runtime sees it.
    pub host_dir: PathBuf,
    class: Option<String>,
    namespace: String,
    created: Mutex<Vec<ContainerId>>,
    kept: Vec<Box<dyn Any + Send + Sync>>,
}

impl RuntimeFixture {
    /// Judges a runtime with an image, and an empty folder on the host for bind mounts. Give the folder's owner, such as
    /// a `tempfile::TempDir`, to [`keeping`](Self::keeping).
    pub fn new(runtime: Arc<dyn ContainerRuntime>, image: impl Into<String>, host_dir: impl Into<PathBuf>) -> Self {
        Self {
            runtime,
            image: image.into(),
            host_dir: host_dir.into(),
            class: None,
            namespace: SessionId::generate().to_string(),
            created: Mutex::default(),
            kept: Vec::new(),
        }
    }

    /// Judges a runtime class of the runtime: every request that names none asks for it.
    #[must_use]
    pub fn of_class(mut self, class: Option<String>) -> Self {
        self.class = class;
        self
    }

    /// Whether every container has a kernel of its own, which numbers its namespaces and devices without regard to others.
    pub(crate) fn own_kernel(&self) -> bool {
        self.class.as_deref() == Some("gvisor")
    }

    /// What the runtime declares for the class that is judged.
    pub fn capabilities(&self) -> RuntimeCapabilities {
        let all = self.runtime.capabilities();
        all.of_class(self.class.as_deref()).cloned().unwrap_or(all)
    }

    /// The request, in the class that is judged.
    fn classed(&self, mut request: ProvisionRequest) -> ProvisionRequest {
        if request.security.runtime_class.is_none() {
            request.security.runtime_class.clone_from(&self.class);
        }
        request
    }

    /// Admits, provisions and verifies in the class that is judged, without judging the answer.
    async fn try_provision(&self, request: ProvisionRequest) -> agents_core::Result<VerifiedContainer> {
        self.runtime.provision_verified(self.classed(request)).await
    }

    /// Keeps something, such as a temporary folder, until the case has ended.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self.kept.push(Box::new(kept));
        self
    }

    /// An idle container with an `/output` that can be written to; refine it with the `with_*` functions.
    pub fn request(&self) -> ProvisionRequest {
        let session = SessionId::generate();
        let name = ContainerId::new(format!("testkit-{session}")).unwrap_or_else(|_| unreachable!("both are valid"));
        ProvisionRequest::new(session, name, self.image.clone())
            .with_mounts([Mount::scratch("/output")])
            .with_labels([(NAMESPACE.to_owned(), self.namespace.clone())])
    }

    /// Provisions and verifies. Skips the case when the runtime does not declare what is asked for. The container is
    /// destroyed when the case has ended.
    ///
    /// # Errors
    ///
    /// Why the case is skipped, or has failed.
    pub async fn provision(&self, request: ProvisionRequest) -> Result<VerifiedContainer, Failure> {
        let request = self.classed(request);
        if let Err(error) = Admitted::new(&*self.runtime, request.clone()) {
            return match error.kind() {
                ErrorKind::Unsupported => skipped(error.message()),
                _ => Err(error.into()),
            };
        }
        self.remember(&request.name);
        Ok(self.runtime.provision_verified(request).await?)
    }

    /// Has a container of this name destroyed when the case has ended.
    fn remember(&self, id: &ContainerId) {
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        created.push(id.clone());
    }

    /// An idle container.
    ///
    /// # Errors
    ///
    /// As [`provision`](Self::provision).
    pub async fn idle(&self) -> Result<ContainerHandle, Failure> {
        Ok(self.provision(self.request()).await?.handle)
    }

    /// Runs a shell script in a running container, to its end.
    ///
    /// # Errors
    ///
    /// The runtime's own.
    pub async fn sh(&self, container: &ContainerHandle, script: &str) -> Result<ExecOutput, Failure> {
        let process = Process::new(["sh", "-c", script]);
        self.exec(container, process).await
    }

    /// Runs a process in a running container, to its end.
    ///
    /// # Errors
    ///
    /// The runtime's own.
    pub async fn exec(&self, container: &ContainerHandle, process: Process) -> Result<ExecOutput, Failure> {
        let session = self.runtime.exec(ExecRequest::new(container.clone(), process)).await?;
        Ok(session.collect(1 << 20).await?)
    }

    /// Starts a process as the main process of a container of its own.
    async fn start(
        &self,
        request: ProvisionRequest,
        process: Process,
        deadline: Option<Duration>,
    ) -> Result<(ContainerHandle, ExecSession), Failure> {
        let container = self.provision(request.with_process(Some(process))).await?.handle;
        let start = StartRequest::new(container.clone()).with_deadline(deadline);
        let session = self.runtime.start(start).await?;
        Ok((container, session))
    }

    /// Runs a process to its end: as the main process where the runtime can, and otherwise in an idle container.
    async fn run(&self, request: ProvisionRequest, process: Process) -> Result<(ContainerHandle, ExecOutput), Failure> {
        let (container, session) = self.begin(request, process, None).await?;
        Ok((container, session.collect(1 << 20).await?))
    }

    async fn begin(
        &self,
        request: ProvisionRequest,
        process: Process,
        deadline: Option<Duration>,
    ) -> Result<(ContainerHandle, ExecSession), Failure> {
        if self.capabilities().main_process.is_enforced() {
            return self.start(request, process, deadline).await;
        }
        let container = self.provision(request).await?.handle;
        let exec = ExecRequest::new(container.clone(), process).with_deadline(deadline);
        let session = self.runtime.exec(exec).await?;
        Ok((container, session))
    }

    /// Skips the case unless the runtime declares something.
    fn needs(&self, name: &str, field: impl Fn(&RuntimeCapabilities) -> &Support) -> CaseResult {
        match field(&self.capabilities()) {
            Support::Enforced => Ok(()),
            Support::Refused { reason, .. } => skipped(format!("{name}: {reason}")),
        }
    }

    /// The content of a file in a container, by way of `copy_from`.
    async fn read_file(&self, container: &ContainerHandle, path: &str) -> Result<Vec<u8>, Failure> {
        let entries = self.copy_from(container, path).await?;
        match entries.into_iter().next() {
            Some((_, Some(content))) => Ok(content),
            _ => failed(format!("{path} is no file")),
        }
    }

    /// What `copy_from` gives: names, with the contents of files.
    async fn copy_from(
        &self,
        container: &ContainerHandle,
        path: &str,
    ) -> Result<BTreeMap<String, Option<Vec<u8>>>, Failure> {
        let request = CopyFromRequest::new(container.clone(), path);
        let chunks: Vec<Bytes> = self.runtime.copy_from(request).await?.try_collect().await?;
        untar(&chunks.concat())
    }

    async fn of_namespace(&self) -> Result<Vec<agents_core::ContainerInfo>, Failure> {
        let labels = [(NAMESPACE.to_owned(), self.namespace.clone())].into();
        Ok(self.runtime.list(&labels).await?)
    }

    fn host_folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.host_dir.join(name);
        fs::create_dir_all(&path).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
        Ok(path)
    }
}

impl fmt::Debug for RuntimeFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeFixture")
            .field("runtime", &self.runtime)
            .field("image", &self.image)
            .field("kept", &self.kept.len())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Fixture for RuntimeFixture {
    async fn clean_up(&self) {
        let created = std::mem::take(&mut *self.created.lock().unwrap_or_else(PoisonError::into_inner));
        for id in created {
            // A runtime that cannot destroy fails the cases that are about that.
            let _ = self.runtime.destroy(&id).await;
        }
    }
}

/// All cases but those of [`probe`](crate::probe).
pub fn cases() -> Vec<Case<RuntimeFixture>> {
    let mut cases = lifecycle_cases();
    cases.extend(process_cases());
    cases.extend(limit_cases());
    cases.extend(file_cases());
    cases
}

type Fx = Arc<RuntimeFixture>;

fn kind_of<T>(result: agents_core::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

fn stdout(output: &ExecOutput) -> String {
    output.stdout.to_text()
}

fn shell(script: &str) -> Process {
    Process::new(["sh", "-c", script])
}

fn exited(code: i32) -> Exit {
    Exit::Exited { code }
}

fn succeeded(output: &ExecOutput) -> CaseResult {
    if output.exit.is_success() {
        return Ok(());
    }
    failed(format!(
        "{}; stdout {:?}; stderr {:?}",
        output.exit,
        output.stdout.to_text(),
        output.stderr.to_text()
    ))
}

/// Reads an archive: names without a closing `/`, with the contents of files.
fn untar(archive: &[u8]) -> Result<BTreeMap<String, Option<Vec<u8>>>, Failure> {
    let broken = |error: std::io::Error| Failure::Failed(format!("the archive is broken: {error}"));
    let mut entries = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let content = if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(broken)?;
            Some(content)
        } else {
            None
        };
        entries.insert(name.trim_end_matches('/').to_owned(), content);
    }
    Ok(entries)
}

/// An archive of files and folders (without content), whose names may be anything.
fn archive(entries: &[(&str, Option<&[u8]>, u32)]) -> Vec<u8> {
    let mut builder = crate::hostile::RawArchive::new();
    for (name, content, mode) in entries {
        builder = match content {
            Some(content) => builder.file_with_mode(name, content, *mode),
            None => builder.folder(name, *mode),
        };
    }
    builder.finish()
}

fn once(bytes: Vec<u8>) -> agents_core::ByteStream {
    stream::iter([Ok(Bytes::from(bytes))]).boxed()
}

/// Reads the stream to its end, and checks that it ends as every stream must.
async fn to_the_end(mut session: ExecSession) -> Result<(Vec<ExecEvent>, Exit), Failure> {
    let mut events = Vec::new();
    while let Some(event) = session.next().await {
        events.push(event?);
    }
    match events.pop() {
        Some(ExecEvent::Exit(exit)) if !events.iter().any(|event| matches!(event, ExecEvent::Exit(_))) => {
            Ok((events, exit))
        }
        last => failed(format!("the stream must end with its only exit, and not with {last:?}")),
    }
}

async fn first_line(session: &mut ExecSession) -> Result<String, Failure> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        match tokio::time::timeout(SOON, session.next()).await {
            Ok(Some(Ok(ExecEvent::Stdout(bytes)))) => line.extend_from_slice(&bytes),
            Ok(Some(Ok(ExecEvent::Stderr(_)))) => {}
            other => return failed(format!("no line came, but {other:?}")),
        }
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// A process tree that is hard to kill: children in sessions of their own whose parents are gone, and that ignore signals.
/// Each writes on and on to a file of its own in `/output`.
const STUBBORN: &str = r#"
    beat() { trap '' TERM INT HUP; while :; do echo x >> /output/$1; sleep 0.05; done; }
    beat one &
    ( beat two & ) &
    if command -v setsid >/dev/null; then
        setsid sh -c 'trap "" TERM INT HUP; ( while :; do echo x >> /output/three; sleep 0.05; done ) & exit 0'
    fi
    while [ ! -s /output/one ] || [ ! -s /output/two ]; do sleep 0.02; done
    echo ready
    while :; do sleep 1; done
"#;

async fn beats(fx: &Fx, container: &ContainerHandle) -> Result<Vec<(String, usize)>, Failure> {
    let files = fx.copy_from(container, "/output").await?;
    let beats: Vec<_> = files
        .into_iter()
        .filter_map(|(name, content)| Some((name, content?.len())))
        .collect();
    if beats.len() < 2 {
        return failed(format!("the processes did not begin: {beats:?}"));
    }
    Ok(beats)
}

async fn nothing_beats(fx: &Fx, container: &ContainerHandle) -> CaseResult {
    let before = beats(fx, container).await?;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(beats(fx, container).await?, before, "a process of the tree is alive");
    Ok(())
}
