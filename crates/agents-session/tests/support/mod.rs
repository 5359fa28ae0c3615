//! Scripted fakes of the four adapters.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use agents_core::*;
use agents_session::{Agent, Engine, EngineConfig, SessionRequest};
use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};

/// What a process does.
#[derive(Clone, Debug)]
pub enum Step {
    Out(&'static str),
    Err(&'static str),
    /// This many chunks of 64 KiB.
    Flood(usize),
    /// Repeats its input to the end of it.
    Echo,
    Wait(Duration),
    Forever,
    Exit(Exit),
}

pub fn exit(code: i32) -> Step {
    Step::Exit(Exit::Exited { code })
}

/// A container's behaviour: what its process does, and what its output folder holds then.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub steps: Vec<Step>,
    pub output: Vec<u8>,
    /// Reads back as writable root.
    pub mismatch: bool,
    pub provision_error: Option<ErrorKind>,
    pub provision_delay: Duration,
    /// Keeps running when it is killed.
    pub unkillable: bool,
    pub ignores_deadline: bool,
    pub destroy_fails: bool,
    /// The output folder holds one file of this size instead.
    pub large: Option<u64>,
}

impl Script {
    pub fn steps(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            output: archive(&[]),
            ..Self::default()
        }
    }

    pub fn output(mut self, output: Vec<u8>) -> Self {
        self.output = output;
        self
    }
}

/// A tar archive of `/output` with these files.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    builder.append_data(&mut header, "output/", std::io::empty()).unwrap();
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, format!("output/{name}"), *content)
            .unwrap();
    }
    builder.into_inner().unwrap()
}

#[derive(Debug)]
struct Container {
    info: ContainerInfo,
    script: Script,
}

#[derive(Debug, Default)]
pub struct FakeRuntime {
    scripts: Mutex<VecDeque<Script>>,
    containers: Mutex<BTreeMap<ContainerId, Container>>,
    pub requests: Mutex<Vec<ProvisionRequest>>,
    pub uploads: Mutex<Vec<(String, Vec<u8>)>>,
    pub destroyed: Mutex<Vec<String>>,
    pub quiesced: Mutex<Vec<bool>>,
    pub no_main_process: AtomicBool,
    pub reaped: AtomicUsize,
}

impl FakeRuntime {
    pub fn new(scripts: impl IntoIterator<Item = Script>) -> Arc<Self> {
        Arc::new(Self {
            scripts: Mutex::new(scripts.into_iter().collect()),
            ..Self::default()
        })
    }

    pub fn containers(&self) -> Vec<String> {
        self.containers
            .lock()
            .unwrap()
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    /// A container that somebody left behind.
    pub fn plant(&self, session: &SessionId, name: &str, labels: BTreeMap<String, String>) {
        let id = ContainerId::new(name).unwrap();
        let info = ContainerInfo::found(
            id.clone(),
            session.clone(),
            ContainerState::Running,
            "host",
            jiff::Timestamp::now(),
        )
        .with_labels(labels);
        let script = Script::default();
        self.containers.lock().unwrap().insert(id, Container { info, script });
    }

    fn script(&self, id: &ContainerId) -> Result<Script> {
        let containers = self.containers.lock().unwrap();
        let container = containers
            .get(id)
            .ok_or_else(|| Error::not_found("no such container"))?;
        Ok(container.script.clone())
    }
}

#[derive(Debug)]
struct Kill(watch::Sender<Option<KillReason>>);

#[async_trait]
impl ExecControl for Kill {
    async fn kill(&self, reason: KillReason) -> Result<()> {
        self.0.send_replace(Some(reason));
        Ok(())
    }
    async fn signal(&self, _: i32) -> Result<()> {
        Ok(())
    }
    async fn resize(&self, _: u16, _: u16) -> Result<()> {
        Ok(())
    }
    fn abandon(&self) {
        self.0.send_replace(Some(KillReason::Cancelled));
    }
}

#[derive(Debug)]
struct Stdin(mpsc::Sender<Bytes>);

#[async_trait]
impl ExecInput for Stdin {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let closed = |_| Error::new(ErrorKind::Conflict, "the input is closed");
        self.0.send(bytes).await.map_err(closed)
    }
    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn process(script: Script, stdin: bool, deadline: Option<Duration>) -> ExecSession {
    let (events, receiver) = mpsc::channel(2);
    let (kill, mut killed) = watch::channel(None);
    let (input, mut inputs) = mpsc::channel::<Bytes>(1);
    let deadline = deadline.filter(|_| !script.ignores_deadline);
    let unkillable = script.unkillable;
    tokio::spawn(async move {
        let act = async {
            for step in script.steps {
                match step {
                    Step::Out(text) => drop(events.send(Ok(ExecEvent::Stdout(text.into()))).await),
                    Step::Err(text) => drop(events.send(Ok(ExecEvent::Stderr(text.into()))).await),
                    Step::Flood(chunks) => {
                        for _ in 0..chunks {
                            drop(events.send(Ok(ExecEvent::Stdout(vec![b'x'; 64 << 10].into()))).await);
                        }
                    }
                    Step::Echo => {
                        while let Some(bytes) = inputs.recv().await {
                            drop(events.send(Ok(ExecEvent::Stdout(bytes))).await);
                        }
                    }
                    Step::Wait(time) => tokio::time::sleep(time).await,
                    Step::Forever => std::future::pending().await,
                    Step::Exit(exit) => return exit,
                }
            }
            Exit::Exited { code: 0 }
        };
        let end = async {
            let timer = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => KillReason::Deadline,
                reason = killed.wait_for(|reason| reason.is_some() && !unkillable) => reason.unwrap().unwrap(),
            }
        };
        let exit = tokio::select! {
            exit = act => exit,
            reason = end => match reason {
                KillReason::Deadline => Exit::Deadline,
                KillReason::Cancelled => Exit::Cancelled,
            },
        };
        drop(events.send(Ok(ExecEvent::Exit(exit))).await);
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    });
    let stdin = stdin.then(|| Box::new(Stdin(input)) as Box<dyn ExecInput>);
    ExecSession::new(stream.boxed(), stdin, Arc::new(Kill(kill)))
}

