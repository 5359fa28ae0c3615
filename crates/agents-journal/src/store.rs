//! The far end of a journal: the segments of one writer.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use agents_core::{Error, ErrorKind, Result};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    disk::{self, Access, DiskFile},
    error::file_error,
    folder::Folder,
    frame::{MAX_PAYLOAD, RECORD_COST, push_checkpoint, push_record},
    group::Sink,
    hash::Hash,
    journal::{Receipt, Status},
    options::{Durability, JournalOptions, RESERVE},
    statement::{Checkpoint, CheckpointKind},
};

/// The largest buffer that is kept from one group to the next.
const KEPT_BUFFER: usize = 1 << 20;

/// How much is copied at once.
const COPY_CHUNK: usize = 1 << 20;

/// The segments of one writer, open for writing.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) folder: Folder,
    pub(crate) options: JournalOptions,
    pub(crate) writer: Arc<str>,
    /// Held as long as this lives.
    pub(crate) _lock: Box<dyn DiskFile>,
    /// The segments, the last of which is written to.
    pub(crate) segments: Vec<Segment>,
    /// The last segment. None after an error that leaves it in doubt: what the kernel has of a file after a failed
    /// `fdatasync` need not be what the disk has, and no later `fdatasync` tells.
    pub(crate) file: Option<Box<dyn DiskFile>>,
    /// What callers were told is on record ends here.
    pub(crate) at: Position,
    /// The last record that is durable.
    pub(crate) durable: u64,
    pub(crate) dirty: bool,
    pub(crate) synced: Instant,
    pub(crate) buffer: Vec<u8>,
    pub(crate) status: watch::Sender<Status>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) first: u64,
    pub(crate) begun: Timestamp,
    /// Its size; for the last one, what `Position::bytes` says counts.
    pub(crate) bytes: u64,
}

/// An end of the chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// The size of the last segment.
    pub(crate) bytes: u64,
    pub(crate) sequence: u64,
    pub(crate) hash: Hash,
    /// How many records come after the last checkpoint.
    pub(crate) since: u32,
    /// Whether the last frame says that the journal was closed.
    pub(crate) closed: bool,
}

/// What went wrong, for each of those who wait for it.
#[derive(Debug)]
pub(crate) struct Failure {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Failure {
    pub(crate) fn of(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            what,
            path: path.to_owned(),
            source,
        }
    }

    fn error(&self) -> Error {
        file_error(self.what, &self.path, &self.source)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error()
    }
}

impl Sink for Store {
    type Payload = Vec<Bytes>;
    type Receipt = Vec<Receipt>;

    fn size(batch: &Vec<Bytes>) -> usize {
        size_of(batch)
    }

    fn commit(&mut self, batches: Vec<Vec<Bytes>>) -> Vec<Result<Vec<Receipt>>> {
        if let Err(failure) = self.make_ready() {
            self.announce(true);
            return batches.iter().map(|_| Err(failure.error())).collect();
        }
        self.clear_buffer();
        let mut at = self.at;
        let mut outcomes: Vec<_> = batches.iter().map(|batch| self.encode(batch, &mut at)).collect();
        if self.buffer.is_empty() {
            return outcomes;
        }
        let durable = match self.options.durability {
            Durability::EveryCommit => true,
            Durability::Interval(interval) => self.synced.elapsed() >= interval,
            Durability::None => false,
        };
        let outcome = self.write(at, durable);
        self.announce(outcome.is_err());
        if let Err(failure) = outcome {
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                *outcome = Err(failure.error());
            }
        }
        outcomes
    }

    fn idle(&mut self) -> Option<Duration> {
        let Durability::Interval(interval) = self.options.durability else {
            return None;
        };
        if !self.dirty {
            return None;
        }
        let left = interval.saturating_sub(self.synced.elapsed());
        if left.is_zero() {
            if let Err(failure) = self.sync() {
                tracing::warn!(error = %failure.error().report(), "the journal could not be forced to disk");
                self.announce(true);
                return Some(interval);
            }
            return None;
        }
        Some(left)
    }
}

