//! Moves whole sessions between storage backends, checks what is stored, and removes what is old.
//!
//! All of it is built on [`StorageBackend`] alone, so any two backends will do. A backup is [`copy_all`] into another
//! backend, and a restore is the same the other way round.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use agents_core::{
    ArtifactInfo, ArtifactName, Body, ByteStream, DeleteRequest, Error, ErrorKind, Result, RetrieveRequest, SessionId,
    StorageBackend, StorageBackendExt, StoreRequest,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// How to copy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CopyOptions {
    /// How many artifacts are copied at once. Default: 4. The versions of one artifact follow each other.
    pub parallel: usize,
    /// Whether each copy is read back and its SHA-256 compared. Default: false, since storing has computed the hash of
    /// what was sent, and that is always compared.
    pub read_back: bool,
    /// Ends the transfer with `Cancelled` when it is cancelled. What is whole stays, and what is not is taken back.
    pub cancellation: CancellationToken,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            parallel: 4,
            read_back: false,
            cancellation: CancellationToken::new(),
        }
    }
}

impl CopyOptions {
    /// Sets how many artifacts are copied at once.
    #[must_use]
    pub fn with_parallel(mut self, parallel: usize) -> Self {
        self.parallel = parallel;
        self
    }

    /// Sets whether each copy is read back.
    #[must_use]
    pub fn with_read_back(mut self, read_back: bool) -> Self {
        self.read_back = read_back;
        self
    }

    /// Sets what ends the transfer.
    #[must_use]
    pub fn with_cancellation(mut self, cancellation: CancellationToken) -> Self {
        self.cancellation = cancellation;
        self
    }
}

/// The content, ending with `Cancelled` when it is cancelled. A store whose content ends so takes back what it began, which
/// one that is dropped can only try.
pub fn until_cancelled(content: ByteStream, cancellation: CancellationToken) -> ByteStream {
    stream::try_unfold((content, cancellation), |(mut content, cancellation)| async move {
        match cancellation.run_until_cancelled(content.try_next()).await {
            Some(next) => Ok(next?.map(|chunk| (chunk, (content, cancellation)))),
            None => Err(Error::new(ErrorKind::Cancelled, "interrupted")),
        }
    })
    .boxed()
}

/// How far a copy or a verification of one session has come.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransferProgress {
    /// The session.
    pub session_id: SessionId,
    /// How many versions of artifacts there are.
    pub artifacts_total: u64,
    /// How many of them are done, those that were there already included.
    pub artifacts_done: u64,
    /// Their size.
    pub bytes_total: u64,
    /// How many of these bytes are done.
    pub bytes_done: u64,
}

/// Hears how far it is. Called often, from whichever thread does the work, so it must be quick.
pub type OnProgress = Arc<dyn Fn(&TransferProgress) + Send + Sync>;

/// What a copy did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CopyReport {
    /// What was copied, as it is in the destination.
    pub copied: Vec<ArtifactInfo>,
    /// How many versions were there already with the same content: those of an earlier copy that was interrupted.
    pub skipped: u64,
    /// The size of what was copied.
    pub bytes: u64,
}

/// What a verification found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// How many versions are whole.
    pub verified: u64,
    /// Their size.
    pub bytes: u64,
    /// What is not.
    pub damaged: Vec<Damaged>,
}

/// An artifact that cannot be read whole.
#[derive(Debug)]
#[non_exhaustive]
pub struct Damaged {
    /// Which one; `None` when not even that can be told.
    pub artifact: Option<ArtifactInfo>,
    /// What is wrong with it.
    pub error: Error,
}

/// What to remove.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RetainOptions {
    /// Artifacts whose newest version was stored before this are removed, in all their versions.
    pub before: Timestamp,
    /// Only say what would be removed.
    pub dry_run: bool,
}

impl RetainOptions {
    /// Removes what was stored before this.
    pub fn new(before: Timestamp) -> Self {
        Self { before, dry_run: false }
    }

    /// Sets whether it is only said what would be removed.
    #[must_use]
    pub fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }
}

/// What a retention removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetainReport {
    /// What is gone, or would be.
    pub removed: Vec<ArtifactInfo>,
    /// How many versions stay.
    pub kept: u64,
}

/// Counts, and tells.
struct Meter {
    session: SessionId,
    artifacts_total: u64,
    bytes_total: u64,
    artifacts_done: AtomicU64,
    bytes_done: AtomicU64,
    tell: OnProgress,
}

