//! The spool as an audit logger.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    Problem, Result,
};
use agents_journal::{Journal, MAX_PAYLOAD, backlog, canonical, writers};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, OnceCell, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    CURSOR, SpoolOptions, SpoolStatus,
    delivery::{Delivery, Progress, Totals, unless_stopped},
    files::{self, SINK, blocking},
    report::{SinkName, inspect},
};

/// How often is looked for what dead processes left.
const ADOPT_EVERY: Duration = Duration::from_secs(60);

/// How long the sink may take to say how it is.
const PROBE: Duration = Duration::from_secs(15);

/// Few events are larger.
const ORDINARY: u64 = 64 << 10;

/// Stands in front of a sink: an event is acknowledged once it is on local disk, and delivered from there.
///
/// Nothing is touched before the first event. Dropping it without `shutdown` loses nothing: what waits is delivered by the
/// next that opens the folder.
pub struct Spool {
    sink: Arc<dyn AuditLogger>,
    options: SpoolOptions,
    totals: Arc<Totals>,
    opened: OnceCell<Opened>,
    closed: AtomicBool,
}

struct Opened {
    journal: Arc<Journal>,
    progress: watch::Receiver<Progress>,
    /// Whether what dead processes left at the start was delivered.
    adopted: watch::Receiver<bool>,
    hurry: Arc<Notify>,
    /// Ends the tasks, also when it is dropped.
    stop: watch::Sender<bool>,
    delivering: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool")
            .field("sink", &self.sink)
            .field("options", &self.options)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Spool {
    /// Puts a spool in front of a sink. Delivery needs a tokio runtime with time.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for the options.
    pub fn new(sink: Arc<dyn AuditLogger>, options: SpoolOptions) -> Result<Self> {
        options.check()?;
        Ok(Self {
            sink,
            options,
            totals: Arc::default(),
            opened: OnceCell::new(),
            closed: AtomicBool::new(false),
        })
    }

    /// How it is doing. [`inspect`] also tells of other processes.
    pub fn status(&self) -> SpoolStatus {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mut status = SpoolStatus {
            delivered: count(&self.totals.delivered),
            retried: count(&self.totals.retried),
            lost: count(&self.totals.lost),
            refused: count(&self.totals.refused),
            ..SpoolStatus::default()
        };
        if let Some(opened) = self.opened.get() {
            let (journal, progress) = (opened.journal.status(), opened.progress.borrow().clone());
            status.events = journal.sequence.saturating_sub(progress.settled);
            status.bytes = journal.bytes;
            status.oldest = progress.oldest;
            status.failing = progress.failing;
        }
        status
    }

    /// The sink behind it.
    pub fn sink(&self) -> &Arc<dyn AuditLogger> {
        &self.sink
    }

    fn check_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(closed()),
            false => Ok(()),
        }
    }

    async fn open(&self) -> Result<&Opened> {
        let opened = self.opened.get_or_try_init(|| self.start()).await?;
        self.check_open()?;
        Ok(opened)
    }

    async fn start(&self) -> Result<Opened> {
        self.claim().await?;
        let journal = Arc::new(Journal::open(self.options.journal()).await?);
        let (stop, stopped) = watch::channel(false);
        let (delivery, cursor) = self.delivery(Arc::clone(&journal), stopped.clone()).await?;
        let (progress, hurry) = (delivery.progress.subscribe(), Arc::clone(&delivery.hurry));
        let delivering = tokio::spawn(async move { delivery.run(cursor, false).await });
        let (adopting, adopted) = watch::channel(false);
        let adopter = Adopter {
            sink: Arc::clone(&self.sink),
            options: self.options.clone(),
            totals: Arc::clone(&self.totals),
            stop: stopped,
        };
        tokio::spawn(async move { adopter.run(&adopting).await });
        Ok(Opened {
            journal,
            progress,
            adopted,
            hurry,
            stop,
            delivering: Mutex::new(Some(delivering)),
        })
    }

    async fn delivery(
        &self,
        journal: Arc<Journal>,
        stop: watch::Receiver<bool>,
    ) -> Result<(Delivery, agents_journal::Cursor)> {
        let limits = (self.options.max_bytes, self.options.max_delay);
        Delivery::new(Arc::clone(&self.sink), journal, Arc::clone(&self.totals), stop, limits).await
    }

    /// Makes sure that what is in the folder is for this sink and no other.
    async fn claim(&self) -> Result<()> {
        let folder = self.options.folder.clone();
        let name = SinkName {
            sink_type: self.sink.info().adapter_type,
            location: self.sink.location(),
        };
        let path = folder.join(SINK);
        let known = blocking(move || files::read_json::<SinkName>(&path)).await?;
        if known.as_ref() == Some(&name) {
            return Ok(());
        }
        if let Some(found) = inspect(&folder).await?
            && (found.events() > 0 || found.writers.iter().any(|writer| writer.live))
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "the spool {} has {} events for {} ({}), not for {}; deliver them with that sink, or choose another folder",
                    folder.display(),
                    found.events(),
                    found.location,
                    found.sink,
                    name.location
                ),
            ));
        }
        blocking(move || {
            files::create_dir(&folder)?;
            files::write_json(&folder.join(SINK), &name)
        })
        .await
    }

    /// Whether everything that was emitted up to now was settled within a limit, and what dead processes had left too if
    /// `adopted` asks for it.
    async fn settled(&self, opened: &Opened, adopted: bool, limit: Duration) -> bool {
        let target = opened.journal.status().sequence;
        let (mut progress, mut left) = (opened.progress.clone(), opened.adopted.clone());
        opened.hurry.notify_one();
        let all = async {
            // Errors say that delivery has ended.
            let own = progress.wait_for(|progress| progress.settled >= target).await.is_ok();
            own && (!adopted || left.wait_for(|done| *done).await.is_ok())
        };
        timeout(limit, all).await.unwrap_or(false)
    }

    /// An event in the journal, or what is wrong with it.
    fn payload(event: &AuditEvent) -> Result<Bytes> {
        let payload = match &event.chain {
            // It keeps its place in another chain.
            Some(_) => serde_json::to_vec(event)
                .map(Bytes::from)
                .map_err(|error| Error::new(ErrorKind::DataInvalid, "the event is no JSON").with_source(error))?,
            None => canonical(event),
        };
        if payload.len() > MAX_PAYLOAD {
            return Err(Error::new(
                ErrorKind::DataInvalid,
                format!(
                    "the event has {} bytes, and the spool takes at most {MAX_PAYLOAD}; put large data elsewhere",
                    payload.len()
                ),
            ));
        }
        Ok(payload)
    }

    /// Whether there is room for an event of ordinary size.
    fn check_room(&self, opened: &Opened) -> Result<()> {
        match opened.journal.status().bytes + ORDINARY > self.options.max_bytes {
            true => Err(self.full("it is full", None)),
            false => self.check_age(opened),
        }
    }

    fn check_age(&self, opened: &Opened) -> Result<()> {
        let (Some(most), Some(oldest)) = (self.options.max_age, opened.progress.borrow().oldest) else {
            return Ok(());
        };
        let age = Duration::try_from(Timestamp::now().duration_since(oldest)).unwrap_or_default();
        match age > most {
            true => Err(self.full(
                format_args!("its oldest event has waited for {} s", age.as_secs()),
                None,
            )),
            false => Ok(()),
        }
    }

    fn full(&self, why: impl fmt::Display, source: Option<Error>) -> Error {
        let status = self.status();
        let said = status.failing.map(|failing| format!(", which says: {}", failing.error));
        let error = Error::new(
            ErrorKind::ResourceExhausted,
            format!(
                "the audit spool {} takes no more events, since {why}: {} wait for {}{}; see to the sink, or raise the limit \
                 of the spool",
                self.options.folder.display(),
                status.events,
                self.sink.location(),
                said.unwrap_or_default()
            ),
        )
        .temporary(None);
        match source {
            Some(source) => error.with_source(source),
            None => error,
        }
    }

    fn refuse(&self, count: usize, error: Error) -> Error {
        if error.kind() == ErrorKind::ResourceExhausted {
            self.totals.refused.fetch_add(count as u64, Ordering::Relaxed);
            tracing::warn!(refused = count, error = %error.report(), "the audit spool refuses events");
        }
        error
    }

    async fn append(&self, opened: &Opened, payloads: Vec<Bytes>) -> Result<()> {
        let count = payloads.len();
        let outcome = match self.check_age(opened) {
            Ok(()) => opened.journal.append_batch(payloads).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceExhausted && !error.is_temporary() => {
                Err(self.refuse(count, self.full("it is full", Some(error))))
            }
            Err(error) => Err(self.refuse(count, error)),
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Conflict, "the audit spool was shut down; build a new one")
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AuditLogger for Spool {
    fn info(&self) -> AdapterInfo {
        self.sink.info()
    }

    fn capabilities(&self) -> AuditCapabilities {
        self.sink.capabilities().with_durable(true)
    }

    /// The spool takes events while it has room, whatever the sink says; that is a problem then, and no more.
    async fn check_availability(&self) -> Result<Availability> {
        self.check_open()?;
        let folder = self.options.folder.clone();
        let writable = blocking(move || {
            files::create_dir(&folder)?;
            let probe = folder.join(format!("probe-{}.tmp", std::process::id()));
            files::append_to(&probe).map_err(|error| files::file_error("write to", &probe, error))?;
            files::remove(&probe)
        });
        if let Err(error) = writable.await {
            return Ok(Availability::unavailable(
                error.report(),
                "make the folder of the audit spool writable, or choose another with spool.folder",
            ));
        }
        let waiting = inspect(&self.options.folder).await?;
        let (events, lost) = waiting.as_ref().map_or((0, 0), |found| (found.events(), found.lost()));
        let full = self.opened.get().and_then(|opened| self.check_room(opened).err());
        if let Some(error) = full {
            return Ok(Availability::unavailable(error.report(), "see to the sink"));
        }
        let mut answer = Availability::ready().with_fact(format!(
            "{events} events wait in the spool {}",
            self.options.folder.display()
        ));
        let sink = match timeout(PROBE, self.sink.check_availability()).await {
            Ok(Ok(sink)) => sink,
            Ok(Err(error)) => Availability::unavailable(error.report(), "see to the sink"),
            Err(_) => Availability::unavailable(
                format!("{} did not answer", self.sink.location()),
                "see whether it can be reached",
            ),
        };
        answer.facts.extend(sink.facts);
        answer.problems.extend(sink.problems);
        if lost > 0 {
            answer.problems.push(Problem::new(
                format!("the sink has refused {lost} events for good"),
                format!(
                    "read lost.jsonl in the folders of {}, see to what it says, and move it away",
                    self.options.folder.display()
                ),
            ));
        }
        Ok(answer)
    }

    fn location(&self) -> String {
        self.sink.location()
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.check_open()?;
        let payload = Self::payload(&event)?;
        let opened = self.open().await?;
        self.append(opened, vec![payload]).await
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        self.check_open()?;
        let mut outcomes: Vec<Result<()>> = Vec::with_capacity(events.len());
        let mut payloads = Vec::with_capacity(events.len());
        for event in &events {
            outcomes.push(Self::payload(event).map(|payload| payloads.push(payload)));
        }
        if !payloads.is_empty() {
            let opened = self.open().await?;
            self.append(opened, payloads).await?;
        } else if let Some(first) = outcomes.pop() {
            first?;
        }
        Ok(outcomes)
    }

    /// Asks the sink, after waiting a little for what was emitted before.
    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        self.check_open()?;
        if !self.sink.capabilities().query {
            return self.sink.query(query).await;
        }
        // Who only reads, and finds nothing to deliver, takes no place among the writers.
        let left = match self.opened.get() {
            Some(_) => true,
            None => inspect(&self.options.folder)
                .await?
                .is_some_and(|found| found.left() > 0),
        };
        if left {
            let opened = self.open().await?;
            if !self.settled(opened, true, self.options.shutdown_limit).await {
                let status = self.status();
                tracing::warn!(
                    waiting = status.events,
                    sink = %self.sink.location(),
                    "the answer misses events that still wait in the audit spool"
                );
            }
        }
        self.sink.query(query).await
    }

    /// Waits until everything that was emitted is delivered.
    async fn flush(&self) -> Result<()> {
        self.check_open()?;
        let Some(opened) = self.opened.get() else {
            return self.sink.flush().await;
        };
        opened.journal.flush().await?;
        if self.settled(opened, false, self.options.flush_limit).await {
            return self.sink.flush().await;
        }
        let status = self.status();
        let said = status.failing.map(|failing| format!(", which says: {}", failing.error));
        Err(Error::new(
            ErrorKind::Timeout,
            format!(
                "{} events are safe on disk in {} and still wait for {}{}; see to the sink",
                status.events,
                self.options.folder.display(),
                self.sink.location(),
                said.unwrap_or_default()
            ),
        )
        .temporary(None))
    }

    /// Delivers for a little while, and leaves the rest to the next process.
    async fn shutdown(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Err(closed());
        }
        if let Some(opened) = self.opened.get() {
            opened.journal.flush().await?;
            if !self.settled(opened, false, self.options.shutdown_limit).await {
                let status = self.status();
                tracing::warn!(
                    waiting = status.events,
                    folder = %self.options.folder.display(),
                    sink = %self.sink.location(),
                    "events are left in the audit spool, to be delivered by the next process"
                );
            }
            opened.stop.send_replace(true);
            let delivering = opened.delivering.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(delivering) = delivering {
                // It has nothing to say; if it panicked, that was told.
                let _ = delivering.await;
            }
            opened.journal.close().await?;
        }
        match timeout(PROBE, self.sink.shutdown()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!("{} did not let go in time", self.sink.location()),
            )),
        }
    }
}

