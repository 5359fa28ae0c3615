//! What the connection to the first process is good for once the main process has ended.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agents_core::{ByteStream, Result};
use tokio::{sync::oneshot, time::timeout};

use super::{
    Connection, archive,
    connection::{Messages, Writing},
};
use crate::protocol::ToGuest;

/// The connection that a main process was started over, for when it has ended: reading what a run has made costs no further
/// process of the engine's then.
///
/// Nobody has it while the process runs, while files are read, and when it was lost. Dropping the last clone closes it.
#[derive(Clone, Default)]
pub struct Afterwards(Arc<Mutex<Option<Connection>>>);

impl Afterwards {
    pub(super) fn put(&self, connection: Connection) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }

    fn take(&self) -> Option<Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The archive of a path from `init`, otherwise as [`Connection::read`]. `None` without the connection.
    ///
    /// # Errors
    ///
    /// `NotFound` when the path does not exist.
    pub async fn read(&self, path: &str) -> Option<Result<ByteStream>> {
        let mut connection = self.take()?;
        // When it does not listen any more, it does not answer either.
        let _ = connection.say(&ToGuest::Read(path.to_owned())).await;
        Some(archive::read(connection, Some(self.clone())).await)
    }
}

impl fmt::Debug for Afterwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Afterwards").finish_non_exhaustive()
    }
}

/// How long what was written to a process that has ended may take to be on its way.
const MOMENT: Duration = Duration::from_secs(1);

/// Puts the connection together again.
pub(super) struct Handover {
    writer: oneshot::Receiver<Writing>,
    to: Afterwards,
}

impl Handover {
    pub(super) fn new() -> (Self, oneshot::Sender<Writing>, Afterwards) {
        let (give_writer, writer) = oneshot::channel();
        let to = Afterwards::default();
        (Self { writer, to: to.clone() }, give_writer, to)
    }

    /// Gives the connection away, when nothing is being written any more.
    pub(super) async fn give(self, messages: Messages) {
        if let Ok(Ok(writer)) = timeout(MOMENT, self.writer).await {
            self.to.put(Connection { messages, writer });
        }
    }
}
