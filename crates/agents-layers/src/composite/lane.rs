//! The way to a sink that is best effort: a queue that is bounded, and a task that empties it.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use agents_core::{AuditEvent, AuditLogger, Error, ErrorKind};
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// More events than this do not wait.
const MOST: usize = 10_000;

/// A sink that has not answered by then has lost the events.
const ATTEMPT: Duration = Duration::from_secs(60);

/// How a best-effort sink is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BestEffortStatus {
    /// Where it is.
    pub location: String,
    /// How many events it took.
    pub delivered: u64,
    /// How many were lost to it.
    pub lost: u64,
    /// How many are on their way.
    pub waiting: usize,
    /// Why it did not take the last that were lost.
    pub error: Option<String>,
}

enum Job {
    Events(Vec<AuditEvent>),
    Flush(oneshot::Sender<()>),
}

#[derive(Debug, Default)]
struct Counts {
    delivered: AtomicU64,
    lost: AtomicU64,
    waiting: AtomicUsize,
    error: Mutex<Option<String>>,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) sink: Arc<dyn AuditLogger>,
    counts: Arc<Counts>,
    queue: OnceLock<mpsc::UnboundedSender<Job>>,
}

impl Lane {
    pub(super) fn new(sink: Arc<dyn AuditLogger>) -> Self {
        Self {
            sink,
            counts: Arc::default(),
            queue: OnceLock::new(),
        }
    }

    pub(super) fn status(&self) -> BestEffortStatus {
        let error = self.counts.error.lock().unwrap_or_else(PoisonError::into_inner);
        BestEffortStatus {
            location: self.sink.location(),
            delivered: self.counts.delivered.load(Relaxed),
            lost: self.counts.lost.load(Relaxed),
            waiting: self.counts.waiting.load(Relaxed),
            error: error.clone(),
        }
    }

    /// Hands events over, or loses them.
    pub(super) fn offer(&self, events: Vec<AuditEvent>) {
        let count = events.len();
        if self.counts.waiting.fetch_add(count, Relaxed) + count > MOST {
            self.counts.waiting.fetch_sub(count, Relaxed);
            let text = format!("more than {MOST} events wait for it");
            self.counts
                .lose(&*self.sink, count, &Error::new(ErrorKind::ResourceExhausted, text));
            return;
        }
        // The task ends with the queue, and takes everything first.
        let _ = self.queue().send(Job::Events(events));
    }

    /// Returns once everything before was tried.
    pub(super) async fn flush(&self, limit: Duration) {
        let Some(queue) = self.queue.get() else {
            return;
        };
        let (done, answer) = oneshot::channel();
        if queue.send(Job::Flush(done)).is_ok() && timeout(limit, answer).await.is_err() {
            tracing::warn!(sink = %self.sink.location(), "a best-effort audit sink holds the flush up, and is left");
        }
    }

    fn queue(&self) -> &mpsc::UnboundedSender<Job> {
        self.queue.get_or_init(|| {
            let (queue, jobs) = mpsc::unbounded_channel();
            tokio::spawn(work(Arc::clone(&self.sink), Arc::clone(&self.counts), jobs));
            queue
        })
    }
}

async fn work(sink: Arc<dyn AuditLogger>, counts: Arc<Counts>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    while let Some(job) = jobs.recv().await {
        let events = match job {
            Job::Events(events) => events,
            Job::Flush(done) => {
                // Who does not wait any more has no use for the answer.
                let _ = done.send(());
                continue;
            }
        };
        let count = events.len();
        match timeout(ATTEMPT, sink.emit_batch(events)).await {
            Ok(Ok(outcomes)) => {
                let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
                counts.delivered.fetch_add((count - failed.len()) as u64, Relaxed);
                if let Some(error) = failed.first() {
                    counts.lose(&*sink, failed.len(), error);
                }
            }
            Ok(Err(error)) => counts.lose(&*sink, count, &error),
            Err(_) => {
                let text = format!("it did not answer within {} s", ATTEMPT.as_secs());
                counts.lose(&*sink, count, &Error::new(ErrorKind::Timeout, text));
            }
        }
        counts.waiting.fetch_sub(count, Relaxed);
    }
}

impl Counts {
    fn lose(&self, sink: &dyn AuditLogger, count: usize, error: &Error) {
        let lost = self.lost.fetch_add(count as u64, Relaxed) + count as u64;
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.report());
        tracing::warn!(
            sink = %sink.location(),
            count,
            lost,
            error = %error.report(),
            "a best-effort audit sink has lost events"
        );
    }
}
