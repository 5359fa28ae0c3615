//! What every [`ContainerRuntime`] must do. What can be proved only from inside a container is in [`probe`](crate::probe).
//!
//! The image of the fixture needs a POSIX shell and the tools of busybox. Cases that need something that the runtime does
//! not declare are ignored with the reason that the runtime gives.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use agents_core::{
    Admitted, ContainerHandle, ContainerId, ContainerRuntime, ContainerRuntimeExt, ContainerState, ContainerStats,
    CopyFromRequest, CopyToRequest, Error, ErrorKind, ExecEvent, ExecOutput, ExecRequest, ExecSession, Exit,
    KillReason, Mount, NetworkConfig, Process, ProvisionRequest, ResourceLimits, RuntimeCapabilities, Secret,
    SecretBytes, SecurityConfig, SessionId, StartFailure, StartRequest, Support, User, VerifiedContainer,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future::join_all, stream};

use crate::{
    Case, CaseResult, Failure, Fixture,
    case::{cases, failed, skipped},
};

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

/// The cases about containers as such.
pub fn lifecycle_cases() -> Vec<Case<RuntimeFixture>> {
    cases![
        identity_and_availability,
        what_is_undeclared_is_refused,
        everything_that_is_compared_holds,
        a_name_in_use_already_exists,
        a_container_is_found_until_it_is_destroyed,
        states_follow_the_main_process,
        an_unknown_image_is_not_found,
        a_missing_bind_source_is_not_found,
        a_dropped_provision_leaves_nothing,
        reap_leaves_living_containers_alone,
        a_container_can_be_used_by_who_finds_it,
        destroy_ends_what_runs,
        containers_do_not_see_each_other,
    ]
}

/// The cases about running processes.
pub fn process_cases() -> Vec<Case<RuntimeFixture>> {
    cases![
        output_and_exit_of_the_main_process,
        output_and_exit_of_an_exec,
        exit_codes,
        a_killed_process_says_so,
        a_missing_command_is_not_found,
        a_command_that_cannot_be_executed,
        arguments_are_passed_as_they_are,
        environment,
        working_directory,
        stdin_is_echoed,
        without_stdin_the_end_is_read,
        a_closed_stdin_is_a_conflict,
        output_is_bytes,
        output_keeps_its_order,
        no_output_is_lost,
        a_slow_reader_does_not_cost_memory,
        the_deadline_kills_the_tree,
        the_deadline_of_an_exec_kills_the_tree,
        dropping_kills_the_tree,
        cancelling_kills_the_tree,
        a_signal_reaches_the_process,
        start_works_once,
        execs_run_side_by_side,
        a_terminal,
    ]
}

/// The cases about limits and use.
pub fn limit_cases() -> Vec<Case<RuntimeFixture>> {
    cases![
        too_much_memory,
        too_much_memory_in_a_further_process,
        too_many_processes,
        too_much_disk,
        cpu_time_is_limited,
        open_files_are_limited,
        stats_are_true,
    ]
}

