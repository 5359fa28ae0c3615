//! While the agent runs: its output goes to whoever wants it, and whatever ends it early is noticed.

use std::{sync::Arc, time::Duration};

use agents_core::{
    AuditEvent, Capture, Captured, ExecControl, ExecEvent, ExecInput, ExecSession, Exit, KillReason, Result,
};
use agents_layers::audit::{RedactedStream, Redactor, Trail};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Input, Observer, OutputStream, log::LogWriter};

/// The runtime keeps the deadline; this is how long after it we kill ourselves.
const DEADLINE_GRACE: Duration = Duration::from_secs(2);
/// How long a killed process may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(15);
/// How long an observer may hold up the output of a process that was killed.
const OBSERVER_PATIENCE: Duration = Duration::from_secs(1);
/// An agent that ends sooner has its start put on record together with its end.
const START_RECORD_DELAY: Duration = Duration::from_millis(50);

/// Ends a task with its owner.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where the output goes.
pub(crate) struct Sinks {
    observer: Option<Arc<dyn Observer>>,
    log: Option<LogWriter>,
    outputs: [(RedactedStream, Capture); 2],
}

impl Sinks {
    pub(crate) fn new(
        observer: Option<Arc<dyn Observer>>,
        log: LogWriter,
        redactor: &Redactor,
        capture_limit: usize,
    ) -> Self {
        let output = || (redactor.stream(), Capture::new(capture_limit));
        Self {
            observer,
            log: Some(log),
            outputs: [output(), output()],
        }
    }

    fn keep(&mut self, stream: OutputStream, bytes: Bytes, last: bool) {
        let (redacted, capture) = &mut self.outputs[stream as usize];
        let bytes = if last { redacted.finish() } else { redacted.push(bytes) };
        if bytes.is_empty() {
            return;
        }
        capture.push(&bytes);
        if let Some(log) = &mut self.log
            && let Err(error) = log.write(stream, &bytes)
        {
            // The log is a convenience, and the agent does not fail for it.
            self.log = None;
            if let Some(observer) = &self.observer {
                observer.warning(&format!("the session's log ends here: {error}"));
            }
        }
    }

    /// What was captured; the sinks begin anew for the next attempt, and the log goes on.
    pub(crate) fn finish(&mut self, redactor: &Redactor, capture_limit: usize) -> (Captured, Captured) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            self.keep(stream, Bytes::new(), true);
        }
        let output = || (redactor.stream(), Capture::new(capture_limit));
        let [(_, stdout), (_, stderr)] = std::mem::replace(&mut self.outputs, [output(), output()]);
        (stdout.finish(), stderr.finish())
    }
}

/// How a process ended, and what went wrong around it.
pub(crate) struct Pumped {
    pub(crate) exit: Exit,
    /// The start could not be put on record, so the process was killed.
    pub(crate) audit: Result<()>,
    /// The start has been put on record.
    pub(crate) start_recorded: bool,
}

/// A running process and all that belongs to it.
pub(crate) struct Pump<'a> {
    pub(crate) trail: &'a Trail,
    pub(crate) interrupt: &'a CancellationToken,
    pub(crate) sinks: &'a mut Sinks,
    pub(crate) deadline: Option<Duration>,
    /// The events that say that it started.
    pub(crate) start_events: Vec<AuditEvent>,
}

impl Pump<'_> {
    /// Runs to the end.
    pub(crate) async fn run(self, mut exec: ExecSession, input: Option<Input>) -> Pumped {
        let began = Instant::now();
        let control = exec.control();
        let feeder = exec.take_stdin().zip(input);
        let _feeder = feeder.map(|(sink, input)| AbortOnDrop(tokio::spawn(feed(sink, input))));
        let mut watch = Watch {
            interrupt: self.interrupt,
            backstop: self.deadline.map(|deadline| began + deadline + DEADLINE_GRACE),
            control,
            killed: None,
        };
        let mut audit = Ok(());
        let mut start_recorded = false;
        let record_start = async {
            sleep(START_RECORD_DELAY).await;
            self.trail.record(self.start_events).await
        };
        tokio::pin!(record_start);
        let exit = loop {
            tokio::select! {
                biased;
                reason = watch.alarm(), if watch.killed.is_none() => watch.kill(reason).await,
                () = watch.given_up(), if watch.killed.is_some() => {
                    break lost("it did not end after it was killed");
                }
                recorded = &mut record_start, if !start_recorded => {
                    start_recorded = true;
                    if recorded.is_err() {
                        audit = recorded;
                        watch.kill(KillReason::Cancelled).await;
                    }
                }
                event = exec.next() => match event {
                    Some(Ok(ExecEvent::Stdout(bytes))) => self.sinks.take(OutputStream::Stdout, bytes, &mut watch).await,
                    Some(Ok(ExecEvent::Stderr(bytes))) => self.sinks.take(OutputStream::Stderr, bytes, &mut watch).await,
                    Some(Ok(ExecEvent::Exit(exit))) => break exit,
                    Some(Err(error)) => break lost(error.report()),
                    None => break lost("its output ended without an exit"),
                },
            }
        };
        Pumped {
            exit,
            audit,
            start_recorded,
        }
    }
}

fn lost(reason: impl Into<String>) -> Exit {
    Exit::RuntimeLost { reason: reason.into() }
}

impl Sinks {
    async fn take(&mut self, stream: OutputStream, bytes: Bytes, watch: &mut Watch<'_>) {
        self.keep(stream, bytes.clone(), false);
        let Some(observer) = self.observer.clone() else {
            return;
        };
        let output = observer.output(stream, bytes);
        tokio::pin!(output);
        if watch.killed.is_none() {
            tokio::select! {
                biased;
                () = &mut output => return,
                reason = watch.alarm() => watch.kill(reason).await,
            }
        }
        if timeout(OBSERVER_PATIENCE, output).await.is_err() {
            observer.warning("the output is no longer passed on, since nobody takes it");
            self.observer = None;
        }
    }
}

/// What ends a process early.
struct Watch<'a> {
    interrupt: &'a CancellationToken,
    backstop: Option<Instant>,
    control: Arc<dyn ExecControl>,
    killed: Option<Instant>,
}

impl Watch<'_> {
    async fn alarm(&self) -> KillReason {
        let backstop = async {
            match self.backstop {
                Some(backstop) => sleep_until(backstop).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.interrupt.cancelled() => KillReason::Cancelled,
            () = backstop => KillReason::Deadline,
        }
    }

    async fn kill(&mut self, reason: KillReason) {
        self.killed.get_or_insert_with(Instant::now);
        // When the kill fails, the process does not end, and that is noticed.
        let _ = timeout(KILL_PATIENCE, self.control.kill(reason)).await;
    }

    async fn given_up(&self) {
        if let Some(killed) = self.killed {
            sleep_until(killed + KILL_PATIENCE).await;
        }
    }
}

/// Passes the input on until either side has ended.
async fn feed(mut sink: Box<dyn ExecInput>, input: Input) {
    match input {
        Input::Bytes(bytes) => {
            if sink.write(bytes).await.is_err() {
                return;
            }
        }
        Input::Stream(stream) => {
            let mut reader = stream.into_reader();
            while let Some(bytes) = read(&mut reader).await {
                // A process that has closed its input is free to do so.
                if sink.write(bytes).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = sink.close().await;
}

async fn read(reader: &mut (impl AsyncRead + Unpin)) -> Option<Bytes> {
    let mut buffer = BytesMut::with_capacity(64 << 10);
    match reader.read_buf(&mut buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(buffer.freeze()),
    }
}
