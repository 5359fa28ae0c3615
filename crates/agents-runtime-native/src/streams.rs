//! A process's output as one stream, its input, and its control.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
};

use agents_core::{
    ByteStream, Error, ErrorKind, ExecControl, ExecEvent, ExecInput, ExecSession, Exit, KillReason, Result,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::unix::pipe,
};

use crate::{
    connection::{Connection, Sender, lost, unexpected},
    spec::{Control, Reply, Request},
};

/// The most bytes of one event.
const CHUNK: usize = 64 << 10;

/// The size of a pipe of bulk data, the most that an ordinary user may ask for by default (pipe(7)).
const PIPE: usize = 1 << 20;

/// Starts a process over a connection, and returns it with its streams.
///
/// `all_end` says that nothing can write any more once the process has ended, so that the output is read to its end; what
/// a further process leaves behind in the background may keep its output open for ever.
pub(crate) async fn start(
    mut connection: Connection,
    request: Request,
    stdin: bool,
    tty: bool,
    all_end: bool,
) -> Result<ExecSession> {
    let mut input = None;
    let mut outputs: [Option<Output>; 2] = [None, None];
    let mut theirs = Vec::new();
    if !tty {
        if stdin {
            let (read, write) = pipe_pair()?;
            theirs.push(read);
            input = Some(Input::Pipe(pipe::Sender::from_owned_fd(write).map_err(broken)?));
        }
        for output in &mut outputs {
            let (read, write) = pipe_pair()?;
            theirs.push(write);
            *output = Some(Output::Pipe(pipe::Receiver::from_owned_fd(read).map_err(broken)?));
        }
    }
    let borrowed: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    let (reply, mut fds) = connection.ask(&request, &borrowed).await?;
    drop(theirs);
    let sender = connection.sender();
    let mut terminal = None;
    let mut ended = None;
    match reply {
        Reply::Started if tty => {
            let master = fds
                .pop()
                .ok_or_else(|| Error::unexpected("the terminal did not arrive"))?;
            rustix::io::ioctl_fionbio(&master, true).map_err(|error| broken(error.into()))?;
            let master = Arc::new(crate::sys::register(master).map_err(broken)?);
            outputs[0] = Some(Output::Terminal(Arc::clone(&master)));
            input = stdin.then(|| Input::Terminal(Arc::clone(&master)));
            terminal = Some(master);
        }
        Reply::Started => {}
        Reply::Exited(exit) => ended = Some(exit),
        other => return Err(unexpected(&other)),
    }
    let [stdout, stderr] = outputs;
    let state = State {
        connection,
        stdout,
        stderr,
        exit: ended,
        all_end,
        ready: VecDeque::new(),
        done: false,
    };
    let events = stream::unfold(state, |mut state| async move { Some((state.next().await?, state)) }).boxed();
    let control = Arc::new(NativeControl {
        sender,
        terminal,
        killed: Mutex::new(None),
    });
    let input = input.map(|input| Box::new(input) as Box<dyn ExecInput>);
    Ok(ExecSession::new(events, input, control))
}

fn pipe_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| broken(error.into()))
}

fn broken(error: io::Error) -> Error {
    Error::io("cannot make the process's streams; too many files may be open", error)
}

#[derive(Debug)]
enum Output {
    Pipe(pipe::Receiver),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

impl Output {
    /// The next bytes; `None` at the end. Nothing is lost when the future is dropped.
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        match self {
            Self::Pipe(pipe) => {
                pipe.read_buf(&mut buffer).await?;
            }
            Self::Terminal(terminal) => {
                let read = terminal.async_io(Interest::READABLE, |fd| {
                    let mut chunk = [0; 4096];
                    let read = rustix::io::read(fd, &mut chunk)?;
                    buffer.extend_from_slice(&chunk[..read]);
                    Ok(read)
                });
                match read.await {
                    // The last process has closed its side of the terminal, ioctl_tty(2).
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(None),
                    other => other?,
                };
            }
        }
        Ok(if buffer.is_empty() { None } else { Some(buffer.freeze()) })
    }

    /// What is there now, asked of the kernel, since tokio answers from what it was told last.
    fn drain(&self) -> Option<Bytes> {
        let fd = match self {
            Self::Pipe(pipe) => pipe.as_fd(),
            Self::Terminal(terminal) => terminal.get_ref().as_fd(),
        };
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        // Neither holds more than this; who goes on writing in the background is not waited for.
        while all.len() < CHUNK {
            match rustix::io::read(fd, &mut chunk) {
                Ok(read) if read > 0 => all.extend_from_slice(&chunk[..read]),
                _ => break,
            }
        }
        if all.is_empty() { None } else { Some(all.into()) }
    }
}

#[derive(Debug)]
struct State {
    connection: Connection,
    stdout: Option<Output>,
    stderr: Option<Output>,
    exit: Option<Exit>,
    all_end: bool,
    ready: VecDeque<ExecEvent>,
    done: bool,
}

async fn read(output: &mut Option<Output>) -> io::Result<Option<Bytes>> {
    match output {
        Some(output) => output.read().await,
        None => std::future::pending().await,
    }
}

