//! Running a process in a container: one ordered stream of output that ends with exactly one [`Exit`].

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::{Stream, stream::BoxStream};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a process, and with it a run, ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Exit {
    /// It ended by itself.
    Exited {
        /// Its exit code, 0 to 255.
        code: i32,
    },
    /// A signal ended it that none of the other endings explains.
    Signalled {
        /// The signal's number.
        signal: i32,
    },
    /// The kernel ended it because the container's memory limit was reached. Only said when the kernel or the runtime says so.
    OutOfMemory,
    /// It failed, and the kernel refused it a process because of the limit on processes.
    PidsLimit {
        /// Its exit code, when it had one.
        code: Option<i32>,
    },
    /// It failed, and its writable space was full.
    DiskLimit {
        /// Its exit code, when it had one.
        code: Option<i32>,
    },
    /// It wrote more output than `max_output_bytes`.
    OutputLimit,
    /// Its deadline passed, and the whole process tree was killed.
    Deadline,
    /// The caller cancelled it, and the whole process tree was killed.
    Cancelled,
    /// The runtime or the container went away under it.
    RuntimeLost {
        /// What is known.
        reason: String,
    },
    /// It never started.
    NotStarted {
        /// Why.
        reason: StartFailure,
        /// The fault in words.
        message: String,
    },
}

/// Why a process did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFailure {
    /// The command does not exist in the container (exit code 127).
    NotFound,
    /// The command exists and cannot be executed (exit code 126).
    NotExecutable,
    /// The run was refused or failed before the command was tried (exit code 125).
    Refused,
}

impl Exit {
    /// A success: exit code 0.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Exited { code: 0 })
    }

    /// The agent's own exit code, when it has one: what it exited with, 128 + N for a signal N, 137 for out of memory.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Exited { code } => Some(*code),
            Self::Signalled { signal } => Some(128 + signal),
            Self::OutOfMemory => Some(137),
            Self::PidsLimit { code } | Self::DiskLimit { code } => *code,
            Self::NotStarted {
                reason: StartFailure::NotFound,
                ..
            } => Some(127),
            Self::NotStarted {
                reason: StartFailure::NotExecutable,
                ..
            } => Some(126),
            _ => None,
        }
    }

    /// The stable name of the ending, for example `out_of_memory`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Exited { .. } => "exited",
            Self::Signalled { .. } => "signalled",
            Self::OutOfMemory => "out_of_memory",
            Self::PidsLimit { .. } => "pids_limit",
            Self::DiskLimit { .. } => "disk_limit",
            Self::OutputLimit => "output_limit",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::RuntimeLost { .. } => "runtime_lost",
            Self::NotStarted { .. } => "not_started",
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Signalled { signal } => write!(f, "ended by signal {signal}"),
            Self::OutOfMemory => f.write_str("ran out of memory"),
            Self::PidsLimit { .. } => f.write_str("hit the limit on processes"),
            Self::DiskLimit { .. } => f.write_str("filled its writable space"),
            Self::OutputLimit => f.write_str("wrote more output than allowed"),
            Self::Deadline => f.write_str("ran past its deadline"),
            Self::Cancelled => f.write_str("was cancelled"),
            Self::RuntimeLost { reason } => write!(f, "was lost: {reason}"),
            Self::NotStarted { message, .. } => write!(f, "did not start: {message}"),
        }
    }
}

/// One item of an [`ExecSession`]'s stream. Output is bytes, never assumed to be UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes that the process wrote to its standard output (or to its terminal).
    Stdout(Bytes),
    /// Bytes that the process wrote to its standard error.
    Stderr(Bytes),
    /// The end; nothing follows.
    Exit(Exit),
}

/// Why a process tree is killed; it decides the [`Exit`] that the stream ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillReason {
    /// Ends as [`Exit::Deadline`].
    Deadline,
    /// Ends as [`Exit::Cancelled`].
    Cancelled,
}

