//! The docker runtime as a [`ContainerRuntime`].

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use agents_core::{
    AdapterInfo, Admitted, Availability, BuildImageRequest, ByteStream, ContainerHandle, ContainerId, ContainerInfo,
    ContainerRuntime, ContainerState, ContainerStats, CopyFromRequest, CopyToRequest, Error, ErrorKind, ExecEvent,
    ExecRequest, ExecSession, Provisioned, Result, RuntimeCapabilities, StartRequest, User, guard::is_clean_absolute,
};
use agents_guest::{Connection, LABEL_SESSION, SpawnRequest, StartOptions, container_info};
use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::{
    DockerConfig, build,
    container::{Known, Phase},
    engine::Engine,
    error, facts,
    image::Images,
    inspect::{Image, Inspected},
    judge::EngineJudge,
    program,
    provision::{self, Made},
    stats,
    streams::{self, Said},
    users,
    watch::News,
};

/// Docker, over its API.
///
/// Containers belong to the engine and outlive this value; [`destroy`](ContainerRuntime::destroy) removes them. Another
/// process can use them through its own `DockerRuntime` over the same engine. Ports are published, and a main process is
/// attached to, by the process that made the container, and end with it.
#[derive(Clone)]
pub struct DockerRuntime {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) engine: Arc<Engine>,
    pub(crate) images: Images,
    /// In what ways the guest program is on the engine, as far as is known, and where the file of hosts is there.
    pub(crate) program: tokio::sync::Mutex<BTreeMap<program::Access, String>>,
    /// Set when the engine cannot mount from where it says that its volumes are.
    pub(crate) hidden_volumes: AtomicBool,
    /// By the image's identifier and its user.
    users: tokio::sync::Mutex<HashMap<(String, String), Option<User>>>,
    containers: Mutex<HashMap<ContainerId, Arc<Known>>>,
}

impl fmt::Debug for DockerRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerRuntime")
            .field("engine", self.inner.engine.endpoint())
            .finish_non_exhaustive()
    }
}

/// How long it may take to ask an engine for the first time, when nothing depends on it yet.
const FIRST_QUESTION: Duration = Duration::from_secs(5);

impl DockerRuntime {
    /// The runtime on an engine. The engine is asked what it can do; when it does not answer, it is asked again by the first
    /// operation that needs it.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` or `NotFound` that names the key, for a context, host or certificate that cannot be used.
    pub async fn connect(config: DockerConfig) -> Result<Self> {
        Self::over(&config, None).await
    }

    /// As [`connect`](Self::connect), and keeps what the engine says of itself in a folder, which is made when needed. So the
    /// next process need not ask as long as the engine's version, its socket and the boot are the same, for an hour at most.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_with_memory(config: DockerConfig, folder: impl Into<PathBuf>) -> Result<Self> {
        Self::over(&config, Some(folder.into())).await
    }

    async fn over(config: &DockerConfig, folder: Option<PathBuf>) -> Result<Self> {
        let engine = Arc::new(Engine::new(config, folder)?);
        let images = Images::new(config);
        let _ = timeout(FIRST_QUESTION, engine.facts()).await;
        Ok(Self {
            inner: Arc::new(Inner {
                engine,
                images,
                program: tokio::sync::Mutex::default(),
                hidden_volumes: AtomicBool::new(false),
                users: tokio::sync::Mutex::default(),
                containers: Mutex::default(),
            }),
        })
    }

    fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// The container of a name: what is known of it, or else what the engine says.
    async fn locate(&self, name: &ContainerId) -> Result<Arc<Known>> {
        let known = self.inner.containers().get(name).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let inspected = self.find(name).await?;
        let gvisor = self
            .engine()
            .facts()
            .await?
            .is_gvisor(Some(&inspected.host_config.runtime));
        let known = Known::new(&inspected, gvisor, Phase::Unknown, None);
        let mut containers = self.inner.containers();
        Ok(Arc::clone(containers.entry(name.clone()).or_insert(known)))
    }

    /// Asks the engine for the container of a name. An engine also takes the beginning of an identifier for a name, and has
    /// containers that are not ours.
    async fn find(&self, name: &ContainerId) -> Result<Inspected> {
        let gone = || Error::not_found(format!("there is no container {name}"));
        self.engine().facts().await?;
        let inspected = match self.engine().inspect(name.as_str()).await {
            Ok(inspected) => inspected,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(gone()),
            Err(error) => return Err(error),
        };
        if inspected.plain_name() != name.as_str() {
            return Err(gone());
        }
        let ours = inspected.config.labels.contains_key(LABEL_SESSION);
        if ours { Ok(inspected) } else { Err(gone()) }
    }

    /// Runs the guest program in a container. A container that is gone is forgotten.
    async fn guest(&self, name: &ContainerId, command: Vec<String>) -> Result<(Arc<Known>, Connection, Said, News)> {
        let known = self.locate(name).await?;
        let (news, attached) = tokio::join!(known.news(&self.inner.engine), self.engine().exec(&known.id, command));
        match attached {
            Ok(attached) => {
                let news = news?;
                let (connection, said) = streams::connection(attached, Some(&news));
                Ok((known, connection, said, news))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.inner.forget(name, &known.id);
                Err(Error::not_found(format!("there is no container {name}")))
            }
            Err(error) => Err(error),
        }
    }

    /// The state of a container, for which its guest program is asked where only that knows.
    async fn state(&self, name: &ContainerId, status: &str) -> ContainerState {
        match status {
            "created" => return ContainerState::Created,
            "running" | "paused" | "restarting" => {}
            _ => return ContainerState::Exited,
        }
        let known = self.inner.containers().get(name).cloned();
        let phase = known.and_then(|known| {
            known.with_phase(|phase| match phase {
                Phase::Idle => Some(ContainerState::Running),
                Phase::Prepared(..) => Some(ContainerState::Created),
                Phase::Ended => Some(ContainerState::Exited),
                Phase::Started | Phase::Unknown => None,
            })
        });
        if let Some(state) = phase {
            return state;
        }
        let asked = async {
            let (_, connection, ..) = self.guest(name, agents_guest::status_command()).await?;
            connection.status().await
        };
        match timeout(self.engine().deadline(), asked).await {
            Ok(Ok(state)) => state,
            // It runs, and does not say how far it is.
            _ => ContainerState::Running,
        }
    }
}

