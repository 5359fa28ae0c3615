//! Artifacts in a bucket of S3, Azure or GCS, or of a service that speaks like one of them.

#[cfg(any(feature = "s3", feature = "gcs"))]
pub(crate) mod ask;
pub(crate) mod config;
#[cfg(any(feature = "s3", feature = "gcs"))]
pub(crate) mod credentials;
pub(crate) mod error;
pub(crate) mod http;
pub(crate) mod layout;
mod lease;
mod publish;
mod read;
mod record;
mod sign;
#[cfg(any(feature = "s3", feature = "gcs"))]
pub(crate) mod sweep;
mod upload;

use std::{fmt, sync::Arc, time::Duration};

use agents_core::{
    AdapterInfo, ArtifactInfo, Availability, DeleteRequest, Error, ErrorKind, PresignPutRequest, PresignedPut, Result,
    RetrieveRequest, Retrieved, SessionId, StorageBackend, StorageCapabilities, StoreRequest,
};
use async_trait::async_trait;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    list::{PaginatedListOptions, PaginatedListStore},
    path::Path,
    signer::Signer,
};

use self::{
    layout::{Place, Root, new_id},
    lease::Lease,
    record::{MANIFEST_MAX, Manifest, Record},
};
pub(crate) use self::{record::Keys, sign::SignedUploads};

/// How many objects are asked about at once. The limit of all requests together is the client's.
const LOOKS: usize = 32;

/// What a client of one service can do.
pub(crate) trait Store: ObjectStore + PaginatedListStore {}

impl<T: ObjectStore + PaginatedListStore> Store for T {}

/// Removes what an upload to this key left behind when it was never completed.
#[async_trait]
pub(crate) trait Sweep: fmt::Debug + Send + Sync + 'static {
    async fn sweep(&self, key: &Path) -> object_store::Result<()>;
}

/// Credentials that can be fetched again before their time.
#[async_trait]
pub(crate) trait Renew: fmt::Debug + Send + Sync + 'static {
    /// Forgets them when they are at least this old; says whether it did.
    async fn renew(&self) -> bool;
}

/// A client of one service, and how it differs from the others.
#[derive(Debug)]
pub(crate) struct Service {
    /// The type, as in a configuration.
    pub(crate) adapter_type: &'static str,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) signer: Arc<dyn Signer>,
    pub(crate) sweep: Arc<dyn Sweep>,
    pub(crate) renew: Option<Arc<dyn Renew>>,
    pub(crate) root: Root,
    pub(crate) keys: Keys,
    /// Of contents; manifests and what else is small have the bucket's default.
    pub(crate) storage_class: Option<String>,
    pub(crate) uploads: SignedUploads,
    /// Why URLs cannot be signed, if they cannot.
    pub(crate) unsigned: Option<&'static str>,
    /// An upload whose owner gave no sign of life for so long is removed by `reap`.
    pub(crate) orphan_after: Duration,
}

/// Keeps artifacts in a bucket. Made by a factory: [`S3Factory`](crate::S3Factory), [`AzureFactory`](crate::AzureFactory)
/// or [`GcsFactory`](crate::GcsFactory).
#[derive(Clone, Debug)]
pub(crate) struct CloudStorage(Arc<Service>);

impl CloudStorage {
    pub(crate) fn new(service: Service) -> Self {
        Self(Arc::new(service))
    }
}

/// A version as it is stored: in its own object, or as a manifest that names the content.
#[derive(Debug)]
enum Stored {
    Inline(Record),
    Manifest(Manifest),
}

impl Stored {
    fn info(self, service: &Service, place: &Place) -> ArtifactInfo {
        match self {
            Self::Inline(record) => record.into_info(place, service.root.uri_of(place)),
            Self::Manifest(manifest) => {
                let uri = service.root.uri_of(&manifest.content(place));
                manifest.record.into_info(place, uri)
            }
        }
    }
}

impl Service {
    fn error(&self, error: &object_store::Error) -> Error {
        error::map(error, &self.root.uri())
    }