/// The cases about files, users and secrets.
pub fn file_cases() -> Vec<Case<RuntimeFixture>> {
    cases![
        a_writable_bind_mount_belongs_to_the_caller,
        a_read_only_bind_mount_is_not_changed,
        a_single_file_can_be_mounted,
        a_tmpfs_has_its_size,
        a_writable_root_is_private,
        the_user_is_as_asked,
        the_default_user_is_not_root,
        kept_capabilities_are_kept_alone,
        a_seccomp_profile_is_in_force,
        secrets_are_files_and_nothing_else,
        copy_from_a_file_and_a_folder,
        copy_from_an_ended_container,
        copy_from_does_not_follow_links_out,
        copy_from_while_processes_write,
        copy_to_and_back,
        copy_to_does_not_escape,
        copy_to_a_full_disk,
    ]
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

// ---- Containers as such -------------------------------------------------------------------------------------------------

async fn identity_and_availability(fx: Fx) -> CaseResult {
    let info = fx.runtime.info();
    assert!(info.adapter_type.starts_with(|c: char| c.is_ascii_lowercase()));
    assert_eq!(fx.runtime.info(), info, "info must not change");
    let availability = fx.runtime.check_availability().await?;
    assert!(availability.available, "{availability:?}");
    for (name, support) in fx.capabilities().entries() {
        if let Support::Refused { reason, remedy } = support {
            assert!(
                !reason.is_empty() && !remedy.is_empty(),
                "{name} is refused without reason or remedy"
            );
        }
    }
    Ok(())
}

async fn what_is_undeclared_is_refused(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none;
    let security = SecurityConfig::default;
    let profile = || Some(PathBuf::from("/no/such/profile.json"));
    let secret = || Secret {
        name: "s".to_owned(),
        value: SecretBytes::new("x"),
    };
    let base = || fx.request();
    let asks: Vec<(&str, &str, ProvisionRequest)> = vec![
        (
            "memory_limit",
            "memory_mb",
            base().with_resources(limits().with_memory_bytes(Some(64 * MIB))),
        ),
        (
            "cpu_limit",
            "cpu_cores",
            base().with_resources(limits().with_cpu_cores(Some(1.0))),
        ),
        (
            "pids_limit",
            "pids_limit",
            base().with_resources(limits().with_pids(Some(64))),
        ),
        (
            "nofile_limit",
            "nofile",
            base().with_resources(limits().with_nofile(Some(64))),
        ),
        (
            "disk_limit",
            "disk_mb",
            base().with_resources(limits().with_disk_bytes(Some(64 * MIB))),
        ),
        ("network_isolation", "network.disabled", base()),
        (
            "egress_allow_list",
            "network.allowed_endpoints",
            base().with_network(NetworkConfig::disabled().with_allowed_endpoints(vec!["example.com:443".to_owned()])),
        ),
        (
            "ingress_ports",
            "network.ingress_ports",
            base().with_network(NetworkConfig::disabled().with_ingress_ports(vec![8080])),
        ),
        (
            "add_capabilities",
            "cap_add",
            base().with_security(security().with_capabilities(vec!["CAP_CHOWN".to_owned()])),
        ),
        ("seccomp", "seccomp", base()),
        (
            "seccomp_profile",
            "seccomp_profile",
            base().with_security(security().with_seccomp_profile(profile())),
        ),
        (
            "user",
            "container_user",
            base().with_security(security().with_user(Some(User { uid: 1234, gid: 1234 }))),
        ),
        ("read_only_rootfs", "read_only_rootfs", base()),
        (
            "writable_rootfs",
            "read_only_rootfs",
            base().with_security(security().with_read_only_rootfs(false)),
        ),
        (
            "bind_mounts",
            "/mounted",
            base().with_mounts([Mount::bind(&fx.host_dir, "/mounted")]),
        ),
        (
            "writable_bind_mounts",
            "/mounted",
            base().with_mounts([Mount::bind(&fx.host_dir, "/mounted").writable()]),
        ),
        ("secrets", "tmpfs_secrets", base().with_secrets([secret()])),
        (
            "gpus",
            "gpus",
            base().with_security(security().with_gpus(Some("all".to_owned()))),
        ),
        (
            "tty",
            "tty",
            base().with_process(Some(shell("true").with_tty(Some((24, 80))))),
        ),
        ("main_process", "process", base().with_process(Some(shell("true")))),
    ];
    let capabilities = fx.capabilities();
    let refused: BTreeSet<_> = capabilities
        .entries()
        .into_iter()
        .filter_map(|(name, support)| (!support.is_enforced()).then_some(name))
        .collect();
    for (capability, field, request) in asks {
        if !refused.contains(capability) {
            continue;
        }
        fx.remember(&request.name);
        let Err(error) = fx.try_provision(request).await else {
            return failed(format!("{capability} is not declared, and a request for it was taken"));
        };
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{capability}: {error}");
        assert!(error.message().contains(field), "{error} does not name {field}");
    }
    let class = base().with_security(security().with_runtime_class(Some("no-such-class".to_owned())));
    let error = fx.try_provision(class).await;
    assert_eq!(kind_of(error), Some(ErrorKind::Unsupported), "an unknown runtime class");
    assert_eq!(fx.of_namespace().await?, [], "something was created before the refusal");
    Ok(())
}

async fn everything_that_is_compared_holds(fx: Fx) -> CaseResult {
    let capabilities = fx.capabilities();
    let limit = |support: &Support, value: u64| support.is_enforced().then_some(value);
    let limits = ResourceLimits::none()
        .with_memory_bytes(limit(&capabilities.memory_limit, 256 * MIB))
        .with_pids(limit(&capabilities.pids_limit, 64))
        .with_nofile(limit(&capabilities.nofile_limit, 128))
        .with_disk_bytes(limit(&capabilities.disk_limit, 64 * MIB))
        .with_cpu_cores(capabilities.cpu_limit.is_enforced().then_some(0.5));
    let request = fx
        .request()
        .with_resources(limits)
        .with_mounts([Mount::tmpfs(MIB, "/tmp"), Mount::scratch("/work")]);
    let verified = fx.provision(request).await?;
    for field in [
        "cap_add",
        "no_new_privileges",
        "seccomp",
        "read_only_rootfs",
        "mount /tmp",
        "network.disabled",
        "namespaces",
    ] {
        let row = verified.comparison.iter().find(|row| row.field == field);
        assert!(row.is_some_and(|row| row.holds), "{field}: {row:?}");
    }
    Ok(())
}

async fn a_name_in_use_already_exists(fx: Fx) -> CaseResult {
    let request = fx.request();
    let first = fx.provision(request.clone()).await?.handle;
    let second = fx.try_provision(request).await;
    assert_eq!(kind_of(second), Some(ErrorKind::AlreadyExists));
    succeeded(&fx.sh(&first, "true").await?)?;
    Ok(())
}

async fn a_container_is_found_until_it_is_destroyed(fx: Fx) -> CaseResult {
    let labelled = |value: &str| {
        fx.request()
            .with_labels([("testkit-part".to_owned(), value.to_owned())])
    };
    let (one, two) = (labelled("one"), labelled("two"));
    let (first, second) = (fx.provision(one.clone()).await?.handle, fx.provision(two).await?.handle);
    assert_eq!(first.session_id, one.session_id);

    let found = fx.of_namespace().await?;
    let ids: BTreeSet<_> = found.iter().map(|info| &info.handle.id).collect();
    assert_eq!(ids, [&first.id, &second.id].into());
    let found = fx.runtime.list(&one.labels).await?;
    assert_eq!(found.len(), 1, "all labels must match");
    let inspected = fx.runtime.inspect(&first.id).await?;
    for info in [&found[0], &inspected] {
        assert_eq!(info.handle, first);
        assert_eq!(info.state, ContainerState::Running, "an idle container runs");
        for (key, value) in &one.labels {
            assert_eq!(info.labels.get(key), Some(value));
        }
    }
    let nothing = [("testkit-part".to_owned(), "three".to_owned())].into();
    assert_eq!(fx.runtime.list(&nothing).await?, []);

    fx.runtime.destroy(&first.id).await?;
    fx.runtime.destroy(&first.id).await?;
    assert_eq!(kind_of(fx.runtime.inspect(&first.id).await), Some(ErrorKind::NotFound));
    let exec = fx.runtime.exec(ExecRequest::new(first.clone(), shell("true"))).await;
    assert_eq!(kind_of(exec), Some(ErrorKind::NotFound));
    assert_eq!(kind_of(fx.runtime.stats(&first).await), Some(ErrorKind::NotFound));
    let copy = fx.runtime.copy_from(CopyFromRequest::new(first, "/output")).await;
    assert_eq!(kind_of(copy), Some(ErrorKind::NotFound));
    assert_eq!(fx.of_namespace().await?.len(), 1);
    fx.runtime
        .destroy(&ContainerId::new("testkit-was-never-there")?)
        .await?;
    Ok(())
}

async fn states_follow_the_main_process(fx: Fx) -> CaseResult {
    let process = shell("echo ready; read line; exit 3").with_stdin(true);
    let request = fx.request().with_process(Some(process));
    let container = fx.provision(request).await?.handle;
    let state = async || Ok::<_, Error>(fx.runtime.inspect(&container.id).await?.state);
    assert_eq!(state().await?, ContainerState::Created);
    let exec = fx
        .runtime
        .exec(ExecRequest::new(container.clone(), shell("true")))
        .await;
    assert_eq!(kind_of(exec), Some(ErrorKind::Conflict), "exec before start");
    let mut session = fx.runtime.start(StartRequest::new(container.clone())).await?;
    assert_eq!(first_line(&mut session).await?, "ready");
    assert_eq!(state().await?, ContainerState::Running);
    drop(session.take_stdin());
    assert_eq!(to_the_end(session).await?.1, exited(3));
    assert_eq!(state().await?, ContainerState::Exited);
    let exec = fx
        .runtime
        .exec(ExecRequest::new(container.clone(), shell("true")))
        .await;
    assert_eq!(kind_of(exec), Some(ErrorKind::Conflict), "exec after the end");
    Ok(())
}

async fn an_unknown_image_is_not_found(fx: Fx) -> CaseResult {
    let mut request = fx.request().with_pull_policy(agents_core::ImagePullPolicy::Never);
    request.image = "/no/such/image".to_owned();
    // Not every runtime takes a path for an image, and none has this one.
    let kind = kind_of(fx.try_provision(request).await);
    assert!(
        matches!(
            kind,
            Some(ErrorKind::NotFound | ErrorKind::ConfigInvalid | ErrorKind::Unsupported)
        ),
        "{kind:?}"
    );
    assert_eq!(fx.of_namespace().await?, []);
    Ok(())
}

async fn a_missing_bind_source_is_not_found(fx: Fx) -> CaseResult {
    fx.needs("bind_mounts", |c| &c.bind_mounts)?;
    let missing = fx.host_dir.join("missing");
    let request = fx.request().with_mounts([Mount::bind(&missing, "/mounted")]);
    let Err(error) = fx.try_provision(request).await else {
        return failed("a mount source that does not exist was taken");
    };
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("missing"), "{error} does not name the path");
    assert!(!missing.exists(), "the source was created");
    assert_eq!(fx.of_namespace().await?, []);
    Ok(())
}

