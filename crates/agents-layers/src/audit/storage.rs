//! A storage backend whose operations are on record.

use std::{sync::Arc, time::Duration};

use agents_core::{
    AdapterInfo, ArtifactInfo, AuditClass, Availability, DeleteRequest, PresignPutRequest, PresignedPut, Result,
    RetrieveRequest, Retrieved, SessionId, StorageBackend, StorageCapabilities, StoreRequest,
};
use async_trait::async_trait;
use futures_core::stream::BoxStream;
use serde_json::{Value, json};

use super::{
    Trail,
    operation::{Intent, Operation},
};

#[derive(Debug)]
pub(super) struct RecordedStorage {
    pub(super) inner: Arc<dyn StorageBackend>,
    pub(super) trail: Trail,
}

impl RecordedStorage {
    /// The session of what is stored, unless it is the trail's own.
    fn session(&self, id: &SessionId) -> Option<String> {
        let own = self.trail.scope().session_id.as_ref();
        (own != Some(id)).then(|| id.to_string())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl StorageBackend for RecordedStorage {
    fn info(&self) -> AdapterInfo {
        self.inner.info()
    }

    fn capabilities(&self) -> StorageCapabilities {
        self.inner.capabilities()
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.inner.check_availability().await
    }

    async fn store(&self, request: StoreRequest) -> Result<ArtifactInfo> {
        let known = json!({
            "session": self.session(&request.session_id),
            "name": request.name,
            "size": request.body.size(),
            "content_type": request.content_type,
        });
        let intent = Intent::new("storage.store", AuditClass::Store, known);
        let operation = Operation::begin(&self.trail, intent).await?;
        operation.settle(
            self.inner.store(request).await,
            |info| json!({"uri": info.uri, "size": info.size, "sha256": info.sha256, "version": info.version}),
        )
    }

    async fn retrieve(&self, request: RetrieveRequest) -> Result<Retrieved> {
        self.inner.retrieve(request).await
    }

    fn list(&self, session_id: &SessionId) -> BoxStream<'static, Result<ArtifactInfo>> {
        self.inner.list(session_id)
    }

    async fn delete(&self, request: DeleteRequest) -> Result<Vec<ArtifactInfo>> {
        let known = json!({"session": self.session(&request.session_id), "name": request.name});
        let intent = Intent::new("storage.delete", AuditClass::Delete, known);
        let operation = Operation::begin(&self.trail, intent).await?;
        operation.settle(
            self.inner.delete(request).await,
            |deleted| json!({ "deleted": deleted.len() }),
        )
    }

    async fn presign(&self, uri: &str, expires_in: Duration) -> Result<String> {
        let known = json!({"uri": uri, "expires_in_seconds": expires_in.as_secs_f64()});
        let intent = Intent::new("storage.presign", AuditClass::Store, known);
        let operation = Operation::begin(&self.trail, intent).await?;
        // Whoever has the URL has the right, so it is not shown.
        operation.settle(self.inner.presign(uri, expires_in).await, |_| Value::Null)
    }

    async fn reap(&self) -> Result<Vec<String>> {
        let intent = Intent::new("storage.reap", AuditClass::Delete, Value::Null);
        let operation = Operation::begin(&self.trail, intent).await?;
        operation.settle(self.inner.reap().await, |removed| json!({ "removed": removed }))
    }

    fn sessions(&self) -> BoxStream<'static, Result<SessionId>> {
        self.inner.sessions()
    }

    async fn presign_put(&self, request: PresignPutRequest) -> Result<PresignedPut> {
        let known = json!({
            "session": self.session(&request.session_id),
            "name": request.name,
            "sha256": request.sha256,
            "expires_in_seconds": request.expires_in.as_secs_f64(),
        });
        let intent = Intent::new("storage.presign_put", AuditClass::Store, known);
        let operation = Operation::begin(&self.trail, intent).await?;
        operation.settle(
            self.inner.presign_put(request).await,
            |signed| json!({"uri": signed.uri, "version": signed.version}),
        )
    }
}