    /// Does a request again when the credentials turn out to have expired before their time.
    async fn call<T, F>(&self, request: impl Fn() -> F + Send) -> object_store::Result<T>
    where
        F: Future<Output = object_store::Result<T>> + Send,
    {
        match (request().await, &self.renew) {
            (Err(error), Some(renew)) if error::is_expired(&error) => match renew.renew().await {
                true => request().await,
                false => Err(error),
            },
            (result, _) => result,
        }
    }

    /// Which of two things is missing: the object, or the bucket.
    fn absent(&self, error: &object_store::Error) -> Option<Error> {
        let error = self.error(error);
        let bucket = error.message().contains("bucket");
        (error.kind() != ErrorKind::NotFound || bucket).then_some(error)
    }

    /// What is known of a version; `None` when there is none.
    async fn look(&self, place: &Place) -> Result<Option<Stored>> {
        let path = self.root.path(&place.key());
        let head = || self.store.get_opts(&path, GetOptions::new().with_head(true));
        let found = match self.call(head).await {
            Ok(found) => found,
            Err(error) => return self.absent(&error).map_or(Ok(None), Err),
        };
        let uri = |error: Error| error.with_context("uri", self.root.uri_of(place));
        if !self.keys.is_manifest(&found.attributes) {
            let record = self.keys.read(&found.attributes, &found.meta, place).map_err(uri)?;
            return Ok(Some(Stored::Inline(record)));
        }
        let content = match self.call(|| self.store.get(&path)).await {
            Ok(content) => content,
            Err(error) => return self.absent(&error).map_or(Ok(None), Err),
        };
        let manifest = self.manifest(content, place).await.map_err(uri)?;
        Ok(Some(Stored::Manifest(manifest)))
    }

    async fn manifest(&self, content: object_store::GetResult, place: &Place) -> Result<Manifest> {
        if content.meta.size > MANIFEST_MAX {
            return Err(Error::new(
                ErrorKind::DataInvalid,
                "the manifest is too large to be one",
            ));
        }
        let json = content.bytes().await.map_err(|error| self.error(&error))?;
        Manifest::parse(&json, place)
    }

