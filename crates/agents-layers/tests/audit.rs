//! No record, no action: over scripted fakes and a sink that refuses when it is told to.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agents_core::*;
use agents_layers::audit::{AuditKey, AuditLayer, Scope, Trail, end_open};
use agents_storage_objectstore::MemoryStorage;
use agents_testkit::fakes::{FaultLayer, FixedPolicy, MemoryAudit, Script, ScriptedRuntime};
use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, future::join_all};
use serde_json::{Value, json};

/// Keeps events in memory; refuses those that it is told to, one by one.
#[derive(Default)]
struct Sink {
    kept: MemoryAudit,
    refuses: Mutex<Option<Refusal>>,
    batches: AtomicUsize,
    cannot_query: bool,
}

type Refusal = Box<dyn Fn(&AuditEvent) -> bool + Send + Sync>;

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl Sink {
    fn refuse(&self, refusal: impl Fn(&AuditEvent) -> bool + Send + Sync + 'static) {
        *self.refuses.lock().unwrap() = Some(Box::new(refusal));
    }

    fn work(&self) {
        *self.refuses.lock().unwrap() = None;
    }

    fn of(&self, event_type: EventType) -> Vec<AuditEvent> {
        let mut events = self.kept.events();
        events.retain(|event| event.event_type == event_type);
        events
    }

    /// The latest outcome of an operation.
    fn outcome(&self, operation: &str) -> AuditEvent {
        let mut ended = self.of(EventType::OperationEnded);
        ended.retain(|event| event.payload["operation"] == operation);
        ended.pop().unwrap()
    }

    /// The operations in the order of their intents, each with its outcome.
    fn operations(&self) -> Vec<(String, String)> {
        let text = |event: &AuditEvent, key: &str| event.payload[key].as_str().unwrap().to_owned();
        let mut outcomes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for event in self.of(EventType::OperationEnded) {
            let outcome = text(&event, "outcome");
            outcomes.entry(text(&event, "operation_id")).or_default().push(outcome);
        }
        let intents = self.of(EventType::OperationIntended);
        assert_eq!(intents.len(), outcomes.len(), "{:#?}", self.kept.events());
        let pair = |intent: &AuditEvent| {
            let outcomes = &outcomes[&text(intent, "operation_id")];
            assert_eq!(outcomes.len(), 1, "{intent:?}");
            (text(intent, "operation"), outcomes[0].clone())
        };
        intents.iter().map(pair).collect()
    }
}

#[async_trait]
impl AuditLogger for Sink {
    fn info(&self) -> AdapterInfo {
        self.kept.info()
    }
    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none().with_query(!self.cannot_query)
    }
    async fn check_availability(&self) -> Result<Availability> {
        self.kept.check_availability().await
    }
    fn location(&self) -> String {
        "the test".to_owned()
    }
    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.emit_batch(vec![event]).await.map(drop)
    }
    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        let mut results = Vec::new();
        for event in events {
            let refused = self
                .refuses
                .lock()
                .unwrap()
                .as_ref()
                .is_some_and(|refuses| refuses(&event));
            results.push(match refused {
                true => Err(Error::new(ErrorKind::ResourceExhausted, "the disk is full")),
                false => self.kept.emit(event).await,
            });
        }
        Ok(results)
    }
    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        self.kept.query(query.with_limit(3)).await
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn shutdown(&self) -> Result<()> {
        Ok(())
    }
}

struct World {
    sink: Arc<Sink>,
    runtime: ScriptedRuntime,
    calls: FaultLayer,
    trail: Trail,
    adapters: Adapters,
}

fn world() -> World {
    World::new(AuditSettings::new(), FaultLayer::new(), [])
}

