//! Verifies a journal offline.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use agents_core::{Error, Result};
use serde::Serialize;

use crate::{
    disk::RealDisk,
    event,
    fault::{Fault, FaultKind},
    folder::Folder,
    frame::{Frame, Frames, RawRecord, Step},
    hash::Hash,
    journal::find_writers,
    keys::{Keys, Linker, genesis},
    recover::lost,
    statement::{Checkpoint, CheckpointKind},
};

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// Each writer.
    pub writers: Vec<WriterVerification>,
    /// What is wrong with no writer in particular: a checkpoint whose writer is missing, or whose proof is bad.
    pub faults: Vec<Fault>,
}

/// What a verification found of one writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WriterVerification {
    /// The writer, a UUID; empty when no segment says it.
    pub writer: String,
    /// The folder.
    pub folder: PathBuf,
    /// The first record that is there.
    pub first: u64,
    /// The last record that is there and sound; with a fault, the last one before it.
    pub last: u64,
    /// Everything up to here is proven by a key, or by a checkpoint that was kept elsewhere.
    pub proven: u64,
    /// How many segments were read.
    pub segments: usize,
    /// The records up to here were removed, as the writer says.
    pub cut: u64,
    /// Whether the journal was closed after the last record. If not, a tail that was cut off looks like a crash: compare
    /// with a checkpoint that was kept elsewhere.
    pub closed: bool,
    /// Bytes behind the last whole record, as a crash leaves them. Nothing in them was acknowledged, as far as can be told.
    pub torn_bytes: u64,
    /// The first thing that is wrong.
    pub fault: Option<Fault>,
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_intact(&self) -> bool {
        self.first_fault().is_none()
    }

    /// The first thing that is wrong.
    pub fn first_fault(&self) -> Option<&Fault> {
        let of_writers = self.writers.iter().filter_map(|writer| writer.fault.as_ref());
        of_writers.chain(&self.faults).next()
    }

    /// How many sound records there are.
    pub fn records(&self) -> u64 {
        let each = self
            .writers
            .iter()
            .map(|writer| (writer.last + 1).saturating_sub(writer.first));
        each.sum()
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first_fault() {
            Some(fault) => write!(f, "{fault}"),
            None => write!(
                f,
                "intact: {} records of {} writers",
                self.records(),
                self.writers.len()
            ),
        }
    }
}

/// Verifies a journal: a folder with writers, or the folder of one writer. Nothing is changed, and a living writer is not
/// disturbed; what it writes meanwhile may look like a torn tail.
///
/// `known` are checkpoints that were kept elsewhere. They are what finds a tail that was cut off, a writer that is missing,
/// and a chain without a key that was computed anew.
///
/// # Errors
///
/// When it cannot be read. What is wrong with it is a value.
pub fn verify(path: impl AsRef<Path>, keys: &Keys, known: &[Checkpoint]) -> Result<Verification> {
    let path = path.as_ref();
    let mut folders: Vec<_> = find_writers(path)?.into_iter().map(|writer| writer.folder).collect();
    if folders.is_empty() {
        if !path.is_dir() {
            return Err(Error::not_found(format!(
                "there is no journal {}; name its folder",
                path.display()
            )));
        }
        folders.push(path.to_owned());
    }
    let mut verification = Verification::default();
    verification.faults.extend(check_known(keys, known));
    for folder in folders {
        let folder = Folder {
            disk: Arc::new(RealDisk),
            path: folder,
        };
        verification.writers.extend(verify_writer(&folder, keys, known)?);
    }
    for point in known {
        if !verification.writers.iter().any(|writer| writer.writer == point.writer) {
            verification.faults.push(missing_writer(point));
        }
    }
    Ok(verification)
}