/// The control side of a running process. Implemented by runtimes.
#[async_trait]
pub trait ExecControl: fmt::Debug + Send + Sync + 'static {
    /// Kills the whole process tree. Returns once the kill is on its way; the stream's [`Exit`] says when it is done.
    /// Killing what has ended succeeds.
    async fn kill(&self, reason: KillReason) -> Result<()>;

    /// Sends a signal to the process itself, by the signal's number.
    async fn signal(&self, signal: i32) -> Result<()>;

    /// Tells the terminal's new size, in characters.
    ///
    /// # Errors
    ///
    /// `Unsupported` when the process has no terminal.
    async fn resize(&self, rows: u16, columns: u16) -> Result<()>;

    /// Called once, synchronously, when the session is dropped before its end: starts killing the process tree.
    fn abandon(&self);
}

/// The standard input of a running process. Dropping it closes the input.
#[async_trait]
pub trait ExecInput: fmt::Debug + Send + 'static {
    /// Writes all bytes, waiting for the process to read.
    ///
    /// # Errors
    ///
    /// `Conflict` when the process has closed its input.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// Closes the input: the process reads its end.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// A running process.
///
/// The stream yields output in the order in which it was read, then exactly one [`ExecEvent::Exit`], then ends. Memory is
/// bounded: a reader that stops reading slows the process down. Dropping the session before its end kills the process tree.
pub struct ExecSession {
    events: BoxStream<'static, Result<ExecEvent>>,
    stdin: Option<Box<dyn ExecInput>>,
    control: Arc<dyn ExecControl>,
    ended: bool,
}

impl ExecSession {
    /// Assembles a session. For runtimes and layers.
    pub fn new(
        events: BoxStream<'static, Result<ExecEvent>>,
        stdin: Option<Box<dyn ExecInput>>,
        control: Arc<dyn ExecControl>,
    ) -> Self {
        Self {
            events,
            stdin,
            control,
            ended: false,
        }
    }

    /// The standard input, the first time; it is there when the request asked for it.
    pub fn take_stdin(&mut self) -> Option<Box<dyn ExecInput>> {
        self.stdin.take()
    }

    /// The control side, which outlives borrowing the stream.
    pub fn control(&self) -> Arc<dyn ExecControl> {
        Arc::clone(&self.control)
    }

    /// Passes every event through a function. For layers.
    #[must_use]
    pub fn map_events<F>(mut self, f: F) -> Self
    where
        F: FnMut(Result<ExecEvent>) -> Result<ExecEvent> + Send + 'static,
    {
        let empty = futures_util::stream::empty().boxed();
        self.events = std::mem::replace(&mut self.events, empty).map(f).boxed();
        self
    }

    /// Reads to the end, keeping at most `limit` bytes of each of the two outputs: the first and the last halves.
    ///
    /// # Errors
    ///
    /// The stream's own error, or `Unexpected` when it ends without an exit.
    pub async fn collect(mut self, limit: usize) -> Result<ExecOutput> {
        let mut stdout = Capture::new(limit);
        let mut stderr = Capture::new(limit);
        while let Some(event) = self.next().await {
            match event? {
                ExecEvent::Stdout(bytes) => stdout.push(&bytes),
                ExecEvent::Stderr(bytes) => stderr.push(&bytes),
                ExecEvent::Exit(exit) => {
                    return Ok(ExecOutput {
                        exit,
                        stdout: stdout.finish(),
                        stderr: stderr.finish(),
                    });
                }
            }
        }
        Err(Error::unexpected("the output ended without an exit"))
    }
}

impl Stream for ExecSession {
    type Item = Result<ExecEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.events.poll_next_unpin(cx));
        if matches!(item, None | Some(Ok(ExecEvent::Exit(_)))) {
            self.ended = true;
        }
        Poll::Ready(item)
    }
}

impl Drop for ExecSession {
    fn drop(&mut self) {
        if !self.ended {
            self.control.abandon();
        }
    }
}

impl fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSession")
            .field("control", &self.control)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// The buffered result of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to standard output, bounded.
    pub stdout: Captured,
    /// What it wrote to standard error, bounded.
    pub stderr: Captured,
}

/// Bounded output: the whole, or its head and its tail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// The first bytes, or all of them.
    pub head: Vec<u8>,
    /// The last bytes; empty when nothing was left out.
    pub tail: Vec<u8>,
    /// How many bytes there were in all.
    pub total: u64,
}

