//! A session that has begun: everything from its ownership record to its closing event.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use agents_core::{
    Adapters, AuditEvent, Captured, ContainerHandle, ContainerId, ContainerRuntimeExt as _, CopyFromRequest,
    EnforcementContext, Error, ErrorKind, EventType, ExecRequest, ExecSession, Exit, Policy, ProgressListener,
    ProvisionRequest, Result, SecretBytes, SessionId, StartFailure, StartRequest, Support, VerifiedContainer,
};
use agents_layers::audit::{Redactor, Trail};
use jiff::Timestamp;
use jsonschema::Validator;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    Agent, AgentResult, Engine, Input, Observer, Phase, PhaseState, RefusedArtifact, RunStatus, SessionRequest,
    SessionStatus, Timings, Usage,
    audit::Recorded,
    blocking,
    collect::{Collected, Collector},
    engine::container_name,
    extract::{ExportDir, Limits},
    log::LogWriter,
    monitor::{Samples, monitor},
    plan::{self, Plan},
    pump::{AbortOnDrop, Pump, Pumped, Sinks},
    record::{ContainerNote, Ending, Owner, Record, SessionDir},
};

/// How often the owner looks whether somebody asks it to stop.
const STOP_POLL: Duration = Duration::from_millis(100);
/// What can be real in an output folder whose space has no limit.
const PLAUSIBLE_WITHOUT_LIMIT: u64 = 256 << 30;

/// A session that has begun and has not ended.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) engine: Engine,
    /// With everything that is done through them on record.
    pub(crate) recorded: Recorded,
    /// The command as the trail shows it.
    command: Value,
    redactor: Redactor,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    /// The policy as the validator left it, once it has.
    pub(crate) policy: Policy,
    pub(crate) dir: SessionDir,
    pub(crate) record: Record,
    /// Fires when the caller cancels or somebody asks to stop.
    pub(crate) interrupt: CancellationToken,
    stopped: Arc<AtomicBool>,
    _stop_watch: AbortOnDrop,
    export: Option<Arc<ExportDir>>,
    schema: Option<Arc<Validator>>,
    pub(crate) container: Option<ContainerHandle>,
    began: Instant,
    samples: Arc<Samples>,
    timings: Timings,
    usage: Usage,
    attempts: u32,
    /// Something of ours may still be in the runtime.
    dirty: bool,
    closed: bool,
}

/// What a run comes to, before it is closed.
#[derive(Debug)]
pub(crate) struct Outcome {
    ending: Exit,
    error: Option<String>,
    error_kind: Option<ErrorKind>,
    artifacts: Vec<agents_core::ArtifactInfo>,
    refused: Vec<RefusedArtifact>,
    output: Option<Value>,
    stdout: Captured,
    stderr: Captured,
}

impl Outcome {
    pub(crate) fn new(ending: Exit) -> Self {
        Self {
            error: (!ending.is_success()).then(|| format!("the agent {ending}")),
            ending,
            error_kind: None,
            artifacts: Vec::new(),
            refused: Vec::new(),
            output: None,
            stdout: Captured::default(),
            stderr: Captured::default(),
        }
    }

    /// The agent was not started.
    pub(crate) fn refused(error: &Error) -> Self {
        let mut outcome = Self::new(Exit::NotStarted {
            reason: StartFailure::Refused,
            message: error.report(),
        });
        outcome.error = Some(error.report());
        outcome.error_kind = Some(error.kind());
        outcome
    }

    fn cancelled(when: &str) -> Self {
        let mut outcome = Self::new(Exit::Cancelled);
        outcome.error = Some(format!("cancelled {when}"));
        outcome.error_kind = Some(ErrorKind::Cancelled);
        outcome
    }

    /// Notes a failure of ours; the first one gives the kind.
    fn fail(&mut self, error: &Error) {
        self.add_error(&error.report());
        self.error_kind.get_or_insert(error.kind());
    }

    fn add_error(&mut self, text: &str) {
        match &mut self.error {
            Some(error) => {
                error.push_str("; ");
                error.push_str(text);
            }
            none => *none = Some(text.to_owned()),
        }
    }