/// What is wrong with checkpoints themselves.
pub(crate) fn check_known(keys: &Keys, known: &[Checkpoint]) -> Vec<Fault> {
    let bad = |point: &&Checkpoint| point.check(keys) != Some(true) || (point.key.is_none() && !keys.is_empty());
    known
        .iter()
        .filter(bad)
        .map(|point| {
            let detail = match point.check(keys) {
                None => format!("of {} there is no key here", point.key),
                _ => format!("{} did not make it", point.key),
            };
            Fault::new(FaultKind::ForgedCheckpoint, &point.writer, Some(point.sequence), detail)
        })
        .collect()
}

pub(crate) fn missing_writer(point: &Checkpoint) -> Fault {
    Fault::new(
        FaultKind::MissingWriter,
        &point.writer,
        Some(point.sequence),
        "a checkpoint that was kept elsewhere knows this writer, and nothing of it is here",
    )
}

/// Verifies one writer; none when it has not written anything.
pub(crate) fn verify_writer(folder: &Folder, keys: &Keys, known: &[Checkpoint]) -> Result<Option<WriterVerification>> {
    let firsts = folder.segments()?;
    let mut walk = Walk::new(folder, keys, known);
    let found = walk.all(&firsts)?;
    if firsts.is_empty() && found.is_ok() {
        // A writer that crashed before it wrote anything.
        return Ok(None);
    }
    let mut result = walk.result;
    result.fault = found.err().map(|fault| *fault);
    Ok(Some(result))
}

type Found = Result<(), Box<Fault>>;

/// Walks along the chain of one writer.
struct Walk<'a> {
    folder: &'a Folder,
    keys: &'a Keys,
    /// By sequence.
    known: BTreeMap<u64, Vec<&'a Checkpoint>>,
    all_known: &'a [Checkpoint],
    sequence: u64,
    hash: Hash,
    since: u32,
    every: u32,
    /// Whether the segment was begun without a key.
    plain: bool,
    /// The first record that no key has sealed, unless a later segment was begun with one.
    unkeyed: Option<u64>,
    result: WriterVerification,
    segment: u64,
    offset: u64,
}

impl<'a> Walk<'a> {
    fn new(folder: &'a Folder, keys: &'a Keys, known: &'a [Checkpoint]) -> Self {
        Self {
            folder,
            keys,
            known: BTreeMap::new(),
            all_known: known,
            sequence: 0,
            hash: genesis(""),
            since: 0,
            every: u32::MAX,
            plain: true,
            unkeyed: None,
            result: WriterVerification {
                writer: String::new(),
                folder: folder.path.clone(),
                first: 1,
                last: 0,
                proven: 0,
                segments: 0,
                cut: 0,
                closed: false,
                torn_bytes: 0,
                fault: None,
            },
            segment: 0,
            offset: 0,
        }
    }

    fn fault(&self, kind: FaultKind, sequence: Option<u64>, detail: impl Into<String>) -> Box<Fault> {
        let mut fault = Fault::new(kind, &self.result.writer, sequence, detail);
        if self.segment > 0 {
            fault.file = Some(self.folder.segment(self.segment));
            fault.offset = Some(self.offset);
        }
        Box::new(fault)
    }

