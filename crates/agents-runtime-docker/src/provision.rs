//! Making a container: create, attach, start, read back. Whatever goes wrong, and whoever loses interest, nothing is left.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use agents_core::{EffectiveState, Error, ErrorKind, ProvisionRequest, Result, SessionId};
use agents_guest::{Connection, Plan, Report, SpawnRequest};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use crate::{
    adapter::{Inner, late},
    container::Phase,
    create::{self, LABEL_CREATION, Setting},
    engine::Engine,
    inspect::Inspected,
    ports::{self, Published},
    program::{self, Access},
    readback,
    streams::{self, Said},
    watch::Watch,
};

/// What was made.
pub(crate) struct Made {
    pub(crate) inspected: Inspected,
    pub(crate) effective: EffectiveState,
    pub(crate) phase: Phase,
    pub(crate) published: Option<Published>,
    pub(crate) gvisor: bool,
    pub(crate) watch: Option<Watch>,
}

/// How long is looked for a container whose creation was given up, since an engine may go on with it.
const LOOK_FOR: Duration = Duration::from_secs(60);

/// Makes a container in a task of its own, so that a call that was sent is waited for even when the caller is gone.
pub(crate) async fn provision(inner: Arc<Inner>, request: ProvisionRequest) -> Result<Made> {
    let (mut answer, made) = oneshot::channel();
    tokio::spawn(async move {
        let creation = SessionId::generate().to_string();
        let mut attempt = Attempt {
            inner,
            request,
            creation,
            created: Created::Not,
        };
        let result = tokio::select! {
            result = attempt.make() => result,
            () = answer.closed() => Err(Error::new(ErrorKind::Cancelled, "nobody waits for the container any more")),
        };
        if result.is_err() {
            attempt.clean_up().await;
            let _ = answer.send(result);
        } else if answer.send(result).is_err() {
            attempt.clean_up().await;
        }
    });
    made.await
        .unwrap_or_else(|_| Err(Error::unexpected("the making of the container was shut down")))
}

struct Attempt {
    inner: Arc<Inner>,
    request: ProvisionRequest,
    creation: String,
    created: Created,
}

/// How far the creation itself is.
enum Created {
    /// The engine was not told yet, or has refused.
    Not,
    /// The engine was told, and has not answered yet.
    Sent(JoinHandle<Result<String>>),
    /// The engine has created it, with this identifier.
    As(String),
    /// The answer was lost.
    Unknown,
}

impl Created {
    /// Waits for the engine's answer.
    async fn settle(&mut self) -> Result<()> {
        let Self::Sent(call) = self else { return Ok(()) };
        let answer = call
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the call was shut down")));
        let (state, result) = match answer {
            Ok(id) => (Self::As(id), Ok(())),
            Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable) => {
                (Self::Unknown, Err(error))
            }
            Err(error) => (Self::Not, Err(error)),
        };
        *self = state;
        result
    }
}

impl Attempt {
    async fn make(&mut self) -> Result<Made> {
        let inner = Arc::clone(&self.inner);
        let engine = &inner.engine;
        let facts = engine.facts().await?;
        if !self.request.security.read_only_rootfs && self.request.resources.disk_bytes.is_some() {
            return Err(Error::unsupported(
                "read_only_rootfs: docker has no limit for a root that can be written to; leave it true, or set disk_mb to null",
            ));
        }
        let reserved = ports::reserve(&self.request.network.ingress_ports).await?;
        if engine.standing().local {
            create::choose_user(&mut self.request)?;
        }
        let runtime =
            match &self.request.security.runtime_class {
                Some(class) => Some(facts.classes.get(class).cloned().ok_or_else(|| {
                    Error::unsupported(format!("runtime_class: the engine has no runtime {class:?}"))
                })?),
                None => engine.standing().runtime.clone(),
            };
        let gvisor = facts.is_gvisor(runtime.as_deref());
        let access = Access::of_kernel(gvisor);
        let (image, looked) = tokio::join!(
            inner.images.resolve(engine, &self.request),
            self.look_for_program(access)
        );
        let image = image?;
        looked?;
        if self.request.security.user.is_none() {
            self.request.security.user = inner.user_of(&image).await?;
        }
        let mut plan = Plan::new(&self.request, Some(&image.config.user))?;
        let main = self.request.process.is_some();
        if gvisor {
            plan = plan.on_gvisor();
        }
        let mut again = false;
        loop {
            let hosts = self.ensure_program(access, &image.id).await?;
            let hidden = inner.hidden_volumes.load(Ordering::Relaxed);
            let setting = Setting {
                image: &image,
                facts,
                runtime: runtime.as_deref(),
                gvisor,
                pids: self.request.resources.pids,
                // gVisor takes over the interfaces that it finds, and the OCI runtime has set none up by then.
                hosts: Some(hosts.as_str()).filter(|_| !hidden && !gvisor),
                main,
                creation: &self.creation,
            };
            let body = create::body(&plan, &setting)?;
            let (carrier, name) = (Arc::clone(engine), plan.name.clone());
            self.created = Created::Sent(tokio::spawn(async move { carrier.create(Some(&name), body).await }));
            match self.created.settle().await {
                // Somebody has removed the volume, or the engine shows other paths than it uses.
                Err(error) if error.kind() == ErrorKind::NotFound && error.message().contains(&hosts) && !hidden => {
                    inner.program.lock().await.clear();
                    inner.hidden_volumes.fetch_or(again, Ordering::Relaxed);
                    again = true;
                }
                other => {
                    other?;
                    break;
                }
            }
        }
        let Created::As(id) = &self.created else {
            return Err(Error::unexpected("the container was not created"));
        };
        let id = id.clone();
        let (attached, watch) = tokio::join!(engine.attach(&id), async {
            // Without a main process nothing runs yet that could end.
            if main {
                Watch::open(engine, &id).await.map(Some)
            } else {
                Ok(None)
            }
        });
        let (attached, watch) = (attached?, watch?);
        let news = watch.as_ref().map(Watch::news);
        let (mut connection, said) = streams::connection(attached, news.as_ref());
        let started = engine.start(&id).await;
        if let Err(error) = started {
            if error.message().contains(agents_guest::PROGRAM_PATH) {
                // Somebody has removed the volume meanwhile.
                inner.program.lock().await.clear();
                return Err(error.temporary(None));
            }
            return Err(error);
        }
        let (report, inspected) = tokio::join!(
            timeout(engine.deadline(), self.talk(&mut connection)),
            engine.inspect(&id)
        );
        let report = match report {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => return Err(self.explain(error, &said, engine, &id).await),
            Err(_) => return Err(late(engine, "the container's guest program did not answer")),
        };
        let inspected = inspected?;
        let mut effective = readback::effective(&plan, &report, &inspected, runtime.as_deref(), gvisor)?;
        let published = if plan.ingress_ports.is_empty() {
            None
        } else {
            effective.ingress_ports = Some(reserved.ports());
            Some(reserved.publish(engine, &id))
        };
        let phase = if main {
            Phase::Prepared(connection, said)
        } else {
            Phase::Idle
        };
        Ok(Made {
            inspected,
            effective,
            phase,
            published,
            gvisor,
            watch,
        })
    }

