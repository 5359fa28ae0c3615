//! How a writer takes up where it, or the process before it, left off.

use std::{io, path::Path, sync::Arc, time::Instant};

use agents_core::{Error, ErrorKind, Result};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    disk::{self, Access, Disk, DiskFile},
    error::{damaged, file_error},
    folder::Folder,
    frame::{Frame, Frames, Step},
    journal::Status,
    keys::{Keys, genesis},
    options::JournalOptions,
    statement::{Checkpoint, CheckpointKind},
    store::{Failure, Position, Segment, Store, remove},
};

/// The most writers of a journal that take folders of their own accord.
const MAX_WRITERS: u32 = 9999;

impl Store {
    /// Takes the folder of a writer, and recovers what a crash left in it.
    pub(crate) fn open(disk: Arc<dyn Disk>, options: JournalOptions) -> Result<Self> {
        options.check()?;
        let (folder, lock) = claim(disk, &options)?;
        recover(folder, lock, options)
    }
}

/// Locks the folder that is asked for, or the first that nobody has.
fn claim(disk: Arc<dyn Disk>, options: &JournalOptions) -> Result<(Folder, Box<dyn DiskFile>)> {
    let try_claim = |name: &str| -> Result<Option<(Folder, Box<dyn DiskFile>)>> {
        let folder = Folder {
            disk: Arc::clone(&disk),
            path: options.path.join(name),
        };
        disk::create_dirs(&*disk, &folder.path).map_err(Failure::of("create the folder of", &folder.lock()))?;
        let path = folder.lock();
        let lock = disk.open(&path, Access::Lock).map_err(Failure::of("open", &path))?;
        let locked = lock.try_lock().map_err(Failure::of("lock", &path))?;
        Ok(locked.then_some((folder, lock)))
    };
    if let Some(name) = &options.writer {
        return try_claim(name)?.ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                format!(
                    "another writer has {}; close it, or write with another name",
                    options.path.join(name).display()
                ),
            )
        });
    }
    for number in 1..=MAX_WRITERS {
        if let Some(claimed) = try_claim(&format!("{number:04}"))? {
            return Ok(claimed);
        }
    }
    Err(Error::new(
        ErrorKind::ResourceExhausted,
        format!(
            "{MAX_WRITERS} writers have the journal {}; close some",
            options.path.display()
        ),
    ))
}

fn recover(folder: Folder, lock: Box<dyn DiskFile>, options: JournalOptions) -> Result<Store> {
    for name in folder.names()? {
        if Path::new(&name).extension().is_some_and(|extension| extension == "tmp") {
            let path = folder.path.join(name);
            remove(&folder, &path).map_err(Failure::of("remove", &path))?;
        }
    }
    let cut = folder.read_cut()?;
    let mut firsts = folder.segments()?;
    if let Some(cut) = &cut {
        // A crash came between the record of the cut and the cut.
        while firsts.get(1).is_some_and(|next| next - 1 <= cut.sequence) {
            let path = folder.segment(firsts.remove(0));
            remove(&folder, &path).map_err(Failure::of("remove", &path))?;
        }
    }
    let Some(last) = firsts.last().copied() else {
        if cut.is_some() {
            return Err(damaged(&folder.cut(), "there is no segment besides it"));
        }
        let writer = uuid::Uuid::now_v7().to_string();
        let at = Position {
            bytes: 0,
            sequence: 0,
            hash: genesis(&writer),
            since: 0,
            closed: false,
        };
        let mut store = store(folder, lock, options, &writer, Vec::new(), at);
        let begun = Timestamp::now();
        store.begin()?;
        store.segments.push(Segment {
            first: 1,
            begun,
            bytes: 0,
        });
        store.announce(false);
        return Ok(store);
    };
    let mut segments = Vec::with_capacity(firsts.len());
    for first in firsts {
        let (_, begin) = folder.open_segment(first)?;
        let path = folder.segment(first);
        let bytes = folder.disk.open(&path, Access::Read).and_then(|file| file.length());
        segments.push(Segment {
            first,
            begun: begin.time,
            bytes: bytes.map_err(Failure::of("read", &path))?,
        });
    }
    let (begin, at, end) = scan(&folder, last, &options)?;
    let key = options.key.id();
    let mut store = store(folder, lock, options, &begin.writer, segments, at);
    let path = store.folder.segment(last);
    if end == End::Closed {
        store.file = Some(reopen(&store.folder, &path, at.bytes).map_err(Failure::of("open", &path))?);
        store.dirty = true;
    } else {
        // Also without a torn record: what can be read need not be on disk, and a sync that failed before the crash is not
        // reported again.
        store.repair()?;
    }
    if begin.key != key {
        if at.sequence >= last {
            store.rotate()?;
        } else {
            store.begin()?;
        }
    }
    store.announce(false);
    Ok(store)
}