async fn a_dropped_provision_leaves_nothing(fx: Fx) -> CaseResult {
    let probe = fx.request();
    fx.provision(probe).await?;
    for wait in [0, 1, 2, 4, 8, 16, 64] {
        let request = fx.request();
        fx.remember(&request.name);
        let provision = fx.try_provision(request.clone());
        let ended = tokio::time::timeout(Duration::from_millis(wait), provision).await;
        if let Ok(verified) = ended {
            fx.runtime.destroy(&verified?.handle.id).await?;
            continue;
        }
        let begun = Instant::now();
        while fx.of_namespace().await?.len() > 1 {
            if begun.elapsed() > SOON {
                return failed(format!(
                    "a provision that was dropped after {wait} ms left its container behind"
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

async fn reap_leaves_living_containers_alone(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    fx.runtime.reap().await?;
    succeeded(&fx.sh(&container, "true").await?)
}

async fn a_container_can_be_used_by_who_finds_it(fx: Fx) -> CaseResult {
    let request = fx.request();
    let labels = request.labels.clone();
    fx.provision(request).await?;
    let found = fx.runtime.list(&labels).await?.remove(0).handle;
    let json = serde_json::to_string(&found).map_err(|error| Failure::Failed(error.to_string()))?;
    let handle: ContainerHandle = serde_json::from_str(&json).map_err(|error| Failure::Failed(error.to_string()))?;
    assert_eq!(stdout(&fx.sh(&handle, "echo again").await?), "again\n");
    Ok(())
}

async fn destroy_ends_what_runs(fx: Fx) -> CaseResult {
    let (container, mut session) = fx
        .begin(
            fx.request(),
            shell("trap '' TERM; echo ready; while :; do sleep 1; done"),
            None,
        )
        .await?;
    first_line(&mut session).await?;
    let begun = Instant::now();
    fx.runtime.destroy(&container.id).await?;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "destroy waited for a grace period"
    );
    let ended = tokio::time::timeout(SOON, async { while session.next().await.is_some() {} }).await;
    assert!(ended.is_ok(), "the stream goes on after its container is gone");
    Ok(())
}

async fn containers_do_not_see_each_other(fx: Fx) -> CaseResult {
    let (one, two) = (fx.idle().await?, fx.idle().await?);
    let mark = SessionId::generate();
    let process = Process::new([
        "sh",
        "-c",
        // Waits without a child, which would show the same command line between its fork and its exec.
        "echo x > /output/mine; echo ready; read line",
        mark.as_str(),
    ])
    .with_stdin(true);
    let mut session = fx.runtime.exec(ExecRequest::new(one.clone(), process)).await?;
    first_line(&mut session).await?;
    let seen = format!("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c '^{mark}$'");
    // The grep finds no line of itself: the mark is part of a longer word there.
    assert_eq!(stdout(&fx.sh(&one, &seen).await?).trim(), "1");
    assert_eq!(stdout(&fx.sh(&two, &seen).await?).trim(), "0");
    assert_eq!(fx.sh(&two, "test -e /output/mine").await?.exit, exited(1));
    if fx.own_kernel() {
        return Ok(());
    }
    for namespace in ["pid", "net", "ipc", "mnt", "uts"] {
        let own = format!("readlink /proc/self/ns/{namespace}");
        let (first, second) = (stdout(&fx.sh(&one, &own).await?), stdout(&fx.sh(&two, &own).await?));
        assert!(
            !first.is_empty() && first != second,
            "{namespace}: {first:?} and {second:?}"
        );
    }
    Ok(())
}

// ---- Processes ----------------------------------------------------------------------------------------------------------

async fn output_and_exit_of_the_main_process(fx: Fx) -> CaseResult {
    let (_, session) = fx
        .start(fx.request(), shell("echo out; echo err >&2; exit 7"), None)
        .await?;
    let output = session.collect(1000).await?;
    assert_eq!(
        (output.exit, &*output.stdout.head, &*output.stderr.head),
        (exited(7), &b"out\n"[..], &b"err\n"[..])
    );
    Ok(())
}

async fn output_and_exit_of_an_exec(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let output = fx.sh(&container, "echo out; echo err >&2; exit 7").await?;
    assert_eq!(
        (output.exit, &*output.stdout.head, &*output.stderr.head),
        (exited(7), &b"out\n"[..], &b"err\n"[..])
    );
    Ok(())
}

async fn exit_codes(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 137, 255] {
        let output = fx.sh(&container, &format!("exit {code}")).await?;
        assert_eq!(output.exit, exited(code));
    }
    if fx.capabilities().main_process.is_enforced() {
        for code in [0, 1, 42, 255] {
            let (_, output) = fx.run(fx.request(), shell(&format!("exit {code}"))).await?;
            assert_eq!(output.exit, exited(code));
        }
    }
    Ok(())
}

async fn a_killed_process_says_so(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    for signal in [9, 15, 11] {
        let output = fx.sh(&container, &format!("kill -{signal} $$; sleep 5")).await?;
        // An engine may know only the code; but 137 alone is never called "out of memory".
        let fits = matches!(output.exit, Exit::Signalled { signal: got } if got == signal)
            || output.exit == exited(128 + signal);
        assert!(fits, "signal {signal} ended as {:?}", output.exit);
    }
    Ok(())
}

async fn a_missing_command_is_not_found(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    for command in ["/no/such/command", "no-such-command"] {
        let mut exits = vec![fx.exec(&container, Process::new([command])).await?.exit];
        if fx.capabilities().main_process.is_enforced() {
            exits.push(fx.run(fx.request(), Process::new([command])).await?.1.exit);
        }
        for exit in exits {
            let fits = matches!(&exit, Exit::NotStarted { reason: StartFailure::NotFound, message } if message.contains(command));
            assert!(fits, "{exit:?}");
            assert_eq!(exit.code(), Some(127));
        }
    }
    Ok(())
}

async fn a_command_that_cannot_be_executed(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    succeeded(
        &fx.sh(&container, "echo 'no program' > /output/text; chmod 644 /output/text")
            .await?,
    )?;
    for command in ["/output/text", "/output"] {
        let exit = fx.exec(&container, Process::new([command])).await?.exit;
        let fits = matches!(
            exit,
            Exit::NotStarted {
                reason: StartFailure::NotExecutable,
                ..
            }
        );
        assert!(fits, "{command}: {exit:?}");
        assert_eq!(exit.code(), Some(126));
    }
    Ok(())
}

async fn arguments_are_passed_as_they_are(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let arguments = ["a b", "", "*", "$HOME", "\"q'", "-n", "--", "späße", "line\nfeed", "\\"];
    let script = ["sh", "-c", "for a; do printf '%s|' \"$a\"; done", "sh"];
    let output = fx
        .exec(&container, Process::new(script.into_iter().chain(arguments)))
        .await?;
    assert_eq!(
        stdout(&output),
        arguments.map(|argument| format!("{argument}|")).concat()
    );
    Ok(())
}

async fn environment(fx: Fx) -> CaseResult {
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    };
    let request = fx
        .request()
        .with_env(pairs(&[("A", "container"), ("B", "container"), ("C", "a b=c\n\"'$x")]));
    let process = shell("printf '%s,%s,%s,%s' \"$A\" \"$B\" \"$C\" \"${CARGO_MANIFEST_DIR-none}\"")
        .with_env(pairs(&[("B", "process")]));
    let expected = "container,process,a b=c\n\"'$x,none";
    let (_, output) = fx.run(request.clone(), process.clone()).await?;
    assert_eq!(stdout(&output), expected);
    let mut again = request;
    again.name = fx.request().name;
    let container = fx.provision(again).await?.handle;
    assert_eq!(stdout(&fx.exec(&container, process).await?), expected);
    Ok(())
}

async fn working_directory(fx: Fx) -> CaseResult {
    let container = fx.provision(fx.request().with_working_dir("/output")).await?.handle;
    assert_eq!(stdout(&fx.sh(&container, "pwd").await?), "/output\n");
    let elsewhere = shell("pwd").with_working_dir(Some("/proc".to_owned()));
    assert_eq!(stdout(&fx.exec(&container, elsewhere).await?), "/proc\n");
    let missing = shell("pwd").with_working_dir(Some("/no/such/folder".to_owned()));
    let exit = match fx.runtime.exec(ExecRequest::new(container, missing)).await {
        Ok(session) => session.collect(100).await?.exit,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            return Ok(());
        }
    };
    assert!(matches!(exit, Exit::NotStarted { .. }), "{exit:?}");
    Ok(())
}

async fn stdin_is_echoed(fx: Fx) -> CaseResult {
    let content: Vec<u8> = (0..1_000_003_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let (_, mut session) = fx
        .begin(fx.request(), Process::new(["cat"]).with_stdin(true), None)
        .await?;
    let Some(mut stdin) = session.take_stdin() else {
        return failed("there is no stdin");
    };
    assert!(session.take_stdin().is_none(), "stdin can be taken twice");
    let sent = content.clone();
    let writer = tokio::spawn(async move {
        for chunk in sent.chunks(70_001) {
            stdin.write(Bytes::copy_from_slice(chunk)).await?;
        }
        stdin.close().await
    });
    let (events, exit) = to_the_end(session).await?;
    assert_eq!(exit, exited(0));
    let echoed: Vec<u8> = events
        .iter()
        .flat_map(|event| match event {
            ExecEvent::Stdout(bytes) => bytes.to_vec(),
            _ => Vec::new(),
        })
        .collect();
    assert!(
        echoed == content,
        "{} bytes came back of {}",
        echoed.len(),
        content.len()
    );
    match writer.await {
        Ok(written) => written?,
        Err(error) => return failed(error.to_string()),
    }
    Ok(())
}

async fn without_stdin_the_end_is_read(fx: Fx) -> CaseResult {
    let (_, mut session) = fx.begin(fx.request(), shell("cat; echo end"), Some(SOON)).await?;
    assert!(session.take_stdin().is_none(), "nobody asked for stdin");
    let output = session.collect(100).await?;
    assert_eq!((output.exit.clone(), stdout(&output)), (exited(0), "end\n".to_owned()));
    Ok(())
}

async fn a_closed_stdin_is_a_conflict(fx: Fx) -> CaseResult {
    let (_, mut session) = fx
        .begin(
            fx.request(),
            shell("exec <&-; echo ready; sleep 2").with_stdin(true),
            None,
        )
        .await?;
    first_line(&mut session).await?;
    let Some(mut stdin) = session.take_stdin() else {
        return failed("there is no stdin");
    };
    let writing = async {
        // What the pipes between us hold may be taken without an error.
        for _ in 0..256 {
            stdin.write(Bytes::from(vec![0; 64 << 10])).await?;
        }
        Ok(())
    };
    let reading = to_the_end(session);
    let (written, ended) = tokio::join!(writing, reading);
    assert_eq!(kind_of(written), Some(ErrorKind::Conflict));
    assert_eq!(ended?.1, exited(0), "a write that failed must not end the process");
    Ok(())
}

async fn output_is_bytes(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let output = fx
        .sh(&container, r"printf '\377\376\000\r\n\200'; printf '\300' >&2")
        .await?;
    assert_eq!(output.stdout.head, b"\xff\xfe\0\r\n\x80");
    assert_eq!(output.stderr.head, b"\xc0");
    Ok(())
}

async fn output_keeps_its_order(fx: Fx) -> CaseResult {
    let script = "i=0; while [ $i -lt 10 ]; do echo o$i; sleep 0.05; echo e$i >&2; sleep 0.05; i=$((i+1)); done";
    let (_, session) = fx.begin(fx.request(), shell(script), None).await?;
    let (events, _) = to_the_end(session).await?;
    let mut text = String::new();
    for event in events {
        let bytes = match event {
            ExecEvent::Stdout(bytes) => {
                assert!(!bytes.contains(&b'e'));
                bytes
            }
            ExecEvent::Stderr(bytes) => bytes,
            ExecEvent::Exit(_) => continue,
        };
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    let expected: String = (0..10).map(|i| format!("o{i}\ne{i}\n")).collect();
    assert_eq!(text, expected);
    Ok(())
}

/// What is written just before the end is lost easily, and not every time.
async fn no_output_is_lost(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    for i in 0..100 {
        let output = fx.sh(&container, &format!("echo out {i}; echo err {i} >&2")).await?;
        assert_eq!(
            (stdout(&output), output.stderr.to_text()),
            (format!("out {i}\n"), format!("err {i}\n"))
        );
    }
    for i in 0..5 {
        let (_, output) = fx
            .run(fx.request(), shell(&format!("echo out {i}; echo err {i} >&2")))
            .await?;
        assert_eq!(
            (stdout(&output), output.stderr.to_text()),
            (format!("out {i}\n"), format!("err {i}\n"))
        );
    }
    Ok(())
}

async fn a_slow_reader_does_not_cost_memory(fx: Fx) -> CaseResult {
    let process = Process::new(["dd", "if=/dev/zero", "bs=1048576", "count=64"]);
    let (_, mut session) = fx.begin(fx.request(), process, None).await?;
    let mut total = 0;
    let mut biggest = 0;
    let before = resident();
    let mut grown = 0;
    while let Some(event) = session.next().await {
        match event? {
            ExecEvent::Stdout(bytes) => {
                biggest = biggest.max(bytes.len());
                if total == 0 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    grown = resident().saturating_sub(before);
                }
                total += bytes.len();
            }
            ExecEvent::Stderr(_) => {}
            ExecEvent::Exit(exit) => assert_eq!(exit, exited(0)),
        }
    }
    assert_eq!(total, 64 << 20);
    assert!(biggest <= 4 << 20, "one event had {biggest} bytes");
    assert!(grown < 32 << 20, "memory grew by {grown} bytes while nobody read");
    Ok(())
}

/// The memory of this process, in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or_default() * 4096
}

async fn the_deadline_kills_the_tree(fx: Fx) -> CaseResult {
    let begun = Instant::now();
    let (container, session) = fx
        .start(fx.request(), shell(STUBBORN), Some(Duration::from_secs(2)))
        .await?;
    assert_eq!(to_the_end(session).await?.1, Exit::Deadline);
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "it was killed before its deadline"
    );
    assert!(
        begun.elapsed() < SOON,
        "it was killed {:?} after its start",
        begun.elapsed()
    );
    nothing_beats(&fx, &container).await
}

async fn the_deadline_of_an_exec_kills_the_tree(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let request = ExecRequest::new(container.clone(), shell(STUBBORN)).with_deadline(Some(Duration::from_secs(2)));
    let session = fx.runtime.exec(request).await?;
    assert_eq!(to_the_end(session).await?.1, Exit::Deadline);
    nothing_beats(&fx, &container).await?;
    succeeded(&fx.sh(&container, "true").await?)
}

async fn dropping_kills_the_tree(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let mut session = fx
        .runtime
        .exec(ExecRequest::new(container.clone(), shell(STUBBORN)))
        .await?;
    first_line(&mut session).await?;
    drop(session);
    tokio::time::sleep(Duration::from_secs(1)).await;
    nothing_beats(&fx, &container).await
}

async fn cancelling_kills_the_tree(fx: Fx) -> CaseResult {
    let (container, mut session) = fx.begin(fx.request(), shell(STUBBORN), None).await?;
    first_line(&mut session).await?;
    let control = session.control();
    control.kill(KillReason::Cancelled).await?;
    let ended = tokio::time::timeout(SOON, to_the_end(session)).await;
    match ended {
        Ok(ended) => assert_eq!(ended?.1, Exit::Cancelled),
        Err(_) => return failed("it lives on after it was killed"),
    }
    control.kill(KillReason::Cancelled).await?;
    nothing_beats(&fx, &container).await
}

async fn a_signal_reaches_the_process(fx: Fx) -> CaseResult {
    let script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.05; done";
    let (_, mut session) = fx.begin(fx.request(), shell(script), Some(SOON)).await?;
    first_line(&mut session).await?;
    session.control().signal(10).await?;
    let (events, exit) = to_the_end(session).await?;
    assert_eq!(exit, exited(3));
    assert!(
        events.contains(&ExecEvent::Stdout(Bytes::from_static(b"got\n"))),
        "{events:?}"
    );
    Ok(())
}

async fn start_works_once(fx: Fx) -> CaseResult {
    let idle = fx.idle().await?;
    let start = fx.runtime.start(StartRequest::new(idle)).await;
    assert_eq!(
        kind_of(start),
        Some(ErrorKind::Conflict),
        "an idle container has no main process"
    );
    let (container, session) = fx.start(fx.request(), shell("exit 0"), None).await?;
    let again = || fx.runtime.start(StartRequest::new(container.clone()));
    assert_eq!(kind_of(again().await), Some(ErrorKind::Conflict));
    to_the_end(session).await?;
    assert_eq!(kind_of(again().await), Some(ErrorKind::Conflict));
    Ok(())
}

async fn execs_run_side_by_side(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let execs = (0..16).map(|i| {
        let (fx, container) = (&fx, &container);
        async move {
            let output = fx.sh(container, &format!("sleep 0.2; echo {i}; exit {i}")).await?;
            Ok::<_, Failure>((output.exit.clone(), stdout(&output)))
        }
    });
    for (i, output) in join_all(execs).await.into_iter().enumerate() {
        assert_eq!(output?, (exited(i as i32), format!("{i}\n")));
    }
    Ok(())
}

async fn a_terminal(fx: Fx) -> CaseResult {
    fx.needs("tty", |c| &c.tty)?;
    let process = shell("tty; stty size; read line; stty size; exit 5")
        .with_tty(Some((11, 77)))
        .with_stdin(true);
    let container = fx.idle().await?;
    let request = ExecRequest::new(container, process).with_deadline(Some(SOON));
    let mut session = fx.runtime.exec(request).await?;
    let mut text = first_line(&mut session).await?;
    session.control().resize(33, 99).await?;
    if let Some(mut stdin) = session.take_stdin() {
        stdin.write(Bytes::from_static(b"\n")).await?;
        let (events, exit) = to_the_end(session).await?;
        drop(stdin);
        assert_eq!(exit, exited(5));
        for event in events {
            if let ExecEvent::Stdout(bytes) = event {
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        assert!(text.starts_with("/dev/pts/"), "{text:?}");
        assert!(text.contains("33 99"), "{text:?}");
        return Ok(());
    }
    failed("there is no stdin")
}

// ---- Limits -------------------------------------------------------------------------------------------------------------

async fn too_much_memory(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_memory_bytes(Some(64 * MIB));
    let process = Process::new(["dd", "if=/dev/zero", "of=/dev/null", "bs=268435456", "count=1"]);
    let (_, output) = fx.run(fx.request().with_resources(limits), process).await?;
    assert_eq!(output.exit, Exit::OutOfMemory, "{:?}", output.stderr.to_text());
    assert_eq!(output.exit.code(), Some(137));
    Ok(())
}

async fn too_much_memory_in_a_further_process(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_memory_bytes(Some(64 * MIB));
    let container = fx.provision(fx.request().with_resources(limits)).await?.handle;
    let process = Process::new(["dd", "if=/dev/zero", "of=/dev/null", "bs=268435456", "count=1"]);
    let session = fx.runtime.exec(ExecRequest::new(container, process)).await?;
    assert_eq!(to_the_end(session).await?.1, Exit::OutOfMemory);
    Ok(())
}

async fn too_many_processes(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_pids(Some(16));
    let script = "i=0; while [ $i -lt 64 ]; do sleep 3 & i=$((i+1)); done; wait; exit 0";
    let (_, output) = fx.run(fx.request().with_resources(limits), shell(script)).await?;
    assert!(
        matches!(output.exit, Exit::PidsLimit { .. }),
        "{:?} {:?}",
        output.exit,
        output.stderr.to_text()
    );
    Ok(())
}

async fn too_much_disk(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_disk_bytes(Some(16 * MIB));
    let process = Process::new(["dd", "if=/dev/zero", "of=/output/big", "bs=1048576", "count=64"]);
    let (container, output) = fx.run(fx.request().with_resources(limits), process).await?;
    assert!(
        matches!(output.exit, Exit::DiskLimit { .. }),
        "{:?} {:?}",
        output.exit,
        output.stderr.to_text()
    );
    let written = fx.read_file(&container, "/output/big").await?.len() as u64;
    assert!(written <= 16 * MIB, "{written} bytes were written");
    Ok(())
}

async fn cpu_time_is_limited(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_cpu_cores(Some(0.5));
    let wall = Duration::from_secs(3);
    let busy = shell("while :; do :; done & while :; do :; done");
    let (container, session) = fx.begin(fx.request().with_resources(limits), busy, Some(wall)).await?;
    assert_eq!(to_the_end(session).await?.1, Exit::Deadline);
    let Some(used) = fx.runtime.stats(&container).await?.cpu_seconds else {
        return skipped("the runtime cannot tell the CPU time");
    };
    let allowed = wall.as_secs_f64() * 0.5;
    assert!(
        used <= allowed * 1.25,
        "{used} s of CPU time in {wall:?} with half a core"
    );
    assert!(
        used >= allowed * 0.2,
        "{used} s of CPU time for two busy loops in {wall:?}"
    );
    Ok(())
}

async fn open_files_are_limited(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_nofile(Some(40));
    let container = fx.provision(fx.request().with_resources(limits)).await?.handle;
    let both = stdout(&fx.sh(&container, "ulimit -S -n; ulimit -H -n").await?);
    assert_eq!(both, "40\n40\n");
    Ok(())
}

async fn stats_are_true(fx: Fx) -> CaseResult {
    fx.needs("memory_limit", |c| &c.memory_limit)?;
    let request = fx
        .request()
        .with_resources(ResourceLimits::none().with_memory_bytes(Some(256 * MIB)))
        .with_mounts([Mount::tmpfs(128 * MIB, "/tmp")]);
    let container = fx.provision(request).await?.handle;
    let stats = async || -> Result<ContainerStats, Error> { fx.runtime.stats(&container).await };
    let before = stats().await?;
    assert!((before.memory_limit_mb - 256.0).abs() < 0.1, "{before:?}");
    assert!(before.memory_mb < 100.0 && before.cpu_percent >= 0.0, "{before:?}");
    succeeded(
        &fx.sh(&container, "dd if=/dev/zero of=/tmp/held bs=1048576 count=50")
            .await?,
    )?;
    let held = stats().await?;
    let grown = held.memory_mb - before.memory_mb;
    assert!(
        (45.0..90.0).contains(&grown),
        "50 MiB are held, and memory grew by {grown} MiB"
    );
    // What is compared is CPU time, and time only as both of its ends are known, so that a machine that has other things to
    // do changes nothing.
    let asked_first = Instant::now();
    let held = stats().await?;
    let heard_first = Instant::now();
    let worked = fx
        .sh(&container, "i=0; while [ $i -lt 600000 ]; do i=$((i + 1)); done; times")
        .await?;
    succeeded(&worked)?;
    let by_kernel = cpu_time(&stdout(&worked))?;
    let asked_last = Instant::now();
    let after = stats().await?;
    let heard_last = Instant::now();
    let used = match (held.cpu_seconds, after.cpu_seconds) {
        (Some(before), Some(after)) => {
            let used = after - before;
            // An own kernel tells its processes how long they have run by its own clock, whatever else the machine does.
            let least = if fx.own_kernel() { 0.1 } else { by_kernel * 0.9 - 0.02 };
            // Starting a process takes some too, and more where a kernel has to.
            let most = by_kernel * 1.1 + if fx.own_kernel() { 2.0 } else { 0.3 };
            assert!(
                (least..=most).contains(&used),
                "{used} s of CPU time for a process that the kernel counts {by_kernel} s for"
            );
            used
        }
        _ => by_kernel,
    };
    let percent = |elapsed: Duration| used / elapsed.as_secs_f64() * 100.0;
    let (least, most) = (percent(heard_last - asked_first), percent(asked_last - heard_first));
    assert!(
        (least * 0.9 - 1.0..=most * 1.1 + 1.0).contains(&after.cpu_percent),
        "{} % of a CPU, which was between {least} and {most}",
        after.cpu_percent
    );
    if let Some(peak) = after.memory_peak_bytes {
        assert!(peak >= 45 * MIB, "{after:?}");
    }
    assert!(after.pids.is_none_or(|pids| pids < 16), "{after:?}");
    Ok(())
}

/// User's and system's time of a shell, as the first line of its `times` says it: `0m1.250s 0m0.010s`.
fn cpu_time(times: &str) -> Result<f64, Failure> {
    let seconds = |word: &str| {
        let (minutes, seconds) = word.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    let words = times.lines().next().unwrap_or_default().split_whitespace();
    match words.map(seconds).collect::<Option<Vec<_>>>().as_deref() {
        Some([user, system]) => Ok(user + system),
        _ => failed(format!("the shell's times are {times:?}")),
    }
}

// ---- Files, users and secrets -------------------------------------------------------------------------------------------

async fn a_writable_bind_mount_belongs_to_the_caller(fx: Fx) -> CaseResult {
    let folder = fx.host_folder("work")?;
    let io = |error: std::io::Error| Failure::Failed(error.to_string());
    fs::write(folder.join("given"), "given").map_err(io)?;
    let request = fx
        .request()
        .with_mounts([Mount::bind(&folder, "/workspace").writable()]);
    let script = "cat /workspace/given && echo made > /workspace/made && mkdir -p /workspace/d/e && echo x > /workspace/d/e/f \
                  && echo more >> /workspace/given && mv /workspace/made /workspace/moved && rm -f /workspace/none";
    let (_, output) = fx.run(request, shell(script)).await?;
    succeeded(&output)?;
    assert_eq!(stdout(&output), "given");
    let own = fs::metadata(&folder).map_err(io)?;
    for name in ["moved", "d", "d/e", "d/e/f", "given"] {
        let made = fs::metadata(folder.join(name)).map_err(io)?;
        assert_eq!((made.uid(), made.gid()), (own.uid(), own.gid()), "the owner of {name}");
    }
    assert_eq!(fs::read_to_string(folder.join("given")).map_err(io)?, "givenmore\n");
    Ok(())
}

async fn a_read_only_bind_mount_is_not_changed(fx: Fx) -> CaseResult {
    let folder = fx.host_folder("given")?;
    let io = |error: std::io::Error| Failure::Failed(error.to_string());
    fs::write(folder.join("a"), "content").map_err(io)?;
    let container = fx
        .provision(fx.request().with_mounts([Mount::bind(&folder, "/given")]))
        .await?
        .handle;
    assert_eq!(stdout(&fx.sh(&container, "cat /given/a").await?), "content");
    for script in [
        "echo x > /given/a",
        "touch /given/b",
        "rm -f /given/a",
        "chmod 777 /given/a",
        "mkdir /given/d",
        "mount -o remount,rw /given",
    ] {
        let output = fx.sh(&container, script).await?;
        assert!(!output.exit.is_success(), "{script} worked");
    }
    assert_eq!(fs::read_to_string(folder.join("a")).map_err(io)?, "content");
    assert_eq!(fs::read_dir(&folder).map_err(io)?.count(), 1);
    Ok(())
}

async fn a_single_file_can_be_mounted(fx: Fx) -> CaseResult {
    let file = fx.host_folder("single")?.join("file");
    fs::write(&file, "content").map_err(|error| Failure::Failed(error.to_string()))?;
    let container = fx
        .provision(fx.request().with_mounts([Mount::bind(&file, "/etc/single.conf")]))
        .await;
    // The root is read-only, so a runtime may be unable to make a new mount point in it; but then it says so.
    let container = match container {
        Ok(verified) => verified.handle,
        Err(Failure::Failed(_)) => {
            let mounts = [Mount::bind(&file, "/single.conf")];
            fx.provision(fx.request().with_mounts(mounts)).await?.handle
        }
        Err(skipped) => return Err(skipped),
    };
    let output = fx
        .sh(&container, "cat /etc/single.conf 2>/dev/null || cat /single.conf")
        .await?;
    assert_eq!(stdout(&output), "content");
    Ok(())
}

async fn a_tmpfs_has_its_size(fx: Fx) -> CaseResult {
    let container = fx
        .provision(fx.request().with_mounts([Mount::tmpfs(4 * MIB, "/tmp")]))
        .await?
        .handle;
    succeeded(
        &fx.sh(&container, "dd if=/dev/zero of=/tmp/a bs=1048576 count=2 && rm /tmp/a")
            .await?,
    )?;
    let output = fx
        .sh(&container, "dd if=/dev/zero of=/tmp/a bs=1048576 count=8")
        .await?;
    assert!(!output.exit.is_success(), "8 MiB fit into 4");
    Ok(())
}

async fn a_writable_root_is_private(fx: Fx) -> CaseResult {
    fx.needs("writable_rootfs", |c| &c.writable_rootfs)?;
    let user = fx.capabilities().user.is_enforced().then_some(User { uid: 0, gid: 0 });
    let security = SecurityConfig::default().with_read_only_rootfs(false).with_user(user);
    let writable = || fx.request().with_security(security.clone());
    let one = fx.provision(writable()).await?.handle;
    let two = fx.provision(writable()).await?.handle;
    if fx.sh(&one, "echo x > /testkit-made").await?.exit.is_success() {
        assert!(
            !fx.sh(&two, "test -e /testkit-made").await?.exit.is_success(),
            "containers share their root"
        );
        assert!(!Path::new("/testkit-made").exists(), "the root is the host's");
    } else if user.is_some() {
        return failed("a writable root cannot be written to by root");
    }
    let three = fx.provision(writable()).await?.handle;
    assert!(
        !fx.sh(&three, "test -e /testkit-made").await?.exit.is_success(),
        "the image was changed"
    );
    Ok(())
}

async fn the_user_is_as_asked(fx: Fx) -> CaseResult {
    fx.needs("user", |c| &c.user)?;
    for (uid, gid) in [(1234, 2345), (65534, 65534)] {
        let security = SecurityConfig::default().with_user(Some(User { uid, gid }));
        let container = fx.provision(fx.request().with_security(security)).await?.handle;
        let ids = stdout(&fx.sh(&container, "id -u; id -g; id -G").await?);
        assert_eq!(ids, format!("{uid}\n{gid}\n{gid}\n"));
        succeeded(&fx.sh(&container, "touch /output/x").await?)?;
    }
    Ok(())
}

async fn the_default_user_is_not_root(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let uid = stdout(&fx.sh(&container, "id -u").await?);
    assert!(uid.trim().parse::<u32>().is_ok_and(|uid| uid > 0), "{uid:?}");
    Ok(())
}

async fn kept_capabilities_are_kept_alone(fx: Fx) -> CaseResult {
    fx.needs("add_capabilities", |c| &c.add_capabilities)?;
    let security = SecurityConfig::default().with_capabilities(vec!["CAP_NET_BIND_SERVICE".to_owned()]);
    let container = fx.provision(fx.request().with_security(security)).await?.handle;
    let status = stdout(&fx.sh(&container, "cat /proc/self/status").await?);
    let bits = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
    };
    for set in ["CapBnd:", "CapEff:", "CapPrm:"] {
        assert_eq!(bits(set), Some(1 << 10), "{set} {status}");
    }
    Ok(())
}

/// What a shell, the tools of busybox and a runtime's first process need, but for what makes folders.
const NEEDED_BY_A_SHELL: &str = "read write open openat close stat fstat lstat newfstatat statx poll ppoll lseek mmap \
    mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend sigaltstack ioctl pread64 pwrite64 readv \
    writev access faccessat faccessat2 pipe pipe2 select pselect6 sched_yield sched_getaffinity mremap madvise dup dup2 \
    dup3 nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getpid getppid gettid getpgid \
    getpgrp getsid setpgid setsid getuid geteuid getgid getegid getgroups setuid setgid setgroups setresuid setresgid \
    setfsuid setfsgid getresuid getresgid capget capset prctl arch_prctl seccomp set_tid_address set_robust_list \
    get_robust_list rseq futex clone clone3 fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill \
    uname fcntl flock fsync fdatasync ftruncate truncate getdents getdents64 getcwd chdir fchdir rename renameat \
    renameat2 unlink unlinkat rmdir link linkat symlink symlinkat readlink readlinkat chmod fchmod fchmodat umask \
    utime utimes utimensat futimesat getrlimit setrlimit prlimit64 getrusage sysinfo statfs fstatfs sendfile \
    copy_file_range epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2 socketpair getrandom close_range \
    socket connect sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown getsockopt setsockopt signalfd4 \
    rt_sigtimedwait rt_sigpending timerfd_create timerfd_settime pidfd_open pidfd_send_signal setitimer alarm pause \
    restart_syscall setrlimit getpriority setpriority mlock munlock splice tee";

async fn a_seccomp_profile_is_in_force(fx: Fx) -> CaseResult {
    fx.needs("seccomp_profile", |c| &c.seccomp_profile)?;
    let profile = fx.host_dir.join("profile.json");
    let names: Vec<_> = NEEDED_BY_A_SHELL.split_whitespace().collect();
    let allowed = serde_json::json!({ "names": names, "action": "SCMP_ACT_ALLOW" });
    let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [allowed] });
    fs::write(&profile, json.to_string()).map_err(|error| Failure::Failed(error.to_string()))?;
    let security = SecurityConfig::default().with_seccomp_profile(Some(profile.clone()));
    let container = fx.provision(fx.request().with_security(security)).await?.handle;
    succeeded(
        &fx.sh(
            &container,
            "touch /output/x && ! mkdir /output/y && test ! -e /output/y",
        )
        .await?,
    )?;
    fs::write(&profile, "{\"defaultAction\": 7}").map_err(|error| Failure::Failed(error.to_string()))?;
    let security = SecurityConfig::default().with_seccomp_profile(Some(profile));
    let broken = fx.try_provision(fx.request().with_security(security)).await;
    assert_eq!(
        kind_of(broken),
        Some(ErrorKind::ConfigInvalid),
        "a profile that cannot be read"
    );
    Ok(())
}

async fn secrets_are_files_and_nothing_else(fx: Fx) -> CaseResult {
    let value = format!("secret-{}", SessionId::generate());
    let secret = |name: &str, value: &[u8]| Secret {
        name: name.to_owned(),
        value: SecretBytes::new(value),
    };
    let request = fx
        .request()
        .with_secrets([secret("token", value.as_bytes()), secret("binary", b"\0\xff\n")]);
    let container = fx.provision(request).await?.handle;
    assert_eq!(stdout(&fx.sh(&container, "cat /run/secrets/token").await?), value);
    assert_eq!(
        fx.sh(&container, "cat /run/secrets/binary").await?.stdout.head,
        b"\0\xff\n"
    );
    let mode = "stat -c '%a' /run/secrets/token; test $(stat -c %u /run/secrets/token) = $(id -u) && echo own";
    assert_eq!(stdout(&fx.sh(&container, mode).await?), "400\nown\n");
    let memory = "while read -r _ on type _; do case $on in /run|/run/secrets*) echo $type;; esac; done < /proc/mounts";
    let types = stdout(&fx.sh(&container, memory).await?);
    assert!(
        !types.is_empty() && types.lines().all(|kind| kind == "tmpfs" || kind == "ramfs"),
        "{types:?}"
    );
    let seen = stdout(
        &fx.sh(
            &container,
            "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null",
        )
        .await?,
    );
    assert!(
        !seen.contains(&value),
        "the secret is in an environment or a command line"
    );
    let inspected = format!("{:?}", fx.runtime.inspect(&container.id).await?);
    assert!(!inspected.contains(&value), "inspect shows the secret");
    let copied = fx.copy_from(&container, "/output").await?;
    assert_eq!(copied.len(), 1, "secrets must not be part of the output");
    Ok(())
}

async fn copy_from_a_file_and_a_folder(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let script = "cd /output && mkdir -p d/e empty && echo a > a && printf '\\377\\0' > d/e/b && ln -s /etc/passwd link && : > zero";
    succeeded(&fx.sh(&container, script).await?)?;
    let file = fx.copy_from(&container, "/output/a").await?;
    assert_eq!(file, [("a".to_owned(), Some(b"a\n".to_vec()))].into());
    let folder = fx.copy_from(&container, "/output").await?;
    let names: Vec<_> = folder.keys().map(String::as_str).collect();
    let expected = [
        "output",
        "output/a",
        "output/d",
        "output/d/e",
        "output/d/e/b",
        "output/empty",
        "output/link",
        "output/zero",
    ];
    assert_eq!(names, expected);
    assert_eq!(folder["output/d/e/b"], Some(b"\xff\0".to_vec()));
    assert_eq!(folder["output/link"], None, "a link must come as a link");
    let inner = fx.copy_from(&container, "/output/d").await?;
    assert_eq!(
        inner.keys().map(String::as_str).collect::<Vec<_>>(),
        ["d", "d/e", "d/e/b"]
    );
    for missing in ["/output/none", "/none", "/output/a/b"] {
        let copied = fx
            .runtime
            .copy_from(CopyFromRequest::new(container.clone(), missing))
            .await;
        assert_eq!(kind_of(copied), Some(ErrorKind::NotFound), "{missing}");
    }
    for bad in ["output", "", "/output/../output"] {
        let copied = fx.runtime.copy_from(CopyFromRequest::new(container.clone(), bad)).await;
        assert_eq!(kind_of(copied), Some(ErrorKind::ConfigInvalid), "{bad:?}");
    }
    Ok(())
}

async fn copy_from_an_ended_container(fx: Fx) -> CaseResult {
    fx.needs("main_process", |c| &c.main_process)?;
    let (container, output) = fx.run(fx.request(), shell("echo result > /output/r; exit 1")).await?;
    assert_eq!(output.exit, exited(1));
    assert_eq!(fx.read_file(&container, "/output/r").await?, b"result\n");
    assert!(
        fx.runtime.stats(&container).await.is_ok(),
        "stats of an ended container"
    );
    Ok(())
}

async fn copy_from_does_not_follow_links_out(fx: Fx) -> CaseResult {
    let folder = fx.host_folder("outside")?;
    fs::write(folder.join("secret"), "the host's secret").map_err(|error| Failure::Failed(error.to_string()))?;
    let container = fx.idle().await?;
    let script = format!(
        "ln -s '{0}' /output/folder; ln -s '{0}/secret' /output/file; ln -s ../../../../../../../..{0} /output/up",
        folder.display()
    );
    succeeded(&fx.sh(&container, &script).await?)?;
    for path in [
        "/output",
        "/output/file",
        "/output/folder",
        "/output/folder/secret",
        "/output/up",
        "/output/up/secret",
    ] {
        let request = CopyFromRequest::new(container.clone(), path);
        let Ok(copied) = fx.runtime.copy_from(request).await else {
            continue;
        };
        let chunks: Vec<_> = copied.collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flatten().flatten().collect();
        let leaked = bytes.windows(17).any(|window| window == b"the host's secret");
        assert!(!leaked, "{path} gave a file of the host");
    }
    Ok(())
}

async fn copy_from_while_processes_write(fx: Fx) -> CaseResult {
    fx.needs("quiesce", |c| &c.quiesce)?;
    let container = fx.idle().await?;
    let script = "echo ready; i=0; while :; do i=$((i+1)); echo $i > /output/a; echo $i > /output/b; done";
    let mut session = fx
        .runtime
        .exec(ExecRequest::new(container.clone(), shell(script)))
        .await?;
    first_line(&mut session).await?;
    let number = |files: &BTreeMap<String, Option<Vec<u8>>>, name: &str| -> i64 {
        let content = files.get(name).cloned().flatten().unwrap_or_default();
        String::from_utf8_lossy(&content).trim().parse().unwrap_or(-1)
    };
    let mut seen = BTreeSet::new();
    for _ in 0..10 {
        let request = CopyFromRequest::new(container.clone(), "/output").with_quiesce(true);
        let chunks: Vec<Bytes> = fx.runtime.copy_from(request).await?.try_collect().await?;
        let files = untar(&chunks.concat())?;
        let (a, b) = (number(&files, "output/a"), number(&files, "output/b"));
        // A shell truncates before it writes, so a file may be empty; but the two are never further apart than one step.
        assert!(
            a < 0 || b < 0 || a == b || a == b + 1,
            "{a} and {b} were not read at one time"
        );
        seen.insert(a.max(b));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(seen.len() > 3, "the process did not go on: {seen:?}");
    Ok(())
}

async fn copy_to_and_back(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let big: Vec<u8> = (0..3_000_000_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let given = archive(&[
        ("a", Some(b"content"), 0o644),
        ("d/", None, 0o755),
        ("d/run", Some(b"#!/bin/sh\necho ran\n"), 0o755),
        ("d/big", Some(&big), 0o600),
        ("deep/er/x", Some(b"x"), 0o644),
    ]);
    let chunks: Vec<_> = given.chunks(10_007).map(Bytes::copy_from_slice).map(Ok).collect();
    let request = CopyToRequest::new(container.clone(), "/output", stream::iter(chunks).boxed());
    fx.runtime.copy_to(request).await?;
    assert_eq!(
        stdout(
            &fx.sh(&container, "cat /output/a; /output/d/run; cat /output/deep/er/x")
                .await?
        ),
        "contentran\nx"
    );
    assert!(fx.read_file(&container, "/output/d/big").await? == big);
    let own = "test $(stat -c %u /output/d/run) = $(id -u) && rm -r /output/d /output/a && test ! -e /output/a";
    succeeded(&fx.sh(&container, own).await?)?;
    for missing in ["/output/none", "/none"] {
        let request = CopyToRequest::new(container.clone(), missing, once(archive(&[("a", Some(b"x"), 0o644)])));
        assert_eq!(
            kind_of(fx.runtime.copy_to(request).await),
            Some(ErrorKind::NotFound),
            "{missing}"
        );
    }
    Ok(())
}

async fn copy_to_does_not_escape(fx: Fx) -> CaseResult {
    let outside = fx.host_folder("escape")?;
    let container = fx.idle().await?;
    let script = format!(
        "cd /output && mkdir in && ln -s '{0}' link && ln -s ../../../../../../../..{0} up && ln -s /etc etc && ln -s '{0}/new' new",
        outside.display()
    );
    succeeded(&fx.sh(&container, &script).await?)?;
    let up = format!("../../../../../../../..{}/evil", outside.display());
    let absolute = format!("{}/evil", outside.display());
    for name in [
        "link/evil",
        "up/evil",
        "new",
        "../evil",
        "in/../../evil",
        up.as_str(),
        absolute.as_str(),
    ] {
        for path in ["/output", "/output/in", "/output/link", "/output/up"] {
            let request = CopyToRequest::new(container.clone(), path, once(archive(&[(name, Some(b"evil"), 0o644)])));
            // It may be refused or put where it does no harm.
            let _ = fx.runtime.copy_to(request).await;
        }
    }
    let mut left = fs::read_dir(&outside).map_err(|error| Failure::Failed(error.to_string()))?;
    assert!(left.next().is_none(), "something was written on the host");
    for path in ["/evil", "/etc/evil"] {
        assert!(!Path::new(path).exists(), "{path} was written on the host");
    }
    let denied = archive(&[("x", Some(b"evil"), 0o644)]);
    let request = CopyToRequest::new(container.clone(), "/etc", once(denied));
    let written = fx.runtime.copy_to(request).await;
    assert!(
        written.is_err(),
        "the root is read-only, and something was written to /etc"
    );
    Ok(())
}

async fn copy_to_a_full_disk(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_disk_bytes(Some(8 * MIB));
    let container = fx.provision(fx.request().with_resources(limits)).await?.handle;
    let request = CopyToRequest::new(
        container.clone(),
        "/output",
        once(archive(&[("a", Some(&[1; 32 << 20]), 0o644)])),
    );
    assert_eq!(
        kind_of(fx.runtime.copy_to(request).await),
        Some(ErrorKind::ResourceExhausted)
    );
    succeeded(&fx.sh(&container, "rm -f /output/a; echo x > /output/b").await?)
}