impl Captured {
    /// Whether bytes between head and tail were left out.
    pub fn truncated(&self) -> bool {
        self.total > (self.head.len() + self.tail.len()) as u64
    }

    /// Head and tail as text, with a line between them that counts the bytes left out; invalid UTF-8 is replaced.
    pub fn to_text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.head).into_owned();
        if self.truncated() {
            let left_out = self.total - (self.head.len() + self.tail.len()) as u64;
            text.push_str(&format!("\n[... {left_out} bytes left out ...]\n"));
        }
        text.push_str(&String::from_utf8_lossy(&self.tail));
        text
    }
}

/// Collects output within a fixed bound: the first half of the limit, and a ring of the last half.
#[derive(Clone, Debug)]
pub struct Capture {
    head: Vec<u8>,
    tail: std::collections::VecDeque<u8>,
    head_limit: usize,
    tail_limit: usize,
    total: u64,
}

impl Capture {
    /// Keeps at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            head: Vec::new(),
            tail: std::collections::VecDeque::new(),
            head_limit: limit - limit / 2,
            tail_limit: limit / 2,
            total: 0,
        }
    }

    /// Takes more output.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let to_head = bytes.len().min(self.head_limit - self.head.len());
        self.head.extend_from_slice(&bytes[..to_head]);
        let rest = &bytes[to_head..];
        let kept = &rest[rest.len().saturating_sub(self.tail_limit)..];
        let overflow = (self.tail.len() + kept.len()).saturating_sub(self.tail_limit);
        self.tail.drain(..overflow);
        self.tail.extend(kept);
    }

    /// The result.
    pub fn finish(self) -> Captured {
        Captured {
            head: self.head,
            tail: self.tail.into(),
            total: self.total,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default)]
    struct Control(std::sync::atomic::AtomicBool);

    #[async_trait]
    impl ExecControl for Control {
        async fn kill(&self, _: KillReason) -> Result<()> {
            Ok(())
        }
        async fn signal(&self, _: i32) -> Result<()> {
            Ok(())
        }
        async fn resize(&self, _: u16, _: u16) -> Result<()> {
            Ok(())
        }
        fn abandon(&self) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    fn session(events: Vec<Result<ExecEvent>>) -> (ExecSession, Arc<Control>) {
        let control = Arc::new(Control::default());
        let session = ExecSession::new(
            futures_util::stream::iter(events).boxed(),
            None,
            Arc::<Control>::clone(&control),
        );
        (session, control)
    }

    #[tokio::test]
    async fn nothing_follows_the_exit_and_an_ended_session_is_not_abandoned() {
        let exit = || Ok(ExecEvent::Exit(Exit::Exited { code: 3 }));
        let (session, control) = session(vec![Ok(ExecEvent::Stdout(Bytes::from_static(b"hi"))), exit(), exit()]);
        let output = session.collect(10).await.unwrap();
        assert_eq!(output.exit, Exit::Exited { code: 3 });
        assert_eq!(output.stdout.head, b"hi");
        assert!(!control.0.load(std::sync::atomic::Ordering::SeqCst));
    }

    #[tokio::test]
    async fn dropping_before_the_end_abandons() {
        let (session, control) = session(vec![Ok(ExecEvent::Stdout(Bytes::new()))]);
        drop(session);
        assert!(control.0.load(std::sync::atomic::Ordering::SeqCst));
    }

    proptest! {
        #[test]
        fn capture_keeps_head_and_tail(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20), limit in 0usize..64) {
            let all: Vec<u8> = chunks.concat();
            let mut capture = Capture::new(limit);
            for chunk in &chunks {
                capture.push(chunk);
            }
            let captured = capture.finish();
            prop_assert_eq!(captured.total, all.len() as u64);
            prop_assert_eq!(captured.head.len() + captured.tail.len(), all.len().min(limit));
            prop_assert!(all.starts_with(&captured.head));
            prop_assert!(all.ends_with(&captured.tail));
            prop_assert_eq!(captured.truncated(), all.len() > limit);
        }
    }
}
