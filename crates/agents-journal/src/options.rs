//! How a journal is opened.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use agents_core::{Error, Result};

use crate::keys::ChainKey;

/// When records are forced to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// Before a record is acknowledged. Concurrent records share one `fdatasync`.
    #[default]
    EveryCommit,
    /// At least this often. A record is acknowledged once the kernel has it: it survives a crash of this process, but not
    /// one of the machine.
    Interval(Duration),
    /// When the kernel sees fit, when a segment is full, at `flush` and at `close`. What is acknowledged is as above.
    None,
}

/// What is removed of itself, oldest first, when a segment is full; whole segments, and only what every cursor has
/// acknowledged. A keyed record of the cut keeps the chain provable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Segments whose newest record is older than this.
    pub max_age: Option<Duration>,
    /// Segments beyond this size of all together.
    pub max_bytes: Option<u64>,
}

impl Retention {
    /// Nothing is removed of itself.
    pub fn none() -> Self {
        Self::default()
    }

    /// Removes segments whose newest record is older than this.
    #[must_use]
    pub fn with_max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Removes the oldest segments beyond this size.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }
}

/// How a journal is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JournalOptions {
    /// The folder of the journal, with a folder for each writer. It is created when it is not there.
    pub path: PathBuf,
    /// The folder of this writer; without one, the first that no living process has, from `0001` on.
    pub writer: Option<String>,
    /// What the chain is sealed with. Default: none, a plain chain.
    pub key: ChainKey,
    /// When records are forced to disk. Default: before they are acknowledged.
    pub durability: Durability,
    /// A segment is full at this size. Default: 8 MiB.
    pub segment_bytes: u64,
    /// The most that all segments of this writer may take; what does not fit is refused. Default: 1 GiB.
    pub max_bytes: u64,
    /// After how many records a checkpoint is made. Default: 1000.
    pub checkpoint_every: u32,
    /// What is removed of itself. Default: nothing.
    pub retention: Retention,
}

impl JournalOptions {
    /// A journal in this folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            writer: None,
            key: ChainKey::none(),
            durability: Durability::EveryCommit,
            segment_bytes: 8 << 20,
            max_bytes: 1 << 30,
            checkpoint_every: 1000,
            retention: Retention::none(),
        }
    }

    /// Sets the folder of this writer.
    #[must_use]
    pub fn with_writer(mut self, name: impl Into<String>) -> Self {
        self.writer = Some(name.into());
        self
    }

    /// Sets what the chain is sealed with.
    #[must_use]
    pub fn with_key(mut self, key: ChainKey) -> Self {
        self.key = key;
        self
    }

    /// Sets when records are forced to disk.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets at what size a segment is full.
    #[must_use]
    pub fn with_segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Sets the most that all segments of this writer may take.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets after how many records a checkpoint is made.
    #[must_use]
    pub fn with_checkpoint_every(mut self, records: u32) -> Self {
        self.checkpoint_every = records;
        self
    }

    /// Sets what is removed of itself.
    #[must_use]
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Checks the values without any I/O.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the field.
    pub fn check(&self) -> Result<()> {
        check_path(&self.path)?;
        if let Some(name) = &self.writer {
            check_name("writer", name)?;
        }
        if self.segment_bytes == 0 {
            return Err(Error::invalid("segment_bytes is 0; leave it out, or write at least 1"));
        }
        if self.max_bytes < RESERVE {
            return Err(Error::invalid(format!(
                "max_bytes is {}; a journal needs at least {RESERVE}",
                self.max_bytes
            )));
        }
        if self.checkpoint_every == 0 {
            return Err(Error::invalid(
                "checkpoint_every is 0; leave it out, or write at least 1",
            ));
        }
        Ok(())
    }
}

/// Room that records leave for checkpoints.
pub(crate) const RESERVE: u64 = 8 << 10;

fn check_path(path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(Error::invalid(
            "the path of the journal is empty or holds NUL; name a folder",
        ));
    }
    Ok(())
}

/// Names of writers and cursors are names of files.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        return Err(Error::invalid(format!(
            "{what} {name:?} is no name; use 1 to 64 of a-z, 0-9, - and _"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_judged() {
        let good = || JournalOptions::new("/a");
        good().with_writer("spool-1").check().unwrap();
        let bad = [
            (JournalOptions::new(""), "path"),
            (good().with_writer("../x"), "writer"),
            (good().with_writer(""), "writer"),
            (good().with_segment_bytes(0), "segment_bytes"),
            (good().with_max_bytes(10), "max_bytes"),
            (good().with_checkpoint_every(0), "checkpoint_every"),
        ];
        for (options, word) in bad {
            let error = options.check().unwrap_err();
            assert!(error.message().contains(word), "{error}");
        }
    }
}