    fn status(&self) -> RunStatus {
        match self.ending {
            Exit::NotStarted {
                reason: StartFailure::Refused,
                ..
            } => RunStatus::Refused,
            Exit::RuntimeLost { .. } => RunStatus::Lost,
            _ if self.ending.is_success() && self.error.is_none() => RunStatus::Completed,
            _ => RunStatus::Failed,
        }
    }
}

/// Runs an agent, as [`Engine::run`] says.
pub(crate) async fn run(engine: &Engine, request: SessionRequest) -> Result<AgentResult> {
    let (mut active, agent, policy) = Active::begin(engine, request).await?;
    let outcome = active.drive(agent, policy).await;
    Ok(active.close(outcome).await)
}

impl Active {
    /// Writes the ownership record.
    pub(crate) async fn begin(engine: &Engine, request: SessionRequest) -> Result<(Self, Agent, Policy)> {
        let began = Instant::now();
        let SessionRequest {
            agent,
            policy,
            session_id,
            user_id,
            observer,
            cancel,
            export_dir,
        } = request;
        let export = match export_dir {
            Some(path) => Some(Arc::new(blocking(move || ExportDir::open(&path)).await?)),
            None => None,
        };
        let session_id = session_id.unwrap_or_else(SessionId::generate);
        let secrets = plan::secrets(&agent, &policy);
        let redactor = Redactor::new(secrets.iter().map(SecretBytes::expose));
        let command = plan::command(&agent, &policy);
        let record = Record {
            owner: Some(Owner::current()?),
            agent_id: agent.id.clone(),
            user_id,
            runtime: engine.adapters().runtime.info().adapter_type,
            container_name: ContainerId::new(session_id.as_str())?,
            image: plan::image(&agent, &policy),
            command: command.iter().map(|word| redactor.text(word).into_owned()).collect(),
            started_at: Timestamp::now(),
            session_id,
        };
        let dir = {
            let (state, record) = (engine.state().clone(), record.clone());
            blocking(move || state.begin(&record)).await?
        };
        let interrupt = cancel.child_token();
        let stopped = Arc::new(AtomicBool::new(false));
        let watch = {
            let (path, interrupt, stopped) = (dir.stop_file(), interrupt.clone(), Arc::clone(&stopped));
            tokio::spawn(async move {
                while !path.exists() {
                    tokio::time::sleep(STOP_POLL).await;
                }
                stopped.store(true, Ordering::SeqCst);
                interrupt.cancel();
            })
        };
        let recorded = engine.recorded(record.scope().with_secrets(secrets));
        let active = Self {
            command: recorded.trail.command(&command),
            recorded,
            redactor,
            engine: engine.clone(),
            observer,
            policy: policy.clone(),
            dir,
            record,
            stopped,
            _stop_watch: AbortOnDrop(watch),
            interrupt,
            export,
            schema: None,
            container: None,
            began,
            samples: Arc::new(Samples::since(began)),
            timings: Timings::default(),
            usage: Usage::default(),
            attempts: 0,
            dirty: false,
            closed: false,
        };
        if let Some(observer) = &active.observer {
            observer.session(&active.record.session_id);
        }
        Ok((active, agent, policy))
    }

    /// Begins an event.
    fn event(&self, event_type: EventType) -> AuditEvent {
        self.recorded.trail.event(event_type)
    }

    /// Puts an event on record with the next operation, or soon.
    fn note(&self, event: AuditEvent) {
        self.recorded.trail.note(event);
    }

    fn adapters(&self) -> &Adapters {
        &self.recorded.adapters
    }

    fn created_event(&self) -> AuditEvent {
        self.event(EventType::SessionCreated)
            .with_fact("runtime", self.record.runtime.as_str())
            .with_fact("image", self.record.image.as_str())
            .with_fact("command", self.command.clone())
            .with_fact("owner_pid", std::process::id())
    }

