//! Faults for any adapter.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agents_core::{
    AdapterInfo, Admitted, ArtifactInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery,
    Availability, Body, BuildImageRequest, ByteStream, ComplianceReport, ContainerHandle, ContainerId, ContainerInfo,
    ContainerRuntime, ContainerStats, CopyFromRequest, CopyToRequest, DeleteRequest, Enforced, EnforcementContext,
    Error, ErrorKind, ExecRequest, ExecSession, Layer, Policy, PolicyValidator, PresignPutRequest, PresignedPut,
    Provisioned, Result, RetrieveRequest, Retrieved, RuntimeCapabilities, SessionId, StartRequest, StorageBackend,
    StorageCapabilities, StoreRequest, ValidationResult,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};

/// A layer that makes chosen calls fail or hang. Operations are named `<kind>.<method>`, such as `storage.store`, and calls
/// are counted from 1, all adapters of a kind together. Clones share their counts.
///
/// ```
/// use agents_core::ErrorKind;
/// use agents_testkit::fakes::FaultLayer;
///
/// let faults = FaultLayer::new()
///     .fail("audit.emit", 3, ErrorKind::Unavailable) // instead of the third call
///     .fail_after("runtime.provision", 1, ErrorKind::Timeout) // done, but the answer is lost
///     .cut("storage.store", 2, 1000, ErrorKind::Unavailable); // its content ends with an error
/// ```
#[derive(Clone, Debug, Default)]
pub struct FaultLayer(Arc<Mutex<Plan>>);

#[derive(Debug, Default)]
struct Plan {
    faults: Vec<(&'static str, usize, Fault)>,
    calls: BTreeMap<&'static str, usize>,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Before(ErrorKind),
    After(ErrorKind),
    Hang,
    Cut(usize, ErrorKind),
}

fn injected(kind: ErrorKind) -> Error {
    Error::new(kind, "an injected fault")
}

impl FaultLayer {
    /// No faults yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn with(self, operation: &'static str, nth: usize, fault: Fault) -> Self {
        self.plan().faults.push((operation, nth, fault));
        self
    }

    /// Fails instead of the nth call.
    #[must_use]
    pub fn fail(self, operation: &'static str, nth: usize, kind: ErrorKind) -> Self {
        self.with(operation, nth, Fault::Before(kind))
    }

    /// Fails after the nth call has done its work, as when the answer is lost.
    #[must_use]
    pub fn fail_after(self, operation: &'static str, nth: usize, kind: ErrorKind) -> Self {
        self.with(operation, nth, Fault::After(kind))
    }

    /// Never comes back from the nth call.
    #[must_use]
    pub fn hang(self, operation: &'static str, nth: usize) -> Self {
        self.with(operation, nth, Fault::Hang)
    }

    /// Ends the content of the nth call with an error after so many bytes: of `storage.store`, `storage.retrieve`,
    /// `runtime.copy_from` or `runtime.copy_to`.
    #[must_use]
    pub fn cut(self, operation: &'static str, nth: usize, bytes: usize, kind: ErrorKind) -> Self {
        self.with(operation, nth, Fault::Cut(bytes, kind))
    }