/// The archive in pieces of odd sizes.
fn pieces(bytes: Vec<u8>) -> ByteStream {
    let chunks: Vec<_> = bytes
        .chunks(1000)
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    futures_util::stream::iter(chunks).boxed()
}

#[async_trait]
impl ContainerRuntime for FakeRuntime {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("fake", "0")
    }

    fn capabilities(&self) -> RuntimeCapabilities {
        let yes = || Support::Enforced;
        let capabilities = RuntimeCapabilities::none()
            .with_memory_limit(yes())
            .with_cpu_limit(yes())
            .with_pids_limit(yes())
            .with_nofile_limit(yes())
            .with_disk_limit(yes())
            .with_network_isolation(yes())
            .with_seccomp(yes())
            .with_read_only_rootfs(yes())
            .with_bind_mounts(yes())
            .with_writable_bind_mounts(yes())
            .with_secrets(yes())
            .with_tty(yes())
            .with_quiesce(yes());
        if self.no_main_process.load(Ordering::SeqCst) {
            capabilities
        } else {
            capabilities.with_main_process(yes())
        }
    }

    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }

    async fn provision(&self, request: Admitted) -> Result<Provisioned> {
        let request = request.into_request();
        let script = self.scripts.lock().unwrap().pop_front().unwrap_or_default();
        self.requests.lock().unwrap().push(request.clone());
        tokio::time::sleep(script.provision_delay).await;
        if let Some(kind) = script.provision_error {
            return Err(Error::new(kind, format!("no image {:?}", request.image)));
        }
        let mut state = EffectiveState::unread();
        state.capabilities = Some(vec![]);
        state.no_new_privileges = Some(true);
        state.seccomp_filter = Some(true);
        state.uid = Some(1000);
        state.gid = Some(1000);
        state.read_only_rootfs = Some(!script.mismatch);
        let mounts = request.mounts.iter().map(|mount| EffectiveMount {
            destination: mount.destination.clone(),
            read_only: mount.read_only,
        });
        state.mounts = Some(mounts.collect());
        state.memory_bytes = request.resources.memory_bytes;
        state.cpu_cores = request.resources.cpu_cores;
        state.pids = request.resources.pids;
        state.nofile = request.resources.nofile;
        state.disk_bytes = request.resources.disk_bytes;
        state.network_interfaces = Some(vec!["lo".into()]);
        state.private_namespaces = Some(["ipc", "mnt", "net", "pid", "uts"].map(str::to_owned).into());
        let id = request.name.clone();
        let info = ContainerInfo::found(
            id.clone(),
            request.session_id.clone(),
            ContainerState::Created,
            request.image,
            jiff::Timestamp::now(),
        )
        .with_labels(request.labels);
        self.containers
            .lock()
            .unwrap()
            .insert(id.clone(), Container { info, script });
        Ok(Provisioned::new(id, request.session_id, state))
    }

    async fn start(&self, request: StartRequest) -> Result<ExecSession> {
        let stdin = self
            .requests
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .process
            .as_ref()
            .unwrap()
            .stdin;
        Ok(process(self.script(&request.container.id)?, stdin, request.deadline))
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        Ok(process(
            self.script(&request.container.id)?,
            request.process.stdin,
            request.deadline,
        ))
    }

    async fn copy_from(&self, request: CopyFromRequest) -> Result<ByteStream> {
        self.quiesced.lock().unwrap().push(request.quiesce);
        let script = self.script(&request.container.id)?;
        if let Some(size) = script.large {
            let mut header = tar::Header::new_gnu();
            header.set_path("output/large").unwrap();
            header.set_size(size);
            header.set_cksum();
            let head = Bytes::copy_from_slice(header.as_bytes());
            let zeros = Bytes::from(vec![0; 128 << 10]);
            // Also the end marker, which is zeros as well.
            let body = (0..=size / (128 << 10)).map(move |_| Ok(zeros.clone()));
            return Ok(futures_util::stream::iter(std::iter::once(Ok(head)).chain(body)).boxed());
        }
        Ok(pieces(script.output))
    }

    async fn copy_to(&self, request: CopyToRequest) -> Result<()> {
        if request.path == "/workspace/new.txt" {
            return Err(Error::not_found("no such folder"));
        }
        let mut archive = request.archive;
        let mut bytes = Vec::new();
        while let Some(chunk) = archive.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        self.uploads.lock().unwrap().push((request.path, bytes));
        Ok(())
    }

    async fn stats(&self, container: &ContainerHandle) -> Result<ContainerStats> {
        self.script(&container.id)?;
        let mut stats = ContainerStats::default();
        stats.cpu_percent = 99.0;
        stats.memory_mb = 10.0;
        stats.memory_limit_mb = 512.0;
        stats.cpu_seconds = Some(0.5);
        stats.memory_peak_bytes = Some(1 << 20);
        Ok(stats)
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerInfo>> {
        let containers = self.containers.lock().unwrap();
        let all = containers.values().map(|container| container.info.clone());
        Ok(all
            .filter(|info| labels.iter().all(|(key, value)| info.labels.get(key) == Some(value)))
            .collect())
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        let containers = self.containers.lock().unwrap();
        let container = containers
            .get(id)
            .ok_or_else(|| Error::not_found("no such container"))?;
        Ok(container.info.clone())
    }

    async fn destroy(&self, id: &ContainerId) -> Result<()> {
        let mut containers = self.containers.lock().unwrap();
        if let Some(container) = containers.get_mut(id)
            && std::mem::take(&mut container.script.destroy_fails)
        {
            return Err(Error::new(ErrorKind::Unavailable, "the engine is away"));
        }
        if containers.remove(id).is_some() {
            self.destroyed.lock().unwrap().push(id.to_string());
        }
        Ok(())
    }

    async fn reap(&self) -> Result<Vec<String>> {
        self.reaped.fetch_add(1, Ordering::SeqCst);
        Ok(vec![])
    }
}

