//! From the journal of one writer to the sink.

use std::{
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use agents_core::{AuditEvent, AuditLogger, Error, ErrorKind, Result, RetryStatus};
use agents_journal::{Cursor, Journal, Record};
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use jiff::Timestamp;
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use super::{
    CURSOR,
    files::{FAILING, blocking, read_json, remove, write_json},
    lost::Lost,
    report::Failing,
};

/// The most that is handed to the sink at once; it splits that as its own limits ask.
const BATCH_EVENTS: usize = 500;
const BATCH_BYTES: usize = 1 << 20;

/// A sink that has not answered by then is given up on and asked again. Sinks have limits of their own, which are shorter.
const ATTEMPT: Duration = Duration::from_secs(120);

/// How often it is written down how far delivery is. After a crash, what was delivered since is delivered again.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(200);

/// The first pause after an attempt that failed.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// Counted over all writers of this process.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) delivered: AtomicU64,
    pub(super) retried: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) refused: AtomicU64,
}

/// How far delivery is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// Every record up to this one is delivered or lost.
    pub(super) settled: u64,
    /// The time of the event after that, as far as known.
    pub(super) oldest: Option<Timestamp>,
    pub(super) failing: Option<Failing>,
}

/// Delivers what one writer has on record.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) sink: Arc<dyn AuditLogger>,
    pub(super) journal: Arc<Journal>,
    pub(super) totals: Arc<Totals>,
    pub(super) progress: watch::Sender<Progress>,
    /// Ends a pause that the sink did not ask for.
    pub(super) hurry: Arc<Notify>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) max_delay: Duration,
    lost: Arc<Mutex<Lost>>,
    folder: PathBuf,
}

/// A record on its way.
struct Item {
    sequence: u64,
    /// None when it is no event that this version knows.
    event: Option<AuditEvent>,
    payload: bytes::Bytes,
}

impl Item {
    fn new(record: Record) -> Self {
        let link = record.link();
        // One that came with a place in another chain keeps it.
        let event = serde_json::from_slice::<AuditEvent>(&record.payload).ok();
        let event = event.map(|event| match event.chain {
            Some(_) => event,
            None => event.with_chain(Some(link)),
        });
        Self {
            sequence: record.sequence,
            event,
            payload: record.payload,
        }
    }

    /// As JSON, to be kept.
    fn text(&self) -> String {
        let event = self.event.as_ref().map(serde_json::to_string);
        match event {
            Some(Ok(text)) => text,
            _ => json!(String::from_utf8_lossy(&self.payload)).to_string(),
        }
    }
}

impl Delivery {
    /// Prepares to deliver what a journal has.
    pub(super) async fn new(
        sink: Arc<dyn AuditLogger>,
        journal: Arc<Journal>,
        totals: Arc<Totals>,
        stop: watch::Receiver<bool>,
        (max_bytes, max_delay): (u64, Duration),
    ) -> Result<(Self, Cursor)> {
        let cursor = journal.cursor(CURSOR).await?;
        let folder = journal.status().folder;
        let path = folder.clone();
        let (lost, failing) =
            blocking(move || Ok((Lost::open(path.clone(), max_bytes)?, read_json(&path.join(FAILING))?))).await?;
        let (progress, _) = watch::channel(Progress {
            settled: cursor.acknowledged(),
            oldest: None,
            failing,
        });
        let delivery = Self {
            sink,
            journal,
            totals,
            progress,
            hurry: Arc::new(Notify::new()),
            stop,
            max_delay,
            lost: Arc::new(Mutex::new(lost)),
            folder,
        };
        Ok((delivery, cursor))
    }