/// Delivers what dead processes left.
struct Adopter {
    sink: Arc<dyn AuditLogger>,
    options: SpoolOptions,
    totals: Arc<Totals>,
    stop: watch::Receiver<bool>,
}

impl Adopter {
    async fn run(&self, adopted: &watch::Sender<bool>) {
        let mut stop = self.stop.clone();
        loop {
            if let Err(error) = self.round().await {
                tracing::warn!(
                    error = %error.report(),
                    folder = %self.options.folder.display(),
                    "what a dead process left in the audit spool could not be delivered"
                );
            }
            // After a stop, nothing was promised.
            if *stop.borrow() {
                return;
            }
            adopted.send_replace(true);
            if unless_stopped(&mut stop, sleep(ADOPT_EVERY)).await.is_none() {
                return;
            }
        }
    }

    async fn round(&self) -> Result<()> {
        for writer in writers(&self.options.folder).await? {
            if writer.live || backlog(&writer.folder, CURSOR).await?.records == 0 {
                continue;
            }
            let journal = match Journal::open(self.options.journal().with_writer(writer.name)).await {
                // Another process was faster.
                Err(error) if error.kind() == ErrorKind::Conflict => continue,
                journal => Arc::new(journal?),
            };
            let limits = (self.options.max_bytes, self.options.max_delay);
            let (sink, totals) = (Arc::clone(&self.sink), Arc::clone(&self.totals));
            let (delivery, cursor) =
                Delivery::new(sink, Arc::clone(&journal), totals, self.stop.clone(), limits).await?;
            delivery.run(cursor, true).await;
            journal.close().await?;
        }
        Ok(())
    }
}
