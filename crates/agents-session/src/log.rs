//! A session's log: the agent's output in a file, so that another process can read and follow it.
//!
//! A frame is a byte for the stream (1 or 2), the length as a big-endian `u32`, and the bytes. When the file has half of
//! the limit it becomes `output.log.1`, in place of an older one, and a new one is begun: the latest output is kept.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use agents_core::{Error, ErrorKind, Result};
use bytes::Bytes;

use crate::{LogChunk, OutputStream};

/// The longest frame that is written; a longer one that is read is damage.
const FRAME: usize = 1 << 20;

/// Appends to a log. The file is made by the first output.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
    half: u64,
    file: Option<File>,
    size: u64,
    frame: Vec<u8>,
}

impl LogWriter {
    pub(crate) fn new(path: PathBuf, limit: u64) -> Self {
        Self {
            path,
            half: limit / 2,
            file: None,
            size: 0,
            frame: Vec::new(),
        }
    }

    /// Writes to the page cache, which is why this may be called from asynchronous code.
    pub(crate) fn write(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(FRAME) {
            if self.size > 0 && self.size + piece.len() as u64 > self.half {
                self.file = None;
                self.size = 0;
                std::fs::rename(&self.path, rotated(&self.path))?;
            }
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(File::options().create(true).append(true).mode(0o600).open(&self.path)?),
            };
            self.frame.clear();
            self.frame.push(match stream {
                OutputStream::Stdout => 1,
                OutputStream::Stderr => 2,
            });
            self.frame.extend_from_slice(&(piece.len() as u32).to_be_bytes());
            self.frame.extend_from_slice(piece);
            file.write_all(&self.frame)?;
            self.size += self.frame.len() as u64;
        }
        Ok(())
    }
}

fn rotated(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Reads a log, also while it grows.
#[derive(Debug)]
pub(crate) struct LogReader {
    path: PathBuf,
    file: Option<File>,
    /// The start of a frame that is not complete yet.
    partial: Vec<u8>,
    begun: bool,
}

impl LogReader {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            partial: Vec::new(),
            begun: false,
        }
    }

    /// The next frame; `None` when there is nothing more now.
    pub(crate) fn next(&mut self) -> Result<Option<LogChunk>> {
        loop {
            if self.file.is_none() {
                // The older half first, the first time.
                let older = if self.begun {
                    None
                } else {
                    self.open(&rotated(&self.path))?
                };
                self.begun = true;
                self.file = match older {
                    Some(file) => Some(file),
                    None => self.open(&self.path)?,
                };
            }
            let Some(file) = &mut self.file else {
                return Ok(None);
            };
            if let Some(chunk) = read_frame(file, &mut self.partial).map_err(|error| self.fault(error))? {
                return Ok(Some(chunk));
            }
            if self.is_current()? {
                return Ok(None);
            }
            // It was rotated; the end of it may have been written between the two looks.
            let Some(file) = &mut self.file else {
                return Ok(None);
            };
            if let Some(chunk) = read_frame(file, &mut self.partial).map_err(|error| self.fault(error))? {
                return Ok(Some(chunk));
            }
            self.partial.clear();
            self.file = None;
        }
    }

    fn open(&self, path: &Path) -> Result<Option<File>> {
        match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.fault(error)),
        }
    }

    /// Whether the file that is read is the one that is written.
    fn is_current(&self) -> Result<bool> {
        let Some(file) = &self.file else {
            return Ok(true);
        };
        let current = match std::fs::metadata(&self.path) {
            Ok(current) => current,
            // Between the two steps of a rotation, or the older half is all there is.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(self.fault(error)),
        };
        let ours = file.metadata().map_err(|error| self.fault(error))?;
        Ok((ours.dev(), ours.ino()) == (current.dev(), current.ino()))
    }

    fn fault(&self, error: io::Error) -> Error {
        let message = match error.kind() {
            io::ErrorKind::InvalidData => {
                return Error::new(ErrorKind::DataInvalid, "the session's log is damaged")
                    .with_context("path", self.path.display());
            }
            _ => "cannot read the session's log",
        };
        Error::io(message, error).with_context("path", self.path.display())
    }
}

fn read_frame(file: &mut impl Read, partial: &mut Vec<u8>) -> io::Result<Option<LogChunk>> {
    let mut want = |partial: &mut Vec<u8>, length: usize| -> io::Result<bool> {
        let missing = length.saturating_sub(partial.len());
        file.by_ref().take(missing as u64).read_to_end(partial)?;
        Ok(partial.len() >= length)
    };
    if !want(partial, 5)? {
        return Ok(None);
    }
    let length = u32::from_be_bytes([partial[1], partial[2], partial[3], partial[4]]) as usize;
    let stream = match partial[0] {
        1 => OutputStream::Stdout,
        2 => OutputStream::Stderr,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    if length > FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if !want(partial, 5 + length)? {
        return Ok(None);
    }
    let bytes = Bytes::copy_from_slice(&partial[5..]);
    partial.clear();
    Ok(Some(LogChunk { stream, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(reader: &mut LogReader) -> Vec<u8> {
        std::iter::from_fn(|| reader.next().unwrap())
            .flat_map(|chunk| chunk.bytes)
            .collect()
    }

    #[test]
    fn what_is_written_is_read_across_rotations_and_the_latest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut follower = LogReader::new(path.clone());
        assert_eq!(follower.next().unwrap(), None);
        let mut writer = LogWriter::new(path.clone(), 100);
        let (mut all, mut followed) = (Vec::new(), Vec::new());
        for i in 0..30 {
            let line = format!("line {i:02}\n");
            writer.write(OutputStream::Stdout, line.as_bytes()).unwrap();
            all.extend_from_slice(line.as_bytes());
            followed.extend(drain(&mut follower));
        }
        assert_eq!(followed, all, "a follower that keeps up misses nothing");
        let late = drain(&mut LogReader::new(path));
        assert!(
            all.ends_with(&late) && late.len() >= 24 && late.len() < 100,
            "{}",
            late.len()
        );
    }

    #[test]
    fn a_frame_that_is_still_being_written_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        std::fs::write(&path, [2, 0, 0, 0, 3, b'a']).unwrap();
        let mut reader = LogReader::new(path.clone());
        assert_eq!(reader.next().unwrap(), None);
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"bc")
            .unwrap();
        let chunk = reader.next().unwrap().unwrap();
        assert_eq!((chunk.stream, &chunk.bytes[..]), (OutputStream::Stderr, &b"abc"[..]));
        std::fs::write(&path, [9, 0, 0, 0, 0]).unwrap();
        assert!(LogReader::new(path).next().is_err());
    }
}
