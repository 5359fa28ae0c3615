//! Where artifacts go: the [`StorageBackend`] trait and its requests.

use std::{collections::BTreeMap, fmt, ops::Range, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AdapterInfo, ArtifactName, Availability, ByteStream, Error, Result, SessionId};

/// Where artifacts go.
///
/// # For adapter authors
///
/// - `store` **must** be atomic: the artifact is visible whole or not at all, also after a crash or a dropped future, and
///   it **must** be durable by the backend's own promise when `store` returns.
/// - Artifacts are immutable. Storing a name again **must** make a new version, numbered from 1 without gaps, and **must
///   not** change what an earlier URI gives.
/// - Content **must** be streamed: memory does not grow with its size.
/// - The SHA-256 **must** be that of the bytes that were stored, and `retrieve` of the whole **must** fail with
///   `DataInvalid` before its end when the bytes differ from it.
/// - A URI of another backend, bucket or folder **must** be refused with `ConfigInvalid` before any I/O.
///
/// # For callers
///
/// A `store` that fails or is dropped leaves nothing visible, so it can be repeated; repeating one whose answer was lost
/// may make a second version of the same content.
#[async_trait]
pub trait StorageBackend: fmt::Debug + Send + Sync + 'static {
    /// What this adapter is.
    fn info(&self) -> AdapterInfo;

    /// What this backend can do.
    fn capabilities(&self) -> StorageCapabilities;

    /// Whether the backend can be reached and written to.
    ///
    /// # Errors
    ///
    /// Only when the question itself could not be asked; "not available" is a value.
    async fn check_availability(&self) -> Result<Availability>;

    /// Stores an artifact.
    ///
    /// # Errors
    ///
    /// The content stream's own error; `ResourceExhausted` when the backend is full; `DataInvalid` when the size or the
    /// SHA-256 differs from what the request announced.
    async fn store(&self, request: StoreRequest) -> Result<ArtifactInfo>;

    /// Reads an artifact, or a range of it.
    ///
    /// # Errors
    ///
    /// `NotFound`; `ConfigInvalid` for a URI of another backend or a range beyond the end.
    async fn retrieve(&self, request: RetrieveRequest) -> Result<Retrieved>;

    /// Every version of every artifact of a session, ordered by name, then version. A session without artifacts is empty.
    fn list(&self, session_id: &SessionId) -> BoxStream<'static, Result<ArtifactInfo>>;

    /// Deletes all artifacts of a session, or the one with the given name in all its versions; says what is gone.
    /// Deleting what is not there succeeds.
    async fn delete(&self, request: DeleteRequest) -> Result<Vec<ArtifactInfo>>;

    /// A URL that gives access to an artifact for a while, to anyone who has it.
    ///
    /// # Errors
    ///
    /// `Unsupported` when [`StorageCapabilities::presign`] is off.
    async fn presign(&self, uri: &str, expires_in: Duration) -> Result<String>;

    /// Removes what interrupted uploads left behind, and says what was removed.
    async fn reap(&self) -> Result<Vec<String>>;

    /// Every session that has artifacts, each once, ordered by id.
    ///
    /// # Errors
    ///
    /// `Unsupported` when [`StorageCapabilities::sessions`] is off.
    fn sessions(&self) -> BoxStream<'static, Result<SessionId>> {
        let error = Error::unsupported("this storage backend cannot list its sessions");
        futures_util::stream::once(std::future::ready(Err(error))).boxed()
    }

    /// A URL that lets anyone who has it store this one artifact, once, without any other right.
    ///
    /// The version is the next one at this moment. When another store takes it first, the upload is refused by the server
    /// and a new URL is needed.
    ///
    /// # Errors
    ///
    /// `Unsupported` when [`StorageCapabilities::presign_put`] is off.
    async fn presign_put(&self, request: PresignPutRequest) -> Result<PresignedPut> {
        let _ = request;
        Err(Error::unsupported(
            "this storage backend cannot sign URLs for uploads; store the artifact through the SDK",
        ))
    }
}

/// Conveniences over every [`StorageBackend`].
#[async_trait]
pub trait StorageBackendExt {
    /// Stores bytes that are in memory.
    async fn store_bytes(&self, session_id: &SessionId, name: ArtifactName, content: Bytes) -> Result<ArtifactInfo>;

    /// Reads a whole artifact into memory, refusing more than `limit` bytes with `ResourceExhausted`.
    async fn retrieve_bytes(&self, uri: &str, limit: u64) -> Result<Bytes>;

    /// The whole list at once.
    async fn list_all(&self, session_id: &SessionId) -> Result<Vec<ArtifactInfo>>;
}

#[async_trait]
impl StorageBackendExt for dyn StorageBackend {
    async fn store_bytes(&self, session_id: &SessionId, name: ArtifactName, content: Bytes) -> Result<ArtifactInfo> {
        self.store(StoreRequest::new(session_id.clone(), name, Body::from(content)))
            .await
    }