    /// Reads the report, and delivers what nobody but the container may know.
    async fn talk(&self, connection: &mut Connection) -> Result<Report> {
        let report = connection.report().await?;
        if !self.request.secrets.is_empty() {
            connection.deliver_secrets(&self.request.secrets).await?;
        }
        if let Some(process) = &self.request.process {
            connection.prepare(SpawnRequest::new(process.clone())).await?;
        }
        Ok(report)
    }

    /// Looks whether the guest program is on the engine, for which no image is needed.
    async fn look_for_program(&self, access: Access) -> Result<()> {
        let mut there = self.inner.program.lock().await;
        if !there.contains_key(&access)
            && let Some(hosts) = program::find(&self.inner.engine, access).await?
        {
            there.insert(access, hosts);
        }
        Ok(())
    }

    /// Makes sure that the guest program is on the engine, and says where the file of hosts beside it is there.
    async fn ensure_program(&self, access: Access, image: &str) -> Result<String> {
        let mut there = self.inner.program.lock().await;
        if let Some(hosts) = there.get(&access) {
            return Ok(hosts.clone());
        }
        // In a task of its own, which is not left in the middle when nobody waits any more.
        let ensured = program::ensure(Arc::clone(&self.inner.engine), access, image.to_owned());
        let hosts = tokio::spawn(ensured)
            .await
            .unwrap_or_else(|_| Err(Error::unexpected("the copying of the guest program was shut down")))?;
        there.insert(access, hosts.clone());
        Ok(hosts)
    }

    /// Why the guest program does not answer.
    async fn explain(&self, error: Error, said: &Said, engine: &Engine, id: &str) -> Error {
        if error.kind() != ErrorKind::Unavailable {
            return error;
        }
        let mut error = error;
        if let Some(line) = said.line() {
            error = error.with_context("container", line);
        }
        match engine.inspect(id).await {
            Ok(inspected) if inspected.state.oom_killed => Error::new(
                ErrorKind::ResourceExhausted,
                "the container ran out of memory at its start; raise memory_mb",
            ),
            Ok(inspected) if !inspected.state.running => error.with_context("exit code", inspected.state.exit_code),
            Err(inspection) if inspection.kind() == ErrorKind::NotFound => Error::new(
                ErrorKind::Unavailable,
                "the container was removed while it was being made",
            )
            .temporary(None),
            _ => error,
        }
    }

    /// Removes the container, also one of which the answer was lost.
    async fn clean_up(mut self) {
        let engine = Arc::clone(&self.inner.engine);
        // Its error was told before, or nobody listens.
        let _ = self.created.settle().await;
        let id = match self.created {
            Created::Not | Created::Sent(_) => return,
            Created::As(id) => Some(id),
            Created::Unknown => None,
        };
        let label = format!("{LABEL_CREATION}={}", self.creation);
        // The first try is waited for, so that a failed call has left nothing when it returns.
        if remove(&engine, id.as_deref(), &label).await {
            return;
        }
        let name = self.request.name.clone();
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(250);
            while pause < LOOK_FOR {
                tokio::time::sleep(pause).await;
                if remove(&engine, id.as_deref(), &label).await {
                    return;
                }
                pause *= 2;
            }
            tracing::warn!(container = %name, "a container that failed may be left on the engine; it has the label {label}");
        });
    }
}

/// Removes what was created. `false` when that is not sure yet.
async fn remove(engine: &Engine, id: Option<&str>, label: &str) -> bool {
    if let Some(id) = id {
        return engine.remove(id).await.is_ok();
    }
    let Ok(found) = engine.list(&[label.to_owned()]).await else {
        return false;
    };
    for container in &found {
        if engine.remove(&container.id).await.is_err() {
            return false;
        }
    }
    // Without the answer of the create call it is not known whether the engine is still at it.
    !found.is_empty()
}
