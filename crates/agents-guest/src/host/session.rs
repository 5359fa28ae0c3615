//! A process over a connection: its input, its control, and its session.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agents_core::{
    Error, ErrorKind, ExecControl, ExecEvent, ExecInput, ExecSession, Exit, KillReason, Process, Result,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, Semaphore, mpsc, oneshot},
    time::Instant,
};

use super::{
    Afterwards, Connection, Judge,
    afterwards::Handover,
    connection::{Writing, failed},
    exit::exit_of,
    pump::Pump,
};
use crate::protocol::{FromGuest, INPUT_WINDOW, MAX_PAYLOAD, Spawn, Started, ToGuest};

/// How long the program may take to start a process. One that somebody inside has stopped never does.
const START: Duration = Duration::from_secs(30);

/// How many pieces of output, of at most 64 KiB, are kept for a reader that is behind.
const AHEAD: usize = 8;

/// A process to start over a [`Connection`].
#[derive(Clone, Debug)]
pub struct SpawnRequest {
    process: Process,
    deadline: Option<Duration>,
}

impl SpawnRequest {
    /// A process without a deadline. Where it names no working directory it gets the program's own, which is the one that
    /// the engine was told, and its environment is added to the program's own likewise.
    pub fn new(process: Process) -> Self {
        Self {
            process,
            deadline: None,
        }
    }

    /// The working directory of a process that names none itself.
    #[must_use]
    pub fn with_default_working_dir(mut self, dir: impl Into<String>) -> Self {
        self.process.working_dir.get_or_insert_with(|| dir.into());
        self
    }

    /// After this time the whole process tree is killed, and the session ends with `Deadline`. The deadline of a main
    /// process is that of its [`StartOptions`].
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline;
        self
    }

    pub(super) fn into_spawn(self) -> Spawn {
        Spawn {
            command: self.process.command,
            env: self.process.env,
            working_dir: self.process.working_dir,
            stdin: self.process.stdin,
            tty: self.process.tty,
        }
    }
}

/// How a main process is started.
#[derive(Clone, Debug, Default)]
pub struct StartOptions {
    deadline: Option<Duration>,
    outlives_client: bool,
}

impl StartOptions {
    /// Without a deadline, and ending when the connection breaks.
    pub fn new() -> Self {
        Self::default()
    }

    /// After this time the whole process tree is killed, and the session ends with `Deadline`.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Lets the process live on when the connection breaks. Dropping the session kills it all the same.
    #[must_use]
    pub fn outliving_the_client(mut self) -> Self {
        self.outlives_client = true;
        self
    }
}

pub(super) async fn start(
    connection: Connection,
    options: StartOptions,
    judge: Arc<dyn Judge>,
) -> Result<(ExecSession, Afterwards)> {
    let order = ToGuest::Start {
        outlives_client: options.outlives_client,
    };
    let (handover, give_writer, afterwards) = Handover::new();
    let kept = Some((handover, give_writer));
    let session = begin(connection, order, options.deadline, judge, kept).await?;
    Ok((session, afterwards))
}

pub(super) async fn spawn(connection: Connection, request: SpawnRequest, judge: Arc<dyn Judge>) -> Result<ExecSession> {
    let deadline = request.deadline;
    begin(connection, ToGuest::Spawn(request.into_spawn()), deadline, judge, None).await
}

async fn begin(
    mut connection: Connection,
    order: ToGuest,
    deadline: Option<Duration>,
    judge: Arc<dyn Judge>,
    kept: Option<(Handover, oneshot::Sender<Writing>)>,
) -> Result<ExecSession> {
    let deadline = deadline.map(|deadline| Instant::now() + deadline);
    let until = Instant::now() + START;
    let until = deadline.map_or(until, |deadline| deadline.min(until));
    let fault = match tokio::time::timeout_at(until, connection.ask(&order)).await {
        Ok(Ok(FromGuest::Started(started))) => Ok(started),
        Ok(Ok(FromGuest::Exit(ended))) => Err(exit_of(ended)),
        Ok(Ok(FromGuest::Failed(failure))) => return Err(failed(failure)),
        Ok(Ok(_)) => Err(judge
            .lost("the guest program gave an answer to something else".to_owned())
            .await),
        Ok(Err(error)) => Err(judge.lost(error.to_string()).await),
        Err(_) => {
            let exit = judge
                .lost("the guest program did not say in time that it has started it".to_owned())
                .await;
            Err(if deadline == Some(until) { Exit::Deadline } else { exit })
        }
    };
    let Started { stdin, tty, .. } = match fault {
        Ok(started) => started,
        Err(exit) => {
            let events = stream::iter([Ok(ExecEvent::Exit(exit))]).boxed();
            return Ok(ExecSession::new(events, None, Arc::new(Shared::ended())));
        }
    };
    let (outbox, to_write) = mpsc::unbounded_channel();
    let (handover, give_writer) = kept.unzip();
    tokio::spawn(write_out(connection.writer, to_write, give_writer));
    let shared = Arc::new(Shared::new(outbox, tty));
    let (events, mut received) = mpsc::channel(AHEAD);
    let pump = Pump::new(
        connection.messages,
        Arc::clone(&shared),
        events,
        judge,
        deadline,
        handover,
    );
    tokio::spawn(pump.run());
    let mut ended = false;
    let events = stream::poll_fn(move |context| {
        if ended {
            return std::task::Poll::Ready(None);
        }
        received.poll_recv(context).map(|event| {
            // The pump ends without an exit only when the caller's tokio runtime is shut down.
            let event = event.unwrap_or_else(|| {
                ExecEvent::Exit(Exit::RuntimeLost {
                    reason: "the program that looked after it was shut down".to_owned(),
                })
            });
            ended = matches!(event, ExecEvent::Exit(_));
            Some(Ok(event))
        })
    });
    let input = stdin.then(|| {
        Box::new(Input {
            shared: Arc::clone(&shared),
            open: true,
        }) as Box<dyn ExecInput>
    });
    Ok(ExecSession::new(events.boxed(), input, shared))
}

