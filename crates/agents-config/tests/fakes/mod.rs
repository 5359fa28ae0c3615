//! An adapter of all four kinds that can only say its name.

use std::{collections::BTreeMap, time::Duration};

use agents_core::*;
use async_trait::async_trait;
use futures_core::stream::BoxStream;

#[derive(Debug)]
pub(crate) struct Fake(pub(crate) String);

impl Fake {
    fn me(&self) -> AdapterInfo {
        AdapterInfo::new("fake", "0").with_name(self.0.clone())
    }

    fn availability(&self) -> Availability {
        match self.0.contains("true") {
            true => Availability::ready(),
            false => Availability::unavailable("fake", "none"),
        }
    }
}

fn no<T>() -> Result<T> {
    Err(Error::unsupported("a fake"))
}

#[async_trait]
impl ContainerRuntime for Fake {
    fn info(&self) -> AdapterInfo {
        self.me()
    }
    fn capabilities(&self) -> RuntimeCapabilities {
        RuntimeCapabilities::none()
    }
    async fn check_availability(&self) -> Result<Availability> {
        Ok(self.availability())
    }
    async fn provision(&self, _: Admitted) -> Result<Provisioned> {
        no()
    }
    async fn start(&self, _: StartRequest) -> Result<ExecSession> {
        no()
    }
    async fn exec(&self, _: ExecRequest) -> Result<ExecSession> {
        no()
    }
    async fn copy_from(&self, _: CopyFromRequest) -> Result<ByteStream> {
        no()
    }
    async fn copy_to(&self, _: CopyToRequest) -> Result<()> {
        no()
    }
    async fn stats(&self, _: &ContainerHandle) -> Result<ContainerStats> {
        no()
    }
    async fn list(&self, _: &BTreeMap<String, String>) -> Result<Vec<ContainerInfo>> {
        no()
    }
    async fn inspect(&self, _: &ContainerId) -> Result<ContainerInfo> {
        no()
    }
    async fn destroy(&self, _: &ContainerId) -> Result<()> {
        no()
    }
    async fn reap(&self) -> Result<Vec<String>> {
        no()
    }
}

#[async_trait]
impl StorageBackend for Fake {
    fn info(&self) -> AdapterInfo {
        self.me()
    }
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities::none()
    }
    async fn check_availability(&self) -> Result<Availability> {
        Ok(self.availability())
    }
    async fn store(&self, _: StoreRequest) -> Result<ArtifactInfo> {
        no()
    }
    async fn retrieve(&self, _: RetrieveRequest) -> Result<Retrieved> {
        no()
    }
    fn list(&self, _: &SessionId) -> BoxStream<'static, Result<ArtifactInfo>> {
        Box::pin(futures_util::stream::empty())
    }
    async fn delete(&self, _: DeleteRequest) -> Result<Vec<ArtifactInfo>> {
        no()
    }
    async fn presign(&self, _: &str, _: Duration) -> Result<String> {
        no()
    }
    async fn reap(&self) -> Result<Vec<String>> {
        no()
    }
}

#[async_trait]
impl AuditLogger for Fake {
    fn info(&self) -> AdapterInfo {
        self.me()
    }
    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none()
    }
    async fn check_availability(&self) -> Result<Availability> {
        Ok(self.availability())
    }
    fn location(&self) -> String {
        self.0.clone()
    }
    async fn emit(&self, _: AuditEvent) -> Result<()> {
        no()
    }
    async fn emit_batch(&self, _: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        no()
    }
    async fn query(&self, _: AuditQuery) -> Result<AuditPage> {
        no()
    }
    async fn flush(&self) -> Result<()> {
        no()
    }
    async fn shutdown(&self) -> Result<()> {
        no()
    }
}

#[async_trait]
impl PolicyValidator for Fake {
    fn info(&self) -> AdapterInfo {
        self.me()
    }
    async fn check_availability(&self) -> Result<Availability> {
        Ok(self.availability())
    }
    async fn validate(&self, _: &Policy, _: &EnforcementContext) -> Result<ValidationResult> {
        no()
    }
    async fn enforce(&self, _: Policy, _: &EnforcementContext) -> Result<Enforced> {
        no()
    }
    async fn check_compliance(&self, _: &Policy, _: &[String]) -> Result<ComplianceReport> {
        no()
    }
}