impl Inner {
    fn containers(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Arc<Known>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user that an image names, which is looked up once.
    pub(crate) async fn user_of(&self, image: &Image) -> Result<Option<User>> {
        let key = (image.id.clone(), image.config.user.clone());
        let mut users = self.users.lock().await;
        if let Some(user) = users.get(&key) {
            return Ok(*user);
        }
        let user = users::of_image(&self.engine, image).await?;
        users.insert(key, user);
        Ok(user)
    }

    pub(crate) fn remember(&self, name: ContainerId, known: Arc<Known>) {
        self.containers().insert(name, known);
    }

    /// Forgets a container, unless another of its name has been made meanwhile.
    fn forget(&self, name: &ContainerId, id: &str) {
        let mut containers = self.containers();
        if containers.get(name).is_some_and(|known| known.id == id) {
            containers.remove(name);
        }
    }
}

/// Adds what the engine or its runtime said, when the guest program did not answer.
fn explain(error: Error, said: &Said) -> Error {
    match said.line() {
        Some(line) if error.kind() == ErrorKind::Unavailable => error.with_context("engine", line),
        _ => error,
    }
}

fn absolute(path: &str) -> Result<&str> {
    if is_clean_absolute(path) {
        return Ok(path);
    }
    Err(Error::invalid(format!(
        "path: {path:?} is not a clean absolute path; write it whole, without . and .."
    )))
}

#[async_trait]
impl ContainerRuntime for DockerRuntime {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("docker", env!("CARGO_PKG_VERSION")).with_name(self.engine().endpoint().to_string())
    }

    fn capabilities(&self) -> RuntimeCapabilities {
        match self.engine().known() {
            Some(facts) => facts.capabilities(),
            None => facts::assumed(self.engine().standing()),
        }
    }

    async fn check_availability(&self) -> Result<Availability> {
        // What other processes were told may be old.
        Ok(match self.engine().check().await {
            Ok(facts) => facts.availability(&self.engine().endpoint().to_string()),
            Err(error) => {
                let report = error.report();
                let (reason, remedy) = report
                    .split_once("; ")
                    .unwrap_or((&report, "see that the docker engine runs"));
                Availability::unavailable(reason, remedy)
            }
        })
    }

    async fn provision(&self, request: Admitted) -> Result<Provisioned> {
        agents_guest::check_engine_image(&request.request().image)
            .map_err(|error| error.with_operation("provision"))?;
        if self.engine().known().is_none() {
            // What was assumed of the engine may not hold.
            self.engine()
                .facts()
                .await
                .map_err(|error| error.with_operation("provision"))?;
            let request = request.request().clone();
            return self.provision(Admitted::new(self, request)?).await;
        }
        let request = request.into_request();
        let (name, session_id) = (request.name.clone(), request.session_id.clone());
        let made = provision::provision(Arc::clone(&self.inner), request).await;
        let Made {
            inspected,
            effective,
            phase,
            published,
            gvisor,
            watch,
        } = made.map_err(|error| error.with_operation("provision"))?;
        let known = Known::new(&inspected, gvisor, phase, watch);
        *known.published.lock().unwrap_or_else(PoisonError::into_inner) = published;
        self.inner.remember(name.clone(), known);
        Ok(Provisioned::new(name, session_id, effective))
    }

