//! What the audit trail adds to a run: `cargo run --release -p agents-session --example audit_overhead`.
//!
//! Each pair runs the same session over scripted fakes twice: with the file sink, whose every acknowledgement is an
//! `fdatasync`, and with a sink that acknowledges at once and keeps nothing. The difference is all that the trail costs, the
//! durable appends included. Beside it, the cost of as many bare appends of one event.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use agents_audit_file::{FileAudit, FileAuditConfig};
use agents_core::{
    AdapterInfo, Adapters, ArtifactName, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery,
    Availability, ContainerId, ContainerRuntimeExt as _, CopyFromRequest, EnforcementContext, EventType, Policy,
    Process, ProvisionRequest, Result, SessionId, StartRequest, StoreRequest,
};
use agents_session::{Engine, EngineConfig, RunStatus, Scope};
use async_trait::async_trait;
use futures_util::StreamExt;
use support::{FakePolicy, FakeRuntime, FakeStorage, Script, Step, archive, exit, request};

const PAIRS: usize = 200;

/// Acknowledges and forgets; counts.
#[derive(Debug, Default)]
struct Nothing {
    appends: AtomicUsize,
    events: AtomicUsize,
}

#[async_trait]
impl AuditLogger for Nothing {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("nothing", "0")
    }
    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none()
    }
    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }
    fn location(&self) -> String {
        "nowhere".to_owned()
    }
    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.emit_batch(vec![event]).await.map(drop)
    }
    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        self.appends.fetch_add(1, Ordering::Relaxed);
        self.events.fetch_add(events.len(), Ordering::Relaxed);
        Ok(events.iter().map(|_| Ok(())).collect())
    }
    async fn query(&self, _: AuditQuery) -> Result<AuditPage> {
        Ok(AuditPage::default())
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn shutdown(&self) -> Result<()> {
        Ok(())
    }
}

async fn timed(engine: &Engine) -> std::result::Result<Duration, Box<dyn Error>> {
    let began = Instant::now();
    let result = engine.run(request()).await?;
    match result.status {
        RunStatus::Completed => Ok(began.elapsed()),
        _ => Err(format!("the run failed: {:?}", result.error).into()),
    }
}

/// What a run does through the adapters, without the engine.
async fn operate(adapters: &Adapters, name: &str) -> Result<Duration> {
    let session = SessionId::new(name)?;
    let began = Instant::now();
    let context = EnforcementContext::new();
    let enforced = adapters.policy.enforce(Policy::default(), &context).await?;
    adapters.policy.validate(&enforced.policy, &context).await?;
    let process = Process::new(["do", "it"]);
    let asked = ProvisionRequest::new(session.clone(), ContainerId::new(name)?, "host").with_process(Some(process));
    let container = adapters.runtime.provision_verified(asked).await?.handle;
    let running = adapters.runtime.start(StartRequest::new(container.clone())).await?;
    running.collect(100).await?;
    let request = CopyFromRequest::new(container.clone(), "/output");
    adapters.runtime.copy_from(request).await?.for_each(|_| async {}).await;
    for artifact in ["report.txt", "data.bin"] {
        let content = vec![0; 4096].into();
        adapters
            .storage
            .store(StoreRequest::new(
                session.clone(),
                ArtifactName::new(artifact)?,
                content,
            ))
            .await?;
    }
    adapters.runtime.destroy(&container.id).await?;
    Ok(began.elapsed())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> std::result::Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let scripts = || {
        let output = archive(&[("report.txt", b"fine"), ("data.bin", &[0; 4096])]);
        (0..=PAIRS).map(move |_| Script::steps([Step::Out("hello\n"), exit(0)]).output(output.clone()))
    };
    let engine = |audit: Arc<dyn AuditLogger>, state: &str| {
        let adapters = Adapters {
            runtime: FakeRuntime::new(scripts()),
            storage: Arc::new(FakeStorage::default()),
            audit,
            policy: Arc::new(FakePolicy::default()),
        };
        Engine::new(adapters, EngineConfig::new(folder.path().join(state)))
    };
    let file = Arc::new(FileAudit::new(FileAuditConfig::folder(folder.path().join("audit")))?);
    let nothing = Arc::new(Nothing::default());
    let durable = engine(Arc::<FileAudit>::clone(&file), "durable")?;
    let forgetful = engine(Arc::<Nothing>::clone(&nothing), "forgetful")?;
    timed(&durable).await?;
    timed(&forgetful).await?;
    let (appends, events) = (
        nothing.appends.swap(0, Ordering::Relaxed),
        nothing.events.swap(0, Ordering::Relaxed),
    );

    let (mut with, mut without, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    let (mut wrapped, mut plain) = (Vec::new(), Vec::new());
    for number in 0..PAIRS {
        with.push(milliseconds(timed(&durable).await?));
        without.push(milliseconds(timed(&forgetful).await?));
        let began = Instant::now();
        for _ in 0..appends {
            file.emit(AuditEvent::now(EventType::SystemWarning)).await?;
        }
        bare.push(milliseconds(began.elapsed()));
        // Both over adapters of their own, since the fakes play their scripts once.
        let scripted = engine(Arc::<Nothing>::clone(&nothing), "forgetful")?;
        let name = format!("wrapped-{number}");
        let scope = Scope::new().with_session(Some(SessionId::new(name.as_str())?));
        wrapped.push(milliseconds(operate(&scripted.recorded(scope).adapters, &name).await?));
        let scripted = engine(Arc::<Nothing>::clone(&nothing), "forgetful")?;
        plain.push(milliseconds(operate(scripted.adapters(), &name).await?));
    }
    let added = median(
        with.iter()
            .zip(&without)
            .map(|(with, without)| with - without)
            .collect(),
    );
    println!("a run with two artifacts: {events} events in {appends} appends, median of {PAIRS} pairs");
    println!("  with the file sink      {:8.3} ms", median(with));
    println!("  with a sink of nothing  {:8.3} ms", median(without));
    println!("  added by the sink       {added:8.3} ms");
    let layer = median(
        wrapped
            .iter()
            .zip(&plain)
            .map(|(wrapped, plain)| wrapped - plain)
            .collect(),
    );
    println!("  the layer's own work    {layer:8.3} ms");
    println!("  {appends} bare appends          {:8.3} ms", median(bare));
    println!("  added in all            {:8.3} ms (at most 2)", added + layer);
    if added + layer > 2.0 {
        return Err("the audit trail adds more than 2 ms to a run".into());
    }
    Ok(())
}
