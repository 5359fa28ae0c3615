//! What can be wrong with a trail.

use std::{fmt, path::PathBuf};

use serde::Serialize;

/// The first thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// The writer, a UUID, if it is known.
    pub writer: String,
    /// The first bad record.
    pub sequence: Option<u64>,
    /// The event of that record, if there is one.
    pub event_id: Option<String>,
    /// The file that it is in.
    pub file: Option<PathBuf>,
    /// Where it starts in the file.
    pub offset: Option<u64>,
    /// More words.
    pub detail: String,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FaultKind {
    /// What is there is no record.
    Damaged,
    /// A record does not have the hash of its content and place: it was edited, or put there.
    Edited,
    /// A record does not continue the one before.
    BrokenLink,
    /// Records are missing before this one.
    MissingRecord,
    /// A record comes a second time, or too late.
    OutOfOrder,
    /// A segment is missing before this one.
    MissingSegment,
    /// A record or segment is of another writer.
    ForeignRecord,
    /// A record has no place in the chain, among those that do.
    Unlinked,
    /// Checkpoints are missing.
    MissingCheckpoint,
    /// A checkpoint does not fit the records, or its proof is bad.
    ForgedCheckpoint,
    /// It has another hash than a checkpoint that was kept elsewhere.
    Diverged,
    /// The trail ends before a checkpoint that was kept elsewhere.
    CutTail,
    /// A checkpoint that was kept elsewhere knows a writer of whom nothing is here.
    MissingWriter,
    /// The key that sealed it is not among those that were given.
    UnknownKey,
    /// No key has sealed it, though there are keys.
    Unkeyed,
}

impl FaultKind {
    /// The name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Edited => "edited",
            Self::BrokenLink => "broken_link",
            Self::MissingRecord => "missing_record",
            Self::OutOfOrder => "out_of_order",
            Self::MissingSegment => "missing_segment",
            Self::ForeignRecord => "foreign_record",
            Self::Unlinked => "unlinked",
            Self::MissingCheckpoint => "missing_checkpoint",
            Self::ForgedCheckpoint => "forged_checkpoint",
            Self::Diverged => "diverged",
            Self::CutTail => "cut_tail",
            Self::MissingWriter => "missing_writer",
            Self::UnknownKey => "unknown_key",
            Self::Unkeyed => "unkeyed",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, writer: &str, sequence: Option<u64>, detail: impl Into<String>) -> Self {
        Self {
            kind,
            writer: writer.to_owned(),
            sequence,
            event_id: None,
            file: None,
            offset: None,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        if let Some(sequence) = self.sequence {
            write!(f, " at record {sequence}")?;
        }
        if !self.writer.is_empty() {
            write!(f, " of writer {}", self.writer)?;
        }
        if let Some(event) = &self.event_id {
            write!(f, ", event {event}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ", in {} at byte {}", file.display(), self.offset.unwrap_or_default())?;
        }
        write!(f, ": {}", self.detail)
    }
}
