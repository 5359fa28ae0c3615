//! Artifacts in this process's memory.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agents_core::{
    AdapterInfo, ArtifactInfo, ArtifactName, Availability, BuildContext, DeleteRequest, Error, Factory, Result,
    RetrieveRequest, Retrieved, SessionId, StorageBackend, StorageCapabilities, StoreRequest,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::{Hasher, check_announced, check_range};

/// The type, as in a configuration.
const TYPE: &str = "memory";

/// Keeps artifacts in memory, until it is dropped. Clones share their content.
#[derive(Clone)]
pub struct MemoryStorage {
    instance: Arc<str>,
    artifacts: Arc<Mutex<Artifacts>>,
}

/// All versions of each artifact; version N is at index N - 1.
type Artifacts = BTreeMap<(SessionId, ArtifactName), Vec<(ArtifactInfo, Bytes)>>;

impl MemoryStorage {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            instance: uuid::Uuid::now_v7().simple().to_string().into(),
            artifacts: Arc::default(),
        }
    }

    fn artifacts(&self) -> MutexGuard<'_, Artifacts> {
        // No code can panic while the map is half changed.
        self.artifacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uri(&self, session: &SessionId, name: &ArtifactName, version: u64) -> String {
        format!("memory://{}/{session}/{version}/{name}", self.instance)
    }

    fn parse_uri(&self, uri: &str) -> Result<(SessionId, ArtifactName, u64)> {
        let foreign = || Error::invalid(format!("{uri:?} is not an artifact of this memory store"));
        let rest = uri
            .strip_prefix("memory://")
            .and_then(|rest| rest.strip_prefix(&*self.instance))
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(foreign)?;
        let mut parts = rest.splitn(3, '/');
        let session = SessionId::new(parts.next().unwrap_or_default())?;
        let version = parts.next().and_then(|text| text.parse().ok()).ok_or_else(foreign)?;
        let name = ArtifactName::new(parts.next().unwrap_or_default())?;
        Ok((session, name, version))
    }
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStorage({} artifacts)", self.artifacts().len())
    }
}

#[async_trait]
impl StorageBackend for MemoryStorage {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new(TYPE, env!("CARGO_PKG_VERSION"))
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities::none().with_sessions(true)
    }

    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }

    async fn store(&self, request: StoreRequest) -> Result<ArtifactInfo> {
        request.check()?;
        let announced = request.body.size();
        let mut stream = request.body.into_stream();
        let mut hasher = Hasher::new();
        let mut content = BytesMut::new();
        while let Some(chunk) = stream.try_next().await? {
            hasher.update(&chunk);
            content.extend_from_slice(&chunk);
        }
        check_announced(announced, hasher.size())?;
        let mut artifacts = self.artifacts();
        let key = (request.session_id, request.name);
        let uri_of = |version| self.uri(&key.0, &key.1, version);
        let version = artifacts.get(&key).map_or(0, Vec::len) as u64 + 1;
        let info = ArtifactInfo::new(
            key.0.clone(),
            key.1.clone(),
            uri_of(version),
            hasher.size(),
            hasher.finish(),
            version,
            Timestamp::now(),
        )
        .with_content_type(request.content_type)
        .with_metadata(request.metadata);
        artifacts.entry(key).or_default().push((info.clone(), content.freeze()));
        Ok(info)
    }

    async fn retrieve(&self, request: RetrieveRequest) -> Result<Retrieved> {
        let (session, name, version) = self.parse_uri(&request.uri)?;
        let index = usize::try_from(version).ok().and_then(|version| version.checked_sub(1));
        let found = self
            .artifacts()
            .get(&(session, name))
            .and_then(|versions| versions.get(index?).cloned());
        let Some((info, content)) = found else {
            return Err(Error::not_found("there is no such artifact").with_context("uri", request.uri));
        };
        let range = check_range(request.range, info.size)?;
        let content = content.slice(range.start as usize..range.end as usize);
        let content = stream::once(std::future::ready(Ok(content))).boxed();
        Ok(Retrieved { info, content })
    }

    fn list(&self, session_id: &SessionId) -> BoxStream<'static, Result<ArtifactInfo>> {
        let infos: Vec<_> = self
            .artifacts()
            .iter()
            .filter(|((session, _), _)| session == session_id)
            .flat_map(|(_, versions)| versions.iter().map(|(info, _)| Ok(info.clone())))
            .collect();
        stream::iter(infos).boxed()
    }

    async fn delete(&self, request: DeleteRequest) -> Result<Vec<ArtifactInfo>> {
        let mut gone = Vec::new();
        self.artifacts().retain(|(session, name), versions| {
            let keep = *session != request.session_id || request.name.as_ref().is_some_and(|wanted| wanted != name);
            if !keep {
                gone.extend(versions.drain(..).map(|(info, _)| info));
            }
            keep
        });
        Ok(gone)
    }

    async fn presign(&self, _: &str, _: Duration) -> Result<String> {
        Err(Error::unsupported(
            "memory has no URLs that others can open; use s3, azure or gcs, or retrieve the artifact",
        ))
    }

    async fn reap(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn sessions(&self) -> BoxStream<'static, Result<SessionId>> {
        let mut sessions: Vec<_> = self.artifacts().keys().map(|(session, _)| session.clone()).collect();
        sessions.dedup();
        stream::iter(sessions.into_iter().map(Ok)).boxed()
    }
}

/// The configuration of `type: memory`: there is nothing to set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MemoryConfig {}

/// Makes a [`MemoryStorage`].
#[derive(Debug)]
pub struct MemoryFactory;

#[async_trait]
impl Factory for MemoryFactory {
    const TYPE: &'static str = TYPE;
    type Config = MemoryConfig;
    type Adapter = dyn StorageBackend;

    fn validate(_: &Self::Config) -> Result<()> {
        Ok(())
    }

    async fn build(_: Self::Config, _: &BuildContext) -> Result<Arc<Self::Adapter>> {
        Ok(Arc::new(MemoryStorage::new()))
    }
}
