//! How a segment is made of frames.
//!
//! A frame is `0xA7 'J'`, the kind, a zero, the length of the body and a CRC-32 of kind, length and body (both `u32`,
//! little-endian), then the body. The mark lets a search find the next frame behind damage.
//!
//! The body of a record is its sequence, the sequence that was durable when it was written (both `u64`, little-endian), the
//! hash of the record (32 bytes), and the payload. The body of a checkpoint is JSON.

use std::io;

use bytes::Bytes;

use crate::{disk::DiskFile, hash::Hash, statement::Checkpoint};

/// The longest payload of a record.
pub const MAX_PAYLOAD: usize = (1 << 20) + (1 << 12);

/// The longest body.
const MAX_BODY: usize = MAX_PAYLOAD + RECORD_HEAD;

const MARK: [u8; 2] = [0xA7, b'J'];
const HEAD: usize = 12;
const RECORD_HEAD: usize = 48;

/// What a record costs besides its payload.
pub(crate) const RECORD_COST: usize = HEAD + RECORD_HEAD;

/// How much is read at once.
const CHUNK: usize = 1 << 16;

const RECORD: u8 = 1;
const CHECKPOINT: u8 = 2;
const POSITION: u8 = 3;

/// What a frame holds.
#[derive(Debug)]
pub(crate) enum Frame {
    Record(RawRecord),
    Checkpoint(Checkpoint),
    /// How far a cursor has come.
    Position(u64),
}

#[derive(Debug)]
pub(crate) struct RawRecord {
    pub(crate) sequence: u64,
    /// The last record that was durable when this one was written. If it is not before a damaged record, then the damaged
    /// one had been acknowledged.
    pub(crate) durable: u64,
    pub(crate) hash: Hash,
    pub(crate) payload: Bytes,
}

/// Appends a record.
pub(crate) fn push_record(buffer: &mut Vec<u8>, sequence: u64, durable: u64, hash: &Hash, payload: &[u8]) {
    push(buffer, RECORD, |body| {
        body.extend_from_slice(&sequence.to_le_bytes());
        body.extend_from_slice(&durable.to_le_bytes());
        body.extend_from_slice(hash.as_bytes());
        body.extend_from_slice(payload);
    });
}

/// Appends a checkpoint.
pub(crate) fn push_checkpoint(buffer: &mut Vec<u8>, checkpoint: &Checkpoint) {
    push(buffer, CHECKPOINT, |body| {
        // Strings and numbers alone, which JSON cannot refuse; a `Vec` takes everything.
        let _ = serde_json::to_writer(body, checkpoint);
    });
}

/// Appends how far a cursor has come.
pub(crate) fn push_position(buffer: &mut Vec<u8>, sequence: u64) {
    push(buffer, POSITION, |body| body.extend_from_slice(&sequence.to_le_bytes()));
}

fn push(buffer: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&MARK);
    buffer.extend_from_slice(&[kind, 0]);
    buffer.extend_from_slice(&[0; 8]);
    fill(buffer);
    // The callers keep to `MAX_BODY`, which fits.
    let length = u32::try_from(buffer.len() - start - HEAD).unwrap_or(u32::MAX);
    let crc = crc(kind, length, &buffer[start + HEAD..]);
    buffer[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    buffer[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
}

fn crc(kind: u8, length: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(&length.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// What comes next in a file.
#[derive(Debug)]
pub(crate) enum Step {
    /// A whole frame.
    Frame(Frame),
    /// The file ends behind a whole frame.
    End,
    /// What starts here is no whole frame.
    Bad,
}

/// Reads frame after frame.
#[derive(Debug)]
pub(crate) struct Frames {
    file: Box<dyn DiskFile>,
    /// What is read into.
    chunk: Box<[u8]>,
    /// What of the file is at hand, from `offset` on.
    buffer: Vec<u8>,
    used: usize,
    offset: u64,
}

impl Frames {
    pub(crate) fn new(file: Box<dyn DiskFile>) -> Self {
        Self {
            file,
            chunk: vec![0; CHUNK].into(),
            buffer: Vec::new(),
            used: 0,
            offset: 0,
        }
    }

    /// Where the next frame starts.
    pub(crate) fn offset(&self) -> u64 {
        self.offset + self.used as u64
    }

    /// The next frame. At the end, or before what is no frame, it stays where it is, and looks again the next time.
    pub(crate) fn next(&mut self) -> io::Result<Step> {
        if !self.have(HEAD)? {
            return Ok(if self.rest().is_empty() { Step::End } else { Step::Bad });
        }
        let Some((kind, length, crc_there)) = head(self.rest()) else {
            return Ok(Step::Bad);
        };
        if !self.have(HEAD + length)? {
            return Ok(Step::Bad);
        }
        let body = &self.rest()[HEAD..HEAD + length];
        let Some(frame) = u32::try_from(length)
            .ok()
            .filter(|length| crc(kind, *length, body) == crc_there)
            .and_then(|_| decode(kind, body))
        else {
            return Ok(Step::Bad);
        };
        self.used += HEAD + length;
        Ok(Step::Frame(frame))
    }

    /// The next frame of the file, from here or anywhere behind what is no frame.
    pub(crate) fn skip(&mut self) -> io::Result<Step> {
        while self.have(HEAD)? {
            // A plausible head first, for a check sum over a megabyte at every byte would take all day.
            if head(self.rest()).is_some()
                && let step @ Step::Frame(_) = self.next()?
            {
                return Ok(step);
            }
            self.used += 1;
        }
        // What is left is too short.
        self.used = self.buffer.len();
        Ok(Step::End)
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    /// Whether so many bytes are at hand, after reading more if need be.
    fn have(&mut self, count: usize) -> io::Result<bool> {
        if self.buffer.len() - self.used >= count {
            return Ok(true);
        }
        self.buffer.drain(..self.used);
        self.offset += self.used as u64;
        self.used = 0;
        while self.buffer.len() < count {
            let read = self
                .file
                .read_at(&mut self.chunk, self.offset + self.buffer.len() as u64)?;
            if read == 0 {
                return Ok(false);
            }
            self.buffer.extend_from_slice(&self.chunk[..read]);
        }
        Ok(true)
    }
}

/// Kind, length and check sum, if this looks like a frame.
fn head(bytes: &[u8]) -> Option<(u8, usize, u32)> {
    let head: &[u8; HEAD] = bytes.first_chunk()?;
    let [m0, m1, kind, 0, l0, l1, l2, l3, c0, c1, c2, c3] = *head else {
        return None;
    };
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let plausible = [m0, m1] == MARK && (RECORD..=POSITION).contains(&kind) && length <= MAX_BODY;
    plausible.then_some((kind, length, u32::from_le_bytes([c0, c1, c2, c3])))
}

fn decode(kind: u8, body: &[u8]) -> Option<Frame> {
    match kind {
        RECORD => {
            let (sequence, rest) = body.split_first_chunk()?;
            let (durable, rest) = rest.split_first_chunk()?;
            let (hash, payload) = rest.split_first_chunk::<32>()?;
            Some(Frame::Record(RawRecord {
                sequence: u64::from_le_bytes(*sequence),
                durable: u64::from_le_bytes(*durable),
                hash: Hash::from(*hash),
                payload: Bytes::copy_from_slice(payload),
            }))
        }
        CHECKPOINT => Some(Frame::Checkpoint(serde_json::from_slice(body).ok()?)),
        _ => Some(Frame::Position(u64::from_le_bytes(body.try_into().ok()?))),
    }
}