    /// Every version of a session, or of one artifact of it, in no order.
    async fn places(&self, session: &SessionId, folder: Option<&str>) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        let prefix = self.root.versions(session, folder);
        let mut pages = self.pages(prefix, None);
        while let Some(page) = pages.try_next().await? {
            let keys = page.objects.iter().map(|object| object.location.as_ref());
            places.extend(keys.filter_map(|key| Place::parse(self.root.below(key)?)));
        }
        places.retain(|place| place.id.is_none());
        Ok(places)
    }

    /// The version that a store would make now.
    async fn next_version(&self, session: &SessionId, folder: &str) -> Result<u64> {
        let places = self.places(session, Some(folder)).await?;
        Ok(places.iter().map(|place| place.version).max().unwrap_or(0) + 1)
    }

    /// All pages of a list.
    fn pages(
        &self,
        prefix: String,
        delimiter: Option<&'static str>,
    ) -> BoxStream<'_, Result<object_store::ListResult>> {
        stream::try_unfold(Some(None), move |token: Option<Option<String>>| {
            let prefix = prefix.clone();
            async move {
                let Some(page_token) = token else { return Ok(None) };
                let ask = || {
                    let options = PaginatedListOptions {
                        delimiter: delimiter.map(Into::into),
                        page_token: page_token.clone(),
                        ..PaginatedListOptions::default()
                    };
                    self.store.list_paginated(Some(&prefix), options)
                };
                let page = self.call(ask).await.map_err(|error| self.error(&error))?;
                Ok(Some((page.result, page.page_token.map(Some))))
            }
        })
        .boxed()
    }

    /// A session's versions, ordered by name, then version.
    async fn ordered(&self, session: &SessionId, folder: Option<&str>) -> Result<Vec<Place>> {
        let mut by_folder = std::collections::BTreeMap::<String, Vec<Place>>::new();
        for place in self.places(session, folder).await? {
            by_folder.entry(place.folder.clone()).or_default().push(place);
        }
        let mut artifacts = Vec::new();
        for (folder, mut places) in by_folder {
            places.sort_unstable_by_key(|place| place.version);
            let name = match layout::name_of(&folder) {
                Some(Some(name)) => name.as_str().to_owned(),
                // Only the version itself knows its name. A damaged one is listed under what there is.
                _ => match self.look(&places[0]).await {
                    Ok(Some(stored)) => stored.info(self, &places[0]).name.as_str().to_owned(),
                    Ok(None) | Err(_) => folder,
                },
            };
            artifacts.push((name, places));
        }
        artifacts.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(artifacts.into_iter().flat_map(|(_, places)| places).collect())
    }

    /// Deletes objects; those that are gone already are no error.
    async fn remove(&self, paths: Vec<Path>) -> Result<()> {
        if let [path] = &paths[..] {
            return match self.call(|| self.store.delete(path)).await {
                Ok(()) => Ok(()),
                Err(error) => self.absent(&error).map_or(Ok(()), Err),
            };
        }
        let mut results = self
            .store
            .delete_stream(stream::iter(paths.into_iter().map(Ok)).boxed());
        let mut fault = None;
        while let Some(result) = results.next().await {
            if let Err(error) = result {
                fault = fault.or(self.absent(&error));
            }
        }
        fault.map_or(Ok(()), Err)
    }

    /// Deletes what it finds once; says what it was.
    async fn delete_found(self: &Arc<Self>, places: Vec<Place>) -> Result<Vec<ArtifactInfo>> {
        let looked: Vec<_> = stream::iter(places)
            .map(|place| async move {
                let stored = self.look(&place).await;
                (place, stored)
            })
            .buffered(LOOKS)
            .collect()
            .await;
        let mut gone = Vec::new();
        let mut contents = Vec::new();
        let mut versions = Vec::new();
        for (place, stored) in looked {
            let place = versions.push_mut(place);
            let stored = match stored {
                Ok(Some(stored)) => stored,
                Ok(None) => continue,
                // Nothing can be said of a damaged version, which is deleted all the same.
                Err(error) if error.kind() == ErrorKind::DataInvalid => continue,
                Err(error) => return Err(error),
            };
            if let Stored::Manifest(manifest) = &stored {
                contents.push(manifest.content(place).key());
            }
            gone.push(stored.info(self, place));
        }
        // The highest first, so that what an interruption leaves has no gaps.
        versions.sort_by_key(|place| std::cmp::Reverse(place.version));
        let versions = versions.iter().map(|place| self.root.path(&place.key())).collect();
        if contents.is_empty() {
            self.remove(versions).await?;
        } else {
            // Without its manifest nobody would find a content, so it is noted down first.
            let lease = Lease::begin(Arc::clone(self), new_id(), contents.clone()).await?;
            self.remove(versions).await?;
            self.remove(contents.iter().map(|key| self.root.path(key)).collect())
                .await?;
            lease.end().await?;
        }
        Ok(gone)
    }

    /// Writes, writes again without overwriting, and removes, since a server that ignores the condition loses artifacts.
    async fn probe(&self) -> Result<()> {
        let path = self.root.upload(&format!("probe-{}", new_id()));
        let create = || {
            let body = PutPayload::from_static(br#"{"contents":[]}"#);
            self.store.put_opts(&path, body, PutMode::Create.into())
        };
        self.call(create).await.map_err(|error| self.error(&error))?;
        let again = self.call(create).await;
        self.remove(vec![path.clone()]).await?;
        match again {
            Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(self.error(&error)),
            Ok(_) => Err(Error::unsupported(
                "the service overwrites an object that it was told not to, so versions could be lost",
            )),
        }
    }
}

