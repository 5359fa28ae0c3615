#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod backlog;
mod chain;
mod disk;
mod error;
mod event;
#[cfg(test)]
mod fake;
mod fault;
mod folder;
mod frame;
mod group;
mod hash;
mod journal;
mod keys;
mod options;
mod reader;
mod recover;
mod statement;
mod store;
#[cfg(test)]
mod tests;
mod verify;
mod verify_events;

pub use backlog::{Backlog, backlog};
pub use chain::Chain;
pub use event::canonical;
pub use fault::{Fault, FaultKind};
pub use frame::MAX_PAYLOAD;
pub use group::{GroupCommit, Sink};
pub use hash::Hash;
pub use journal::{Journal, Receipt, Status, WriterInfo, writers};
pub use keys::{ChainKey, KeyId, Keys};
pub use options::{Durability, JournalOptions, Retention};
pub use reader::{Cursor, Reader, Record};
pub use statement::{Checkpoint, CheckpointKind};
pub use verify::{Verification, WriterVerification, verify};
pub use verify_events::{EventVerification, EventVerifier, EventWriter, Reading, verify_events};