    /// The outer error is one of reading, the inner one a fault.
    fn all(&mut self, firsts: &[u64]) -> Result<Found> {
        let cut = match self.folder.read_cut() {
            Ok(cut) => cut,
            Err(error) if error.kind() == agents_core::ErrorKind::DataInvalid => {
                return Ok(Err(self.fault(FaultKind::ForgedCheckpoint, None, error.report())));
            }
            Err(error) => return Err(error),
        };
        let mut firsts = firsts;
        if let Some(cut) = &cut {
            self.result.writer.clone_from(&cut.writer);
            if let Err(fault) = self.proof(cut) {
                return Ok(Err(fault));
            }
            // A crash came between the record of the cut and the cut.
            while firsts.get(1).is_some_and(|next| next - 1 <= cut.sequence) {
                firsts = &firsts[1..];
            }
            (self.sequence, self.hash) = (cut.sequence, cut.hash);
            self.result.cut = cut.sequence;
        }
        let mut begun = cut.is_some();
        for (n, first) in firsts.iter().enumerate() {
            (self.segment, self.offset) = (*first, 0);
            let (frames, begin) = match self.folder.open_segment(*first) {
                Ok(opened) => opened,
                Err(error) if error.kind() == agents_core::ErrorKind::DataInvalid => {
                    return Ok(Err(self.fault(FaultKind::Damaged, Some(*first), error.report())));
                }
                Err(error) => return Err(error),
            };
            if !begun {
                begun = true;
                self.result.writer.clone_from(&begin.writer);
                self.hash = genesis(&begin.writer);
            }
            if n == 0 {
                self.take_known();
            }
            if let Err(fault) = self.begin(&begin) {
                return Ok(Err(fault));
            }
            if n == 0 {
                self.result.first = self.sequence + 1;
                self.result.last = self.sequence;
            }
            if let Err(fault) = self.records(frames, &begin, n + 1 == firsts.len())? {
                return Ok(Err(fault));
            }
            self.result.segments += 1;
        }
        if firsts.is_empty() && cut.is_some() {
            self.take_known();
            return Ok(Err(self.fault(
                FaultKind::MissingSegment,
                Some(self.sequence + 1),
                "there is a record of a cut and no segment",
            )));
        }
        Ok(self.end())
    }

    fn take_known(&mut self) {
        for point in self.all_known.iter().filter(|point| point.writer == self.result.writer) {
            self.known.entry(point.sequence).or_default().push(point);
        }
    }

    fn begin(&mut self, begin: &Checkpoint) -> Found {
        let expected = self.sequence + 1;
        let first = begin.sequence + 1;
        if begin.writer != self.result.writer {
            return Err(self.fault(
                FaultKind::ForeignRecord,
                Some(first),
                format!("the segment is of writer {}", begin.writer),
            ));
        }
        if first != expected {
            let kind = if first > expected {
                FaultKind::MissingSegment
            } else {
                FaultKind::OutOfOrder
            };
            let detail = format!("the segment begins with record {first}, and {expected} comes next");
            return Err(self.fault(kind, Some(expected), detail));
        }
        if begin.hash != self.hash {
            return Err(self.fault(
                FaultKind::BrokenLink,
                Some(first),
                "the segment does not continue the one before",
            ));
        }
        self.proof(begin)?;
        self.plain = begin.key.is_none();
        self.unkeyed = if self.plain { self.unkeyed.or(Some(first)) } else { None };
        self.every = begin.every;
        self.since = 0;
        self.at_known()
    }

    /// Whether a key of ours has said this. Without keys, everybody may have.
    fn proof(&mut self, point: &Checkpoint) -> Found {
        match point.check(self.keys) {
            Some(true) if point.key.is_none() => {}
            Some(true) => {
                self.result.proven = self.result.proven.max(point.sequence);
            }
            Some(false) => {
                return Err(self.fault(
                    FaultKind::ForgedCheckpoint,
                    Some(point.sequence),
                    format!("{} did not make this checkpoint", point.key),
                ));
            }
            None => {
                return Err(self.fault(
                    FaultKind::UnknownKey,
                    Some(point.sequence + 1),
                    format!("of {} there is no key here", point.key),
                ));
            }
        }
        Ok(())
    }