    /// Decides the policy. The decision is on record before the first operation that it allows.
    pub(crate) async fn prepare(&mut self, agent: &Agent, policy: Policy, idle: bool) -> Result<Plan> {
        let phase = self.begin_phase(Phase::Validate);
        self.note(self.created_event());
        let decided = self.decide(agent, policy, idle).await;
        if let Err(error) = &decided {
            let event_type = match error.kind() {
                ErrorKind::PolicyDenied => EventType::PolicyViolation,
                _ => EventType::SystemError,
            };
            self.note_failure(event_type, error);
        }
        self.end_phase(phase);
        decided
    }

    fn note_failure(&self, event_type: EventType, error: &Error) {
        let event = self
            .event(event_type)
            .with_fact("error", error.report())
            .with_fact("error_kind", error.kind().as_str());
        self.note(event);
    }

    async fn decide(&mut self, agent: &Agent, policy: Policy, idle: bool) -> Result<Plan> {
        plan::check(agent, &policy, idle)?;
        let policy = plan::whole(agent, policy)?;
        let validator = Arc::clone(&self.adapters().policy);
        let context = EnforcementContext::new()
            .with_session(self.record.session_id.clone())
            .with_agent(self.record.agent_id.clone())
            .with_user(self.record.user_id.clone())
            .with_runtime(self.record.runtime.as_str());
        let undecided = |error: Error| {
            Error::new(
                ErrorKind::PolicyDenied,
                "the policy could not be evaluated, which counts as a denial",
            )
            .with_source(error)
        };
        let enforced = validator.enforce(policy.clone(), &context).await.map_err(undecided)?;
        enforced.check(&policy)?;
        let judged = validator
            .validate(&enforced.policy, &context)
            .await
            .map_err(undecided)?;
        let warnings: Vec<_> = judged
            .findings
            .iter()
            .filter(|finding| !finding.denies())
            .map(ToString::to_string)
            .collect();
        for change in &enforced.changes {
            let event = self
                .event(EventType::PolicyCapClamped)
                .with_fact("field", change.path.as_str())
                .with_fact("from", change.from.clone())
                .with_fact("to", change.to.clone())
                .with_fact("code", change.code.as_str());
            self.note(event);
            self.warn(&format!(
                "the policy was narrowed: {} from {} to {} [{}]",
                change.path, change.from, change.to, change.code
            ));
        }
        judged.into_result()?;
        if let Some(schema) = &enforced.policy.structured_output {
            let schema = jsonschema::validator_for(schema).map_err(|error| {
                Error::invalid(format!(
                    "structured_output is not a JSON Schema that can be used: {error}"
                ))
            })?;
            self.schema = Some(Arc::new(schema));
        }
        let state = self.engine.state();
        let plan = plan::plan(
            agent,
            &policy,
            &enforced.policy,
            &self.record.session_id,
            &self.record.container_name,
            state.root(),
            &state.label,
        )?;
        for warning in &warnings {
            self.warn(warning);
        }
        let event = self
            .event(EventType::PolicyValidated)
            .with_fact("validator", validator.info().adapter_type)
            .with_fact("warnings", warnings)
            .with_fact("policy", shown(&enforced.policy, &self.recorded.trail));
        self.note(event);
        self.policy = enforced.policy;
        Ok(plan)
    }

