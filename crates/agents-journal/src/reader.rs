//! Reads records in their order.

use std::{path::PathBuf, sync::Arc};

use agents_core::{AuditEvent, ChainLink, Error, Result};
use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    disk,
    error::{damaged, file_error},
    event,
    folder::Folder,
    frame::{Frame, Frames, Step, push_position},
    hash::Hash,
    journal::{Status, off_runtime},
    options::check_name,
};

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The writer, a UUID.
    pub writer: Arc<str>,
    /// Its place: 1 for the first record of the writer, without gaps.
    pub sequence: u64,
    /// The hash of the record before.
    pub previous: Hash,
    /// The hash of this record.
    pub hash: Hash,
    /// What was given to `append`.
    pub payload: Bytes,
}

impl Record {
    /// The place in the chain, for an event.
    pub fn link(&self) -> ChainLink {
        link(&self.writer, self.sequence, &self.previous, &self.hash)
    }

    /// The event that `append_event` put on record, with its place in the chain.
    ///
    /// # Errors
    ///
    /// `DataInvalid` when the payload is no event.
    pub fn event(&self) -> Result<AuditEvent> {
        let event = event::parse(&self.payload).map_err(|error| {
            Error::new(
                agents_core::ErrorKind::DataInvalid,
                format!("record {} of writer {} is no audit event", self.sequence, self.writer),
            )
            .with_source(error)
        })?;
        Ok(event.with_chain(Some(self.link())))
    }
}

pub(crate) fn link(writer: &str, sequence: u64, previous: &Hash, hash: &Hash) -> ChainLink {
    ChainLink::new(writer, sequence, previous.to_string(), hash.to_string())
}

/// Reads the records of one writer in their order.
///
/// One that comes from [`Journal::reader`](crate::Journal::reader) gives what is acknowledged, and can wait for more. One
/// of a folder gives what is there. Neither verifies the chain, only the check sums: see [`verify`](crate::verify()).
#[derive(Debug)]
pub struct Reader {
    /// None while a batch is being read, and after one whose future was dropped.
    inner: Option<Inner>,
    next: u64,
    status: Option<watch::Receiver<Status>>,
    folder: Folder,
}

#[derive(Debug)]
struct Inner {
    folder: Folder,
    next: u64,
    open: Option<Open>,
    /// Was read, and had no room in the last batch.
    pending: Option<Record>,
    status: Option<watch::Receiver<Status>>,
}

#[derive(Debug)]
struct Open {
    frames: Frames,
    writer: Arc<str>,
    first: u64,
    /// The record before.
    sequence: u64,
    hash: Hash,
    /// The segment was not rewritten since then.
    rewrites: u64,
    path: PathBuf,
}

impl Reader {
    /// Reads the folder of a writer from this record on; 0 and 1 are the first.
    pub fn of_folder(folder: impl Into<PathBuf>, from: u64) -> Self {
        Self::new(Folder::of(folder), from, None)
    }

    pub(crate) fn new(folder: Folder, from: u64, status: Option<watch::Receiver<Status>>) -> Self {
        Self {
            inner: None,
            next: from.max(1),
            status,
            folder,
        }
    }

    /// The record that comes next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next records: at most so many, and so many bytes of payload save that of the first. Empty when there are none
    /// now. A dropped future loses nothing: the next call gives the same records.
    ///
    /// # Errors
    ///
    /// `NotFound` when the next record was removed; `DataInvalid` when it is damaged.
    pub async fn read(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>> {
        let mut inner = self.inner.take().unwrap_or_else(|| Inner {
            folder: self.folder.clone(),
            next: self.next,
            open: None,
            pending: None,
            status: self.status.clone(),
        });
        inner.next = self.next;
        let (inner, records) = off_runtime("journal-read", move || {
            let records = inner.read(max_records, max_bytes)?;
            Ok((inner, records))
        })
        .await?;
        self.next = inner.next;
        self.inner = Some(inner);
        Ok(records)
    }

    /// As [`Self::read`], and waits until there is a record. Empty only when the journal was closed or dropped, or when this
    /// reads a folder.
    ///
    /// # Errors
    ///
    /// As for `read`.
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>> {
        let next = self.next;
        if let Some(status) = &mut self.status {
            // An error says that nothing more will come.
            let _ = status.wait_for(|status| status.sequence >= next).await;
        }
        self.read(max_records, max_bytes).await
    }
}

impl Inner {
    fn read(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>> {
        let (end, rewrites) = self.status.as_ref().map_or((u64::MAX, 0), |status| {
            let status = status.borrow();
            (status.sequence, status.rewrites)
        });
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        while records.len() < max_records && self.next <= end {
            let Some(record) = self.one(rewrites)? else {
                break;
            };
            bytes += record.payload.len();
            if bytes > max_bytes && !records.is_empty() {
                self.pending = Some(record);
                break;
            }
            self.next += 1;
            records.push(record);
        }
        Ok(records)
    }

    /// The next record, if it is there.
    fn one(&mut self, rewrites: u64) -> Result<Option<Record>> {
        if let Some(record) = self.pending.take().filter(|record| record.sequence == self.next) {
            return Ok(Some(record));
        }
        self.open = self
            .open
            .take()
            .filter(|open| open.rewrites == rewrites && open.sequence < self.next);
        loop {
            let (mut open, fresh) = match self.open.take() {
                Some(open) => (open, false),
                None => match open(&self.folder, self.next, rewrites)? {
                    Some(open) => (open, true),
                    None => return Ok(None),
                },
            };
            while let Some(record) = open.record()? {
                if record.sequence == self.next {
                    self.open = Some(open);
                    return Ok(Some(record));
                }
            }
            // The segment has ended. A live one may also have been rewritten since it was opened.
            match self.folder.segments()?.into_iter().find(|first| *first > open.first) {
                Some(first) if first == self.next => {}
                Some(_) => return Err(open.unreadable(self.next)),
                None if self.status.is_none() => return Ok(None),
                None if fresh => return Err(open.unreadable(self.next)),
                None => {}
            }
        }
    }
}

/// Opens the segment of a record; none when there are no segments.
fn open(folder: &Folder, next: u64, rewrites: u64) -> Result<Option<Open>> {
    let firsts = folder.segments()?;
    let Some(oldest) = firsts.first().copied() else {
        return Ok(None);
    };
    let first = firsts.into_iter().rfind(|first| *first <= next).ok_or_else(|| {
        Error::not_found(format!(
            "record {next} of {} was removed; read from record {oldest} on",
            folder.path.display()
        ))
    })?;
    let (frames, begin) = folder.open_segment(first)?;
    Ok(Some(Open {
        frames,
        writer: begin.writer.into(),
        first,
        sequence: begin.sequence,
        hash: begin.hash,
        rewrites,
        path: folder.segment(first),
    }))
}

impl Open {
    /// The next whole record.
    fn record(&mut self) -> Result<Option<Record>> {
        loop {
            let step = self
                .frames
                .next()
                .map_err(|error| file_error("read", &self.path, &error))?;
            match step {
                Step::Frame(Frame::Record(raw)) if raw.sequence == self.sequence + 1 => {
                    let record = Record {
                        writer: Arc::clone(&self.writer),
                        sequence: raw.sequence,
                        previous: self.hash,
                        hash: raw.hash,
                        payload: raw.payload,
                    };
                    self.sequence = raw.sequence;
                    self.hash = raw.hash;
                    return Ok(Some(record));
                }
                Step::Frame(Frame::Checkpoint(_)) => {}
                Step::Frame(..) => return Err(self.unreadable(self.sequence + 1)),
                Step::End | Step::Bad => return Ok(None),
            }
        }
    }

