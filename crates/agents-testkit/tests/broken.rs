//! A suite that nothing can fail proves nothing: adapters that are broken on purpose must fail exactly the cases that are
//! about what they break.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use agents_core::{
    AdapterInfo, ArtifactInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Body,
    ComplianceReport, DeleteRequest, Enforced, EnforcementContext, Policy, PolicySpec, PolicyValidator, Process,
    Result, RetrieveRequest, Retrieved, SessionId, StorageBackend, StorageCapabilities, StoreRequest, ValidationResult,
};
use agents_storage_objectstore::MemoryStorage;
use agents_testkit::{
    Case, Fixture, Outcome, audit,
    audit::AuditFixture,
    fakes::{FixedPolicy, MemoryAudit, Script, ScriptedRuntime},
    policy,
    policy::PolicyFixture,
    runtime,
    runtime::RuntimeFixture,
    storage,
    storage::StorageFixture,
};
use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};

async fn failures<F: Fixture>(cases: Vec<Case<F>>, fixture: impl Fn() -> F) -> BTreeSet<String> {
    let mut failed = BTreeSet::new();
    for case in cases {
        if let Outcome::Failed(_) = case.run(fixture()).await {
            failed.insert(case.name().to_owned());
        }
    }
    failed
}

fn named(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

// ---- Storage ------------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StorageFault {
    None,
    OverwritesVersions,
    KeepsWhatFailed,
    IgnoresTheAnnouncedSize,
    MixesSessions,
    ListsBackwards,
    IgnoresRanges,
    DropsMetadata,
    TakesEveryUri,
    DeletesByPrefix,
    InventsSha256,
}

#[derive(Debug)]
struct BrokenStorage(MemoryStorage, StorageFault);

impl BrokenStorage {
    fn is(&self, fault: StorageFault) -> bool {
        self.1 == fault
    }

    fn session(&self, session: &SessionId) -> SessionId {
        match self.is(StorageFault::MixesSessions) {
            true => SessionId::new("shared").unwrap(),
            false => session.clone(),
        }
    }
}

#[async_trait]
impl StorageBackend for BrokenStorage {
    fn info(&self) -> AdapterInfo {
        self.0.info()
    }

    fn capabilities(&self) -> StorageCapabilities {
        self.0.capabilities()
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.0.check_availability().await
    }

    async fn store(&self, mut request: StoreRequest) -> Result<ArtifactInfo> {
        request.session_id = self.session(&request.session_id);
        if self.is(StorageFault::OverwritesVersions) {
            let all = DeleteRequest::new(request.session_id.clone());
            self.0.delete(all.with_name(Some(request.name.clone()))).await?;
        }
        if self.is(StorageFault::IgnoresTheAnnouncedSize) {
            request.body = Body::from_stream(request.body.into_stream(), None);
        }
        if self.is(StorageFault::DropsMetadata) {
            request.check()?;
            request.metadata.clear();
        }
        if self.is(StorageFault::KeepsWhatFailed) {
            let announced = request.body.size();
            let mut stream = request.body.into_stream();
            let mut content = BytesMut::new();
            let mut fault = None;
            loop {
                match tokio::time::timeout(Duration::from_millis(20), stream.next()).await {
                    Ok(Some(Ok(chunk))) => content.extend_from_slice(&chunk),
                    Ok(None) => break,
                    Ok(Some(Err(error))) => {
                        fault = Some(error);
                        break;
                    }
                    Err(_) => break,
                }
            }
            let size = announced.or(Some(content.len() as u64));
            let whole = futures_util::stream::iter([Ok(content.freeze())]).boxed();
            request.body = Body::from_stream(whole, size);
            let stored = self.0.store(request).await?;
            return fault.map_or(Ok(stored), Err);
        }
        let mut stored = self.0.store(request).await?;
        if self.is(StorageFault::InventsSha256) {
            stored.sha256 = "0".repeat(64);
        }
        Ok(stored)
    }

    async fn retrieve(&self, mut request: RetrieveRequest) -> Result<Retrieved> {
        if self.is(StorageFault::IgnoresRanges) {
            request.range = None;
        }
        let retrieved = self.0.retrieve(request).await;
        match retrieved {
            Err(error) if self.is(StorageFault::TakesEveryUri) => {
                Err(agents_core::Error::not_found("not there").with_source(error))
            }
            other => other,
        }
    }