impl World {
    fn new(settings: AuditSettings, faults: FaultLayer, secrets: impl IntoIterator<Item = SecretBytes>) -> Self {
        let sink = Arc::new(Sink::default());
        let runtime = ScriptedRuntime::new()
            .with_script(
                ["work"],
                Script::new().stdout("done").write_file("/output/a", "a").exit(3),
            )
            .with_script(["stay"], Script::new().hang())
            .with_copy_from("/data", vec![0; 1024]);
        let adapters = Adapters {
            runtime: Arc::new(runtime.clone()),
            storage: Arc::new(MemoryStorage::new()),
            audit: Arc::<Sink>::clone(&sink),
            policy: Arc::new(FixedPolicy::allow_all()),
        };
        let key = AuditKey::new(b"a key of the test's own").unwrap();
        let trail = Trail::new(Arc::<Sink>::clone(&sink), settings, key, scope().with_secrets(secrets));
        // The faults are inside, and count what really is done.
        let inner = Adapters {
            audit: Arc::new(MemoryAudit::new()),
            ..adapters
        };
        let adapters = inner.layer(&faults).layer(&AuditLayer::new(trail.clone()));
        Self {
            sink,
            runtime,
            calls: faults,
            trail,
            adapters,
        }
    }

    async fn provision(&self, request: ProvisionRequest) -> Result<ContainerHandle> {
        Ok(self.adapters.runtime.provision_verified(request).await?.handle)
    }
}

fn session() -> SessionId {
    SessionId::new("session").unwrap()
}

fn scope() -> Scope {
    Scope::new()
        .with_session(Some(session()))
        .with_agent(Some(AgentId::new("agent").unwrap()))
        .with_user(Some("user".to_owned()))
}

fn request(name: &str) -> ProvisionRequest {
    ProvisionRequest::new(session(), ContainerId::new(name).unwrap(), "image")
}

fn working(name: &str) -> ProvisionRequest {
    request(name).with_process(Some(Process::new(["work"])))
}

fn store(name: &str) -> StoreRequest {
    StoreRequest::new(session(), ArtifactName::new(name).unwrap(), b"content".to_vec().into())
}

fn is_intent_of(operation: &str) -> impl Fn(&AuditEvent) -> bool + Send + Sync + use<> {
    let operation = operation.to_owned();
    move |event| event.event_type == EventType::OperationIntended && event.payload["operation"] == operation.as_str()
}