/// Keeps artifacts in memory; can be told to fail or to throw contents away.
#[derive(Debug, Default)]
pub struct FakeStorage {
    pub artifacts: Mutex<Vec<(ArtifactInfo, Vec<u8>)>>,
    pub fails: AtomicBool,
    /// Never comes to an end.
    pub hangs: AtomicBool,
    pub forgets: AtomicBool,
}

impl FakeStorage {
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let artifacts = self.artifacts.lock().unwrap();
        artifacts
            .iter()
            .rev()
            .find(|(info, _)| info.name.as_str() == name)
            .map(|(_, content)| content.clone())
    }
}

#[async_trait]
impl StorageBackend for FakeStorage {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("fake", "0")
    }
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities::none()
    }
    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }
    async fn store(&self, request: StoreRequest) -> Result<ArtifactInfo> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::ResourceExhausted, "the disk is full"));
        }
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let announced = request.body.size();
        let mut stream = request.body.into_stream();
        let mut content = Vec::new();
        let mut size = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            size += chunk.len() as u64;
            if !self.forgets.load(Ordering::SeqCst) {
                content.extend_from_slice(&chunk);
            }
        }
        assert_eq!(announced, Some(size));
        let mut artifacts = self.artifacts.lock().unwrap();
        let version = 1 + artifacts.iter().filter(|(info, _)| info.name == request.name).count() as u64;
        let uri = format!("fake://{}/{}", request.session_id, request.name);
        let now = jiff::Timestamp::now();
        let info = ArtifactInfo::new(request.session_id, request.name, uri, size, "00", version, now);
        artifacts.push((info.clone(), content));
        Ok(info)
    }
    async fn retrieve(&self, _: RetrieveRequest) -> Result<Retrieved> {
        Err(Error::unsupported("not needed"))
    }
    fn list(&self, _: &SessionId) -> BoxStream<'static, Result<ArtifactInfo>> {
        futures_util::stream::empty().boxed()
    }
    async fn delete(&self, _: DeleteRequest) -> Result<Vec<ArtifactInfo>> {
        Ok(vec![])
    }
    async fn presign(&self, _: &str, _: Duration) -> Result<String> {
        Err(Error::unsupported("not needed"))
    }
    async fn reap(&self) -> Result<Vec<String>> {
        Ok(vec!["an upload".to_owned()])
    }
}

