//! The road from a request to a container whose guest program has reported.

use std::{fs, path::Path, sync::Arc, time::Duration};

use agents_core::{ContainerId, Error, ErrorKind, MountSource, ProvisionRequest, Provisioned, Result, SessionId, User};
use agents_guest::{Plan, PlannedSource, Report, SpawnRequest};

use crate::{client::Client, containers::Attached, engine::Engine, kernel::Group, model::View, readback, spec};

/// The label with a number of its own for each attempt to create a container.
pub(crate) const LABEL_ATTEMPT: &str = "isolated-agents.attempt";

/// How long what was begun is tried to be removed while the engine does not answer.
const STUBBORN: Duration = Duration::from_secs(120);

/// For how long a container may still appear that the engine has not answered for.
const LINGERING: Duration = Duration::from_secs(30);

/// A main process that waits for its start.
pub(crate) struct Waiting {
    pub(crate) attached: Attached,
    pub(crate) group: Option<Group>,
}

/// What was made.
pub(crate) struct Made {
    pub(crate) provisioned: Provisioned,
    pub(crate) waiting: Option<Waiting>,
}

/// The user that containers of a rootful engine get where nobody chooses one and there are mounts: the caller, whose folders
/// they are.
pub(crate) fn choose_user(request: &mut ProvisionRequest, engine: &Engine) {
    let caller = User {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    let binds = request
        .mounts
        .iter()
        .any(|mount| matches!(mount.source, MountSource::Bind { .. }));
    if !engine.rootless && binds && request.security.user.is_none() && caller.uid != 0 && caller.gid != 0 {
        request.security.user = Some(caller);
    }
}

/// Looks at what is to be mounted, before anything is made: the engine would say less.
pub(crate) fn check_binds(plan: &Plan, engine: &Engine) -> Result<()> {
    for mount in &plan.mounts {
        let PlannedSource::Bind { path } = &mount.source else {
            continue;
        };
        spec::utf8(path)?;
        let metadata = fs::metadata(path)
            .map_err(|error| Error::io(format!("mount {}: cannot be mounted", path.display()), error))?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(Error::invalid(format!(
                "mount {}: only folders and files are mounted, neither devices nor sockets",
                path.display()
            )));
        }
        if !mount.read_only {
            check_owner(path, plan, engine)?;
        }
    }
    Ok(())
}

/// Whether what the agent makes there belongs to the caller.
fn check_owner(path: &Path, plan: &Plan, engine: &Engine) -> Result<()> {
    if !engine.rootless {
        let caller = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        return match plan.user {
            Some(user) if (user.uid, user.gid) == caller => Ok(()),
            _ => Err(Error::unsupported(format!(
                "mount {}: what the agent makes there would not belong to the caller; set container_user to {}:{}, or use \
                 rootless podman",
                path.display(),
                caller.0,
                caller.1
            ))),
        };
    }
    let caller = rustix::process::geteuid().as_raw();
    match engine.owner {
        // Root may let the engine of another user work for it, in that user's folders.
        Some((owner, _)) if owner == caller || caller == 0 && is_of(path, owner) => Ok(()),
        Some((owner, _)) => Err(Error::unsupported(format!(
            "mount {}: the engine is run by the user {owner}, to whom everything that the agent makes there would belong; use \
             an own engine",
            path.display()
        ))),
        None => Err(Error::unsupported(format!(
            "mount {}: it is not known who runs the engine; mount it read-only",
            path.display()
        ))),
    }
}

fn is_of(path: &Path, owner: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).is_ok_and(|metadata| metadata.uid() == owner)
}

/// Removes a container that was begun, unless it is disarmed: in a task of its own, for whoever gives up must not wait, and
/// may be gone.
struct Undo {
    client: Arc<Client>,
    target: Option<Target>,
}

/// What was begun.
#[derive(Clone)]
enum Target {
    /// The container of this identifier.
    Container(String),
    /// Whatever has the label of this attempt: the engine has not said whether it created anything. The name would not do,
    /// since another container may have it.
    Attempt(String),
}

impl Undo {
    fn new(client: &Arc<Client>, target: Target) -> Self {
        Self {
            client: Arc::clone(client),
            target: Some(target),
        }
    }

    /// The container stays.
    fn disarm(mut self) {
        self.target = None;
    }

    /// Removes it now. When the engine does not answer, a task goes on trying.
    async fn remove(self) {
        if let Some(Target::Container(id)) = &self.target
            && self.client.remove(id).await.is_ok()
        {
            self.disarm();
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let Some(target) = self.target.take() else { return };
        let client = Arc::clone(&self.client);
        // Without a runtime everything ends, and the owner of the session finds the container by its labels.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = remove_stubbornly(&client, &target).await {
                    tracing::warn!(%error, "a container that was begun cannot be removed");
                }
            });
        }
    }
}