    fn list(&self, session_id: &SessionId) -> BoxStream<'static, Result<ArtifactInfo>> {
        let list = self.0.list(&self.session(session_id));
        if !self.is(StorageFault::ListsBackwards) {
            return list;
        }
        let backwards = async move {
            let mut all: Vec<ArtifactInfo> = list.try_collect().await?;
            all.reverse();
            Ok::<_, agents_core::Error>(futures_util::stream::iter(all.into_iter().map(Ok)))
        };
        futures_util::stream::once(backwards).try_flatten().boxed()
    }

    async fn delete(&self, mut request: DeleteRequest) -> Result<Vec<ArtifactInfo>> {
        request.session_id = self.session(&request.session_id);
        let (true, Some(prefix)) = (self.is(StorageFault::DeletesByPrefix), &request.name) else {
            return self.0.delete(request).await;
        };
        let all: Vec<ArtifactInfo> = self.0.list(&request.session_id).try_collect().await?;
        let mut gone = Vec::new();
        for info in all {
            if info.name.as_str().starts_with(prefix.as_str()) {
                let one = DeleteRequest::new(info.session_id).with_name(Some(info.name));
                gone.extend(self.0.delete(one).await?);
            }
        }
        Ok(gone)
    }

    async fn presign(&self, uri: &str, expires_in: Duration) -> Result<String> {
        self.0.presign(uri, expires_in).await
    }

    async fn reap(&self) -> Result<Vec<String>> {
        self.0.reap().await
    }

    fn sessions(&self) -> BoxStream<'static, Result<SessionId>> {
        self.0.sessions()
    }
}

#[tokio::test]
async fn broken_storage_fails() {
    let table: &[(StorageFault, &[&str])] = &[
        (StorageFault::None, &[]),
        (
            StorageFault::OverwritesVersions,
            &[
                "an_empty_artifact",
                "concurrent_writers_get_versions_without_gaps",
                "delete_says_what_is_gone_and_is_idempotent",
                "list_is_ordered_and_complete",
                "storing_again_makes_a_new_version",
            ],
        ),
        (
            StorageFault::KeepsWhatFailed,
            &["a_dropped_store_leaves_nothing", "a_failed_stream_leaves_nothing"],
        ),
        (
            StorageFault::IgnoresTheAnnouncedSize,
            &["a_wrong_announced_size_is_refused"],
        ),
        (
            StorageFault::MixesSessions,
            &["other_sessions_are_not_seen", "round_trip", "sessions_as_declared"],
        ),
        (
            StorageFault::ListsBackwards,
            &[
                "concurrent_writers_get_versions_without_gaps",
                "list_is_ordered_and_complete",
                "names_are_kept_or_refused",
                "delete_says_what_is_gone_and_is_idempotent",
            ],
        ),
        (
            StorageFault::IgnoresRanges,
            &["ranges", "ranges_beyond_the_end_are_refused"],
        ),
        (StorageFault::DropsMetadata, &["metadata_round_trip"]),
        (
            StorageFault::TakesEveryUri,
            &["foreign_uris_are_refused", "ranges_beyond_the_end_are_refused"],
        ),
        (
            StorageFault::DeletesByPrefix,
            &["delete_says_what_is_gone_and_is_idempotent"],
        ),
        (
            StorageFault::InventsSha256,
            &[
                "a_large_streamed_artifact",
                "an_empty_artifact",
                "concurrent_writers_get_versions_without_gaps",
                "delete_says_what_is_gone_and_is_idempotent",
                "names_are_kept_or_refused",
                "other_sessions_are_not_seen",
                "ranges",
                "reap_leaves_artifacts_alone",
                "round_trip",
            ],
        ),
    ];
    for (fault, expected) in table {
        let failed = failures(storage::cases(), || {
            let other = Arc::new(MemoryStorage::new());
            StorageFixture::new(Arc::new(BrokenStorage(MemoryStorage::new(), *fault))).with_other(other)
        });
        assert_eq!(failed.await, named(expected), "{fault:?}");
    }
}

// ---- Audit --------------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AuditFault {
    None,
    LosesOrder,
    LosesEveryTenth,
    RepeatsWhatIsRepeated,
    CutsText,
    LivesOn,
    IgnoresSeverity,
    CountsTheCursorFromTheEnd,
}

#[derive(Debug)]
struct BrokenAudit(MemoryAudit, AuditFault, std::sync::atomic::AtomicUsize);

impl BrokenAudit {
    fn is(&self, fault: AuditFault) -> bool {
        self.1 == fault
    }

    fn spoil(&self, mut events: Vec<AuditEvent>) -> Vec<AuditEvent> {
        if self.is(AuditFault::LosesOrder) {
            events.reverse();
        }
        if self.is(AuditFault::LosesEveryTenth) {
            let count = |_: &AuditEvent| self.2.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 10 != 9;
            events.retain(count);
        }
        for event in &mut events {
            if self.is(AuditFault::RepeatsWhatIsRepeated) {
                event.event_id = AuditEvent::now(event.event_type).event_id;
            }
            if self.is(AuditFault::CutsText) {
                event
                    .payload
                    .retain(|_, value| value.as_str().is_none_or(|text| text.len() < 65_536));
            }
        }
        events
    }
}