/// Keeps events in memory, each once; can be told to refuse from a certain call on.
#[derive(Debug)]
pub struct FakeAudit {
    pub events: Mutex<Vec<AuditEvent>>,
    pub calls: AtomicUsize,
    /// Refuses from this call on, the first being 1.
    pub refuse_from: AtomicUsize,
    /// Refuses this many calls then.
    pub refuse_count: AtomicUsize,
    /// Refuses the intents of this operation.
    pub refused_operation: Mutex<Option<&'static str>>,
}

impl Default for FakeAudit {
    fn default() -> Self {
        Self {
            events: Mutex::default(),
            calls: AtomicUsize::new(0),
            refuse_from: AtomicUsize::new(usize::MAX),
            refuse_count: AtomicUsize::new(usize::MAX),
            refused_operation: Mutex::default(),
        }
    }
}

impl FakeAudit {
    pub fn refuse_operation(&self, operation: &'static str) {
        *self.refused_operation.lock().unwrap() = Some(operation);
    }

    /// What happened, without the operations that made it happen.
    pub fn types(&self) -> Vec<EventType> {
        let events = self.events.lock().unwrap();
        let types = events.iter().map(|event| event.event_type);
        types
            .filter(|known| !matches!(known, EventType::OperationIntended | EventType::OperationEnded))
            .collect()
    }

    /// The operations in the order of their intents, each with its only outcome.
    pub fn operations(&self) -> Vec<(String, String)> {
        operations(&self.events.lock().unwrap())
    }

    pub fn of(&self, event_type: EventType) -> Vec<AuditEvent> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .filter(|event| event.event_type == event_type)
            .cloned()
            .collect()
    }

    pub fn text(&self) -> String {
        serde_json::to_string(&*self.events.lock().unwrap()).unwrap()
    }
}

/// The operations of a trail in the order of their intents, each with its only outcome.
pub fn operations(events: &[AuditEvent]) -> Vec<(String, String)> {
    let text = |event: &AuditEvent, key: &str| event.payload[key].as_str().unwrap().to_owned();
    let mut outcomes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut intents = Vec::new();
    for event in events {
        match event.event_type {
            EventType::OperationIntended => intents.push((text(event, "operation_id"), text(event, "operation"))),
            EventType::OperationEnded => {
                let outcome = text(event, "outcome");
                outcomes.entry(text(event, "operation_id")).or_default().push(outcome);
            }
            _ => {}
        }
    }
    assert_eq!(intents.len(), outcomes.len(), "{events:#?}");
    let pair = |(id, operation): (String, String)| {
        let outcomes = outcomes.get(&id).map_or(&[][..], Vec::as_slice);
        assert_eq!(outcomes.len(), 1, "{operation} {id}: {events:#?}");
        (operation, outcomes[0].clone())
    };
    intents.into_iter().map(pair).collect()
}

