//! What only the engine knows about an ending.

use std::fmt;

use agents_core::Exit;
use async_trait::async_trait;

/// What an adapter adds to what the program says about the end of a process. Make one for each process, before it starts,
/// so that counters of the engine can be compared.
#[async_trait]
pub trait Judge: fmt::Debug + Send + Sync + 'static {
    /// The process has failed: it exited with another code than 0, or a signal ended it. The answer is what is said to the
    /// caller: the same, or what the engine knows better, such as `OutOfMemory` when it says so.
    ///
    /// What was killed for its deadline or at the caller's wish is not asked about.
    async fn failed(&self, exit: Exit) -> Exit;

    /// The connection ended without an ending, or the program does not answer: it was killed from inside, or the container
    /// or the engine is gone. Whatever is left of the process tree can no longer be told from the rest, so this **must** see
    /// to it that the container's processes end. The answer is [`Exit::RuntimeLost`] with the reason, or what the engine
    /// knows better.
    async fn lost(&self, reason: String) -> Exit;
}

/// Knows nothing better, and ends nothing: for connections to a program that is no engine's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

#[async_trait]
impl Judge for Quiet {
    async fn failed(&self, exit: Exit) -> Exit {
        exit
    }

    async fn lost(&self, reason: String) -> Exit {
        Exit::RuntimeLost { reason }
    }
}