impl Meter {
    fn new(session: &SessionId, artifacts: &[ArtifactInfo], tell: &OnProgress) -> Arc<Self> {
        let meter = Self {
            session: session.clone(),
            artifacts_total: artifacts.len() as u64,
            bytes_total: artifacts.iter().map(|info| info.size).sum(),
            artifacts_done: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
            tell: Arc::clone(tell),
        };
        meter.add(0, 0);
        Arc::new(meter)
    }

    fn add(&self, artifacts: u64, bytes: u64) {
        (self.tell)(&TransferProgress {
            session_id: self.session.clone(),
            artifacts_total: self.artifacts_total,
            artifacts_done: self.artifacts_done.fetch_add(artifacts, Ordering::Relaxed) + artifacts,
            bytes_total: self.bytes_total,
            bytes_done: self.bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes,
        });
    }
}

/// Copies every version of every artifact of a session, with media types and metadata. Versions keep their numbers; the
/// time at which they were stored is that of the copy.
///
/// An interrupted copy is continued by calling this again: what the destination has with the same content is not sent a
/// second time.
///
/// # Errors
///
/// `Conflict` when the destination has something else under a name that is copied; `DataInvalid` when a copy differs from its original;
/// otherwise the backends' own errors.
pub async fn copy_session(
    from: &dyn StorageBackend,
    to: &dyn StorageBackend,
    session: &SessionId,
    options: &CopyOptions,
    progress: OnProgress,
) -> Result<CopyReport> {
    let originals = from.list_all(session).await?;
    let mut there: BTreeMap<(ArtifactName, u64), ArtifactInfo> = to
        .list_all(session)
        .await?
        .into_iter()
        .map(|info| ((info.name.clone(), info.version), info))
        .collect();
    let meter = Meter::new(session, &originals, &progress);
    let mut report = CopyReport::default();
    let mut pending: BTreeMap<ArtifactName, Vec<ArtifactInfo>> = BTreeMap::new();
    for original in originals {
        match there.remove(&(original.name.clone(), original.version)) {
            Some(copy) if (copy.size, &copy.sha256) == (original.size, &original.sha256) => {
                report.skipped += 1;
                meter.add(1, original.size);
            }
            Some(copy) => return Err(occupied(&copy)),
            None => pending.entry(original.name.clone()).or_default().push(original),
        }
    }
    // What the source has deleted since an earlier copy may stay. But what is still to come needs its number.
    if let Some(surplus) = there.values().find(|info| pending.contains_key(&info.name)) {
        return Err(occupied(surplus));
    }
    let mut copies = stream::iter(pending.into_values())
        .map(|versions| {
            let meter = Arc::clone(&meter);
            async move {
                let mut copied = Vec::new();
                for original in versions {
                    copied.push(copy_artifact(from, to, original, options, &meter).await?);
                }
                Ok::<_, Error>(copied)
            }
        })
        .buffered(options.parallel.max(1));
    while let Some(copied) = copies.try_next().await? {
        report.bytes += copied.iter().map(|info| info.size).sum::<u64>();
        report.copied.extend(copied);
    }
    Ok(report)
}

fn occupied(there: &ArtifactInfo) -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the destination has something else in this session; delete it there, or copy to another place",
    )
    .with_context("uri", &there.uri)
}

async fn copy_artifact(
    from: &dyn StorageBackend,
    to: &dyn StorageBackend,
    original: ArtifactInfo,
    options: &CopyOptions,
    meter: &Arc<Meter>,
) -> Result<ArtifactInfo> {
    let retrieved = from.retrieve(RetrieveRequest::new(&original.uri)).await?;
    let counter = Arc::clone(meter);
    let content = until_cancelled(retrieved.content, options.cancellation.clone())
        .inspect_ok(move |chunk| counter.add(0, chunk.len() as u64));
    let body = Body::from_stream(content.boxed(), Some(original.size));
    let request = StoreRequest::new(original.session_id.clone(), original.name.clone(), body)
        .with_content_type(original.content_type.clone())
        .with_metadata(original.metadata.clone());
    let copy = to.store(request).await?;
    if (copy.size, &copy.sha256) != (original.size, &original.sha256) {
        return Err(Error::new(ErrorKind::DataInvalid, "the copy differs from the original")
            .with_context("from", &original.uri)
            .with_context("to", &copy.uri));
    }
    if copy.version != original.version {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "somebody else stores in the destination: version {} became {}; delete the session there and copy again",
                original.version, copy.version
            ),
        )
        .with_context("uri", &copy.uri));
    }
    if options.read_back {
        read(to, &copy.uri, options, |_| ()).await?;
    }
    meter.add(1, 0);
    Ok(copy)
}