#[async_trait]
impl AuditLogger for FakeAudit {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("fake", "0")
    }
    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none().with_query(true)
    }
    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }
    fn location(&self) -> String {
        "memory".to_owned()
    }
    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.emit_batch(vec![event]).await.map(drop)
    }
    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let from = self.refuse_from.load(Ordering::SeqCst);
        if call >= from && call - from < self.refuse_count.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::ResourceExhausted, "the audit disk is full"));
        }
        let refused = *self.refused_operation.lock().unwrap();
        let mut trail = self.events.lock().unwrap();
        let mut results = Vec::new();
        for event in events {
            let is_intent = event.event_type == EventType::OperationIntended;
            if is_intent && refused.is_some_and(|operation| event.payload["operation"] == operation) {
                results.push(Err(Error::new(ErrorKind::ResourceExhausted, "the audit disk is full")));
                continue;
            }
            if !trail.iter().any(|known| known.event_id == event.event_id) {
                trail.push(event);
            }
            results.push(Ok(()));
        }
        Ok(results)
    }
    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        let mut events = self.events.lock().unwrap().clone();
        events.retain(|event| query.matches(event));
        Ok(AuditPage { events, next: None })
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn shutdown(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug, Default)]
pub struct FakePolicy {
    pub findings: Vec<Finding>,
    /// The memory that it narrows to.
    pub memory_mb: Option<u64>,
    /// Narrows without saying so.
    pub silent: bool,
    pub broken: bool,
    /// Takes away all environment and all secrets.
    pub drops: bool,
}

#[async_trait]
impl PolicyValidator for FakePolicy {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("fake", "0")
    }
    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }
    async fn validate(&self, _: &Policy, _: &EnforcementContext) -> Result<ValidationResult> {
        Ok(ValidationResult {
            findings: self.findings.clone(),
        })
    }
    async fn enforce(&self, policy: Policy, _: &EnforcementContext) -> Result<Enforced> {
        if self.broken {
            return Err(Error::new(ErrorKind::Unavailable, "the policy server is away"));
        }
        let mut spec = policy.into_spec();
        let mut changes = Vec::new();
        if let Some(memory) = self.memory_mb {
            if !self.silent {
                changes.push(PolicyChange {
                    path: "memory_mb".to_owned(),
                    from: spec.memory_mb.into(),
                    to: memory.into(),
                    code: "MEMORY_EXCEEDED".to_owned(),
                });
            }
            spec.memory_mb = Some(memory);
        }
        if self.drops {
            assert_eq!(spec.base_image, "host");
            let dropped = |path: &str| PolicyChange {
                path: path.to_owned(),
                from: serde_json::Value::Null,
                to: serde_json::Value::Null,
                code: "DENIED".to_owned(),
            };
            changes.extend(["env_vars", "tmpfs_secrets"].map(dropped));
            spec.env_vars.clear();
            spec.tmpfs_secrets.clear();
        }
        Ok(Enforced {
            policy: Policy::new(spec)?,
            changes,
        })
    }
    async fn check_compliance(&self, _: &Policy, _: &[String]) -> Result<ComplianceReport> {
        Ok(ComplianceReport::default())
    }
}

/// An engine over fakes in a folder of its own.
#[derive(Debug)]
pub struct World {
    pub dir: tempfile::TempDir,
    pub runtime: Arc<FakeRuntime>,
    pub storage: Arc<FakeStorage>,
    pub audit: Arc<FakeAudit>,
    pub engine: Engine,
}

impl World {
    pub fn new(scripts: impl IntoIterator<Item = Script>) -> Self {
        Self::with_policy(scripts, FakePolicy::default())
    }

    pub fn with_policy(scripts: impl IntoIterator<Item = Script>, policy: FakePolicy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = FakeRuntime::new(scripts);
        let storage = Arc::new(FakeStorage::default());
        let audit = Arc::new(FakeAudit::default());
        let adapters = Adapters {
            runtime: Arc::<FakeRuntime>::clone(&runtime),
            storage: Arc::<FakeStorage>::clone(&storage),
            audit: Arc::<FakeAudit>::clone(&audit),
            policy: Arc::new(policy),
        };
        let engine = Engine::new(adapters, EngineConfig::new(dir.path().join("state"))).unwrap();
        Self {
            dir,
            runtime,
            storage,
            audit,
            engine,
        }
    }

    /// Another process with the same state folder, as far as the engine can tell.
    pub fn elsewhere(&self) -> Engine {
        Engine::new(self.engine.adapters().clone(), self.engine.config().clone()).unwrap()
    }

    pub fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    pub fn active(&self) -> Vec<String> {
        names(&self.state().join("active"))
    }
}

pub fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

pub fn agent() -> Agent {
    Agent::new(AgentId::new("tester").unwrap(), ["do", "it"]).with_image(Some("host".to_owned()))
}

pub fn policy(change: impl FnOnce(&mut PolicySpec)) -> Policy {
    let mut spec = PolicySpec {
        retry_delay_seconds: 0.0,
        ..PolicySpec::default()
    };
    change(&mut spec);
    Policy::new(spec).unwrap()
}

pub fn request() -> SessionRequest {
    SessionRequest::new(agent(), Policy::default())
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came about: {what}");
}