    async fn retrieve_bytes(&self, uri: &str, limit: u64) -> Result<Bytes> {
        let retrieved = self.retrieve(RetrieveRequest::new(uri)).await?;
        let too_large = || {
            Error::new(
                crate::ErrorKind::ResourceExhausted,
                format!("the artifact is larger than the {limit} bytes that may be read into memory"),
            )
            .with_context("uri", uri)
        };
        if retrieved.info.size > limit {
            return Err(too_large());
        }
        let mut content = retrieved.content;
        let mut bytes = Vec::new();
        while let Some(chunk) = content.try_next().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    async fn list_all(&self, session_id: &SessionId) -> Result<Vec<ArtifactInfo>> {
        self.list(session_id).try_collect().await
    }
}

/// Content: bytes that can be sent again, or a stream that can be sent once.
pub struct Body(Content);

enum Content {
    Bytes(Bytes),
    Stream { stream: ByteStream, size: Option<u64> },
}

impl Body {
    /// A stream, with its size when that is known.
    pub fn from_stream(stream: ByteStream, size: Option<u64>) -> Self {
        Self(Content::Stream { stream, size })
    }

    /// The size, when it is known.
    pub fn size(&self) -> Option<u64> {
        match &self.0 {
            Content::Bytes(bytes) => Some(bytes.len() as u64),
            Content::Stream { size, .. } => *size,
        }
    }

    /// A second body with the same content; `None` when it can be sent only once. A retry layer asks this.
    pub fn try_clone(&self) -> Option<Self> {
        match &self.0 {
            Content::Bytes(bytes) => Some(Self(Content::Bytes(bytes.clone()))),
            Content::Stream { .. } => None,
        }
    }

    /// The content as a stream.
    pub fn into_stream(self) -> ByteStream {
        match self.0 {
            Content::Bytes(bytes) => futures_util::stream::once(std::future::ready(Ok(bytes))).boxed(),
            Content::Stream { stream, .. } => stream,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Content::Bytes(bytes))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({:?} bytes)", self.size())
    }
}

/// Stores an artifact.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoreRequest {
    /// The session.
    pub session_id: SessionId,
    /// The artifact's name.
    pub name: ArtifactName,
    /// The content.
    pub body: Body,
    /// The media type.
    pub content_type: Option<String>,
    /// The user's own metadata: at most 2 KiB in all, keys of lower-case letters, digits, `-` and `_`.
    pub metadata: BTreeMap<String, String>,
}

impl StoreRequest {
    /// Stores without metadata.
    pub fn new(session_id: SessionId, name: ArtifactName, body: Body) -> Self {
        Self {
            session_id,
            name,
            body,
            content_type: None,
            metadata: BTreeMap::new(),
        }
    }

    /// Sets the media type.
    #[must_use]
    pub fn with_content_type(mut self, content_type: Option<String>) -> Self {
        self.content_type = content_type;
        self
    }

    /// Sets the metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: BTreeMap<String, String>) -> Self {
        self.metadata = metadata;
        self
    }

    /// Checks what every backend refuses: metadata that some backend could not keep.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key.
    pub fn check(&self) -> Result<()> {
        let mut size = 0;
        for (key, value) in &self.metadata {
            size += key.len() + value.len();
            let good_key = !key.is_empty()
                && key
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'));
            if !good_key {
                return Err(Error::invalid(format!(
                    "metadata key {key:?} may hold only lower-case letters, digits, '-' and '_'"
                )));
            }
            if value.contains(|c: char| !(' '..='~').contains(&c)) {
                return Err(Error::invalid(format!(
                    "the value of metadata key {key:?} may hold only printable ASCII"
                )));
            }
        }
        // S3 allows 2 KiB of user metadata, the least of the three clouds.
        if size > 2048 {
            return Err(Error::invalid("metadata is larger than 2048 bytes"));
        }
        Ok(())
    }
}

/// Reads an artifact.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RetrieveRequest {
    /// The artifact's URI, as `store` or `list` gave it.
    pub uri: String,
    /// The bytes to read; all of them without it.
    pub range: Option<Range<u64>>,
}

impl RetrieveRequest {
    /// Reads the whole.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            range: None,
        }
    }

    /// Reads a range.
    #[must_use]
    pub fn with_range(mut self, range: Option<Range<u64>>) -> Self {
        self.range = range;
        self
    }
}

/// An artifact that is being read.
pub struct Retrieved {
    /// What it is.
    pub info: ArtifactInfo,
    /// The content, or the range of it.
    pub content: ByteStream,
}

impl fmt::Debug for Retrieved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retrieved")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// Deletes artifacts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeleteRequest {
    /// The session.
    pub session_id: SessionId,
    /// One artifact, in all its versions; all artifacts without it.
    pub name: Option<ArtifactName>,
}