    fn records(&mut self, mut frames: Frames, begin: &Checkpoint, last: bool) -> Result<Found> {
        let path = self.folder.segment(self.segment);
        let fail = |error| crate::error::file_error("read", &path, &error);
        let Some(linker) = self.keys.linker(&begin.key) else {
            return Ok(self.proof(begin));
        };
        let mut pointed = true;
        loop {
            self.offset = frames.offset();
            let found = match frames.next().map_err(fail)? {
                Step::Frame(Frame::Record(record)) => {
                    pointed = false;
                    self.result.closed = false;
                    self.record(linker, &record)
                }
                Step::Frame(Frame::Checkpoint(point)) => {
                    pointed = true;
                    self.result.closed = point.kind == CheckpointKind::Close;
                    self.point(&point)
                }
                Step::Frame(Frame::Position(_)) => Err(self.fault(
                    FaultKind::Damaged,
                    Some(self.sequence + 1),
                    "the position of a cursor is among the records",
                )),
                Step::End if last || pointed => return Ok(Ok(())),
                Step::End => Err(self.fault(
                    FaultKind::MissingCheckpoint,
                    Some(self.sequence + 1),
                    "a full segment ends with a checkpoint, and this one does not",
                )),
                Step::Bad => {
                    if last && !lost(&mut frames, self.sequence).map_err(fail)? {
                        self.result.torn_bytes = frames.offset() - self.offset;
                        return Ok(Ok(()));
                    }
                    Err(self.fault(
                        FaultKind::Damaged,
                        Some(self.sequence + 1),
                        "what is here is no whole record",
                    ))
                }
            };
            if found.is_err() {
                return Ok(found);
            }
        }
    }

    fn record(&mut self, linker: Linker<'_>, record: &RawRecord) -> Found {
        let expected = self.sequence + 1;
        let id = |mut fault: Box<Fault>| {
            fault.event_id = event::parse(&record.payload).ok().map(|event| event.event_id);
            fault
        };
        if record.sequence != expected {
            let kind = if record.sequence > expected {
                FaultKind::MissingRecord
            } else {
                FaultKind::OutOfOrder
            };
            let detail = format!("record {} is where {expected} belongs", record.sequence);
            return Err(id(self.fault(kind, Some(expected), detail)));
        }
        let hash = linker.link(&self.hash, expected, &record.payload);
        if hash != record.hash {
            return Err(id(self.fault(
                FaultKind::Edited,
                Some(expected),
                "the record does not have the hash of its content and place",
            )));
        }
        if self.since >= self.every {
            return Err(id(self.fault(
                FaultKind::MissingCheckpoint,
                Some(expected),
                format!("there are more than {} records without a checkpoint", self.every),
            )));
        }
        self.since += 1;
        self.sequence = expected;
        self.hash = hash;
        self.at_known()?;
        self.result.last = expected;
        if !linker.is_plain() {
            self.result.proven = expected;
        }
        Ok(())
    }

    fn point(&mut self, point: &Checkpoint) -> Found {
        let right_kind = matches!(point.kind, CheckpointKind::Point | CheckpointKind::Close);
        let fits = (point.sequence, point.hash, &point.writer) == (self.sequence, self.hash, &self.result.writer);
        if !right_kind || !fits || (point.key.is_none() && !self.plain) {
            return Err(self.fault(
                FaultKind::ForgedCheckpoint,
                Some(self.sequence),
                "the checkpoint does not fit the records before it",
            ));
        }
        self.proof(point)?;
        self.since = 0;
        Ok(())
    }

    /// Compares with what was kept elsewhere.
    fn at_known(&mut self) -> Found {
        for point in self.known.remove(&self.sequence).unwrap_or_default() {
            if point.hash != self.hash {
                return Err(self.fault(
                    FaultKind::Diverged,
                    Some(self.sequence),
                    "a checkpoint that was kept elsewhere has another hash",
                ));
            }
            self.result.proven = self.result.proven.max(self.sequence);
        }
        Ok(())
    }

    fn end(&mut self) -> Found {
        (self.segment, self.offset) = (0, 0);
        // What was cut off lawfully is behind the record of the cut.
        if let Some(sequence) = self.known.keys().copied().find(|sequence| *sequence > self.sequence) {
            return Err(self.fault(
                FaultKind::CutTail,
                Some(self.sequence + 1),
                format!("a checkpoint that was kept elsewhere knows record {sequence}"),
            ));
        }
        if let Some(first) = self.unkeyed.filter(|_| !self.keys.is_empty()) {
            return Err(self.fault(
                FaultKind::Unkeyed,
                Some(first),
                "no key has sealed it, nor anything after it",
            ));
        }
        Ok(())
    }
}