/// Writes what is sent, and once nobody can send any more gives the connection's half away, or closes it when nobody takes
/// it. It is a task of its own so that no frame is cut in two when a caller gives up waiting.
async fn write_out(
    mut writer: Writing,
    mut messages: mpsc::UnboundedReceiver<ToGuest>,
    give: Option<oneshot::Sender<Writing>>,
) {
    let mut bytes = Vec::new();
    while let Some(message) = messages.recv().await {
        bytes.clear();
        message.encode(&mut bytes);
        // The other direction says why.
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
    let left = match give {
        Some(give) => give.send(writer).err(),
        None => Some(writer),
    };
    if let Some(mut writer) = left {
        let _ = writer.shutdown().await;
    }
}

/// What the session's parts have in common.
pub(super) struct Shared {
    /// What is to be sent. Its length is bounded by the credit for input, but for signals and sizes of the terminal.
    outbox: Mutex<Option<mpsc::UnboundedSender<ToGuest>>>,
    /// How many bytes of input may be sent. Closed when the process takes none any more.
    pub(super) credit: Semaphore,
    reason: Mutex<Option<KillReason>>,
    pub(super) kill: Notify,
    terminal: bool,
}

impl Shared {
    fn new(outbox: mpsc::UnboundedSender<ToGuest>, terminal: bool) -> Self {
        Self {
            outbox: Mutex::new(Some(outbox)),
            credit: Semaphore::new(INPUT_WINDOW),
            reason: Mutex::new(None),
            kill: Notify::new(),
            terminal,
        }
    }

    fn ended() -> Self {
        let shared = Self {
            outbox: Mutex::new(None),
            credit: Semaphore::new(0),
            reason: Mutex::new(None),
            kill: Notify::new(),
            terminal: false,
        };
        shared.credit.close();
        shared
    }

    /// Sends a message. What has ended does not hear any more, and need not.
    pub(super) fn send(&self, message: ToGuest) {
        if let Some(outbox) = &*self.outbox.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = outbox.send(message);
        }
    }

    /// The end: nothing is sent any more, and the connection's half is closed.
    pub(super) fn close(&self) {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.credit.close();
    }

    /// Why the process tree is being killed.
    pub(super) fn reason(&self) -> Option<KillReason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the reason; the first one counts.
    pub(super) fn kill_for(&self, reason: KillReason) {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(reason);
        self.kill.notify_one();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestControl")
            .field("reason", &self.reason())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ExecControl for Shared {
    async fn kill(&self, reason: KillReason) -> Result<()> {
        self.kill_for(reason);
        Ok(())
    }

    async fn signal(&self, signal: i32) -> Result<()> {
        match u32::try_from(signal) {
            Ok(number) if (1..=64).contains(&number) => self.send(ToGuest::Signal(number)),
            _ => {
                return Err(Error::invalid(format!(
                    "{signal} is not a signal; give a number from 1 to 64"
                )));
            }
        }
        Ok(())
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        if !self.terminal {
            return Err(Error::unsupported(
                "the process has no terminal; ask for one when it is started",
            ));
        }
        self.send(ToGuest::Resize { rows, columns });
        Ok(())
    }

    fn abandon(&self) {
        self.kill_for(KillReason::Cancelled);
    }
}

#[derive(Debug)]
struct Input {
    shared: Arc<Shared>,
    open: bool,
}

#[async_trait]
impl ExecInput for Input {
    async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_PAYLOAD));
            let length = u32::try_from(chunk.len()).unwrap_or(0);
            let credit = self.shared.credit.acquire_many(length).await.map_err(|_| {
                Error::new(
                    ErrorKind::Conflict,
                    "the process has closed its standard input, or has ended",
                )
            })?;
            credit.forget();
            self.shared.send(ToGuest::Input(chunk.into()));
        }
        Ok(())
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.end();
        Ok(())
    }
}

impl Input {
    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            self.shared.send(ToGuest::CloseInput);
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.end();
    }
}