    async fn start(&self, request: StartRequest) -> Result<ExecSession> {
        let name = &request.container.id;
        let known = self.locate(name).await?;
        let taken = known.with_phase(|phase| match std::mem::replace(phase, Phase::Started) {
            Phase::Prepared(connection, said) => Ok((connection, said)),
            other => {
                let why = match &other {
                    Phase::Idle => "has no main process",
                    // Docker closes the input of a container with its first client.
                    Phase::Unknown => {
                        "was made by another program, which alone can start its main process if there is one"
                    }
                    _ => "has started already",
                };
                *phase = other;
                Err(why)
            }
        });
        let (connection, said) = match taken {
            Ok(prepared) => prepared,
            Err(why) => return Err(Error::new(ErrorKind::Conflict, format!("the container {name} {why}"))),
        };
        let news = known.news(&self.inner.engine).await?;
        let judge = EngineJudge::new(Arc::clone(&self.inner.engine), known.id.clone(), said, news);
        let options = StartOptions::new().with_deadline(request.deadline);
        let (session, afterwards) = connection.start(options, Arc::new(judge)).await?;
        known.started(afterwards);
        Ok(session.map_events(move |event| {
            if matches!(event, Ok(ExecEvent::Exit(_))) {
                known.with_phase(|phase| *phase = Phase::Ended);
            }
            event
        }))
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        let (known, connection, said, news) = self.guest(&request.container.id, agents_guest::exec_command()).await?;
        let judge = EngineJudge::new(Arc::clone(&self.inner.engine), known.id.clone(), said, news);
        let spawn = SpawnRequest::new(request.process).with_deadline(request.deadline);
        connection.spawn(spawn, Arc::new(judge)).await
    }

    async fn copy_from(&self, request: CopyFromRequest) -> Result<ByteStream> {
        let path = absolute(&request.path)?;
        if let Some(afterwards) = self.locate(&request.container.id).await?.afterwards() {
            match afterwards.read(path).await {
                None => {}
                // The engine may know why.
                Some(Err(error)) if error.kind() == ErrorKind::Unavailable => {}
                Some(read) => return read,
            }
        }
        let command = agents_guest::read_command(path, request.quiesce);
        let (_, connection, said, _) = self.guest(&request.container.id, command).await?;
        connection.read().await.map_err(|error| explain(error, &said))
    }

    async fn copy_to(&self, request: CopyToRequest) -> Result<()> {
        let command = agents_guest::write_command(absolute(&request.path)?);
        let (_, connection, said, _) = self.guest(&request.container.id, command).await?;
        connection
            .write(request.archive)
            .await
            .map_err(|error| explain(error, &said))
    }

    async fn stats(&self, container: &ContainerHandle) -> Result<ContainerStats> {
        let known = self.locate(&container.id).await?;
        match self.engine().stats(&known.id).await {
            Ok(answer) => Ok(known.reading(stats::read(&answer))),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.inner.forget(&container.id, &known.id);
                Err(Error::not_found(format!("there is no container {}", container.id)))
            }
            Err(error) => Err(error),
        }
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerInfo>> {
        self.engine().facts().await?;
        let mut filters: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        filters.push(LABEL_SESSION.to_owned());
        let listed = self.engine().list(&filters).await?;
        let found = listed.into_iter().filter_map(|container| {
            // A filter `a=b=c` is ambiguous, so the answer is not taken at its word.
            if labels
                .iter()
                .any(|(key, value)| container.labels.get(key) != Some(value))
            {
                return None;
            }
            let name = container.names.first()?.trim_start_matches('/').to_owned();
            let created_at = jiff::Timestamp::from_second(container.created).unwrap_or_default();
            let mut info = container_info(&name, &container.labels, ContainerState::Running, created_at)?;
            Some(async move {
                info.state = self.state(&info.handle.id, &container.state).await;
                info
            })
        });
        Ok(join_all(found).await)
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        let inspected = self.find(id).await?;
        let state = self.state(id, &inspected.state.status).await;
        let created_at = inspected.created.parse().unwrap_or_default();
        let info = container_info(id.as_str(), &inspected.config.labels, state, created_at)
            .ok_or_else(|| Error::not_found(format!("there is no container {id}")))?;
        Ok(info.with_pid(Some(inspected.state.pid).filter(|pid| *pid > 0)))
    }

    async fn destroy(&self, id: &ContainerId) -> Result<()> {
        let known = match self.locate(id).await {
            Ok(known) => known,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        self.engine().remove(&known.id).await?;
        known.published.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.inner.forget(id, &known.id);
        Ok(())
    }

    async fn build_image(&self, request: BuildImageRequest) -> Result<String> {
        self.engine().facts().await?;
        build::build(self.engine(), &self.inner.images, &request)
            .await
            .map_err(|error| error.with_operation("build_image"))
    }

    async fn reap(&self) -> Result<Vec<String>> {
        self.engine().facts().await?;
        program::clear(self.engine()).await
    }
}

/// Used where a call gives up.
pub(crate) fn late(engine: &Engine, what: &str) -> Error {
    error::late(what, Some(engine.deadline()))
}
