//! Artifacts in a folder on this machine.

mod disk;
mod layout;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agents_core::{
    AdapterInfo, ArtifactInfo, Availability, BuildContext, DeleteRequest, Error, ErrorKind, Factory, Result,
    RetrieveRequest, Retrieved, SessionId, StorageBackend, StorageCapabilities, StoreRequest,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, task::JoinHandle};

use self::{
    disk::{Base, Label, Permit, Reader, Upload},
    layout::Place,
};

/// The type, as in a configuration.
const TYPE: &str = "local";

/// How many bytes, and how many pieces, are handed to a blocking thread at once. Two such batches are in memory: one is
/// collected while the other is written.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_CHUNKS: usize = 4096;

/// Keeps artifacts in a folder. Several processes may share it.
///
/// An artifact's URI is `file://` and the path of its content, so that any program can read it. What a crash interrupted
/// is never visible, and [`reap`](StorageBackend::reap) removes it.
#[derive(Clone, Debug)]
pub struct LocalStorage {
    base: Base,
}

impl LocalStorage {
    /// Stores below this folder, which is made when something is stored. No I/O is done here.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for an empty path and for one with a component `..`.
    pub fn new(base_path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self {
            base: Base {
                path: disk::absolute(base_path.as_ref())?.into(),
                create_dirs: true,
            },
        })
    }

    /// Sets whether a missing base folder is made.
    #[must_use]
    pub fn with_create_dirs(mut self, create_dirs: bool) -> Self {
        self.base.create_dirs = create_dirs;
        self
    }

    /// The base folder.
    pub fn base_path(&self) -> &Path {
        &self.base.path
    }
}

/// Runs a function where it may block.
fn spawn<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<JoinHandle<Result<T>>> {
    let runtime = Handle::try_current()
        .map_err(|error| Error::unexpected("local storage needs a tokio runtime").with_source(error))?;
    Ok(runtime.spawn_blocking(f))
}

async fn join<T>(task: JoinHandle<Result<T>>) -> Result<T> {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Err(Error::new(ErrorKind::Cancelled, "the runtime is shutting down")),
        Err(error) => Err(Error::unexpected("a storage task failed").with_source(error)),
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    join(spawn(f)?).await
}

/// Forbids publishing when the `store` future is dropped.
struct RevokeOnDrop(Arc<Permit>);

impl Drop for RevokeOnDrop {
    fn drop(&mut self) {
        self.0.revoke();
    }
}