/// Removes what was begun however long it takes the engine to be there again, within a bound.
async fn remove_stubbornly(client: &Client, target: &Target) -> Result<()> {
    let begun = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        let removed = match target {
            Target::Container(id) => client.remove(id).await.map(|()| true),
            Target::Attempt(label) => remove_attempt(client, label).await,
        };
        let late = begun.elapsed() + pause > STUBBORN;
        match removed {
            Ok(true) => return Ok(()),
            // An engine that hangs may still create it.
            Ok(false) if begun.elapsed() > LINGERING => return Ok(()),
            Err(error) if late => return Err(error),
            Ok(false) | Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

async fn remove_attempt(client: &Client, label: &str) -> Result<bool> {
    let found = client
        .list(&[(LABEL_ATTEMPT.to_owned(), label.to_owned())].into())
        .await?;
    for container in &found {
        if let Some(id) = container.text("/Id") {
            client.remove(id).await?;
        }
    }
    Ok(!found.is_empty())
}

/// Creates the container, lets the guest program report, gives it the secrets, and reads everything back.
pub(crate) async fn make(
    client: &Arc<Client>,
    request: ProvisionRequest,
    plan: Plan,
    engine: &Engine,
    specification: serde_json::Value,
) -> Result<Made> {
    let undo = create(client, request.name.as_str(), specification).await?;
    match run(client, &request, &plan, engine).await {
        Ok(made) => {
            undo.disarm();
            Ok(made)
        }
        Err(error) => {
            undo.remove().await;
            Err(error)
        }
    }
}

/// Creates the container in a task of its own, which ends when the engine has answered, whoever waits for it: an engine goes
/// on creating when nobody listens any more.
async fn create(client: &Arc<Client>, name: &str, mut specification: serde_json::Value) -> Result<Undo> {
    let attempt = SessionId::generate().to_string();
    specification["labels"][LABEL_ATTEMPT] = attempt.clone().into();
    let (client, name) = (Arc::clone(client), name.to_owned());
    let creating = tokio::spawn(async move {
        match client.create(&name, &specification).await {
            Ok(id) => Ok(Undo::new(&client, Target::Container(id))),
            Err(error) => {
                let unknown = matches!(
                    error.kind(),
                    ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::DataInvalid | ErrorKind::Unexpected
                );
                if unknown && !never_sent(&error) {
                    drop(Undo::new(&client, Target::Attempt(attempt)));
                }
                Err(error)
            }
        }
    });
    creating
        .await
        .map_err(|error| Error::unexpected("the creation of a container panicked").with_source(error))?
}

/// Whether the engine was not even reached.
fn never_sent(error: &Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind as Io;
            return matches!(io.kind(), Io::NotFound | Io::ConnectionRefused | Io::PermissionDenied);
        }
        source = inner.source();
    }
    false
}

async fn run(client: &Arc<Client>, request: &ProvisionRequest, plan: &Plan, engine: &Engine) -> Result<Made> {
    let id = request.name.as_str();
    let mut attached = client.attach(id).await?;
    client.start(id).await?;
    let reported = tokio::time::timeout(client.deadline(), async {
        let report = attached.connection.report().await?;
        if !request.secrets.is_empty() {
            attached.connection.deliver_secrets(&request.secrets).await?;
        }
        if let Some(process) = &request.process {
            let spawn = SpawnRequest::new(process.clone()).with_default_working_dir(&request.working_dir);
            attached.connection.prepare(spawn).await?;
        }
        Ok(report)
    });
    // The engine's own view does not wait for the program's.
    let (reported, inspected) = tokio::join!(reported, client.inspect(id));
    let report = match reported {
        Ok(Ok(report)) => report,
        Ok(Err(error)) => return Err(complain(error, attached.complaint.text(), client, id).await),
        Err(_) => {
            return Err(Error::new(
                ErrorKind::Timeout,
                "the container's first process does not report; the engine's runtime may not be able to run it here",
            ));
        }
    };
    let inspected = inspected?;
    plan.check(&report)?;
    check_kernel(&report, &inspected, plan, engine)?;
    let group = if client.address().is_local() {
        group(&inspected)
    } else {
        None
    };
    let effective = readback::combine(plan, &report, &inspected, group.as_ref().map(Group::limited));
    let provisioned = Provisioned::new(ContainerId::new(id)?, request.session_id.clone(), effective);
    let waiting = request.process.is_some().then_some(Waiting { attached, group });
    Ok(Made { provisioned, waiting })
}

/// Whether the class that was asked for is the one that runs the container, by the engine's word and by the kernel's.
fn check_kernel(report: &Report, inspected: &View, plan: &Plan, engine: &Engine) -> Result<()> {
    let asked = plan
        .runtime_class
        .as_deref()
        .map_or(&*engine.default_runtime, Engine::runtime_of);
    let differs = |asked: &str, found: &str| {
        Err(Error::new(
            ErrorKind::EnforcementMismatch,
            format!(
                "the container differs from what was requested: runtime_class: requested {asked}, in force {found}"
            ),
        ))
    };
    match inspected.text("/OCIRuntime") {
        Some(found) if found == asked => {}
        found if plan.runtime_class.is_some() => return differs(asked, found.unwrap_or("unknown")),
        // Nobody asked, and the default may have been changed since.
        _ => {}
    }
    match (asked == "runsc", report.is_gvisor()) {
        (true, false) => differs("gVisor's kernel", "the host's"),
        // A limit of the host's kernel was checked, and this one does not keep it.
        (false, true) => differs("the host's kernel", "gVisor's"),
        _ => Ok(()),
    }
}

/// The container's cgroup on this host.
pub(crate) fn group(inspected: &View) -> Option<Group> {
    let pid = inspected.number("/State/Pid").and_then(|pid| u64::try_from(pid).ok());
    Group::of(inspected.text("/State/CgroupPath")?, pid)
}

/// The engine and its runtime know why a program did not run.
async fn complain(error: Error, complaint: String, client: &Client, id: &str) -> Error {
    let state = client.inspect(id).await.ok();
    let said = state
        .as_ref()
        .and_then(|view| view.text("/State/Error"))
        .unwrap_or_default();
    let oom = state.as_ref().and_then(|view| view.flag("/State/OOMKilled")) == Some(true);
    if oom {
        return Error::new(
            ErrorKind::ResourceExhausted,
            "the container ran out of memory before it could start; raise memory_mb",
        )
        .with_source(error);
    }
    let words = [complaint.as_str(), said].into_iter().find(|words| !words.is_empty());
    match words {
        Some(words) => Error::new(
            error.kind(),
            format!("{}: {}", error.message(), crate::error::shown(words)),
        ),
        None => error,
    }
}