#[async_trait]
impl AuditLogger for BrokenAudit {
    fn info(&self) -> AdapterInfo {
        self.0.info()
    }

    fn capabilities(&self) -> AuditCapabilities {
        self.0.capabilities()
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.0.check_availability().await
    }

    fn location(&self) -> String {
        self.0.location()
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.0.emit_batch(self.spoil(vec![event])).await.map(drop)
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        let count = events.len();
        self.0.emit_batch(self.spoil(events)).await?;
        Ok((0..count).map(|_| Ok(())).collect())
    }

    async fn query(&self, mut query: AuditQuery) -> Result<AuditPage> {
        if self.is(AuditFault::IgnoresSeverity) {
            query.severity = None;
        }
        if !self.is(AuditFault::CountsTheCursorFromTheEnd) {
            return self.0.query(query).await;
        }
        let total = self.0.events().len();
        let position = query.cursor.take().map(|cursor| cursor.parse::<usize>());
        query.cursor = match position {
            Some(Ok(position)) => Some(total.saturating_sub(position).to_string()),
            Some(Err(_)) => Some("nonsense".to_owned()),
            None => None,
        };
        let mut page = self.0.query(query).await?;
        let next = page.next.take().and_then(|next| next.parse::<usize>().ok());
        page.next = next.map(|next| (total - next).to_string());
        Ok(page)
    }

    async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }

    async fn shutdown(&self) -> Result<()> {
        match self.is(AuditFault::LivesOn) {
            true => Ok(()),
            false => self.0.shutdown().await,
        }
    }
}

#[tokio::test]
async fn broken_audit_fails() {
    let table: &[(AuditFault, &[&str])] = &[
        (AuditFault::None, &[]),
        (
            AuditFault::LosesOrder,
            &[
                "a_batch_keeps_its_order_and_is_reported_on",
                "order_across_calls",
                "repeated_delivery_is_harmless",
                "repeated_delivery_is_harmless_across_pages",
                "the_link_of_a_chain_survives",
            ],
        ),
        (
            AuditFault::LosesEveryTenth,
            &[
                "a_batch_keeps_its_order_and_is_reported_on",
                "concurrent_emitters_lose_nothing",
                "order_across_calls",
                "repeated_delivery_is_harmless_across_pages",
            ],
        ),
        (
            AuditFault::RepeatsWhatIsRepeated,
            &[
                "a_batch_keeps_its_order_and_is_reported_on",
                "emit_then_query",
                "repeated_delivery_is_harmless",
                "repeated_delivery_is_harmless_across_pages",
                "text_and_sizes_survive",
                "the_link_of_a_chain_survives",
            ],
        ),
        (AuditFault::CutsText, &["text_and_sizes_survive"]),
        (AuditFault::LivesOn, &["flush_then_shutdown"]),
        (AuditFault::IgnoresSeverity, &["filters"]),
        (
            AuditFault::CountsTheCursorFromTheEnd,
            &["paging_with_a_stable_cursor", "what_is_written_late_comes_late"],
        ),
    ];
    for (fault, expected) in table {
        let failed = failures(audit::cases(), || {
            AuditFixture::new(Arc::new(BrokenAudit(MemoryAudit::new(), *fault, 0.into())))
        });
        assert_eq!(failed.await, named(expected), "{fault:?}");
    }
}

// ---- Policy -------------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PolicyFault {
    None,
    Widens,
    NarrowsSilently,
    NeverEnds,
    KnowsEveryRuleSet,
}

#[derive(Debug)]
struct BrokenPolicy(FixedPolicy, PolicyFault);

#[async_trait]
impl PolicyValidator for BrokenPolicy {
    fn info(&self) -> AdapterInfo {
        self.0.info()
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.0.check_availability().await
    }

    async fn validate(&self, policy: &Policy, context: &EnforcementContext) -> Result<ValidationResult> {
        self.0.validate(policy, context).await
    }

    async fn enforce(&self, policy: Policy, _: &EnforcementContext) -> Result<Enforced> {
        let mut spec = PolicySpec::clone(&policy);
        let mut changes = Vec::new();
        let before = spec.memory_mb;
        match self.1 {
            PolicyFault::Widens => spec.memory_mb = spec.memory_mb.map(|memory| memory.max(1 << 20)),
            PolicyFault::NarrowsSilently => spec.memory_mb = spec.memory_mb.map(|memory| memory.min(7)),
            PolicyFault::NeverEnds => spec.memory_mb = spec.memory_mb.map(|memory| (memory - 1).max(6)),
            PolicyFault::None | PolicyFault::KnowsEveryRuleSet => {}
        }
        if spec.memory_mb != before && self.1 != PolicyFault::NarrowsSilently {
            changes.push(agents_core::PolicyChange {
                path: "memory_mb".to_owned(),
                from: before.into(),
                to: spec.memory_mb.into(),
                code: "MEMORY_EXCEEDED".to_owned(),
            });
        }
        let policy = Policy::new(spec).map_err(|error| agents_core::Error::unexpected(error.to_string()))?;
        Ok(Enforced { policy, changes })
    }