fn store(
    folder: Folder,
    lock: Box<dyn DiskFile>,
    options: JournalOptions,
    writer: &str,
    segments: Vec<Segment>,
    at: Position,
) -> Store {
    let status = Status {
        writer: writer.into(),
        folder: folder.path.clone(),
        sequence: at.sequence,
        hash: at.hash,
        first: 1,
        bytes: 0,
        segments: 0,
        rewrites: 0,
        failing: false,
    };
    Store {
        folder,
        options,
        writer: writer.into(),
        _lock: lock,
        segments,
        file: None,
        at,
        durable: at.sequence,
        dirty: false,
        synced: Instant::now(),
        buffer: Vec::new(),
        status: watch::Sender::new(status),
    }
}

/// How the last segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The journal was closed: what comes before that checkpoint is durable, for it was written only then.
    Closed,
    /// A crash came after the last whole frame, or in the next one.
    Open,
}

/// Takes up a segment behind its last record. The closing checkpoint goes: whether it is durable itself is unknown, and
/// writing over it makes its blocks dirty again.
fn reopen(folder: &Folder, path: &Path, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
    let file = folder.disk.open(path, Access::Append)?;
    file.set_len(bytes)?;
    Ok(file)
}

/// Reads the last segment: how it begins, where what is whole ends, and how.
fn scan(folder: &Folder, first: u64, options: &JournalOptions) -> Result<(Checkpoint, Position, End)> {
    let path = folder.segment(first);
    let (mut frames, begin) = folder.open_segment(first)?;
    let keys = Keys::none().with(&options.key);
    if begin.check(&keys) == Some(false) {
        return Err(damaged(&path, "its first checkpoint is forged"));
    }
    // Without the key of old records, they are taken as they are; who verifies needs that key anyway.
    let linker = keys.linker(&begin.key);
    let mut at = Position {
        bytes: frames.offset(),
        sequence: begin.sequence,
        hash: begin.hash,
        since: 0,
        closed: false,
    };
    let mut before = at;
    loop {
        let step = frames.next().map_err(|error| file_error("read", &path, &error))?;
        match step {
            Step::Frame(Frame::Record(record)) => {
                if record.sequence != at.sequence + 1 {
                    let (found, expected) = (record.sequence, at.sequence + 1);
                    return Err(damaged(
                        &path,
                        format_args!("record {found} is where {expected} belongs"),
                    ));
                }
                let fits = |hash| hash == record.hash;
                if !linker.is_none_or(|linker| fits(linker.link(&at.hash, record.sequence, &record.payload))) {
                    return Err(damaged(
                        &path,
                        format_args!("record {} does not fit the chain", record.sequence),
                    ));
                }
                at.sequence = record.sequence;
                at.hash = record.hash;
                at.since += 1;
                at.closed = false;
            }
            Step::Frame(Frame::Checkpoint(point)) => {
                if (point.sequence, point.hash) != (at.sequence, at.hash) || point.check(&keys) == Some(false) {
                    return Err(damaged(
                        &path,
                        format_args!("the checkpoint after record {} is forged", at.sequence),
                    ));
                }
                before = at;
                at.since = 0;
                at.closed = point.kind == CheckpointKind::Close;
            }
            Step::Frame(Frame::Position(_)) => return Err(damaged(&path, "it holds the position of a cursor")),
            Step::End if at.closed => return Ok((begin, before, End::Closed)),
            Step::End => return Ok((begin, at, End::Open)),
            Step::Bad => {
                let lost = lost(&mut frames, at.sequence).map_err(|error| file_error("read", &path, &error))?;
                if lost {
                    let lost = at.sequence + 1;
                    return Err(damaged(
                        &path,
                        format_args!("record {lost} was on record and cannot be read"),
                    ));
                }
                return Ok((begin, at, End::Open));
            }
        }
        at.bytes = frames.offset();
    }
}

/// Whether what cannot be read had been acknowledged: something behind it was written when it was durable.
pub(crate) fn lost(frames: &mut Frames, sequence: u64) -> io::Result<bool> {
    loop {
        match frames.skip()? {
            Step::Frame(Frame::Record(record)) if record.durable > sequence => return Ok(true),
            Step::Frame(Frame::Checkpoint(close)) if close.kind == CheckpointKind::Close => return Ok(true),
            Step::Frame(..) => {}
            Step::End | Step::Bad => return Ok(false),
        }
    }
}
