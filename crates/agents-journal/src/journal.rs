//! The near end of a journal.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use agents_core::{AuditEvent, ChainLink, Error, Result};
use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::{
    disk::{Access, Disk, RealDisk},
    error::{file_error, stopped},
    event,
    folder::{Folder, segment_of},
    group::GroupCommit,
    hash::Hash,
    options::JournalOptions,
    reader::{Cursor, Reader, link},
    statement::Checkpoint,
    store::Store,
};

/// A durable, tamper-evident, append-only journal, open for writing.
///
/// Records that are appended at the same time share one write and one `fdatasync`. Dropping it without [`Journal::close`]
/// loses nothing that was acknowledged.
#[derive(Debug)]
pub struct Journal {
    group: GroupCommit<Store>,
    status: watch::Receiver<Status>,
    folder: Folder,
}

/// Where a record is in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The writer, a UUID.
    pub writer: Arc<str>,
    /// The place: 1 for the first record of the writer, without gaps.
    pub sequence: u64,
    /// The hash of the record before.
    pub previous: Hash,
    /// The hash of the record.
    pub hash: Hash,
}

impl Receipt {
    /// The place in the chain, for an event.
    pub fn link(&self) -> ChainLink {
        link(&self.writer, self.sequence, &self.previous, &self.hash)
    }
}

/// How a journal is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The writer, a UUID.
    pub writer: Arc<str>,
    /// The folder of this writer.
    pub folder: PathBuf,
    /// The last record that was acknowledged; 0 before the first one.
    pub sequence: u64,
    /// The hash of that record.
    pub hash: Hash,
    /// The first record that was not removed.
    pub first: u64,
    /// The size of all segments.
    pub bytes: u64,
    /// The number of segments.
    pub segments: usize,
    /// How often the last segment was rewritten, after an error of the disk or a crash.
    pub rewrites: u64,
    /// Whether the last attempt to write failed.
    pub failing: bool,
}

impl Journal {
    /// Opens a journal for writing, and recovers what a crash left.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for the options; `Conflict` when another writer has the folder that was named; `DataInvalid` when
    /// something that was acknowledged is damaged or does not fit the chain; those of the disk.
    pub async fn open(options: JournalOptions) -> Result<Self> {
        Self::open_on(Arc::new(RealDisk), options).await
    }

    pub(crate) async fn open_on(disk: Arc<dyn Disk>, options: JournalOptions) -> Result<Self> {
        let store = off_runtime("journal-open", move || Store::open(disk, options)).await?;
        let (status, folder) = (store.status.subscribe(), store.folder.clone());
        let group = GroupCommit::new("journal", store);
        // Starts the thread, so that `close` has one.
        group.call(|_| Ok(())).await?;
        Ok(Self { group, status, folder })
    }

    /// Puts a record on record. It is in line when this returns, so that records keep the order of these calls; the future
    /// gives the receipt, once the record is as durable as configured. Dropping it does not take the record back.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` when the payload is larger than 1 MiB; `ResourceExhausted` when the journal or the disk is full;
    /// those of the disk, after which it is unknown whether the record is there; `Conflict` after `close`.
    pub fn append<P: Into<Bytes>>(&self, payload: P) -> impl Future<Output = Result<Receipt>> + Send + use<P> {
        let receipts = self.append_batch(vec![payload.into()]);
        async move { receipts.await?.pop().ok_or_else(stopped) }
    }

    /// Puts several records on record: one after the other with nothing in between, and all or none, save when a crash of
    /// the machine comes in between.
    ///
    /// # Errors
    ///
    /// As for `append`.
    pub fn append_batch(&self, payloads: Vec<Bytes>) -> impl Future<Output = Result<Vec<Receipt>>> + Send + use<> {
        self.group.commit(payloads)
    }