    async fn drive(&mut self, agent: Agent, policy: Policy) -> Outcome {
        let plan = match self.prepare(&agent, policy, false).await {
            Ok(plan) => plan,
            Err(error) => return Outcome::refused(&error),
        };
        let limit = self.engine.config().capture_limit;
        let log = LogWriter::new(self.dir.log(), self.engine.config().log_limit);
        let redactor = self.redactor.clone();
        let mut sinks = Sinks::new(self.observer.clone(), log, &redactor, limit);
        let mut stdin = agent.stdin;
        loop {
            let input = match &stdin {
                Some(Input::Bytes(bytes)) => Some(Input::Bytes(bytes.clone())),
                _ => stdin.take(),
            };
            let pumped = match self.attempt(&plan, input, &mut sinks).await {
                Ok(pumped) => pumped,
                Err(outcome) => return outcome,
            };
            let mut outcome = Outcome::new(pumped.exit.clone());
            (outcome.stdout, outcome.stderr) = sinks.finish(&redactor, limit);
            if let Err(error) = &pumped.audit {
                outcome.fail(error);
            }
            let again = self.attempts <= self.policy.retry_count
                && failed_by_itself(&pumped.exit)
                && pumped.audit.is_ok()
                && !self.interrupt.is_cancelled();
            for event in end_events(&self.recorded.trail, &pumped.exit) {
                self.note(event);
            }
            if !again {
                if pumped.audit.is_ok() {
                    self.collect(&mut outcome).await;
                }
                self.destroy(&mut outcome).await;
                return outcome;
            }
            self.read_usage().await;
            let reason = format!("the agent {}", pumped.exit);
            self.destroy(&mut outcome).await;
            let event = self
                .event(EventType::AgentRetry)
                .with_fact("attempt", self.attempts + 1)
                .with_fact("reason", reason.as_str());
            if let Err(error) = self.recorded.trail.record([event]).await {
                outcome.fail(&error);
            }
            if outcome.error_kind.is_some() {
                return outcome;
            }
            if let Some(observer) = &self.observer {
                observer.retry(self.attempts + 1, &reason);
            }
            let delay = tokio::time::sleep(Duration::from_secs_f64(self.policy.retry_delay_seconds));
            tokio::select! {
                biased;
                () = self.interrupt.cancelled() => return Outcome {
                    stdout: outcome.stdout,
                    stderr: outcome.stderr,
                    ..Outcome::cancelled("before the next attempt")
                },
                () = delay => {}
            }
        }
    }

    /// Provisions a fresh container and runs the agent in it to its end.
    async fn attempt(&mut self, plan: &Plan, input: Option<Input>, sinks: &mut Sinks) -> Result<Pumped, Outcome> {
        self.attempts += 1;
        let capabilities = self.adapters().runtime.capabilities();
        let class = plan.request.security.runtime_class.as_deref();
        let main_process = capabilities
            .of_class(class)
            .unwrap_or(&capabilities)
            .main_process
            .is_enforced();
        let request = plan
            .request
            .clone()
            .with_process(main_process.then(|| plan.process.clone()));
        let handle = self.provision(request).await?;
        let launched = self
            .event(EventType::AgentLaunched)
            .with_fact("command", self.command.clone())
            .with_fact("attempt", self.attempts);
        self.note(launched);
        let phase = self.begin_phase(Phase::Run);
        let started = {
            let start = self.start(plan, &handle, main_process);
            tokio::select! {
                biased;
                () = self.interrupt.cancelled() => None,
                started = start => Some(started),
            }
        };
        let exec = match started {
            Some(Ok(exec)) => exec,
            Some(Err(error)) => {
                self.end_phase(phase);
                return Err(self.give_up(Outcome::refused(&error)).await);
            }
            None => {
                self.end_phase(phase);
                return Err(self.give_up(Outcome::cancelled("before the agent was started")).await);
            }
        };
        if let Some(observer) = &self.observer {
            observer.started(exec.control());
        }
        let mut start_events = vec![
            self.event(EventType::ContainerStarted)
                .with_fact("container_id", handle.id.as_str()),
            self.event(EventType::AgentStarted).with_fact("attempt", self.attempts),
        ];
        if plan.process.tty.is_some() {
            start_events.push(self.event(EventType::AgentInteractiveStart));
        }
        let _monitor = self.monitor(&handle);
        let pump = Pump {
            trail: &self.recorded.trail,
            interrupt: &self.interrupt,
            sinks,
            deadline: self.deadline(),
            start_events: start_events.clone(),
        };
        let pumped = pump.run(exec, input).await;
        self.end_phase(phase);
        if !pumped.start_recorded && !matches!(pumped.exit, Exit::NotStarted { .. }) {
            start_events.drain(..).for_each(|event| self.note(event));
        }
        Ok(pumped)
    }