    async fn check_compliance(&self, policy: &Policy, rule_sets: &[String]) -> Result<ComplianceReport> {
        match self.1 {
            PolicyFault::KnowsEveryRuleSet => Ok(ComplianceReport::default()),
            _ => self.0.check_compliance(policy, rule_sets).await,
        }
    }
}

#[tokio::test]
async fn broken_policy_fails() {
    let table: &[(PolicyFault, &[&str])] = &[
        (PolicyFault::None, &[]),
        (
            PolicyFault::Widens,
            &["enforce_only_narrows_and_reports_it", "the_context_is_optional"],
        ),
        (
            PolicyFault::NarrowsSilently,
            &["enforce_only_narrows_and_reports_it", "the_context_is_optional"],
        ),
        (PolicyFault::NeverEnds, &["enforce_is_idempotent"]),
        (PolicyFault::KnowsEveryRuleSet, &["unknown_rule_sets_are_not_found"]),
    ];
    for (fault, expected) in table {
        let failed = failures(policy::cases(), || {
            PolicyFixture::new(
                Arc::new(BrokenPolicy(FixedPolicy::allow_all(), *fault)),
                Policy::default(),
            )
        });
        assert_eq!(failed.await, named(expected), "{fault:?}");
    }
}

// ---- Runtime ------------------------------------------------------------------------------------------------------------

fn script(process: &Process) -> Option<Script> {
    let text = process.command.get(2)?;
    let code = text.strip_prefix("exit ").and_then(|code| code.parse().ok());
    match (text.as_str(), code) {
        (_, Some(code)) => Some(Script::new().exit(code)),
        ("true", _) => Some(Script::new()),
        ("cat; echo end", _) => Some(Script::new().stdout("end\n")),
        ("echo out; echo err >&2; exit 7", _) => Some(Script::new().stdout("out\n").stderr("err\n").exit(7)),
        _ => None,
    }
}

async fn runtime_failures(names: &[&str], make: impl Fn() -> ScriptedRuntime) -> BTreeSet<String> {
    let mut cases = runtime::cases();
    cases.retain(|case| names.contains(&case.name()));
    assert_eq!(cases.len(), names.len());
    failures(cases, || {
        let dir = tempfile::tempdir().unwrap();
        let runtime = make().with_images(["scripted".to_owned()]);
        RuntimeFixture::new(Arc::new(runtime), "scripted", dir.path()).keeping(dir)
    })
    .await
}

#[tokio::test]
async fn a_runtime_whose_effective_state_differs_fails() {
    let case = "everything_that_is_compared_holds";
    let honest = runtime_failures(&[case], || ScriptedRuntime::new().with_handler(script)).await;
    assert_eq!(honest, named(&[]));
    type Distortion = fn(&mut agents_core::EffectiveState);
    let distortions: [Distortion; 7] = [
        |state| state.capabilities = Some(vec!["CAP_SYS_ADMIN".to_owned()]),
        |state| state.no_new_privileges = None,
        |state| state.seccomp_filter = Some(false),
        |state| state.read_only_rootfs = Some(false),
        |state| state.memory_bytes = Some(u64::MAX),
        |state| state.network_interfaces = Some(vec!["lo".to_owned(), "eth0".to_owned()]),
        |state| state.private_namespaces = Some(vec!["mnt".to_owned()]),
    ];
    for distort in distortions {
        let lying = || {
            ScriptedRuntime::new()
                .with_handler(script)
                .with_effective_state(move |_, state| distort(state))
        };
        assert_eq!(runtime_failures(&[case], lying).await, named(&[case]));
    }
}

#[tokio::test]
async fn a_runtime_whose_processes_go_wrong_fails() {
    let cases = [
        "exit_codes",
        "output_and_exit_of_an_exec",
        "without_stdin_the_end_is_read",
    ];
    let honest = runtime_failures(&cases, || ScriptedRuntime::new().with_handler(script)).await;
    assert_eq!(honest, named(&[]));
    let always_zero = runtime_failures(&cases, || ScriptedRuntime::new().with_handler(|_| Some(Script::new()))).await;
    assert_eq!(always_zero, named(&cases));
    let swapped = |process: &Process| {
        let swap = process.command.get(2)?.starts_with("echo out");
        swap.then(|| Script::new().stderr("out\n").stdout("err\n").exit(7))
    };
    let swapped = runtime_failures(&cases, move || {
        ScriptedRuntime::new().with_handler(script).with_handler(swapped)
    });
    assert_eq!(swapped.await, named(&["output_and_exit_of_an_exec"]));
}