    /// Puts an event on record, without the place in a chain that it may have: it gets its place here.
    ///
    /// # Errors
    ///
    /// As for `append`.
    pub fn append_event(&self, event: &AuditEvent) -> impl Future<Output = Result<Receipt>> + Send + use<> {
        self.append(event::canonical(event))
    }

    /// Returns once everything before is durable.
    ///
    /// # Errors
    ///
    /// Those of the disk; `Conflict` after `close`.
    pub async fn flush(&self) -> Result<()> {
        self.group.call(Store::flush).await
    }

    /// Makes everything before durable and proves how far it goes. Keep it elsewhere, to find a tail that was cut off.
    ///
    /// # Errors
    ///
    /// As for `flush`.
    pub async fn checkpoint(&self) -> Result<Checkpoint> {
        self.group.call(Store::checkpoint).await
    }

    /// Removes whole segments that end at this record or before, and leaves a record of the cut, so that the chain stays
    /// provable. Cursors are not asked.
    ///
    /// # Errors
    ///
    /// As for `flush`.
    pub async fn cut(&self, through: u64) -> Result<()> {
        self.group.call(move |store| store.cut(through)).await
    }

    /// Removes whole segments that every cursor has acknowledged, as `cut` does. Costs next to nothing when there are none.
    ///
    /// # Errors
    ///
    /// As for `flush`.
    pub async fn reclaim(&self) -> Result<()> {
        self.group.call(Store::reclaim).await
    }

    /// Closes the journal with a checkpoint, and lets go of the folder.
    ///
    /// # Errors
    ///
    /// As for `flush`.
    pub async fn close(&self) -> Result<()> {
        self.group.close(Store::close).await
    }

    /// How it is doing.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Tells of every change of the status.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Reads the records of this writer from this one on, and can wait for more.
    pub fn reader(&self, from: u64) -> Reader {
        Reader::new(self.folder.clone(), from, Some(self.status.clone()))
    }

    /// Reads the records of this writer from where the cursor of this name was acknowledged; a new one begins at the first
    /// record that is there.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for the name; those of the disk.
    pub async fn cursor(&self, name: &str) -> Result<Cursor> {
        Cursor::open(name, self.folder.clone(), self.status.clone()).await
    }
}

/// A writer of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriterInfo {
    /// The name of its folder, for [`JournalOptions::with_writer`].
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
    /// Whether a living process has it.
    pub live: bool,
}

/// The writers of a journal, those of dead processes too: what they left to deliver is found by opening them.
///
/// # Errors
///
/// Those of the disk.
pub async fn writers(path: impl Into<PathBuf>) -> Result<Vec<WriterInfo>> {
    let path = path.into();
    off_runtime("journal-read", move || find_writers(&path)).await
}

pub(crate) fn find_writers(path: &Path) -> Result<Vec<WriterInfo>> {
    let fail = |path: &Path, error: std::io::Error| file_error("look into", path, &error);
    let mut names = RealDisk.list(path).map_err(|error| fail(path, error))?;
    names.sort_unstable();
    let mut writers = Vec::new();
    for name in names {
        let folder = path.join(&name);
        let inside = match RealDisk.list(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => continue,
            inside => inside.map_err(|error| fail(&folder, error))?,
        };
        let ours = |name: &String| name == "lock" || name == "cut" || segment_of(name).is_some();
        if !inside.iter().any(ours) {
            continue;
        }
        let lock = folder.join("lock");
        let live = match RealDisk.open(&lock, Access::Read) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            opened => !opened
                .and_then(|file| file.try_lock())
                .map_err(|error| fail(&lock, error))?,
        };
        writers.push(WriterInfo { name, folder, live });
    }
    Ok(writers)
}

/// Does blocking work on a thread of its own, whatever the runtime.
pub(crate) async fn off_runtime<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, answer) = oneshot::channel();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Who does not wait any more has no use for the answer.
            let _ = done.send(work());
        })
        .map_err(|error| Error::io("cannot start a thread; allow this process more threads", error))?;
    answer.await.map_err(|_| stopped())?
}