    /// Delivers until it is told to stop or the journal is closed, or until nothing is left.
    pub(super) async fn run(&self, mut cursor: Cursor, until_empty: bool) {
        let mut stop = self.stop.clone();
        let mut acknowledged = Instant::now();
        loop {
            let settled = self.progress.borrow().settled;
            if until_empty && settled >= self.journal.status().sequence {
                break;
            }
            let due = (settled > cursor.acknowledged()).then_some(acknowledged + ACKNOWLEDGE_EVERY);
            let records = tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                () = sleep_until(due.unwrap_or(acknowledged)), if due.is_some() => {
                    self.acknowledge(&mut cursor).await;
                    acknowledged = Instant::now();
                    continue;
                }
                records = cursor.next(BATCH_EVENTS, BATCH_BYTES) => records,
            };
            let done = match records {
                Ok(records) if records.is_empty() => break,
                Ok(records) => {
                    let mut settling = pin!(self.settle(records.into_iter().map(Item::new).collect()));
                    match due {
                        None => unless_stopped(&mut stop, settling).await,
                        Some(due) => match unless_stopped(&mut stop, timeout_at(due, &mut settling)).await {
                            // An outage must not keep what was delivered before it from being written down.
                            Some(Err(_)) => {
                                self.acknowledge(&mut cursor).await;
                                acknowledged = Instant::now();
                                unless_stopped(&mut stop, settling).await
                            }
                            settled => settled.map(drop),
                        },
                    }
                }
                Err(error) => {
                    cursor.rewind();
                    self.failed(&error).await;
                    unless_stopped(&mut stop, sleep(self.max_delay)).await
                }
            };
            if done.is_none() {
                break;
            }
        }
        self.acknowledge(&mut cursor).await;
    }

    /// Writes down how far delivery is, and makes room.
    async fn acknowledge(&self, cursor: &mut Cursor) {
        let settled = self.progress.borrow().settled;
        let outcome = match cursor.acknowledge(settled).await {
            Ok(()) => self.journal.reclaim().await,
            Err(error) => Err(error),
        };
        match outcome {
            // It was closed meanwhile; the next process makes room.
            Err(error) if error.kind() != ErrorKind::Conflict => {
                tracing::warn!(error = %error.report(), "what was delivered could not be removed from the audit spool");
            }
            _ => {}
        }
    }

    /// Returns once each is delivered, or lost and kept.
    async fn settle(&self, mut pending: Vec<Item>) {
        let (last, count) = (pending.last().map(|item| item.sequence), pending.len());
        let time = |item: Option<&Item>| item?.event.as_ref().map(|event| event.timestamp);
        let end = time(pending.last());
        let mut delays = self.delays();
        loop {
            let (before, oldest) = (pending.len(), time(pending.first()));
            self.progress.send_modify(|progress| progress.oldest = oldest);
            let Some(error) = self.attempt(&mut pending).await else {
                break;
            };
            if pending.len() < before {
                delays = self.delays();
            }
            self.failed(&error).await;
            self.totals.retried.fetch_add(1, Relaxed);
            let delay = delays.next().unwrap_or(self.max_delay);
            match error.retry_status() {
                RetryStatus::Temporary {
                    retry_after: Some(asked),
                } => sleep(delay.max(asked)).await,
                _ => tokio::select! {
                    () = sleep(delay) => {}
                    () = self.hurry.notified() => {}
                },
            }
        }
        self.recovered().await;
        let waiting = self.journal.status().sequence.saturating_sub(last.unwrap_or_default());
        self.progress.send_modify(|progress| {
            progress.settled = last.unwrap_or(progress.settled);
            progress.oldest = end.filter(|_| waiting > 0);
        });
        tracing::debug!(events = count, waiting, "audit events left the spool");
    }

    fn delays(&self) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(MIN_DELAY.min(self.max_delay))
            .with_max_delay(self.max_delay)
            .without_max_times()
            .with_jitter()
            .build()
    }

    /// Hands everything to the sink, takes out what is settled, and tells why the rest is not.
    async fn attempt(&self, pending: &mut Vec<Item>) -> Option<Error> {
        let events: Vec<_> = pending.iter().filter_map(|item| item.event.clone()).collect();
        let count = events.len();
        let outcomes = match timeout(ATTEMPT, self.sink.emit_batch(events)).await {
            _ if count == 0 => Vec::new(),
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(error)) if count == 1 => vec![Err(error)],
            // Which of them is at fault?
            Ok(Err(error)) if blames_the_event(&error) => return self.one_by_one(pending).await,
            Ok(Err(error)) => return Some(error),
            Err(_) => {
                let text = format!("{} did not answer within {} s", self.sink.location(), ATTEMPT.as_secs());
                return Some(Error::new(ErrorKind::Timeout, text).temporary(None));
            }
        };
        let taken = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        self.totals.delivered.fetch_add(taken as u64, Relaxed);
        let (mut outcomes, mut why, mut works) = (outcomes.into_iter(), None, (taken > 0).then_some(true));
        for item in std::mem::take(pending) {
            let error = match item.event {
                Some(_) => match outcomes.next() {
                    Some(Ok(())) => continue,
                    Some(Err(error)) => error,
                    None => Error::unexpected("the sink did not report on each event"),
                },
                None => Error::new(ErrorKind::DataInvalid, "this version knows no such event"),
            };
            let unknown = item.event.is_none();
            if unknown || blames_the_event(&error) {
                if !unknown && works.is_none() {
                    works = Some(self.sink_works().await);
                }
                if unknown || works == Some(true) {
                    match self.lose(&item, &error).await {
                        Ok(()) => continue,
                        Err(error) => why = Some(error),
                    }
                }
            }
            why.get_or_insert(error);
            pending.push(item);
        }
        why
    }

    async fn one_by_one(&self, pending: &mut Vec<Item>) -> Option<Error> {
        let mut todo = std::mem::take(pending).into_iter();
        while let Some(item) = todo.next() {
            let mut one = vec![item];
            let why = Box::pin(self.attempt(&mut one)).await;
            if why.is_some() {
                pending.append(&mut one);
                pending.extend(todo);
                return why;
            }
        }
        None
    }

    /// Whether a sink that refuses an event for good is at fault itself: then the event waits.
    async fn sink_works(&self) -> bool {
        let answer = timeout(ATTEMPT, self.sink.check_availability()).await;
        matches!(answer, Ok(Ok(found)) if found.available)
    }

    /// Keeps an event that the sink will never take, so that those behind it are not held up.
    async fn lose(&self, item: &Item, error: &Error) -> Result<()> {
        let (lost, sequence, text, reason) = (Arc::clone(&self.lost), item.sequence, item.text(), error.report());
        blocking(move || {
            let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.keep(sequence, &text, &reason)
        })
        .await?;
        self.totals.lost.fetch_add(1, Relaxed);
        let id = item.event.as_ref().map(|event| event.event_id.as_str());
        tracing::error!(
            event_id = id,
            sequence,
            folder = %self.folder.display(),
            error = %error.report(),
            "the audit sink refuses an event for good; it is kept in lost.jsonl"
        );
        Ok(())
    }

    async fn failed(&self, error: &Error) {
        let before = self.progress.borrow().failing.clone();
        let failing = Failing::again(before.as_ref(), error);
        let status = self.journal.status();
        let waiting = status.sequence.saturating_sub(self.progress.borrow().settled);
        if before.is_none() {
            tracing::warn!(
                sink = %self.sink.location(),
                waiting,
                bytes = status.bytes,
                error = %failing.error,
                "the audit sink does not take events; they wait in the spool"
            );
        } else {
            tracing::debug!(waiting, attempts = failing.attempts, error = %failing.error, "the audit sink still fails");
        }
        let (path, content) = (self.folder.join(FAILING), failing.clone());
        self.progress.send_modify(|progress| progress.failing = Some(failing));
        tell(blocking(move || write_json(&path, &content)).await);
    }

    async fn recovered(&self) {
        let Some(failing) = self.progress.borrow().failing.clone() else {
            return;
        };
        self.progress.send_modify(|progress| progress.failing = None);
        let path = self.folder.join(FAILING);
        tell(blocking(move || remove(&path)).await);
        tracing::info!(
            sink = %self.sink.location(),
            since = %failing.since,
            attempts = failing.attempts,
            "the audit sink takes events again"
        );
    }
}

/// The file is for those who look from without; delivery goes on without it.
fn tell(outcome: Result<()>) {
    if let Err(error) = outcome {
        tracing::debug!(error = %error.report(), "the state of the audit spool could not be written down");
    }
}

/// Whether this event, and not the sink or the way to it, is at fault, and always will be.
fn blames_the_event(error: &Error) -> bool {
    let kinds = [
        ErrorKind::DataInvalid,
        ErrorKind::ConfigInvalid,
        ErrorKind::ResourceExhausted,
    ];
    error.retry_status() == RetryStatus::Permanent && kinds.contains(&error.kind())
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that the spool was dropped.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Ends a future when it is time to stop.
pub(super) async fn unless_stopped<T>(stop: &mut watch::Receiver<bool>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stopped(stop) => None,
        output = work => Some(output),
    }
}
