//! What a sink will never take: kept, so that a person can see to it.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use agents_core::{Error, ErrorKind, Result};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::files::{LOST, append_to, file_error, sync_dir};

/// Only what tells one line from another.
#[derive(Deserialize)]
struct Place {
    sequence: u64,
}

/// The file of a writer.
#[derive(Debug)]
pub(super) struct Lost {
    folder: PathBuf,
    path: PathBuf,
    max_bytes: u64,
    /// The last that is there: after a crash the same events come again.
    last: u64,
}

impl Lost {
    /// Takes up the file of a folder, without the line that a crash tore.
    pub(super) fn open(folder: PathBuf, max_bytes: u64) -> Result<Self> {
        let path = folder.join(LOST);
        let mut lost = Self {
            folder,
            path,
            max_bytes,
            last: 0,
        };
        let bytes = match fs::read(&lost.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lost),
            read => read.map_err(|error| file_error("read", &lost.path, error))?,
        };
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            let cut = append_to(&lost.path).and_then(|file| file.set_len(whole as u64));
            cut.map_err(|error| file_error("repair", &lost.path, error))?;
        }
        let last = bytes[..whole]
            .split(|byte| *byte == b'\n')
            .rfind(|line| !line.is_empty());
        let place = last.and_then(|line| serde_json::from_slice::<Place>(line).ok());
        lost.last = place.map_or(0, |place| place.sequence);
        Ok(lost)
    }

    /// Keeps an event, given as JSON, durably; once, however often it comes.
    pub(super) fn keep(&mut self, sequence: u64, event: &str, reason: &str) -> Result<()> {
        if sequence <= self.last {
            return Ok(());
        }
        let (at, reason) = (Timestamp::now(), json!(reason));
        let line = format!("{{\"sequence\":{sequence},\"lost_at\":\"{at}\",\"reason\":{reason},\"event\":{event}}}\n");
        let taken = fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        if taken + line.len() as u64 > self.max_bytes {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "{} is full of events that the sink refused; see to them and move the file away",
                    self.path.display()
                ),
            ));
        }
        self.append(line.as_bytes(), taken)
            .map_err(|error| file_error("write", &self.path, error))?;
        self.last = sequence;
        Ok(())
    }

    fn append(&self, line: &[u8], whole: u64) -> io::Result<()> {
        let mut file = append_to(&self.path)?;
        let written = file.write_all(line).and_then(|()| file.sync_data());
        if written.is_err() {
            // A part of a line would spoil the next one.
            let _ = file.set_len(whole);
            return written;
        }
        sync_dir(&self.folder)
    }
}

/// How many events a writer's file has.
pub(super) fn count(folder: &Path) -> Result<u64> {
    let path = folder.join(LOST);
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(file_error("read", &path, error)),
        Ok(bytes) => Ok(bytes.iter().filter(|byte| **byte == b'\n').count() as u64),
    }
}

#[cfg(test)]
mod tests {
    use agents_core::{AuditEvent, EventType};

    use super::*;

    #[test]
    fn each_is_kept_once_also_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Lost::open(folder.path().to_owned(), 2000).unwrap();
        let event = serde_json::to_string(&AuditEvent::now(EventType::SystemWarning)).unwrap();
        let mut lost = open();
        lost.keep(3, &event, "too large").unwrap();
        lost.keep(4, r#""no { event""#, "unknown").unwrap();
        lost.keep(4, &event, "again").unwrap();
        append_to(&folder.path().join(LOST))
            .unwrap()
            .write_all(b"{\"sequ")
            .unwrap();
        let mut lost = open();
        lost.keep(4, &event, "again").unwrap();
        lost.keep(5, &event, "too large").unwrap();
        assert_eq!(count(folder.path()).unwrap(), 3);
        let file = fs::read_to_string(folder.path().join(LOST)).unwrap();
        let lines: Vec<serde_json::Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["event"]["event_type"], "system_warning");
        assert_eq!(lines[1]["event"], "no { event");
        assert_eq!(
            (&lines[2]["sequence"], &lines[2]["reason"]),
            (&5.into(), &"too large".into())
        );
    }

    #[test]
    fn it_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut lost = Lost::open(folder.path().to_owned(), 300).unwrap();
        lost.keep(1, "{}", &"x".repeat(200)).unwrap();
        let error = lost.keep(2, "{}", &"x".repeat(200)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        assert!(error.message().contains("lost.jsonl"), "{error}");
        assert_eq!(count(folder.path()).unwrap(), 1);
    }
}