/// Reads all of an artifact, so that its backend checks it.
async fn read(storage: &dyn StorageBackend, uri: &str, options: &CopyOptions, count: impl Fn(u64)) -> Result<()> {
    let content = storage.retrieve(RetrieveRequest::new(uri)).await?.content;
    let mut content = until_cancelled(content, options.cancellation.clone());
    while let Some(chunk) = content.try_next().await? {
        count(chunk.len() as u64);
    }
    Ok(())
}

/// Copies every session. With `to` as a second place this is a backup, and the other way round it restores one.
///
/// # Errors
///
/// As [`copy_session`]; `Unsupported` when the source cannot list its sessions. What was copied before stays, and the next
/// call continues.
pub async fn copy_all(
    from: &dyn StorageBackend,
    to: &dyn StorageBackend,
    options: &CopyOptions,
    progress: OnProgress,
) -> Result<CopyReport> {
    let mut sessions = from.sessions();
    let mut report = CopyReport::default();
    while let Some(session) = sessions.try_next().await? {
        let one = copy_session(from, to, &session, options, Arc::clone(&progress))
            .await
            .map_err(|error| error.with_context("session", &session))?;
        report.copied.extend(one.copied);
        report.skipped += one.skipped;
        report.bytes += one.bytes;
    }
    Ok(report)
}

/// Reads every version of every artifact of a session and compares it with its SHA-256.
///
/// # Errors
///
/// Only when the backend cannot be asked; damage is part of the report.
pub async fn verify_session(
    storage: &dyn StorageBackend,
    session: &SessionId,
    options: &CopyOptions,
    progress: OnProgress,
) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let mut infos = Vec::new();
    let mut list = storage.list(session);
    while let Some(item) = list.next().await {
        match item {
            Ok(info) => infos.push(info),
            Err(error) if error.kind() == ErrorKind::DataInvalid => {
                report.damaged.push(Damaged { artifact: None, error });
            }
            Err(error) => return Err(error),
        }
    }
    let meter = Meter::new(session, &infos, &progress);
    let mut checks = stream::iter(infos)
        .map(|info| {
            let meter = Arc::clone(&meter);
            async move {
                let result = read(storage, &info.uri, options, |bytes| meter.add(0, bytes)).await;
                meter.add(1, 0);
                (info, result)
            }
        })
        .buffered(options.parallel.max(1));
    while let Some((info, result)) = checks.next().await {
        match result {
            Ok(()) => {
                report.verified += 1;
                report.bytes += info.size;
            }
            Err(error) if matches!(error.kind(), ErrorKind::DataInvalid | ErrorKind::NotFound) => {
                report.damaged.push(Damaged {
                    artifact: Some(info),
                    error,
                });
            }
            Err(error) => return Err(error.with_context("uri", &info.uri)),
        }
    }
    Ok(report)
}

/// Removes the artifacts of all sessions that are old. An artifact is as old as its newest version.
///
/// # Errors
///
/// `Unsupported` when the backend cannot list its sessions; otherwise the backend's own errors. What was removed before
/// stays removed.
pub async fn retain(storage: &dyn StorageBackend, options: &RetainOptions) -> Result<RetainReport> {
    let mut sessions = storage.sessions();
    let mut report = RetainReport::default();
    while let Some(session) = sessions.try_next().await? {
        let mut artifacts: BTreeMap<ArtifactName, Vec<ArtifactInfo>> = BTreeMap::new();
        for info in storage.list_all(&session).await? {
            artifacts.entry(info.name.clone()).or_default().push(info);
        }
        for (name, versions) in artifacts {
            if versions.iter().any(|info| info.created_at >= options.before) {
                report.kept += versions.len() as u64;
            } else if options.dry_run {
                report.removed.extend(versions);
            } else {
                let request = DeleteRequest::new(session.clone()).with_name(Some(name));
                report.removed.extend(storage.delete(request).await?);
            }
        }
    }
    Ok(report)
}
