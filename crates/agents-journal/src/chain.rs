//! A hash chain for a sink that keeps its records in a form of its own.

use std::sync::Arc;

use agents_core::{ChainLink, Error, ErrorKind, Result};

use crate::{
    hash::Hash,
    journal::Receipt,
    keys::{ChainKey, genesis},
    statement::{Checkpoint, CheckpointKind},
};

/// The end of a hash chain. [`Journal`](crate::Journal) keeps its own; this is for a sink with another form on disk, whose
/// events are verified by [`EventVerifier`](crate::EventVerifier).
#[derive(Clone, Debug)]
pub struct Chain {
    key: ChainKey,
    writer: Arc<str>,
    sequence: u64,
    hash: Hash,
}

impl Chain {
    /// A new chain. The name of its writer must be unique.
    pub fn new(key: ChainKey, writer: impl Into<Arc<str>>) -> Self {
        let writer = writer.into();
        Self {
            key,
            sequence: 0,
            hash: genesis(&writer),
            writer,
        }
    }

    /// The chain that ends with this event.
    ///
    /// # Errors
    ///
    /// `DataInvalid` when its hash is no hash.
    pub fn resume(key: ChainKey, last: &ChainLink) -> Result<Self> {
        let hash = last.hash.parse().map_err(|error| {
            let message = format!(
                "the hash of event {} of writer {} is no hash",
                last.sequence, last.writer
            );
            Error::new(ErrorKind::DataInvalid, message).with_source(error)
        })?;
        Ok(Self {
            key,
            writer: last.writer.as_str().into(),
            sequence: last.sequence,
            hash,
        })
    }

    /// Who writes it.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// The place of the last record; 0 before the first one.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Gives a payload the next place. Of an event, that is [`canonical`](crate::canonical()).
    pub fn append(&mut self, payload: &[u8]) -> Receipt {
        let previous = self.hash;
        self.sequence += 1;
        self.hash = self.key.link(&previous, self.sequence, payload);
        Receipt {
            writer: Arc::clone(&self.writer),
            sequence: self.sequence,
            previous,
            hash: self.hash,
        }
    }

    /// Says how far it goes, or that what is before was removed.
    pub fn checkpoint(&self, kind: CheckpointKind) -> Checkpoint {
        Checkpoint::new(kind, &self.writer, (self.sequence, self.hash), 0, &self.key)
    }
}