    /// How often an operation was called.
    pub fn calls(&self, operation: &str) -> usize {
        self.plan().calls.get(operation).copied().unwrap_or_default()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, and tells what is planned for it.
    fn count(&self, operation: &'static str) -> Option<Fault> {
        let mut plan = self.plan();
        let count = plan.calls.entry(operation).or_default();
        *count += 1;
        let count = *count;
        let planned = plan
            .faults
            .iter()
            .find(|(name, nth, _)| *name == operation && *nth == count);
        planned.map(|(_, _, fault)| *fault)
    }

    async fn call<T>(&self, operation: &'static str, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        Self::apply(self.count(operation), call).await
    }

    async fn apply<T>(fault: Option<Fault>, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        match fault {
            None | Some(Fault::Cut(..)) => call.await,
            Some(Fault::Before(kind)) => Err(injected(kind)),
            Some(Fault::After(kind)) => call.await.and(Err(injected(kind))),
            Some(Fault::Hang) => {
                loop {
                    // Unlike `pending`, this lets a paused clock run on.
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                }
            }
        }
    }
}

/// Ends a stream with an error after so many bytes.
fn cut(fault: Option<Fault>, content: ByteStream) -> ByteStream {
    let Some(Fault::Cut(limit, kind)) = fault else {
        return content;
    };
    let cut = stream::try_unfold((content, limit), move |(mut content, left)| async move {
        match content.try_next().await? {
            Some(chunk) if chunk.len() <= left => {
                let left = left - chunk.len();
                Ok(Some((chunk, (content, left))))
            }
            Some(chunk) if left > 0 => {
                let head: Bytes = chunk.slice(..left);
                Ok(Some((
                    head,
                    (stream::once(async move { Err(injected(kind)) }).boxed(), 0),
                )))
            }
            Some(_) => Err(injected(kind)),
            None => Ok(None),
        }
    });
    cut.boxed()
}

#[derive(Debug)]
struct Faulty<T: ?Sized> {
    faults: FaultLayer,
    inner: Arc<T>,
}

impl Layer for FaultLayer {
    fn wrap_runtime(&self, inner: Arc<dyn ContainerRuntime>) -> Arc<dyn ContainerRuntime> {
        let faults = self.clone();
        Arc::new(Faulty { faults, inner })
    }

    fn wrap_storage(&self, inner: Arc<dyn StorageBackend>) -> Arc<dyn StorageBackend> {
        let faults = self.clone();
        Arc::new(Faulty { faults, inner })
    }

    fn wrap_audit(&self, inner: Arc<dyn AuditLogger>) -> Arc<dyn AuditLogger> {
        let faults = self.clone();
        Arc::new(Faulty { faults, inner })
    }

