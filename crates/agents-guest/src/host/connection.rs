//! One connection to the program.

use std::fmt;

use agents_core::{ByteStream, ContainerState, Error, ErrorKind, ExecSession, Result, Secret};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

use super::{Afterwards, Judge, SpawnRequest, StartOptions, archive, session, tunnel};
use crate::{
    Report,
    protocol::{Failure, FailureKind, FromGuest, HEADER, Header, Malformed, State, ToGuest, join},
};

pub(super) type Reading = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type Writing = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection to the program's standard output and input, however the engine carries them: of the container's first
/// process (`init`), or of one exec.
///
/// What the two halves carry must be the bare bytes: an engine's own framing of standard output and error is taken off by
/// the adapter, and the program's standard error is only for people who debug.
///
/// Dropping a connection, and anything that was made of it, ends what it was for: the program kills the process tree of an
/// `exec` when its standard input ends.
pub struct Connection {
    pub(super) messages: Messages,
    pub(super) writer: Writing,
}

impl Connection {
    /// Talks over two streams of bytes: the program's standard output and its standard input.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self {
            messages: Messages::new(Box::new(reader)),
            writer: Box::new(writer),
        }
    }

    /// What is in force inside: the first message of `init`, and the only one of `report`.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the container ends without a word or talks nonsense.
    pub async fn report(&mut self) -> Result<Report> {
        match self.messages.expect().await? {
            FromGuest::Report(fields) => Ok(Report::new(fields)),
            other => Err(unexpected(other)),
        }
    }

    /// Writes the secrets into the container, to `init` and before anything is spawned. Returns when they are there.
    ///
    /// # Errors
    ///
    /// `ResourceExhausted` when their folder is full, `Conflict` when the main process has started.
    pub async fn deliver_secrets(&mut self, secrets: &[Secret]) -> Result<()> {
        let files = secrets
            .iter()
            .map(|secret| (secret.name.clone(), secret.value.expose().to_vec()))
            .collect();
        match self.ask(&ToGuest::Secrets(files)).await? {
            FromGuest::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// The state of the main process, from `status`.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the program ends without a word.
    pub async fn status(mut self) -> Result<ContainerState> {
        match self.messages.expect().await? {
            FromGuest::State(state) => Ok(state.into()),
            other => Err(unexpected(other)),
        }
    }

    /// Gives the main process to `init`, which keeps it until it is to be started. So the one who starts it needs nothing
    /// but a connection, and nothing of it is in what the engine shows.
    ///
    /// # Errors
    ///
    /// `Conflict` when there is a main process already.
    pub async fn prepare(&mut self, request: SpawnRequest) -> Result<()> {
        match self.ask(&ToGuest::Prepare(request.into_spawn())).await? {
            FromGuest::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Starts the main process, over a connection to `init`. Make sure that nobody else is connected to it by then, which
    /// is so in the state [`ContainerState::Created`]: an engine gives the same output to everybody who is attached.
    ///
    /// The session keeps to the contract of [`ExecSession`]: its memory is bounded, it ends with exactly one exit, and
    /// dropping it kills the process tree. With the main process everything else that runs in the container ends. The
    /// program itself stays, so that files can be read, until the container is destroyed.
    ///
    /// # Errors
    ///
    /// `Conflict` when the main process has started already, or there is none. A command that cannot be executed is not an
    /// error but the session's exit, and so is a connection that breaks.
    pub async fn start(self, options: StartOptions, judge: Arc<dyn Judge>) -> Result<(ExecSession, Afterwards)> {
        session::start(self, options, judge).await
    }

    /// Starts a further process, over a connection to `exec`. The session is as that of [`start`](Self::start); what the
    /// process leaves behind in the background lives on when it ends by itself.
    ///
    /// # Errors
    ///
    /// `Conflict` when the container's main process has not started yet, or has ended. A command that cannot be executed is
    /// not an error but the session's exit, and so is a connection that breaks.
    pub async fn spawn(self, request: SpawnRequest, judge: Arc<dyn Judge>) -> Result<ExecSession> {
        session::spawn(self, request, judge).await
    }

    /// The archive from `read`. Its first bytes have come when this returns, so that a missing path is an error here.
    ///
    /// # Errors
    ///
    /// `NotFound` when the path does not exist.
    pub async fn read(self) -> Result<ByteStream> {
        archive::read(self, None).await
    }

    /// Sends an archive to `write`, and returns when all of it is written.
    ///
    /// # Errors
    ///
    /// `NotFound` when the folder does not exist, `ResourceExhausted` when the writable space is full, and the archive's own.
    pub async fn write(self, archive: ByteStream) -> Result<()> {
        archive::write(self, archive).await
    }

    /// The connection that `connect` carries.
    ///
    /// # Errors
    ///
    /// `Unavailable` when nobody listens there.
    pub async fn connect(self) -> Result<DuplexStream> {
        tunnel::connect(self).await
    }

    /// Says something, and hears the answer.
    pub(super) async fn ask(&mut self, message: &ToGuest) -> Result<FromGuest<Bytes>> {
        // When it does not listen any more, it has said why.
        let sent = self.say(message).await;
        match (self.messages.expect().await, sent) {
            (Err(error), Err(cause)) if std::error::Error::source(&error).is_none() => Err(error.with_source(cause)),
            (answer, _) => answer,
        }
    }
}

impl Connection {
    pub(super) async fn say(&mut self, message: &ToGuest) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.writer.write_all(&bytes).await?;
        self.writer.flush().await
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Messages from a stream of bytes.
pub(super) struct Messages {
    reader: Reading,
    buffer: BytesMut,
    begun: Option<(u8, Vec<u8>)>,
}

/// How much is read at once.
const READ: usize = 64 << 10;

impl Messages {
    fn new(reader: Reading) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
            begun: None,
        }
    }

    /// The next message, or `None` at the end. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<FromGuest<Bytes>>> {
        let broken = |error: Malformed| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        loop {
            if let Some(message) = self.decode().map_err(broken)? {
                return Ok(Some(message));
            }
            self.buffer.reserve(READ);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                if self.buffer.is_empty() && self.begun.is_none() {
                    return Ok(None);
                }
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn decode(&mut self) -> Result<Option<FromGuest<Bytes>>, Malformed> {
        loop {
            let Some(header) = self.buffer.first_chunk::<HEADER>() else {
                return Ok(None);
            };
            let header = Header::parse(*header)?;
            if self.buffer.len() < HEADER + header.length {
                return Ok(None);
            }
            let mut frame = self.buffer.split_to(HEADER + header.length).freeze();
            let payload = frame.split_off(HEADER);
            if self.begun.is_none() && !header.continued {
                return FromGuest::decode(header.kind, payload).map(Some);
            }
            if let Some((kind, message)) = join(&mut self.begun, header, &payload)? {
                return FromGuest::decode(kind, message.into()).map(Some);
            }
        }
    }

    /// The next message, where there must be one.
    pub(super) async fn expect(&mut self) -> Result<FromGuest<Bytes>> {
        match self.next().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(gone()),
            Err(error) => Err(gone().with_source(error)),
        }
    }
}

pub(super) fn gone() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the container's guest program does not answer: the container has ended, or it cannot run the program",
    )
}

/// What is no answer to what was asked.
pub(super) fn unexpected(message: FromGuest<Bytes>) -> Error {
    match message {
        FromGuest::Failed(failure) => failed(failure),
        _ => Error::new(
            ErrorKind::Unavailable,
            "the container's guest program gave an answer to something else",
        ),
    }
}

pub(super) fn failed(failure: Failure) -> Error {
    let kind = match failure.kind {
        FailureKind::Unexpected => ErrorKind::Unexpected,
        FailureKind::NotFound => ErrorKind::NotFound,
        FailureKind::PermissionDenied => ErrorKind::PermissionDenied,
        FailureKind::ResourceExhausted => ErrorKind::ResourceExhausted,
        FailureKind::Conflict => ErrorKind::Conflict,
        FailureKind::Invalid => ErrorKind::DataInvalid,
        FailureKind::Unavailable => ErrorKind::Unavailable,
    };
    Error::new(kind, failure.message)
}

impl From<State> for ContainerState {
    fn from(state: State) -> Self {
        match state {
            State::Idle | State::Running => Self::Running,
            State::Created => Self::Created,
            State::Exited => Self::Exited,
        }
    }
}