#[async_trait]
impl StorageBackend for LocalStorage {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new(TYPE, env!("CARGO_PKG_VERSION")).with_name(self.base.path.display().to_string())
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities::none().with_durable(true).with_sessions(true)
    }

    async fn check_availability(&self) -> Result<Availability> {
        let base = self.base.clone();
        Ok(match blocking(move || base.probe()).await {
            Ok(free) => Availability::ready()
                .with_fact(format!("folder {}", self.base.path.display()))
                .with_fact(format!("{} MiB free", free >> 20)),
            Err(error) => {
                let remedy = match error.kind() {
                    ErrorKind::NotFound => "create the folder, or set create_dirs to true",
                    ErrorKind::ResourceExhausted => "free some space, or set base_path to a folder with more",
                    _ => "make the folder writable for this user, or set base_path to one that is",
                };
                Availability::unavailable(error.report(), remedy)
            }
        })
    }

    async fn store(&self, request: StoreRequest) -> Result<ArtifactInfo> {
        request.check()?;
        let label = Arc::new(Label {
            session: request.session_id,
            name: request.name,
            content_type: request.content_type,
            metadata: request.metadata,
            announced: request.body.size(),
        });
        let permit = Arc::new(Permit::default());
        let _guard = RevokeOnDrop(Arc::clone(&permit));
        let mut stream = request.body.into_stream();
        // A small artifact is collected whole, then begun, written and published in one step.
        let mut upload: Option<JoinHandle<Result<Upload>>> = None;
        loop {
            let batch = collect_batch(&mut stream).await;
            let so_far = match upload.take() {
                Some(task) => Some(join(task).await?),
                None => None,
            };
            let (chunks, last) = batch?;
            let (base, label, permit) = (self.base.clone(), Arc::clone(&label), Arc::clone(&permit));
            let write = move || {
                let mut upload = match so_far {
                    Some(upload) => upload,
                    None => Upload::begin(&base, &label)?,
                };
                upload.write(&chunks, &label)?;
                Ok((upload, base, label))
            };
            if last {
                return blocking(move || {
                    let (upload, base, label) = write()?;
                    upload.publish(&base, &label, &permit)
                })
                .await;
            }
            upload = Some(spawn(move || write().map(|(upload, ..)| upload))?);
        }
    }

    async fn retrieve(&self, request: RetrieveRequest) -> Result<Retrieved> {
        let place = Place::parse(&self.base.path, &request.uri)?;
        let base = self.base.clone();
        let (info, first, reader) = blocking(move || {
            let (info, mut reader) = base.reader(&place, request.range)?;
            // A damaged artifact that fits one piece is still an error of the stream, as it is for a larger one.
            let first = reader.next();
            Ok((info, first, reader))
        })
        .await?;
        let ahead = read_ahead(reader, &first);
        let content = stream::try_unfold(Some((first, ahead)), |state| async move {
            let Some((piece, ahead)) = state else {
                return Ok(None);
            };
            let Some(piece) = piece? else {
                return Ok(None);
            };
            let next = match ahead? {
                Some(task) => {
                    let (piece, reader) = join(task).await?;
                    let ahead = read_ahead(reader, &piece);
                    Some((piece, ahead))
                }
                None => None,
            };
            Ok(Some((piece, next)))
        });
        Ok(Retrieved {
            info,
            content: content.boxed(),
        })
    }

    fn list(&self, session_id: &SessionId) -> BoxStream<'static, Result<ArtifactInfo>> {
        let (base, session) = (self.base.clone(), session_id.clone());
        stream::once(async move {
            let (reader, of) = (base.clone(), session.clone());
            let artifacts = blocking(move || reader.artifacts(&of)).await?;
            let pages = stream::iter(artifacts).map(Ok::<_, Error>).try_chunks(64);
            let pages = pages.map_err(|error| error.1).and_then(move |page| {
                let (base, session) = (base.clone(), session.clone());
                blocking(move || {
                    let mut infos = Vec::new();
                    for (_, folder) in page {
                        infos.extend(base.versions(&session, &folder)?);
                    }
                    Ok(stream::iter(infos))
                })
            });
            Ok::<_, Error>(pages.try_flatten())
        })
        .try_flatten()
        .boxed()
    }

    async fn delete(&self, request: DeleteRequest) -> Result<Vec<ArtifactInfo>> {
        let base = self.base.clone();
        blocking(move || base.delete(&request.session_id, request.name.as_ref())).await
    }

    async fn presign(&self, _: &str, _: Duration) -> Result<String> {
        Err(Error::unsupported(
            "a local folder has no URLs that others can open; use s3, azure or gcs, or copy the file that the URI names",
        ))
    }

    async fn reap(&self) -> Result<Vec<String>> {
        let base = self.base.clone();
        blocking(move || base.reap()).await
    }

    fn sessions(&self) -> BoxStream<'static, Result<SessionId>> {
        let base = self.base.clone();
        stream::once(async move {
            let sessions = blocking(move || base.sessions()).await?;
            Ok::<_, Error>(stream::iter(sessions.into_iter().map(Ok)))
        })
        .try_flatten()
        .boxed()
    }
}

/// Takes from the stream what one step of writing handles; says whether the stream has ended.
async fn collect_batch(stream: &mut agents_core::ByteStream) -> Result<(Vec<Bytes>, bool)> {
    let mut chunks = Vec::new();
    let mut size = 0;
    while size < BATCH_BYTES && chunks.len() < BATCH_CHUNKS {
        match stream.try_next().await? {
            Some(chunk) => {
                size += chunk.len();
                chunks.push(chunk);
            }
            None => return Ok((chunks, true)),
        }
    }
    Ok((chunks, false))
}

type Piece = Result<Option<Bytes>>;
type Ahead = JoinHandle<Result<(Piece, Reader)>>;

/// Begins to read the next piece while the caller uses this one.
fn read_ahead(mut reader: Reader, piece: &Piece) -> Result<Option<Ahead>> {
    if reader.is_at_end() || !matches!(piece, Ok(Some(_))) {
        return Ok(None);
    }
    spawn(move || Ok((reader.next(), reader))).map(Some)
}

/// The configuration of `type: local`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LocalConfig {
    /// The folder, for example `/var/lib/isolated-agents/storage`. Default: `storage` in the state folder.
    pub base_path: Option<PathBuf>,
    /// Whether a missing folder is made. Default: true.
    pub create_dirs: bool,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            base_path: None,
            create_dirs: true,
        }
    }
}

/// Makes a [`LocalStorage`].
#[derive(Debug)]
pub struct LocalFactory;

#[async_trait]
impl Factory for LocalFactory {
    const TYPE: &'static str = TYPE;
    type Config = LocalConfig;
    type Adapter = dyn StorageBackend;

    fn validate(config: &Self::Config) -> Result<()> {
        config
            .base_path
            .as_deref()
            .map_or(Ok(()), |path| disk::absolute(path).map(drop))
    }

    async fn build(config: Self::Config, context: &BuildContext) -> Result<Arc<Self::Adapter>> {
        let base_path = config.base_path.unwrap_or_else(|| context.state_dir.join("storage"));
        Ok(Arc::new(
            LocalStorage::new(base_path)?.with_create_dirs(config.create_dirs),
        ))
    }
}