impl Store {
    /// Returns once everything is durable.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.sync()?;
        self.announce(false);
        Ok(())
    }

    /// Makes everything durable and says how far it goes.
    pub(crate) fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.flush()?;
        let point = self.say(CheckpointKind::Point, self.at);
        if self.at.since > 0 {
            self.put(&point)?;
        }
        Ok(point)
    }

    /// Makes everything durable and says that this is the end.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.flush()?;
        if !self.at.closed {
            // What comes before is durable when this can be read, for it is written only now.
            let close = self.say(CheckpointKind::Close, self.at);
            self.put(&close)?;
        }
        Ok(())
    }

    /// Removes whole segments up to a record at most, after saying so.
    pub(crate) fn cut(&mut self, through: u64) -> Result<()> {
        let next = self.segments.iter().skip(1);
        let count = next.take_while(|next| next.first - 1 <= through).count();
        let Some(kept) = self.segments.get(count).filter(|_| count > 0) else {
            return Ok(());
        };
        let (_, begin) = self.folder.open_segment(kept.first)?;
        let cut = self.say_at(CheckpointKind::Cut, (begin.sequence, begin.hash));
        let mut frame = Vec::new();
        push_checkpoint(&mut frame, &cut);
        let path = self.folder.cut();
        disk::replace(&*self.folder.disk, &path, &frame).map_err(Failure::of("write", &path))?;
        for _ in 0..count {
            let path = self.folder.segment(self.segments[0].first);
            remove(&self.folder, &path).map_err(Failure::of("remove", &path))?;
            self.segments.remove(0);
        }
        self.announce(false);
        Ok(())
    }

    /// Removes what every cursor has acknowledged, if there are cursors.
    pub(crate) fn reclaim(&mut self) -> Result<()> {
        match self.folder.positions()?.into_iter().min() {
            Some(through) => self.cut(through),
            None => Ok(()),
        }
    }

    /// Removes what the retention says.
    fn retain(&mut self) -> Result<()> {
        let retention = self.options.retention;
        let mut excess = match retention.max_bytes {
            Some(most) => self.bytes(self.at).saturating_sub(most),
            None => 0,
        };
        let now = Timestamp::now();
        let mut through = 0;
        for pair in self.segments.windows(2) {
            let age = Duration::try_from(now.duration_since(pair[1].begun)).unwrap_or_default();
            let old = retention.max_age.is_some_and(|most| age > most);
            if excess == 0 && !old {
                break;
            }
            excess = excess.saturating_sub(pair[0].bytes);
            through = pair[1].first - 1;
        }
        if through == 0 {
            return Ok(());
        }
        let acknowledged = self.folder.positions()?.into_iter().min().unwrap_or(u64::MAX);
        self.cut(through.min(acknowledged))
    }

    /// How many bytes there are when the last segment ends here.
    pub(crate) fn bytes(&self, at: Position) -> u64 {
        let full = self.segments.split_last().map_or(&[][..], |(_, full)| full);
        full.iter().map(|segment| segment.bytes).sum::<u64>() + at.bytes
    }

    /// The first record of the last segment. There is always a last segment.
    fn first(&self) -> u64 {
        self.segments.last().map_or(1, |segment| segment.first)
    }

    pub(crate) fn announce(&self, failing: bool) {
        let bytes = self.bytes(self.at);
        self.status.send_modify(|status| {
            status.sequence = self.at.sequence;
            status.hash = self.at.hash;
            status.first = self.segments.first().map_or(1, |segment| segment.first);
            status.bytes = bytes;
            status.segments = self.segments.len();
            status.failing = failing;
        });
    }

    fn clear_buffer(&mut self) {
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BUFFER);
    }

    /// Puts the records of a batch into the buffer, all or none.
    fn encode(&mut self, batch: &[Bytes], at: &mut Position) -> Result<Vec<Receipt>> {
        if let Some(large) = batch.iter().find(|payload| payload.len() > MAX_PAYLOAD) {
            return Err(Error::invalid(format!(
                "the payload has {} bytes, and a record takes at most {MAX_PAYLOAD}; put large data elsewhere",
                large.len()
            )));
        }
        let taken = self.bytes(*at) + RESERVE;
        if taken + size_of(batch) as u64 > self.options.max_bytes {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "the journal {} is full: {taken} of {} bytes; remove what is no longer needed, or raise max_bytes",
                    self.folder.path.display(),
                    self.options.max_bytes
                ),
            ));
        }
        Ok(batch.iter().map(|payload| self.encode_one(payload, at)).collect())
    }

    fn encode_one(&mut self, payload: &[u8], at: &mut Position) -> Receipt {
        let start = self.buffer.len();
        if at.since >= self.options.checkpoint_every {
            // A crash took the checkpoint that belonged here.
            self.push_point(at);
        }
        let previous = at.hash;
        at.sequence += 1;
        at.hash = self.options.key.link(&previous, at.sequence, payload);
        at.since += 1;
        at.closed = false;
        push_record(&mut self.buffer, at.sequence, self.durable, &at.hash, payload);
        if at.since >= self.options.checkpoint_every {
            self.push_point(at);
        }
        at.bytes += (self.buffer.len() - start) as u64;
        Receipt {
            writer: Arc::clone(&self.writer),
            sequence: at.sequence,
            previous,
            hash: at.hash,
        }
    }

    fn push_point(&mut self, at: &mut Position) {
        at.since = 0;
        let point = self.say(CheckpointKind::Point, *at);
        push_checkpoint(&mut self.buffer, &point);
    }

    fn say(&self, kind: CheckpointKind, at: Position) -> Checkpoint {
        self.say_at(kind, (at.sequence, at.hash))
    }

    fn say_at(&self, kind: CheckpointKind, at: (u64, Hash)) -> Checkpoint {
        let options = &self.options;
        Checkpoint::new(kind, &self.writer, at, options.checkpoint_every, &options.key)
    }

    /// Appends a checkpoint, durably.
    fn put(&mut self, checkpoint: &Checkpoint) -> Result<(), Failure> {
        self.clear_buffer();
        push_checkpoint(&mut self.buffer, checkpoint);
        let at = Position {
            bytes: self.at.bytes + self.buffer.len() as u64,
            since: 0,
            closed: checkpoint.kind == CheckpointKind::Close,
            ..self.at
        };
        self.write(at, true)
    }

    /// Appends the buffer, with which the chain ends there.
    fn write(&mut self, at: Position, durable: bool) -> Result<(), Failure> {
        let path = self.folder.segment(self.first());
        let Some(file) = &self.file else {
            return Err(Failure::of("write to", &path)(io::ErrorKind::NotConnected.into()));
        };
        if let Err(error) = file.append(&self.buffer) {
            // Nothing was forced to disk, so the kernel still has the truth. The disk may have a part of what goes.
            self.dirty = true;
            if file.set_len(self.at.bytes).is_err() {
                self.file = None;
            }
            return Err(Failure::of("write to", &path)(error));
        }
        self.dirty = true;
        if durable {
            self.sync_file()?;
        }
        self.at = at;
        if durable {
            self.durable = at.sequence;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Failure> {
        if self.file.is_none() {
            self.repair()?;
        } else if self.dirty {
            self.sync_file()?;
            self.durable = self.at.sequence;
        }
        Ok(())
    }

    fn sync_file(&mut self) -> Result<(), Failure> {
        if let Some(file) = &self.file
            && let Err(error) = file.sync()
        {
            self.file = None;
            return Err(Failure::of("force to disk", &self.folder.segment(self.first()))(error));
        }
        self.dirty = false;
        self.synced = Instant::now();
        Ok(())
    }

    /// Sees to a segment that is not in doubt and not full.
    fn make_ready(&mut self) -> Result<(), Failure> {
        if self.file.is_none() {
            self.repair()?;
        }
        if self.at.bytes >= self.options.segment_bytes && self.at.sequence >= self.first() {
            self.rotate()?;
        }
        Ok(())
    }

    /// Puts a copy of what is on record in the place of the last segment, whose own blocks are in doubt.
    pub(crate) fn repair(&mut self) -> Result<(), Failure> {
        self.file = None;
        // A segment after this one is from a rotation that failed halfway, and has no record.
        let path = self.folder.segment(self.first());
        let later = self.folder.disk.list(&self.folder.path);
        for name in later.map_err(Failure::of("look into", &self.folder.path))? {
            if crate::folder::segment_of(&name).is_some_and(|first| first > self.first()) {
                let path = self.folder.path.join(name);
                self.folder.disk.remove(&path).map_err(Failure::of("remove", &path))?;
            }
        }
        let copied = copy(&self.folder, &path, self.at.bytes);
        self.file = Some(copied.map_err(Failure::of("rewrite", &path))?);
        self.status.send_modify(|status| status.rewrites += 1);
        self.dirty = false;
        self.durable = self.at.sequence;
        self.synced = Instant::now();
        Ok(())
    }

    /// Ends the last segment with a checkpoint and begins another.
    pub(crate) fn rotate(&mut self) -> Result<(), Failure> {
        if self.at.since > 0 {
            let point = self.say(CheckpointKind::Point, self.at);
            self.put(&point)?;
        }
        self.sync()?;
        let bytes = self.at.bytes;
        let (first, begun) = (self.at.sequence + 1, Timestamp::now());
        self.begin()?;
        if let Some(last) = self.segments.last_mut() {
            last.bytes = bytes;
        }
        self.segments.push(Segment { first, begun, bytes: 0 });
        if let Err(error) = self.retain() {
            tracing::warn!(error = %error.report(), "old segments of the journal could not be removed");
        }
        Ok(())
    }

    /// Begins the segment for what comes after the end.
    pub(crate) fn begin(&mut self) -> Result<(), Failure> {
        let begin = self.say(CheckpointKind::Begin, self.at);
        let mut frame = Vec::new();
        push_checkpoint(&mut frame, &begin);
        let path = self.folder.segment(self.at.sequence + 1);
        let fresh = path.with_extension("tmp");
        let disk = &*self.folder.disk;
        let file = disk.open(&fresh, Access::Fresh).and_then(|file| {
            file.append(&frame)?;
            file.sync()?;
            Ok(file)
        });
        let file = file.map_err(Failure::of("create", &path))?;
        let placed = disk
            .rename(&fresh, &path)
            .and_then(|()| disk.sync_dir(&self.folder.path));
        if let Err(error) = placed {
            // Whether it is there is unknown, and the one before must not grow beyond where this one begins.
            self.file = None;
            return Err(Failure::of("create", &path)(error));
        }
        self.file = Some(file);
        self.at.bytes = frame.len() as u64;
        self.at.since = 0;
        self.at.closed = false;
        Ok(())
    }
}

/// What the records of a batch take.
fn size_of(batch: &[Bytes]) -> usize {
    batch.iter().map(|payload| payload.len() + RECORD_COST).sum()
}

/// Removes a file that may be gone already.
pub(crate) fn remove(folder: &Folder, path: &Path) -> io::Result<()> {
    match folder.disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Puts a durable copy of the first bytes of a file in its place, and keeps it open.
pub(crate) fn copy(folder: &Folder, path: &Path, mut left: u64) -> io::Result<Box<dyn DiskFile>> {
    let disk = &*folder.disk;
    let from = disk.open(path, Access::Read)?;
    let fresh = path.with_extension("tmp");
    let to = disk.open(&fresh, Access::Fresh)?;
    let mut chunk = vec![0; COPY_CHUNK];
    let mut offset = 0;
    while left > 0 {
        let wanted = usize::try_from(left).map_or(COPY_CHUNK, |left| left.min(COPY_CHUNK));
        let read = from.read_at(&mut chunk[..wanted], offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.append(&chunk[..read])?;
        offset += read as u64;
        left -= read as u64;
    }
    to.sync()?;
    disk.rename(&fresh, path)?;
    disk.sync_dir(&folder.path)?;
    Ok(to)
}