#[async_trait]
impl StorageBackend for CloudStorage {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new(self.0.adapter_type, env!("CARGO_PKG_VERSION")).with_name(self.0.root.uri())
    }

    fn capabilities(&self) -> StorageCapabilities {
        let signs = self.0.unsigned.is_none();
        StorageCapabilities::none()
            .with_durable(true)
            .with_sessions(true)
            .with_presign(signs)
            .with_presign_put(signs)
    }

    async fn check_availability(&self) -> Result<Availability> {
        Ok(match self.0.probe().await {
            Ok(()) => Availability::ready().with_fact(self.0.root.uri()),
            Err(error) => {
                let remedy = match error.kind() {
                    ErrorKind::NotFound => "create the bucket or container, or correct its name",
                    ErrorKind::Unauthenticated => {
                        "give credentials that the service accepts; `docs/storage.md` lists the ways"
                    }
                    ErrorKind::PermissionDenied => "grant the permissions that `docs/storage.md` lists",
                    ErrorKind::ConfigInvalid => "correct the configuration of the storage backend",
                    ErrorKind::Unsupported => "use a service with conditional writes (If-None-Match)",
                    _ => "check the endpoint, the network and the service",
                };
                Availability::unavailable(error.report(), remedy)
            }
        })
    }

    async fn store(&self, request: StoreRequest) -> Result<ArtifactInfo> {
        upload::store(&self.0, request).await
    }

    async fn retrieve(&self, request: RetrieveRequest) -> Result<Retrieved> {
        self.0.retrieve(request).await
    }

    fn list(&self, session_id: &SessionId) -> BoxStream<'static, Result<ArtifactInfo>> {
        let (service, session) = (Arc::clone(&self.0), session_id.clone());
        stream::once(async move {
            let places = service.ordered(&session, None).await?;
            let infos = stream::iter(places)
                .map(move |place| {
                    let service = Arc::clone(&service);
                    async move {
                        let stored = service.look(&place).await?;
                        Ok::<_, Error>(stored.map(|stored| stored.info(&service, &place)))
                    }
                })
                .buffered(LOOKS)
                .filter_map(|found| async move { found.transpose() });
            Ok::<_, Error>(infos)
        })
        .try_flatten()
        .boxed()
    }

    async fn delete(&self, request: DeleteRequest) -> Result<Vec<ArtifactInfo>> {
        let folder = request.name.as_ref().map(layout::folder_of);
        let mut gone = Vec::new();
        // What is stored meanwhile goes too, so that the next version is the first.
        for _ in 0..10 {
            let places = self.0.ordered(&request.session_id, folder.as_deref()).await?;
            if places.is_empty() {
                break;
            }
            gone.extend(self.0.delete_found(places).await?);
        }
        gone.sort_by(|a: &ArtifactInfo, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        Ok(gone)
    }

    async fn presign(&self, uri: &str, expires_in: Duration) -> Result<String> {
        self.0.presign(uri, expires_in).await
    }

    async fn reap(&self) -> Result<Vec<String>> {
        lease::reap(&self.0).await
    }

    fn sessions(&self) -> BoxStream<'static, Result<SessionId>> {
        let service = Arc::clone(&self.0);
        stream::once(async move {
            let mut sessions = std::collections::BTreeSet::new();
            let mut pages = service.pages(service.root.sessions(), Some("/"));
            while let Some(page) = pages.try_next().await? {
                for folder in page.common_prefixes {
                    let name = service.root.below(folder.as_ref());
                    sessions.extend(name.and_then(|name| SessionId::new(name.trim_end_matches('/')).ok()));
                }
            }
            drop(pages);
            // What a deletion or a crash left of a session is none.
            let there = stream::iter(sessions)
                .map(move |session| {
                    let service = Arc::clone(&service);
                    async move {
                        let is_there = service.has_version(&session).await?;
                        Ok::<_, Error>(is_there.then_some(session))
                    }
                })
                .buffered(LOOKS)
                .filter_map(|found| async move { found.transpose() });
            Ok::<_, Error>(there)
        })
        .try_flatten()
        .boxed()
    }

    async fn presign_put(&self, request: PresignPutRequest) -> Result<PresignedPut> {
        self.0.presign_put(request).await
    }
}

impl Service {
    async fn has_version(&self, session: &SessionId) -> Result<bool> {
        let mut pages = self.pages(self.root.versions(session, None), None);
        while let Some(page) = pages.try_next().await? {
            let mut keys = page.objects.iter().map(|object| object.location.as_ref());
            let is_version = |key| {
                let place = self.root.below(key).and_then(Place::parse);
                place.is_some_and(|place| place.id.is_none())
            };
            if keys.any(is_version) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