    fn unreadable(&self, sequence: u64) -> Error {
        damaged(&self.path, format_args!("record {sequence} is not where it belongs"))
    }
}

/// Reads on where it was acknowledged the last time, also after a restart. Of one name there must be one at a time.
///
/// As long as it has not acknowledged a record, [`Journal::reclaim`](crate::Journal::reclaim) and the retention keep it.
#[derive(Debug)]
pub struct Cursor {
    name: String,
    reader: Reader,
    acknowledged: u64,
    folder: Folder,
}

impl Cursor {
    /// The cursor of this name, which is made when there is none, at the first record that is there.
    pub(crate) async fn open(name: &str, folder: Folder, status: watch::Receiver<Status>) -> Result<Self> {
        check_name("cursor", name)?;
        let (first, last) = {
            let status = status.borrow();
            (status.first, status.sequence)
        };
        let (at, cursor) = (folder.clone(), name.to_owned());
        let acknowledged = off_runtime("journal-cursor", move || match at.position(&cursor)? {
            // Records that were never durable may have gone with a crash of the machine.
            Some(position) => Ok(position.min(last)),
            None => {
                store_position(&at, &cursor, first - 1)?;
                Ok(first - 1)
            }
        })
        .await?;
        Ok(Self {
            name: name.to_owned(),
            reader: Reader::new(folder.clone(), acknowledged + 1, Some(status)),
            acknowledged,
            folder,
        })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last record that was acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// How many records are not acknowledged.
    pub fn depth(&self) -> u64 {
        let end = self.reader.status.as_ref().map_or(0, |status| status.borrow().sequence);
        end.saturating_sub(self.acknowledged)
    }

    /// As [`Reader::read`]: the records after those that were read.
    ///
    /// # Errors
    ///
    /// As for [`Reader::read`].
    pub async fn read(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>> {
        self.reader.read(max_records, max_bytes).await
    }

    /// As [`Reader::next`]: waits for a record.
    ///
    /// # Errors
    ///
    /// As for [`Reader::read`].
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Record>> {
        self.reader.next(max_records, max_bytes).await
    }

    /// Goes back to what is not acknowledged, to read it again.
    pub fn rewind(&mut self) {
        self.reader.next = self.acknowledged + 1;
    }

    /// Says, durably, that everything up to this record is done with.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for a record that was not read yet; those of the disk.
    pub async fn acknowledge(&mut self, sequence: u64) -> Result<()> {
        if sequence >= self.reader.next {
            return Err(Error::invalid(format!(
                "record {sequence} was not read yet; acknowledge at most {}",
                self.reader.next - 1
            )));
        }
        if sequence <= self.acknowledged {
            return Ok(());
        }
        let (folder, name) = (self.folder.clone(), self.name.clone());
        off_runtime("journal-cursor", move || store_position(&folder, &name, sequence)).await?;
        self.acknowledged = sequence;
        Ok(())
    }
}

fn store_position(folder: &Folder, name: &str, sequence: u64) -> Result<()> {
    let mut frame = Vec::new();
    push_position(&mut frame, sequence);
    let path = folder.cursor(name);
    disk::replace(&*folder.disk, &path, &frame).map_err(|error| file_error("write", &path, &error))
}