    /// What the policy gives each process.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.policy.timeout_seconds.map(Duration::from_secs_f64)
    }

    pub(crate) fn monitor(&self, container: &ContainerHandle) -> AbortOnDrop {
        AbortOnDrop(tokio::spawn(monitor(
            Arc::clone(&self.adapters().runtime),
            container.clone(),
            self.policy.clone(),
            Arc::clone(&self.samples),
            self.recorded.trail.clone(),
            self.observer.clone(),
        )))
    }

    async fn start(&self, plan: &Plan, handle: &ContainerHandle, main_process: bool) -> Result<ExecSession> {
        let runtime = &self.adapters().runtime;
        if main_process {
            return runtime
                .start(StartRequest::new(handle.clone()).with_deadline(self.deadline()))
                .await;
        }
        plan::check_tty(&plan.process, &runtime.capabilities())?;
        runtime
            .exec(ExecRequest::new(handle.clone(), plan.process.clone()).with_deadline(self.deadline()))
            .await
    }

    /// Provisions for a long-lived session, whose first operation may be long in coming: the container is on record.
    pub(crate) async fn provision_idle(&mut self, request: ProvisionRequest) -> Result<ContainerHandle, Outcome> {
        let handle = self.provision(request).await?;
        match self.recorded.trail.flush().await {
            Ok(()) => Ok(handle),
            Err(error) => Err(self.give_up(Outcome::refused(&error)).await),
        }
    }

    /// Provisions. The container is on record before anything is done with it.
    async fn provision(&mut self, mut request: ProvisionRequest) -> Result<ContainerHandle, Outcome> {
        match container_name(&self.record, self.attempts) {
            Ok(name) => request.name = name,
            Err(error) => return Err(Outcome::refused(&error)),
        }
        if let Some(observer) = &self.observer {
            let observer = Arc::clone(observer);
            request = request.with_progress(Some(ProgressListener::new(move |progress| observer.progress(progress))));
        }
        let phase = self.begin_phase(Phase::Provision);
        let name = request.name.clone();
        self.dirty = true;
        let runtime = Arc::clone(&self.adapters().runtime);
        let provisioned = tokio::select! {
            biased;
            () = self.interrupt.cancelled() => None,
            provisioned = runtime.provision_verified(request) => Some(provisioned),
        };
        let VerifiedContainer { handle, comparison } = match provisioned {
            Some(Ok(verified)) => verified,
            Some(Err(error)) => {
                self.end_phase(phase);
                let event_type = match error.kind() {
                    ErrorKind::EnforcementMismatch => EventType::SecurityViolation,
                    ErrorKind::Unsupported => EventType::PolicyViolation,
                    _ => EventType::SystemError,
                };
                self.note_failure(event_type, &error);
                return Err(self.give_up(Outcome::refused(&error)).await);
            }
            None => {
                self.end_phase(phase);
                return Err(self.give_up(Outcome::cancelled("before the agent was started")).await);
            }
        };
        self.container = Some(handle.clone());
        let created = self
            .event(EventType::ContainerCreated)
            .with_fact("container_id", handle.id.as_str())
            .with_fact("name", name.as_str())
            .with_fact("image", self.record.image.as_str())
            .with_fact("effective", json!(comparison));
        self.note(created);
        let note = ContainerNote {
            handle: handle.clone(),
            attempt: self.attempts,
        };
        let noted = self.dir.note_container(&note);
        self.end_phase(phase);
        match noted {
            Ok(()) => Ok(handle),
            Err(error) => Err(self.give_up(Outcome::refused(&error)).await),
        }
    }

    /// Removes the container of an attempt that came to nothing.
    async fn give_up(&mut self, mut outcome: Outcome) -> Outcome {
        self.destroy(&mut outcome).await;
        outcome
    }

    async fn collect(&mut self, outcome: &mut Outcome) {
        if matches!(outcome.ending, Exit::NotStarted { .. } | Exit::RuntimeLost { .. }) {
            self.read_usage().await;
            return;
        }
        let phase = self.begin_phase(Phase::Collect);
        let mut collected = Collected::default();
        let was_interrupted = self.interrupt.is_cancelled();
        let interrupted = {
            let collecting = async { tokio::join!(self.take_artifacts(&mut collected), self.used()) };
            tokio::select! {
                biased;
                ((), usage) = collecting => {
                    self.add_usage(usage);
                    false
                }
                // Who cancelled the agent wants its artifacts; who cancels now does not.
                () = self.interrupt.cancelled(), if !was_interrupted => true,
            }
        };
        self.settle(collected, outcome).await;
        if interrupted {
            outcome.fail(&Error::new(
                ErrorKind::Cancelled,
                "cancelled while artifacts were collected",
            ));
        }
        self.end_phase(phase);
    }

    /// Stores what is in the output folder.
    pub(crate) async fn take_artifacts(&self, collected: &mut Collected) {
        let Some(container) = self.container.clone() else {
            return;
        };
        let adapters = self.adapters();
        let path = self.policy.output_path_in_container.as_str();
        let quiesce = matches!(adapters.runtime.capabilities().quiesce, Support::Enforced);
        let request = CopyFromRequest::new(container, path).with_quiesce(quiesce);
        let archive = match adapters.runtime.copy_from(request).await {
            Ok(archive) => archive,
            Err(error) => {
                collected.error = Some(error);
                return;
            }
        };
        let root = path.rsplit('/').next().unwrap_or_default();
        let limits = Limits {
            entries: self.engine.config().max_artifacts,
            output_bytes: self.policy.max_output_bytes,
            plausible_bytes: self
                .policy
                .disk_mb
                .map_or(PLAUSIBLE_WITHOUT_LIMIT, |mebibytes| mebibytes.saturating_mul(2 << 20)),
        };
        let collector = Collector {
            storage: &adapters.storage,
            session_id: &self.record.session_id,
            trail: &self.recorded.trail,
            export: self.export.as_ref(),
        };
        collector.collect(archive, root, limits, collected).await;
    }

    async fn settle(&mut self, collected: Collected, outcome: &mut Outcome) {
        outcome.artifacts = collected.artifacts;
        outcome.refused = collected.refused;
        if let Some(error) = &collected.error {
            let error = Error::new(
                error.kind(),
                format!("not all artifacts could be taken: {}", error.report()),
            );
            outcome.fail(&error);
        }
        if collected.output_limit {
            let event = self
                .event(EventType::OutputSizeExceeded)
                .with_fact("max_output_bytes", self.policy.max_output_bytes);
            self.note(event);
            outcome.add_error("the agent wrote more output than max_output_bytes allows");
            if outcome.ending.is_success() {
                outcome.ending = Exit::OutputLimit;
            }
        }
        match (self.schema.clone(), collected.result) {
            (None, result) => outcome.output = result.and_then(Result::ok),
            (Some(_), None) if !outcome.ending.is_success() => {}
            (Some(_), None) => outcome.add_error("the agent left no result.json in its output folder"),
            (Some(_), Some(Err(fault))) => outcome.add_error(&fault),
            // A schema may make the validation of hostile data slow.
            (Some(schema), Some(Ok(result))) => match blocking(move || Ok(judge(&schema, result))).await {
                Ok(Ok(result)) => outcome.output = Some(result),
                Ok(Err(fault)) => outcome.add_error(&fault),
                Err(error) => outcome.fail(&error),
            },
        }
    }

    async fn used(&self) -> Usage {
        let Some(container) = &self.container else {
            return Usage::default();
        };
        match self.adapters().runtime.stats(container).await {
            Ok(stats) => Usage {
                cpu_seconds: stats.cpu_seconds,
                memory_peak_bytes: stats.memory_peak_bytes,
            },
            Err(_) => Usage::default(),
        }
    }

    async fn read_usage(&mut self) {
        let usage = self.used().await;
        self.add_usage(usage);
    }

    /// Time adds up over the attempts, and the peak is the highest.
    fn add_usage(&mut self, usage: Usage) {
        if let Some(seconds) = usage.cpu_seconds {
            self.usage.cpu_seconds = Some(self.usage.cpu_seconds.unwrap_or(0.0) + seconds);
        }
        self.usage.memory_peak_bytes = self.usage.memory_peak_bytes.max(usage.memory_peak_bytes);
    }

    /// Destroys the container, or whatever a failed provision left. It only makes safe, so it does not wait for its record.
    async fn destroy(&mut self, outcome: &mut Outcome) {
        let phase = self.begin_phase(Phase::Destroy);
        let destroyed = match self.container.take() {
            Some(container) => {
                let runtime = &self.adapters().runtime;
                runtime.destroy(&container.id).await.map(|()| vec![container.id])
            }
            None if self.dirty => {
                let runtime = &self.adapters().runtime;
                self.engine.sweep(runtime, &self.record, self.attempts).await
            }
            None => Ok(Vec::new()),
        };
        match destroyed {
            Ok(ids) => {
                self.dirty = false;
                for id in ids {
                    let event = self
                        .event(EventType::ContainerDestroyed)
                        .with_fact("container_id", id.as_str());
                    self.note(event);
                }
            }
            Err(error) => {
                let error = Error::new(
                    error.kind(),
                    format!(
                        "the container could not be destroyed; run agents gc: {}",
                        error.report()
                    ),
                );
                outcome.fail(&error);
            }
        }
        self.end_phase(phase);
    }

    /// Ends a long-lived session.
    pub(crate) async fn finish(mut self, ending: Exit) -> AgentResult {
        let mut outcome = Outcome::new(ending);
        self.note(self.event(EventType::ContainerStopped));
        self.collect(&mut outcome).await;
        self.destroy(&mut outcome).await;
        self.close(outcome).await
    }

    /// Writes the ending and the closing event, and gives the record up when nothing is left to do.
    pub(crate) async fn close(mut self, mut outcome: Outcome) -> AgentResult {
        let stopped = self.stopped.load(Ordering::SeqCst);
        if stopped && outcome.ending == Exit::Cancelled {
            outcome.error = Some("the session was stopped".to_owned());
            outcome.error_kind = Some(ErrorKind::Cancelled);
        }
        self.timings.total = self.began.elapsed();
        let status = outcome.status();
        let redact = |text: String| self.redactor.text(&text).into_owned();
        let ending = match outcome.ending {
            Exit::NotStarted { reason, message } => Exit::NotStarted {
                reason,
                message: redact(message),
            },
            other => other,
        };
        let mut result = AgentResult {
            session_id: self.record.session_id.clone(),
            agent_id: self.record.agent_id.clone(),
            status,
            ending,
            artifacts: outcome.artifacts,
            refused_artifacts: outcome.refused,
            output: outcome.output,
            error: outcome.error.map(redact),
            error_kind: outcome.error_kind,
            stdout: outcome.stdout,
            stderr: outcome.stderr,
            timings: self.timings,
            usage: self.usage,
            attempts: self.attempts,
            audit: self.recorded.trail.logger().location(),
        };
        let session_status = match (status, &result.ending) {
            (RunStatus::Completed, _) => SessionStatus::Completed,
            (RunStatus::Lost, _) => SessionStatus::Lost,
            (_, Exit::Cancelled) => SessionStatus::Terminated,
            _ => SessionStatus::Failed,
        };
        let mut closing = self
            .event(EventType::SessionClosed)
            .with_fact("status", session_status.as_str())
            .with_fact("ending", json!(result.ending))
            .with_fact("error", result.error.clone())
            .with_fact("artifacts", result.artifacts.len())
            .with_fact("refused_artifacts", result.refused_artifacts.len())
            .with_fact("timings_ms", result.timings.to_json());
        let samples = self.samples.take();
        if !samples.is_empty() {
            closing = closing.with_fact("resource_samples", samples);
        }
        let losses = self.recorded.trail.losses();
        if !losses.is_empty() {
            closing = closing.with_fact("audit_losses", json!(losses));
        }
        if let Err(error) = self.close_on_record(session_status, &result, closing).await {
            if result.status == RunStatus::Completed {
                result.status = RunStatus::Failed;
            }
            result.error_kind.get_or_insert(error.kind());
            let report = error.report();
            result.error = Some(
                result
                    .error
                    .map_or_else(|| report.clone(), |first| format!("{first}; {report}")),
            );
        }
        self.closed = true;
        result
    }

    async fn close_on_record(
        &mut self,
        status: SessionStatus,
        result: &AgentResult,
        closing: AuditEvent,
    ) -> Result<()> {
        let mut info = self.record.info(self.dir.container()?.as_ref());
        info.status = status;
        info.ended_at = Some(Timestamp::now());
        info.error = result.error.clone();
        let ending = Ending {
            info,
            closing: closing.clone(),
        };
        let (dir, json) = (self.dir.clone(), result.to_json());
        let written = blocking(move || dir.end(&ending, Some(&json))).await;
        let recorded = self.recorded.trail.record([closing]).await;
        // What could not be done, the next clean-up does.
        if self.dirty || written.is_err() || recorded.is_err() {
            self.dir.abandon()?;
        } else {
            self.dir.release()?;
        }
        written.and(recorded)
    }

    fn begin_phase(&self, phase: Phase) -> (Phase, Instant) {
        if let Some(observer) = &self.observer {
            observer.phase(phase, PhaseState::Begin);
        }
        (phase, Instant::now())
    }

    fn end_phase(&mut self, (phase, began): (Phase, Instant)) {
        let time = began.elapsed();
        self.timings.add(phase, time);
        if let Some(observer) = &self.observer {
            observer.phase(phase, PhaseState::End(time));
        }
    }

    fn warn(&self, message: &str) {
        if let Some(observer) = &self.observer {
            observer.warning(message);
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        let (engine, record, dir) = (self.engine.clone(), self.record.clone(), self.dir.clone());
        let recorded = self.recorded.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    let reason = "its caller dropped it before its end";
                    if engine
                        .end_in_place(&record, &recorded, SessionStatus::Terminated, reason)
                        .await
                        .is_err()
                    {
                        let _ = dir.abandon();
                    }
                });
            }
            // Without a runtime there is nobody to do it; the next clean-up does.
            Err(_) => {
                let _ = dir.abandon();
            }
        }
    }
}

