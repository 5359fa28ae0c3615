//! What the connection to the first process is good for once the main process has ended.

use std::time::Duration;

use tokio::{sync::oneshot, time::timeout};

use super::{
    Connection,
    connection::{Messages, Writing},
};

/// The connection that a main process was started over, for [`Connection::read_path`] after its end: reading what a run has
/// made costs no further call of the engine's then.
///
/// Dropping it closes the connection.
#[derive(Debug)]
pub struct Afterwards(oneshot::Receiver<Connection>);

impl Afterwards {
    /// The connection, once, as soon as the session has given its exit. `None` before that, later, and when the connection
    /// was lost.
    pub fn connection(&mut self) -> Option<Connection> {
        self.0.try_recv().ok()
    }
}

/// How long what was written to a process that has ended may take to be on its way.
const MOMENT: Duration = Duration::from_secs(1);

/// Puts the connection together again.
pub(super) struct Handover {
    writer: oneshot::Receiver<Writing>,
    to: oneshot::Sender<Connection>,
}

impl Handover {
    pub(super) fn new() -> (Self, oneshot::Sender<Writing>, Afterwards) {
        let (give_writer, writer) = oneshot::channel();
        let (to, connection) = oneshot::channel();
        (Self { writer, to }, give_writer, Afterwards(connection))
    }

    /// Gives the connection away, when nothing is being written any more.
    pub(super) async fn give(self, messages: Messages) {
        if let Ok(Ok(writer)) = timeout(MOMENT, self.writer).await {
            let _ = self.to.send(Connection { messages, writer });
        }
    }
}