#[tokio::test]
async fn every_intent_of_a_run_has_one_outcome_and_says_who_and_what() {
    let world = world();
    let Adapters {
        runtime,
        storage,
        policy,
        ..
    } = &world.adapters;
    let context = EnforcementContext::new();
    let enforced = policy.enforce(Policy::default(), &context).await.unwrap();
    policy.validate(&enforced.policy, &context).await.unwrap();
    let secret = Secret {
        name: "token".to_owned(),
        value: SecretBytes::new("12345678"),
    };
    let asked = working("run")
        .with_secrets([secret])
        .with_network(NetworkConfig::disabled().with_allowed_endpoints(vec!["a.example:443".to_owned()]));
    let container = world.provision(asked).await.unwrap();
    let output = runtime.start(StartRequest::new(container.clone())).await.unwrap();
    assert_eq!(output.collect(100).await.unwrap().exit, Exit::Exited { code: 3 });
    let archive = runtime
        .copy_from(CopyFromRequest::new(container.clone(), "/output"))
        .await
        .unwrap();
    let bytes: usize = archive
        .map(|chunk| chunk.unwrap().len())
        .collect::<Vec<_>>()
        .await
        .iter()
        .sum();
    let stored = storage.store(store("report")).await.unwrap();
    storage.delete(DeleteRequest::new(session())).await.unwrap();
    storage.presign(&stored.uri, Duration::from_secs(60)).await.unwrap_err();
    runtime.stats(&container).await.unwrap();
    runtime.destroy(&container.id).await.unwrap();
    runtime.inspect(&container.id).await.unwrap_err();
    world.trail.flush().await.unwrap();

    let names = |names: &[(&str, &str)]| -> Vec<(String, String)> {
        names.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };
    let expected = names(&[
        ("policy.enforce", "succeeded"),
        ("policy.validate", "succeeded"),
        ("runtime.provision", "succeeded"),
        ("runtime.start", "succeeded"),
        ("runtime.copy_from", "succeeded"),
        ("storage.store", "succeeded"),
        ("storage.delete", "succeeded"),
        ("storage.presign", "refused"),
        ("runtime.destroy", "succeeded"),
    ]);
    assert_eq!(world.sink.operations(), expected, "reads leave no record");
    for event in world.sink.kept.events() {
        assert_eq!(event.session_id, Some(session()));
        assert_eq!(event.agent_id.unwrap().as_str(), "agent");
        assert_eq!(event.user_id.as_deref(), Some("user"));
    }
    let intents = world.sink.of(EventType::OperationIntended);
    let provision = &intents[2].payload;
    assert_eq!(provision["classes"], json!(["provision", "secret", "egress"]));
    assert_eq!(provision["secrets"], json!(["token"]));
    assert_eq!(provision["command"], json!(["work"]));
    assert_eq!(provision["network"]["allowed_endpoints"], json!(["a.example:443"]));
    assert_eq!(world.sink.outcome("runtime.provision").payload["container_id"], "run");
    let start = world.sink.outcome("runtime.start").payload;
    assert_eq!(
        (&start["exit_code"], &start["ending"]["kind"]),
        (&json!(3), &json!("exited"))
    );
    assert!(start["duration_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(world.sink.outcome("runtime.copy_from").payload["bytes"], bytes);
    let outcome = world.sink.outcome("storage.store").payload;
    assert_eq!(
        (&outcome["sha256"], &outcome["version"]),
        (&json!(stored.sha256), &json!(1))
    );
    assert_eq!(world.sink.outcome("storage.delete").payload["deleted"], 1);
    assert_eq!(
        world.sink.outcome("storage.presign").payload["error_kind"],
        "unsupported"
    );
    assert_eq!(world.sink.outcome("policy.validate").payload["decision"], "allowed");
    assert!(
        world.sink.batches.load(Ordering::SeqCst) <= 9,
        "durable appends are dear"
    );
}

/// An operation by its name, its class, and how to do it in a container that is there.
type Operation = (
    &'static str,
    AuditClass,
    fn(Adapters, ContainerHandle) -> futures_util::future::BoxFuture<'static, Result<()>>,
);

fn operations() -> Vec<Operation> {
    use AuditClass::*;
    vec![
        ("runtime.provision", Provision, |adapters, _| {
            async move { adapters.runtime.provision_verified(request("other")).await.map(drop) }.boxed()
        }),
        ("runtime.build_image", Provision, |adapters, _| {
            async move {
                let request = BuildImageRequest::new("/", "tag");
                adapters.runtime.build_image(request).await.map(drop)
            }
            .boxed()
        }),
        ("runtime.start", Exec, |adapters, container| {
            async move { adapters.runtime.start(StartRequest::new(container)).await.map(drop) }.boxed()
        }),
        ("runtime.exec", Exec, |adapters, container| {
            async move {
                let request = ExecRequest::new(container, Process::new(["work"]));
                adapters.runtime.exec(request).await?.collect(100).await.map(drop)
            }
            .boxed()
        }),
        ("runtime.copy_from", Copy, |adapters, container| {
            async move {
                let archive = adapters
                    .runtime
                    .copy_from(CopyFromRequest::new(container, "/data"))
                    .await?;
                archive.for_each(|_| async {}).await;
                Ok(())
            }
            .boxed()
        }),
        ("runtime.copy_to", Copy, |adapters, container| {
            async move {
                let archive = futures_util::stream::iter([Ok(vec![0; 1024].into())]).boxed();
                adapters
                    .runtime
                    .copy_to(CopyToRequest::new(container, "/workspace", archive))
                    .await
            }
            .boxed()
        }),
        ("storage.store", Store, |adapters, _| {
            async move { adapters.storage.store(store("a")).await.map(drop) }.boxed()
        }),
        ("storage.presign", Store, |adapters, _| {
            async move {
                adapters
                    .storage
                    .presign("memory://a", Duration::from_secs(1))
                    .await
                    .map(drop)
            }
            .boxed()
        }),
        ("storage.presign_put", Store, |adapters, _| {
            async move {
                let name = ArtifactName::new("a").unwrap();
                let request = PresignPutRequest::new(session(), name, "00", Duration::from_secs(1));
                adapters.storage.presign_put(request).await.map(drop)
            }
            .boxed()
        }),
        ("storage.delete", Delete, |adapters, _| {
            async move { adapters.storage.delete(DeleteRequest::new(session())).await.map(drop) }.boxed()
        }),
        ("storage.reap", Delete, |adapters, _| {
            async move { adapters.storage.reap().await.map(drop) }.boxed()
        }),
    ]
}

#[tokio::test]
async fn nothing_is_done_without_a_record() {
    for (name, class, operation) in operations() {
        let world = world();
        let container = world.provision(working("run")).await.unwrap();
        let before = world.calls.calls(name);
        world.sink.refuse(|_| true);
        let error = operation(world.adapters.clone(), container).await.unwrap_err();
        assert_eq!(world.calls.calls(name), before, "{name} was not done");
        let text = error.report();
        let advice = format!("audit_trail.classes.{class} to best_effort");
        assert!(
            text.contains("nothing is done without a record") && text.contains(&advice),
            "{text}"
        );
        assert!(
            text.contains(name) && text.contains("the disk is full") && text.contains("the test"),
            "{text}"
        );
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        world.sink.work();
        world.trail.flush().await.unwrap();
        assert_eq!(
            world.sink.outcome(name).payload["outcome"],
            "refused",
            "when the sink is back, it is told"
        );
        assert!(world.trail.losses().is_empty());
        world.sink.operations();
    }
}

#[tokio::test]
async fn best_effort_goes_on_and_counts_what_it_loses() {
    for (name, class, operation) in operations() {
        let settings = AuditSettings::new().with_class(class, Requirement::BestEffort);
        let world = World::new(settings, FaultLayer::new(), []);
        let container = world.provision(working("run")).await.unwrap();
        world.trail.flush().await.unwrap();
        let before = world.calls.calls(name);
        world.sink.refuse(|_| true);
        // Some of them the fakes cannot do; but they were asked.
        let result = operation(world.adapters.clone(), container.clone()).await;
        if let Err(error) = result {
            assert_ne!(error.kind(), ErrorKind::ResourceExhausted, "{name}: {error}");
        }
        assert_eq!(world.calls.calls(name), before + 1, "{name} was done");
        let lost = world.trail.flush().await;
        assert!(lost.is_ok(), "{name}: {lost:?}");
        // The intent, and the outcome.
        assert_eq!(world.trail.losses(), BTreeMap::from([(class, 2)]), "{name}");
        let other = if class == AuditClass::Store {
            AuditClass::Delete
        } else {
            AuditClass::Store
        };
        assert_eq!(AuditSettings::new().requirement(other), Requirement::Required);
        let refused = match other {
            AuditClass::Delete => world
                .adapters
                .storage
                .delete(DeleteRequest::new(session()))
                .await
                .map(drop),
            _ => world.adapters.storage.store(store("b")).await.map(drop),
        };
        assert!(
            refused.unwrap_err().report().contains("without a record"),
            "other classes are required still"
        );
    }
}

#[tokio::test]
async fn an_operation_of_several_classes_is_as_strict_as_the_strictest() {
    let settings = AuditSettings::new().with_class(AuditClass::Provision, Requirement::BestEffort);
    let world = World::new(settings, FaultLayer::new(), []);
    world.sink.refuse(|_| true);
    world.provision(request("plain")).await.unwrap();
    let secret = Secret {
        name: "token".to_owned(),
        value: SecretBytes::new("12345678"),
    };
    let error = world
        .provision(request("secret").with_secrets([secret]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("classes.secret to best_effort"), "{error}");
    let network = NetworkConfig::disabled().with_allowed_endpoints(vec!["a.example:443".to_owned()]);
    let error = world
        .provision(request("network").with_network(network))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("classes.egress to best_effort"), "{error}");
    assert_eq!(world.calls.calls("runtime.provision"), 1);
}

#[tokio::test]
async fn what_makes_safe_is_done_without_a_record_and_told_later() {
    let world = world();
    let container = world.provision(request("run")).await.unwrap();
    let asked = ExecRequest::new(container.clone(), Process::new(["stay"]));
    let process = world.adapters.runtime.exec(asked).await.unwrap();
    world.sink.refuse(|_| true);
    process.control().kill(KillReason::Cancelled).await.unwrap();
    let error = process.control().signal(10).await.unwrap_err();
    assert!(error.to_string().contains("runtime.signal was not done"), "{error}");
    assert_eq!(process.collect(10).await.unwrap().exit, Exit::Cancelled);
    world.adapters.runtime.destroy(&container.id).await.unwrap();
    assert!(world.runtime.containers().is_empty());
    let error = world.trail.flush().await.unwrap_err();
    assert!(error.to_string().contains("done and not on record: "), "{error}");
    assert!(
        error.to_string().contains("runtime.kill") && error.to_string().contains("runtime.destroy"),
        "{error}"
    );
    world.sink.work();
    world.trail.flush().await.unwrap();
    for name in ["runtime.kill", "runtime.destroy", "runtime.exec"] {
        assert_eq!(world.sink.outcome(name).payload["outcome"], "succeeded");
    }
    world.sink.operations();
}

#[tokio::test]
async fn a_decision_is_on_record_before_anything_that_it_allows() {
    let world = world();
    let context = EnforcementContext::new();
    world.sink.refuse(is_intent_of("policy.validate"));
    world
        .adapters
        .policy
        .validate(&Policy::default(), &context)
        .await
        .unwrap();
    let error = world.provision(request("run")).await.unwrap_err();
    assert!(error.to_string().contains("runtime.provision was not done"), "{error}");
    assert_eq!(world.calls.calls("runtime.provision"), 0);
}

#[tokio::test]
async fn what_is_given_up_half_way_ends_as_unknown() {
    let faults = FaultLayer::new().hang("storage.store", 1);
    let world = World::new(AuditSettings::new(), faults, []);
    let storing = world.adapters.storage.store(store("a"));
    assert!(tokio::time::timeout(Duration::from_millis(20), storing).await.is_err());
    let container = world.provision(request("run")).await.unwrap();
    let asked = ExecRequest::new(container.clone(), Process::new(["stay"]));
    let process = world.adapters.runtime.exec(asked).await.unwrap();
    drop(process);
    let archive = world
        .adapters
        .runtime
        .copy_from(CopyFromRequest::new(container, "/data"))
        .await
        .unwrap();
    drop(archive);
    // Nobody waits: it is written in the background.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for name in ["storage.store", "runtime.exec", "runtime.copy_from"] {
        let payload = world.sink.outcome(name).payload;
        assert_eq!(
            (&payload["outcome"], &payload["reason"]),
            (&json!("unknown"), &json!("cancelled")),
            "{name}"
        );
    }
    world.sink.operations();
}

#[tokio::test]
async fn what_is_given_up_before_it_began_was_not_done() {
    let world = world();
    let stuck = world.adapters.storage.store(store("a"));
    // The sink yields once, so that the intent is on its way.
    assert!(stuck.now_or_never().is_none());
    world.trail.flush().await.unwrap();
    assert_eq!(world.calls.calls("storage.store"), 0);
    let payload = world.sink.outcome("storage.store").payload;
    assert_eq!(
        (&payload["outcome"], &payload["reason"]),
        (&json!("refused"), &json!("cancelled before it began"))
    );
}

#[tokio::test]
async fn records_keep_their_order_over_refusals_and_are_there_once() {
    let world = world();
    let numbered = |number: usize| world.trail.event(EventType::SystemWarning).with_fact("number", number);
    world.sink.refuse(|event| event.payload["number"] == 1);
    world.trail.record([numbered(0)]).await.unwrap();
    world.trail.record([numbered(1), numbered(2)]).await.unwrap_err();
    world.trail.record([numbered(3)]).await.unwrap_err();
    world.sink.work();
    let all = join_all((4..100).map(|number| world.trail.record([numbered(number)])));
    let before = world.sink.batches.load(Ordering::SeqCst);
    assert!(all.await.iter().all(Result::is_ok));
    assert!(
        world.sink.batches.load(Ordering::SeqCst) - before <= 2,
        "those who wait share one append"
    );
    let mut numbers: Vec<_> = world
        .sink
        .kept
        .events()
        .iter()
        .map(|event| event.payload["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers[..2], [0, 2], "a sink may refuse one of a batch");
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn no_secret_is_in_the_trail() {
    let secret = "hunter2-and-more";
    let other = "sensitive-value";
    let secrets = [secret, other].map(|text| SecretBytes::new(text.as_bytes()));
    let settings = AuditSettings::new().with_environment(EnvironmentRecord::Hash);
    let world = World::new(settings, FaultLayer::new(), secrets);
    let asked = request("run")
        .with_process(Some(Process::new([secret, &format!("--password={secret}")])))
        .with_env([
            ("PASSWORD".to_owned(), other.to_owned()),
            ("PIN".to_owned(), "123".to_owned()),
        ])
        .with_secrets([Secret {
            name: "token".to_owned(),
            value: SecretBytes::new(secret),
        }]);
    let container = world.provision(asked).await.unwrap();
    let process = world
        .adapters
        .runtime
        .start(StartRequest::new(container.clone()))
        .await
        .unwrap();
    // It does not exist, and the error quotes it.
    assert!(matches!(
        process.collect(10).await.unwrap().exit,
        Exit::NotStarted { .. }
    ));
    let idle = world.provision(request("idle")).await.unwrap();
    let asked = ExecRequest::new(
        idle,
        Process::new(["work"]).with_env([("A".to_owned(), secret.to_owned())]),
    );
    world
        .adapters
        .runtime
        .exec(asked)
        .await
        .unwrap()
        .collect(10)
        .await
        .unwrap();
    world
        .adapters
        .storage
        .store(store(&format!("dir/{other}")))
        .await
        .unwrap();
    let noted = world
        .trail
        .event(EventType::SystemWarning)
        .with_fact(secret, json!([{ "deep": other }]));
    world.trail.record([noted]).await.unwrap();

    let text = serde_json::to_string(&world.sink.kept.events()).unwrap();
    for hidden in [secret, other, "\"123\""] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
    let key = AuditKey::new(b"a key of the test's own").unwrap();
    let intent = &world.sink.of(EventType::OperationIntended)[0].payload;
    assert_eq!(
        intent["command"][1],
        format!("--password={}", key.conceal(secret.as_bytes()))
    );
    assert_eq!(
        intent["environment"]["PIN"],
        key.conceal(b"123"),
        "too short to be found, but known by its name"
    );
    let failed = world.sink.of(EventType::OperationEnded);
    let quoted = format!("{}: not found", key.conceal(secret.as_bytes()));
    assert!(
        failed
            .iter()
            .any(|event| event.payload.get("error") == Some(&json!(quoted))),
        "{text}"
    );
    assert!(text.contains(&format!("dir/{}", key.conceal(other.as_bytes()))));
}

#[tokio::test]
async fn commands_and_environments_are_shown_as_the_settings_say() {
    let show = |commands, environment| {
        let settings = AuditSettings::new()
            .with_commands(commands)
            .with_environment(environment);
        let world = World::new(settings, FaultLayer::new(), []);
        async move {
            let container = world.provision(request("run")).await.unwrap();
            let process = Process::new(["work"]).with_env([("NAME".to_owned(), "value".to_owned())]);
            let session = world
                .adapters
                .runtime
                .exec(ExecRequest::new(container, process))
                .await
                .unwrap();
            session.collect(10).await.unwrap();
            let mut payload = world.sink.of(EventType::OperationIntended)[1].payload.clone();
            let text = serde_json::to_string(&payload).unwrap();
            assert!(!text.contains("value"), "{text}");
            let mut take = |key: &str| payload.remove(key).unwrap_or_default();
            (take("command"), take("environment"))
        }
    };
    let (command, environment) = show(CommandRecord::Full, EnvironmentRecord::Names).await;
    assert_eq!((command, environment), (json!(["work"]), json!(["NAME"])));
    let (command, environment) = show(CommandRecord::Hash, EnvironmentRecord::Hash).await;
    assert!(command.as_str().unwrap().starts_with("hmac-sha256:"));
    assert!(environment["NAME"].as_str().unwrap().starts_with("hmac-sha256:"));
    let shown = show(CommandRecord::Omit, EnvironmentRecord::Omit).await;
    assert_eq!(shown, (Value::Null, Value::Null));
}

#[tokio::test]
async fn what_a_crash_left_open_is_ended_once() {
    let world = world();
    let began = jiff::Timestamp::now();
    let container = world.provision(request("run")).await.unwrap();
    let asked = ExecRequest::new(container, Process::new(["stay"]));
    let open = world.adapters.runtime.exec(asked).await.unwrap();
    world.trail.flush().await.unwrap();
    for _ in 0..5 {
        world.adapters.storage.store(store("a")).await.unwrap();
    }
    let more = world.adapters.storage.store(store("b")).now_or_never();
    assert!(more.is_none());
    world.trail.flush().await.unwrap();

    // Another process, which knows nothing but the session.
    let key = AuditKey::random().unwrap();
    let elsewhere = || {
        Trail::new(
            Arc::<Sink>::clone(&world.sink),
            AuditSettings::new(),
            key.clone(),
            scope(),
        )
    };
    let (one, other) = (elsewhere(), elsewhere());
    assert_eq!(end_open(&one, began, "it is gone").await.unwrap(), 1);
    let payload = world.sink.outcome("runtime.exec").payload;
    assert_eq!(
        (&payload["outcome"], &payload["reason"]),
        (&json!("unknown"), &json!("it is gone"))
    );
    let events = world.sink.kept.events().len();
    assert_eq!(end_open(&other, began, "it is gone").await.unwrap(), 0);
    assert_eq!(world.sink.kept.events().len(), events);
    world.sink.operations();
    std::mem::forget(open);
}

#[tokio::test]
async fn a_sink_that_cannot_be_asked_is_told_so_once() {
    let sink = Arc::new(Sink {
        cannot_query: true,
        ..Sink::default()
    });
    let key = AuditKey::random().unwrap();
    let began = jiff::Timestamp::now();
    for _ in 0..2 {
        let trail = Trail::new(Arc::<Sink>::clone(&sink), AuditSettings::new(), key.clone(), scope());
        assert_eq!(end_open(&trail, began, "it is gone").await.unwrap(), 0);
    }
    let ended = sink.of(EventType::OperationEnded);
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].payload["outcome"], "unknown");
    assert!(!ended[0].payload.contains_key("operation_id"));
    assert!(ended[0].payload["detail"].as_str().unwrap().contains("cannot be asked"));
}
