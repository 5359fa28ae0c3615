//! How a spool is opened.

use std::{path::PathBuf, time::Duration};

use agents_core::{Error, Result};
use agents_journal::{ChainKey, JournalOptions};

/// A segment of the journal takes at most this, and at most an eighth of the spool, so that what was delivered makes room.
const SEGMENT_BYTES: u64 = 8 << 20;

/// How a [`Spool`](super::Spool) is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SpoolOptions {
    /// The folder, which belongs to one sink. It is created when it is not there.
    pub folder: PathBuf,
    /// The most that the events of this process may take on disk; what does not fit is refused. Default: 256 MiB.
    pub max_bytes: u64,
    /// New events are refused while the oldest that waits is older than this. Default: none.
    pub max_age: Option<Duration>,
    /// What the hash chain is sealed with. Default: none, a plain chain.
    pub key: ChainKey,
    /// How long `flush` waits for delivery. Default: 30 seconds.
    pub flush_limit: Duration,
    /// How long `shutdown` waits for delivery, and a query for what was emitted before. Default: 5 seconds.
    pub shutdown_limit: Duration,
    /// The longest pause between two attempts, unless the sink asks for a longer one. Default: 30 seconds.
    pub max_delay: Duration,
}

impl SpoolOptions {
    /// A spool in this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            max_bytes: 256 << 20,
            max_age: None,
            key: ChainKey::none(),
            flush_limit: Duration::from_secs(30),
            shutdown_limit: Duration::from_secs(5),
            max_delay: Duration::from_secs(30),
        }
    }

    /// Sets the most that the events of this process may take on disk.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Refuses new events while the oldest that waits is older than this.
    #[must_use]
    pub fn with_max_age(mut self, age: Option<Duration>) -> Self {
        self.max_age = age;
        self
    }

    /// Sets what the hash chain is sealed with.
    #[must_use]
    pub fn with_key(mut self, key: ChainKey) -> Self {
        self.key = key;
        self
    }

    /// Sets how long `flush` waits for delivery.
    #[must_use]
    pub fn with_flush_limit(mut self, limit: Duration) -> Self {
        self.flush_limit = limit;
        self
    }

    /// Sets how long `shutdown` waits for delivery, and a query for what was emitted before.
    #[must_use]
    pub fn with_shutdown_limit(mut self, limit: Duration) -> Self {
        self.shutdown_limit = limit;
        self
    }

    /// Sets the longest pause between two attempts.
    #[must_use]
    pub fn with_max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// Checks the values without any I/O.
    pub(super) fn check(&self) -> Result<()> {
        if self.folder.as_os_str().is_empty() {
            return Err(Error::invalid("the folder of the spool is empty; name one"));
        }
        if self.max_bytes < 1 << 20 {
            return Err(Error::invalid(format!(
                "the spool may take {} bytes; let it take at least 1 MiB",
                self.max_bytes
            )));
        }
        Ok(())
    }

    pub(super) fn journal(&self) -> JournalOptions {
        JournalOptions::new(&self.folder)
            .with_key(self.key.clone())
            .with_max_bytes(self.max_bytes)
            .with_segment_bytes(SEGMENT_BYTES.min(self.max_bytes / 8))
    }
}
