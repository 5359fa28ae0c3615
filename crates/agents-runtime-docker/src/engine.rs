//! The engine's API: every call has a deadline, and every answer that matters is read tolerantly.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use agents_core::{Error, ErrorKind, Problem, Result};
use agents_guest::Recollection;
use bollard::{
    API_DEFAULT_VERSION, BollardRequest, Docker, body_full,
    container::LogOutput,
    errors::Error as EngineError,
    exec::{CreateExecOptions, StartExecOptions, StartExecResults},
    models::{ContainerCreateBody, VolumeCreateRequest},
    query_parameters::{
        AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, KillContainerOptionsBuilder,
        ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
        UploadToContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use futures_util::Stream;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::{io::AsyncWrite, sync::OnceCell, time::timeout};

use crate::{
    DockerConfig,
    endpoint::{Endpoint, Environment},
    error,
    facts::{Facts, Said, Standing, Version},
    inspect::{Image, Inspected, Listed},
    transport::Transport,
};

/// The most that is read of one answer.
const LARGEST_ANSWER: usize = 16 << 20;

/// For how long what the engine said of itself is believed.
const BELIEVED: Duration = Duration::from_secs(60 * 60);

/// What a container or an exec says, and where it reads.
pub(crate) struct Attached {
    pub(crate) output: Pin<Box<dyn Stream<Item = Result<LogOutput, EngineError>> + Send>>,
    pub(crate) input: Pin<Box<dyn AsyncWrite + Send>>,
}

/// One engine.
#[derive(Debug)]
pub(crate) struct Engine {
    endpoint: Endpoint,
    transport: Arc<Transport>,
    docker: Docker,
    deadline: Duration,
    standing: Standing,
    facts: OnceCell<Facts>,
    recollection: Option<Recollection>,
}

impl Engine {
    /// Prepares to speak to the engine that the configuration names. What it says of itself is kept in the folder.
    pub(crate) fn new(config: &DockerConfig, folder: Option<PathBuf>) -> Result<Self> {
        config.check()?;
        let endpoint = Endpoint::find(config, &Environment::OWN)?;
        let transport = Arc::new(Transport::new(&endpoint)?);
        let deadline = Duration::from_secs_f64(config.timeout_seconds);
        let carrier = Arc::clone(&transport);
        let carry = move |request: BollardRequest| {
            let transport = Arc::clone(&carrier);
            async move { transport.request(request).await }
        };
        // bollard counts in whole seconds; the finer deadline is ours.
        let whole = deadline.as_secs() + 1;
        let docker = Docker::connect_with_custom_transport(carry, Some("http://docker"), whole, API_DEFAULT_VERSION)
            .map_err(|error| error::map("cannot prepare the client", error))?;
        let standing = Standing {
            local: endpoint.is_local(),
            root: rustix::process::geteuid().is_root(),
            runtime: config.runtime.clone(),
        };
        Ok(Self {
            endpoint,
            transport,
            docker,
            deadline,
            standing,
            facts: OnceCell::new(),
            recollection: folder.map(|folder| Recollection::new(folder, BELIEVED)),
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn standing(&self) -> &Standing {
        &self.standing
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// What is known of the engine so far.
    pub(crate) fn known(&self) -> Option<&Facts> {
        self.facts.get()
    }

    /// What is known of the engine; it is asked the first time, unless what it said to another process still holds.
    pub(crate) async fn facts(&self) -> Result<&Facts> {
        self.facts
            .get_or_try_init(|| async {
                if let Some(recollection) = &self.recollection {
                    let signature = self.signature().await?;
                    let (address, socket) = (self.endpoint.to_string(), self.endpoint.socket());
                    if let Some(said) = recollection.recall::<Said>(&address, socket, &signature) {
                        let facts = Facts::new(&said, &self.standing).map_err(unusable)?;
                        self.transport.use_version(&format!("1.{}", facts.api));
                        return Ok(facts);
                    }
                }
                self.ask_anew().await
            })
            .await
    }

    /// Asks the engine in any case.
    pub(crate) async fn check(&self) -> Result<Facts> {
        let facts = self.ask_anew().await?;
        // Whoever has found out the same meanwhile is as right.
        let _ = self.facts.set(facts.clone());
        Ok(facts)
    }

    /// Asks the engine what it is and can do, and keeps it for the next process.
    async fn ask_anew(&self) -> Result<Facts> {
        let version: Version = self.get("cannot ask the engine for its version", "/version").await?;
        let api = version.negotiate().map_err(unusable)?;
        self.transport.use_version(&format!("1.{api}"));
        let info = self.get("cannot ask the engine what it can do", "/info").await?;
        let said = Said {
            at: jiff::Timestamp::now(),
            version,
            info,
        };
        let facts = Facts::new(&said, &self.standing).map_err(unusable)?;
        if let Some(recollection) = &self.recollection {
            let signature = self.signature().await?;
            recollection.keep(&self.endpoint.to_string(), self.endpoint.socket(), &signature, &said);
        }
        Ok(facts)
    }

    /// What changes with the engine's version, for which nothing else is asked.
    async fn signature(&self) -> Result<String> {
        let what = "cannot reach the engine";
        let answer = self.call(what, self.ask("/_ping")).await?;
        let status = answer.status().as_u16();
        let word = |name: &str| {
            let value = answer.headers().get(name);
            value
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let signature = format!("{} {}", word("server"), word("api-version"));
        if status == 200 {
            return Ok(signature);
        }
        let body = self.call(what, whole_body(answer)).await?;
        Err(error::answered(what, status, &message(&body)))
    }

    /// Gives a call its deadline, and its error a kind.
    pub(crate) async fn call<T>(&self, what: &str, call: impl Future<Output = Result<T, EngineError>>) -> Result<T> {
        match timeout(self.deadline, call).await {
            Ok(answer) => answer.map_err(|error| error::map(what, error)),
            Err(_) => Err(error::late(what, Some(self.deadline))),
        }
    }

    /// Asks for JSON, past bollard's types, which break on what they do not know.
    async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T> {
        let body = self.fetch(what, path).await?;
        serde_json::from_slice(&body).map_err(|fault| {
            Error::new(
                ErrorKind::DataInvalid,
                format!(
                    "{what}: the engine's answer cannot be read; see whether it is a docker engine of 20.10 or later"
                ),
            )
            .with_source(fault)
        })
    }

    async fn fetch(&self, what: &str, path: &str) -> Result<Bytes> {
        let whole = async {
            let answer = self.ask(path).await?;
            let status = answer.status().as_u16();
            Ok::<_, EngineError>((status, whole_body(answer).await?))
        };
        let (status, body) = self.call(what, whole).await?;
        if !(200..300).contains(&status) {
            return Err(error::answered(what, status, &message(&body)));
        }
        Ok(body)
    }

    /// Creates a container, and gives its identifier.
    pub(crate) async fn create(&self, name: Option<&str>, body: ContainerCreateBody) -> Result<String> {
        let mut options = CreateContainerOptionsBuilder::new();
        if let Some(name) = name {
            options = options.name(name);
        }
        let created = self.docker.create_container(Some(options.build()), body);
        Ok(self.call("cannot create the container", created).await?.id)
    }

    /// Attaches to a container's first process.
    pub(crate) async fn attach(&self, id: &str) -> Result<Attached> {
        let options = AttachContainerOptionsBuilder::new()
            .stream(true)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .build();
        let attached = self.docker.attach_container(id, Some(options));
        let attached = self.call("cannot attach to the container", attached).await?;
        Ok(Attached {
            output: attached.output,
            input: attached.input,
        })
    }

    pub(crate) async fn start(&self, id: &str) -> Result<()> {
        let started = self.docker.start_container(id, None::<StartContainerOptions>);
        self.call("cannot start the container", started).await
    }

    /// What the engine knows of a container.
    pub(crate) async fn inspect(&self, id: &str) -> Result<Inspected> {
        // The path is built here, from identifiers and from names that hold neither a slash nor a percent sign.
        self.get("cannot inspect the container", &format!("/containers/{id}/json"))
            .await
    }

    /// The containers with all of these labels, in any state.
    pub(crate) async fn list(&self, labels: &[String]) -> Result<Vec<Listed>> {
        let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
        let query =
            serde_json::to_string(&filters).map_err(|fault| Error::unexpected("cannot list").with_source(fault))?;
        self.get(
            "cannot list the containers",
            &format!("/containers/json?all=1&filters={}", percent(&query)),
        )
        .await
    }

    /// Kills and removes a container with its anonymous volumes. One that is gone, or is being removed, is removed.
    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let removed = self.docker.remove_container(id, Some(options));
        match self.call("cannot remove the container", removed).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == ErrorKind::Conflict && error.message().contains("already in progress") => {
                self.gone(id).await
            }
            other => other,
        }
    }

    /// Waits until somebody else's removal is done.
    async fn gone(&self, id: &str) -> Result<()> {
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < self.deadline {
            match self.inspect(id).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        Err(error::late("cannot remove the container", Some(self.deadline)))
    }

    /// What the engine knows of an image. The name keeps to [`ImageName`](crate::image::ImageName).
    pub(crate) async fn image(&self, name: &str) -> Result<Image> {
        self.get("cannot look the image up", &format!("/images/{name}/json"))
            .await
    }

    /// Kills a container's processes. One that does not run has none.
    pub(crate) async fn kill(&self, id: &str) -> Result<()> {
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        let killed = self.docker.kill_container(id, Some(options));
        match self.call("cannot kill the container's processes", killed).await {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => Ok(()),
            other => other,
        }
    }

    /// Runs a program in a running container, with its streams. No terminal of the engine's.
    pub(crate) async fn exec(&self, id: &str, command: Vec<String>) -> Result<Attached> {
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command),
            ..CreateExecOptions::default()
        };
        let exec = self
            .call("cannot run in the container", self.docker.create_exec(id, options))
            .await?;
        let started = self.docker.start_exec(&exec.id, None::<StartExecOptions>);
        match self.call("cannot run in the container", started).await? {
            StartExecResults::Attached { output, input } => Ok(Attached { output, input }),
            StartExecResults::Detached => Err(Error::unexpected("the engine gave no streams")),
        }
    }

    /// Unpacks an archive into a folder of a container.
    pub(crate) async fn upload(&self, id: &str, path: &str, archive: Bytes) -> Result<()> {
        let options = UploadToContainerOptionsBuilder::new().path(path).build();
        let uploaded = self.docker.upload_to_container(id, Some(options), body_full(archive));
        self.call("cannot copy into the container", uploaded).await
    }

    /// A path of a container as an archive, and `None` when it does not exist.
    pub(crate) async fn download(&self, id: &str, path: &str) -> Result<Option<Bytes>> {
        let path = format!("/containers/{id}/archive?path={}", percent(path));
        match self.fetch("cannot read from the container", &path).await {
            Ok(archive) => Ok(Some(archive)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The volumes with this label, and where each is on the engine's host.
    pub(crate) async fn volumes(&self, label: &str) -> Result<BTreeMap<String, String>> {
        let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let volumes = self
            .call("cannot list the volumes", self.docker.list_volumes(Some(options)))
            .await?;
        Ok(volumes
            .volumes
            .unwrap_or_default()
            .into_iter()
            .map(|volume| (volume.name, volume.mountpoint))
            .collect())
    }

    pub(crate) async fn create_volume(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        self.call("cannot create the volume", self.docker.create_volume(request))
            .await?;
        Ok(())
    }

    /// One reading of a container's counters, as the engine words it.
    pub(crate) async fn stats(&self, id: &str) -> Result<serde_json::Value> {
        let path = format!("/containers/{id}/stats?stream=false&one-shot=true");
        self.get("cannot read the container's use", &path).await
    }

    /// The events of a container from now on that are about its end and its memory.
    pub(crate) async fn events(&self, id: &str) -> Result<Incoming> {
        let what = "cannot listen for the container's events";
        let filters = serde_json::json!({ "container": [id], "event": ["oom", "die", "destroy"] });
        let path = format!("/events?filters={}", percent(&filters.to_string()));
        let answer = self.call(what, self.ask(&path)).await?;
        let status = answer.status().as_u16();
        if status == 200 {
            return Ok(answer.into_body());
        }
        let body = self.call(what, whole_body(answer)).await?;
        Err(error::answered(what, status, &message(&body)))
    }

    async fn ask(&self, path: &str) -> Result<Response<Incoming>, EngineError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .body(body_full(Bytes::new()));
        self.transport.request(request.map_err(EngineError::from)?).await
    }
}

/// Why an engine cannot be used.
fn unusable(problem: Problem) -> Error {
    Error::unsupported(format!("{}; {}", problem.reason, problem.remedy))
}

async fn whole_body(answer: Response<Incoming>) -> Result<Bytes, EngineError> {
    let body = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await;
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(fault) => Err(EngineError::IOError {
            err: std::io::Error::other(fault),
        }),
    }
}

/// The words of an error's answer.
fn message(body: &[u8]) -> String {
    let parsed: Option<BTreeMap<String, String>> = serde_json::from_slice(body).ok();
    parsed
        .and_then(|mut fields| fields.remove("message"))
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

/// What may not stand in a query as it is.
pub(crate) fn percent(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