impl DeleteRequest {
    /// Deletes all artifacts of a session.
    pub fn new(session_id: SessionId) -> Self {
        Self { session_id, name: None }
    }

    /// Deletes only this one.
    #[must_use]
    pub fn with_name(mut self, name: Option<ArtifactName>) -> Self {
        self.name = name;
        self
    }
}

/// Asks for a URL that stores one artifact. The content is fixed by its SHA-256, so that the URL is good for nothing else.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PresignPutRequest {
    /// The session.
    pub session_id: SessionId,
    /// The artifact's name.
    pub name: ArtifactName,
    /// The SHA-256 of the content that will be sent, in lower-case hexadecimal.
    pub sha256: String,
    /// How long the URL works.
    pub expires_in: Duration,
    /// The media type.
    pub content_type: Option<String>,
    /// The user's own metadata, as in [`StoreRequest`].
    pub metadata: BTreeMap<String, String>,
}

impl PresignPutRequest {
    /// Asks without metadata.
    pub fn new(session_id: SessionId, name: ArtifactName, sha256: impl Into<String>, expires_in: Duration) -> Self {
        Self {
            session_id,
            name,
            sha256: sha256.into(),
            expires_in,
            content_type: None,
            metadata: BTreeMap::new(),
        }
    }

    /// Sets the media type.
    #[must_use]
    pub fn with_content_type(mut self, content_type: Option<String>) -> Self {
        self.content_type = content_type;
        self
    }

    /// Sets the metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: BTreeMap<String, String>) -> Self {
        self.metadata = metadata;
        self
    }
}

/// An upload that anyone may do: send the content with this method and exactly these headers to the URL.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PresignedPut {
    /// The HTTP method.
    pub method: String,
    /// The URL. Whoever has it can upload, so it is kept out of `Debug`.
    pub url: String,
    /// The headers that must be sent.
    pub headers: BTreeMap<String, String>,
    /// The artifact's URI once it is uploaded.
    pub uri: String,
    /// The version that it will be.
    pub version: u64,
}

impl PresignedPut {
    /// For adapter authors: a `PUT`.
    pub fn new(
        url: impl Into<String>,
        headers: BTreeMap<String, String>,
        uri: impl Into<String>,
        version: u64,
    ) -> Self {
        Self {
            method: "PUT".to_owned(),
            url: url.into(),
            headers,
            uri: uri.into(),
            version,
        }
    }
}

impl fmt::Debug for PresignedPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresignedPut")
            .field("uri", &self.uri)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// What is known of a stored artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ArtifactInfo {
    /// The session.
    pub session_id: SessionId,
    /// The name.
    pub name: ArtifactName,
    /// Where it is.
    pub uri: String,
    /// The size in bytes.
    pub size: u64,
    /// The SHA-256 of the content, in lower-case hexadecimal.
    pub sha256: String,
    /// 1 for the first artifact of this name in the session, 2 for the next.
    pub version: u64,
    /// When it was stored.
    pub created_at: Timestamp,
    /// The media type.
    pub content_type: Option<String>,
    /// The user's own metadata.
    pub metadata: BTreeMap<String, String>,
}

impl ArtifactInfo {
    /// For adapter authors.
    pub fn new(
        session_id: SessionId,
        name: ArtifactName,
        uri: impl Into<String>,
        size: u64,
        sha256: impl Into<String>,
        version: u64,
        created_at: Timestamp,
    ) -> Self {
        Self {
            session_id,
            name,
            uri: uri.into(),
            size,
            sha256: sha256.into(),
            version,
            created_at,
            content_type: None,
            metadata: BTreeMap::new(),
        }
    }

    /// Sets the media type.
    #[must_use]
    pub fn with_content_type(mut self, content_type: Option<String>) -> Self {
        self.content_type = content_type;
        self
    }

    /// Sets the metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: BTreeMap<String, String>) -> Self {
        self.metadata = metadata;
        self
    }
}

/// What a backend can do beyond storing, reading, listing and deleting, which all can.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StorageCapabilities {
    /// `presign` works.
    pub presign: bool,
    /// What was stored is there after this process has ended.
    pub durable: bool,
    /// `sessions` works.
    pub sessions: bool,
    /// `presign_put` works.
    pub presign_put: bool,
}

impl StorageCapabilities {
    /// Nothing beyond.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sets `presign`.
    #[must_use]
    pub fn with_presign(mut self, presign: bool) -> Self {
        self.presign = presign;
        self
    }

    /// Sets `durable`.
    #[must_use]
    pub fn with_durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Sets `sessions`.
    #[must_use]
    pub fn with_sessions(mut self, sessions: bool) -> Self {
        self.sessions = sessions;
        self
    }

    /// Sets `presign_put`.
    #[must_use]
    pub fn with_presign_put(mut self, presign_put: bool) -> Self {
        self.presign_put = presign_put;
        self
    }
}