    fn wrap_policy(&self, inner: Arc<dyn PolicyValidator>) -> Arc<dyn PolicyValidator> {
        let faults = self.clone();
        Arc::new(Faulty { faults, inner })
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ContainerRuntime for Faulty<dyn ContainerRuntime> {
    fn info(&self) -> AdapterInfo {
        self.inner.info()
    }

    fn capabilities(&self) -> RuntimeCapabilities {
        self.inner.capabilities()
    }

    async fn check_availability(&self) -> Result<Availability> {
        let call = self.inner.check_availability();
        self.faults.call("runtime.check_availability", call).await
    }

    async fn provision(&self, request: Admitted) -> Result<Provisioned> {
        self.faults
            .call("runtime.provision", self.inner.provision(request))
            .await
    }

    async fn start(&self, request: StartRequest) -> Result<ExecSession> {
        self.faults.call("runtime.start", self.inner.start(request)).await
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        self.faults.call("runtime.exec", self.inner.exec(request)).await
    }

    async fn copy_from(&self, request: CopyFromRequest) -> Result<ByteStream> {
        let fault = self.faults.count("runtime.copy_from");
        let content = FaultLayer::apply(fault, self.inner.copy_from(request)).await?;
        Ok(cut(fault, content))
    }

    async fn copy_to(&self, mut request: CopyToRequest) -> Result<()> {
        let fault = self.faults.count("runtime.copy_to");
        request.archive = cut(fault, request.archive);
        FaultLayer::apply(fault, self.inner.copy_to(request)).await
    }

    async fn stats(&self, container: &ContainerHandle) -> Result<ContainerStats> {
        self.faults.call("runtime.stats", self.inner.stats(container)).await
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerInfo>> {
        self.faults.call("runtime.list", self.inner.list(labels)).await
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.faults.call("runtime.inspect", self.inner.inspect(id)).await
    }

    async fn destroy(&self, id: &ContainerId) -> Result<()> {
        self.faults.call("runtime.destroy", self.inner.destroy(id)).await
    }

    async fn reap(&self) -> Result<Vec<String>> {
        self.faults.call("runtime.reap", self.inner.reap()).await
    }

    async fn build_image(&self, request: BuildImageRequest) -> Result<String> {
        let call = self.inner.build_image(request);
        self.faults.call("runtime.build_image", call).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StorageBackend for Faulty<dyn StorageBackend> {
    fn info(&self) -> AdapterInfo {
        self.inner.info()
    }

    fn capabilities(&self) -> StorageCapabilities {
        self.inner.capabilities()
    }

    async fn check_availability(&self) -> Result<Availability> {
        let call = self.inner.check_availability();
        self.faults.call("storage.check_availability", call).await
    }

    async fn store(&self, mut request: StoreRequest) -> Result<ArtifactInfo> {
        let fault = self.faults.count("storage.store");
        let size = request.body.size();
        request.body = Body::from_stream(cut(fault, request.body.into_stream()), size);
        FaultLayer::apply(fault, self.inner.store(request)).await
    }

    async fn retrieve(&self, request: RetrieveRequest) -> Result<Retrieved> {
        let fault = self.faults.count("storage.retrieve");
        let mut retrieved = FaultLayer::apply(fault, self.inner.retrieve(request)).await?;
        retrieved.content = cut(fault, retrieved.content);
        Ok(retrieved)
    }

    fn list(&self, session_id: &SessionId) -> BoxStream<'static, Result<ArtifactInfo>> {
        match self.faults.count("storage.list") {
            Some(Fault::Hang) => stream::pending().boxed(),
            Some(Fault::Before(kind) | Fault::After(kind)) => stream::once(async move { Err(injected(kind)) }).boxed(),
            None | Some(Fault::Cut(..)) => self.inner.list(session_id),
        }
    }

    async fn delete(&self, request: DeleteRequest) -> Result<Vec<ArtifactInfo>> {
        self.faults.call("storage.delete", self.inner.delete(request)).await
    }

    async fn presign(&self, uri: &str, expires_in: Duration) -> Result<String> {
        self.faults
            .call("storage.presign", self.inner.presign(uri, expires_in))
            .await
    }

    async fn reap(&self) -> Result<Vec<String>> {
        self.faults.call("storage.reap", self.inner.reap()).await
    }

    fn sessions(&self) -> BoxStream<'static, Result<SessionId>> {
        match self.faults.count("storage.sessions") {
            Some(Fault::Hang) => stream::pending().boxed(),
            Some(Fault::Before(kind) | Fault::After(kind)) => stream::once(async move { Err(injected(kind)) }).boxed(),
            None | Some(Fault::Cut(..)) => self.inner.sessions(),
        }
    }

    async fn presign_put(&self, request: PresignPutRequest) -> Result<PresignedPut> {
        self.faults
            .call("storage.presign_put", self.inner.presign_put(request))
            .await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AuditLogger for Faulty<dyn AuditLogger> {
    fn info(&self) -> AdapterInfo {
        self.inner.info()
    }

    fn capabilities(&self) -> AuditCapabilities {
        self.inner.capabilities()
    }

    async fn check_availability(&self) -> Result<Availability> {
        let call = self.inner.check_availability();
        self.faults.call("audit.check_availability", call).await
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.faults.call("audit.emit", self.inner.emit(event)).await
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        self.faults
            .call("audit.emit_batch", self.inner.emit_batch(events))
            .await
    }

    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        self.faults.call("audit.query", self.inner.query(query)).await
    }

    async fn flush(&self) -> Result<()> {
        self.faults.call("audit.flush", self.inner.flush()).await
    }

    async fn shutdown(&self) -> Result<()> {
        self.faults.call("audit.shutdown", self.inner.shutdown()).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl PolicyValidator for Faulty<dyn PolicyValidator> {
    fn info(&self) -> AdapterInfo {
        self.inner.info()
    }

    async fn check_availability(&self) -> Result<Availability> {
        let call = self.inner.check_availability();
        self.faults.call("policy.check_availability", call).await
    }

    async fn validate(&self, policy: &Policy, context: &EnforcementContext) -> Result<ValidationResult> {
        let call = self.inner.validate(policy, context);
        self.faults.call("policy.validate", call).await
    }

    async fn enforce(&self, policy: Policy, context: &EnforcementContext) -> Result<Enforced> {
        let call = self.inner.enforce(policy, context);
        self.faults.call("policy.enforce", call).await
    }

    async fn check_compliance(&self, policy: &Policy, rule_sets: &[String]) -> Result<ComplianceReport> {
        let call = self.inner.check_compliance(policy, rule_sets);
        self.faults.call("policy.check_compliance", call).await
    }
}