/// Whether trying again can help.
fn failed_by_itself(exit: &Exit) -> bool {
    match exit {
        Exit::Exited { code } => *code != 0,
        Exit::Signalled { .. } | Exit::OutOfMemory | Exit::PidsLimit { .. } | Exit::DiskLimit { .. } => true,
        _ => false,
    }
}

/// What is put on record when a process has ended.
pub(crate) fn end_events(trail: &Trail, exit: &Exit) -> Vec<AuditEvent> {
    let mut events = Vec::new();
    let violation = match exit {
        Exit::OutOfMemory => Some("oom_kill"),
        Exit::Deadline => Some("timeout"),
        Exit::PidsLimit { .. } => Some("pids"),
        Exit::DiskLimit { .. } => Some("disk"),
        _ => None,
    };
    if let Some(violation) = violation {
        events.push(
            trail
                .event(EventType::ResourceLimitExceeded)
                .with_fact("violation_type", violation),
        );
    }
    events.push(trail.event(EventType::ContainerStopped));
    let event_type = match exit {
        Exit::Deadline => EventType::AgentTimeout,
        _ if exit.is_success() => EventType::AgentCompleted,
        _ => EventType::AgentFailed,
    };
    events.push(
        trail
            .event(event_type)
            .with_fact("ending", json!(exit))
            .with_fact("exit_code", exit.code()),
    );
    events
}

/// Validates the agent's result.
fn judge(schema: &Validator, result: Value) -> Result<Value, String> {
    let faults: Vec<_> = schema
        .iter_errors(&result)
        .take(5)
        .map(|error| {
            let path = error.instance_path().to_string();
            let place = if path.is_empty() { "the whole" } else { path.as_str() };
            format!("{place}: {error}")
        })
        .collect();
    if faults.is_empty() {
        Ok(result)
    } else {
        Err(format!(
            "result.json does not fit structured_output: {}",
            faults.join("; ")
        ))
    }
}

/// The policy for the audit trail, with commands and variables as it shows them.
fn shown(policy: &Policy, trail: &Trail) -> Value {
    let mut value = json!(policy);
    let variables: Vec<_> = policy.env_vars.clone().into_iter().collect();
    value["env_vars"] = trail.environment(&variables);
    if let Some(entrypoint) = &policy.entrypoint {
        value["entrypoint"] = trail.command(entrypoint);
    }
    value
}
