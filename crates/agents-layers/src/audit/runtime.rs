//! A runtime whose operations are on record.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use agents_core::{
    AdapterInfo, Admitted, AuditClass, Availability, BuildImageRequest, ByteStream, ContainerHandle, ContainerId,
    ContainerInfo, ContainerRuntime, ContainerStats, CopyFromRequest, CopyToRequest, ExecRequest, ExecSession,
    Provisioned, Result, RuntimeCapabilities, StartRequest,
};
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{
    Trail,
    operation::{Intent, Operation, facts},
    process,
};

#[derive(Debug)]
pub(super) struct RecordedRuntime {
    pub(super) inner: Arc<dyn ContainerRuntime>,
    pub(super) trail: Trail,
}

impl RecordedRuntime {
    fn provision_intent(&self, admitted: &Admitted) -> Intent {
        let request = admitted.request();
        let secrets: Vec<_> = request.secrets.iter().map(|secret| secret.name.as_str()).collect();
        let network = &request.network;
        let opened = !network.allowed_endpoints.is_empty() || !network.ingress_ports.is_empty();
        let process = request.process.as_ref();
        let mut environment = request.env.clone();
        environment.extend(process.iter().flat_map(|process| process.env.clone()));
        let known = json!({
            "name": request.name,
            "image": request.image,
            "command": process.map(|process| self.trail.command(&process.command)),
            "environment": self.trail.environment(&environment),
            "working_dir": request.working_dir,
            "mounts": request.mounts,
            "resources": request.resources,
            "network": network,
            "security": request.security,
            "secrets": secrets,
        });
        Intent::new("runtime.provision", AuditClass::Provision, known)
            .and(AuditClass::Secret, !secrets.is_empty())
            .and(AuditClass::Egress, opened)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ContainerRuntime for RecordedRuntime {
    fn info(&self) -> AdapterInfo {
        self.inner.info()
    }

    fn capabilities(&self) -> RuntimeCapabilities {
        self.inner.capabilities()
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.inner.check_availability().await
    }

    async fn provision(&self, request: Admitted) -> Result<Provisioned> {
        let operation = Operation::begin(&self.trail, self.provision_intent(&request)).await?;
        let provisioned = self.inner.provision(request).await;
        operation.settle(provisioned, |provisioned| json!({ "container_id": provisioned.id() }))
    }

    async fn start(&self, request: StartRequest) -> Result<ExecSession> {
        let container = request.container.id.clone();
        let known = json!({
            "container_id": container,
            "deadline_seconds": request.deadline.map(|time| time.as_secs_f64()),
        });
        let operation = Operation::begin(&self.trail, Intent::new("runtime.start", AuditClass::Exec, known)).await?;
        process::record(&self.trail, container, operation, self.inner.start(request).await)
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        let container = request.container.id.clone();
        let process = &request.process;
        let known = json!({
            "container_id": container,
            "command": self.trail.command(&process.command),
            "environment": self.trail.environment(&process.env),
            "working_dir": process.working_dir,
            "stdin": process.stdin,
            "tty": process.tty.is_some(),
            "deadline_seconds": request.deadline.map(|time| time.as_secs_f64()),
        });
        let operation = Operation::begin(&self.trail, Intent::new("runtime.exec", AuditClass::Exec, known)).await?;
        process::record(&self.trail, container, operation, self.inner.exec(request).await)
    }

    async fn copy_from(&self, request: CopyFromRequest) -> Result<ByteStream> {
        let known = json!({"container_id": request.container.id, "path": request.path, "quiesce": request.quiesce});
        let intent = Intent::new("runtime.copy_from", AuditClass::Copy, known);
        let operation = Operation::begin(&self.trail, intent).await?;
        match self.inner.copy_from(request).await {
            Ok(archive) => Ok(until_its_end(archive, operation)),
            Err(error) => {
                operation.fail(&error);
                Err(error)
            }
        }
    }

    async fn copy_to(&self, request: CopyToRequest) -> Result<()> {
        let known = json!({"container_id": request.container.id, "path": request.path});
        let operation = Operation::begin(&self.trail, Intent::new("runtime.copy_to", AuditClass::Copy, known)).await?;
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&bytes);
        let CopyToRequest {
            container,
            path,
            archive,
            ..
        } = request;
        let archive = archive.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                counted.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        });
        let copied = self
            .inner
            .copy_to(CopyToRequest::new(container, path, archive.boxed()))
            .await;
        operation.settle(copied, |()| json!({ "bytes": bytes.load(Ordering::Relaxed) }))
    }

    async fn stats(&self, container: &ContainerHandle) -> Result<ContainerStats> {
        self.inner.stats(container).await
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerInfo>> {
        self.inner.list(labels).await
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo> {
        self.inner.inspect(id).await
    }

    async fn destroy(&self, id: &ContainerId) -> Result<()> {
        let intent = Intent::new("runtime.destroy", AuditClass::Destroy, json!({ "container_id": id }));
        let operation = Operation::begin_unwaited(&self.trail, intent);
        self.trail.flush_now();
        operation.settle(self.inner.destroy(id).await, |()| Value::Null)
    }

    async fn reap(&self) -> Result<Vec<String>> {
        let operation = Operation::begin_unwaited(
            &self.trail,
            Intent::new("runtime.reap", AuditClass::Destroy, Value::Null),
        );
        self.trail.flush_now();
        operation.settle(self.inner.reap().await, |removed| json!({ "removed": removed }))
    }

    async fn build_image(&self, request: BuildImageRequest) -> Result<String> {
        let known = json!({
            "context": request.context,
            "containerfile": request.containerfile,
            "tag": request.tag,
            "network": request.network,
        });
        let intent =
            Intent::new("runtime.build_image", AuditClass::Provision, known).and(AuditClass::Egress, request.network);
        let operation = Operation::begin(&self.trail, intent).await?;
        operation.settle(self.inner.build_image(request).await, |image| json!({ "image": image }))
    }
}

/// The archive, with the outcome where it ends.
fn until_its_end(archive: ByteStream, operation: Operation) -> ByteStream {
    let state = (archive, Some(operation), 0_u64);
    stream::unfold(state, |(mut archive, mut operation, mut bytes)| async move {
        let item = archive.next().await;
        match &item {
            Some(Ok(chunk)) => bytes += chunk.len() as u64,
            Some(Err(error)) => {
                if let Some(operation) = operation.take() {
                    operation.fail(error);
                }
            }
            None => {
                if let Some(operation) = operation.take() {
                    operation.succeed(facts(json!({ "bytes": bytes })));
                }
            }
        }
        item.map(|item| (item, (archive, operation, bytes)))
    })
    .boxed()
}