impl State {
    async fn next(&mut self) -> Option<Result<ExecEvent>> {
        loop {
            if self.done {
                return None;
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if let Some(exit) = self.exit.take_if(|_| self.stdout.is_none() && self.stderr.is_none()) {
                self.done = true;
                return Some(Ok(ExecEvent::Exit(exit)));
            }
            if self.exit.is_some() && !self.all_end {
                self.drain();
                continue;
            }
            let ended = self.exit.is_some();
            tokio::select! {
                chunk = read(&mut self.stdout) => match chunk {
                    Ok(Some(bytes)) => return Some(Ok(ExecEvent::Stdout(bytes))),
                    Ok(None) => self.stdout = None,
                    Err(error) => return Some(Err(Error::io("cannot read the standard output", error))),
                },
                chunk = read(&mut self.stderr) => match chunk {
                    Ok(Some(bytes)) => return Some(Ok(ExecEvent::Stderr(bytes))),
                    Ok(None) => self.stderr = None,
                    Err(error) => return Some(Err(Error::io("cannot read the standard error", error))),
                },
                reply = self.connection.receive(), if !ended => {
                    self.exit = Some(match reply {
                        Ok(Some((Reply::Exited(exit), _))) => exit,
                        Ok(Some((Reply::Failed(failure), _))) => Exit::RuntimeLost { reason: failure.message },
                        Ok(Some(_)) => continue,
                        Ok(None) => Exit::RuntimeLost { reason: "the container's helper went away".to_owned() },
                        Err(error) => Exit::RuntimeLost { reason: error.to_string() },
                    });
                }
            }
        }
    }

    /// Takes what a process that has ended had written, without waiting for those that it left behind: a pipe holds no
    /// more than one read takes.
    fn drain(&mut self) {
        let stdout = self.stdout.take().and_then(|output| output.drain());
        let stderr = self.stderr.take().and_then(|output| output.drain());
        self.ready.extend(stdout.map(ExecEvent::Stdout));
        self.ready.extend(stderr.map(ExecEvent::Stderr));
    }
}

#[derive(Debug)]
struct NativeControl {
    sender: Sender,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    killed: Mutex<Option<KillReason>>,
}

#[async_trait]
impl ExecControl for NativeControl {
    async fn kill(&self, reason: KillReason) -> Result<()> {
        match self.killed.lock() {
            Ok(mut killed) if killed.is_none() => *killed = Some(reason),
            _ => return Ok(()),
        }
        // What has ended does not hear any more, and need not.
        let _ = self.sender.send(&Control::Kill(reason), &[]).await;
        Ok(())
    }

    async fn signal(&self, signal: i32) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Error::invalid(format!("{signal} is not a signal")));
        }
        let _ = self.sender.send(&Control::Signal(signal), &[]).await;
        Ok(())
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let terminal = self
            .terminal
            .as_ref()
            .ok_or_else(|| Error::unsupported("the process has no terminal"))?;
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal.get_ref(), size)
            .map_err(|error| Error::io("cannot resize the terminal", error.into()))
    }

    fn abandon(&self) {
        self.sender.hang_up();
    }
}

#[derive(Debug)]
enum Input {
    Pipe(pipe::Sender),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

#[async_trait]
impl ExecInput for Input {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let written = match self {
            Self::Pipe(pipe) => pipe.write_all(&bytes).await,
            Self::Terminal(terminal) => write_all(terminal, &bytes).await,
        };
        written.map_err(|error| {
            Error::new(ErrorKind::Conflict, "the process has closed its standard input").with_source(error)
        })
    }

    async fn close(self: Box<Self>) -> Result<()> {
        if let Self::Terminal(terminal) = *self {
            // A terminal has no end; its end-of-file character stands for it.
            let _ = write_all(&terminal, &[0x04]).await;
        }
        Ok(())
    }
}

async fn write_all(terminal: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = terminal
            .async_io(Interest::WRITABLE, |fd| {
                rustix::io::write(fd, bytes).map_err(io::Error::from)
            })
            .await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Reads an archive that the helper writes.
pub(crate) async fn read_archive(connection: Connection, request: Request) -> Result<ByteStream> {
    let (read, write) = pipe_pair()?;
    let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE);
    connection
        .sender()
        .send(&request, &[write.as_fd()])
        .await
        .map_err(lost)?;
    drop(write);
    let pipe = Output::Pipe(pipe::Receiver::from_owned_fd(read).map_err(broken)?);
    let mut reading = (pipe, connection);
    // A path that does not exist is the call's error, not the stream's.
    let first = next_chunk(&mut reading).await?;
    let rest = stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match next_chunk(&mut reading).await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
}

async fn next_chunk((pipe, connection): &mut (Output, Connection)) -> Result<Option<Bytes>> {
    if let Some(bytes) = pipe
        .read()
        .await
        .map_err(|error| Error::io("cannot read the archive", error))?
    {
        return Ok(Some(bytes));
    }
    match connection.receive().await.map_err(lost)? {
        Some((Reply::Done, _)) => Ok(None),
        Some((other, _)) => Err(unexpected(&other)),
        None => Err(lost(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Writes an archive that the helper reads, and returns its verdict.
pub(crate) async fn write_archive(
    connection: &mut Connection,
    request: Request,
    mut archive: ByteStream,
) -> Result<()> {
    let (read, write) = pipe_pair()?;
    connection
        .sender()
        .send(&request, &[read.as_fd()])
        .await
        .map_err(lost)?;
    drop(read);
    let mut pipe = pipe::Sender::from_owned_fd(write).map_err(broken)?;
    while let Some(chunk) = archive.next().await {
        // The helper's own answer says why it does not read on.
        if pipe.write_all(&chunk?).await.is_err() {
            break;
        }
    }
    drop(pipe);
    match connection.receive().await.map_err(lost)? {
        Some((Reply::Done, _)) => Ok(()),
        Some((other, _)) => Err(unexpected(&other)),
        None => Err(lost(io::ErrorKind::UnexpectedEof.into())),
    }
}
