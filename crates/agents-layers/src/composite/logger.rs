//! Several sinks as one audit logger.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    Problem, Result,
};
use async_trait::async_trait;
use futures_util::future::{join, join_all};

use super::{
    Part,
    lane::{BestEffortStatus, Lane},
};

/// How long a flush, and the end, wait for sinks that are best effort.
const FLUSH: Duration = Duration::from_secs(30);
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Several sinks, each required or best effort.
#[derive(Debug)]
pub struct Composite {
    sinks: Vec<Sink>,
    closed: AtomicBool,
}

#[derive(Debug)]
enum Sink {
    Required(Arc<dyn AuditLogger>),
    BestEffort(Lane),
}

impl Sink {
    fn logger(&self) -> &Arc<dyn AuditLogger> {
        match self {
            Self::Required(sink) => sink,
            Self::BestEffort(lane) => &lane.sink,
        }
    }
}

impl Composite {
    /// Brings sinks together. Best-effort ones need a tokio runtime with time.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` when none of them is required: then an acknowledgement would mean nothing.
    pub fn new(parts: Vec<Part>) -> Result<Self> {
        if !parts.iter().any(|part| part.required) {
            return Err(Error::invalid(
                "none of the sinks is required, so that nothing would be on record for sure; require at least one",
            ));
        }
        let sink = |part: Part| match part.required {
            true => Sink::Required(part.sink),
            false => Sink::BestEffort(Lane::new(part.sink)),
        };
        Ok(Self {
            sinks: parts.into_iter().map(sink).collect(),
            closed: AtomicBool::new(false),
        })
    }

    /// How the sinks are doing that are best effort.
    pub fn best_effort(&self) -> Vec<BestEffortStatus> {
        self.lanes().map(Lane::status).collect()
    }

    fn required(&self) -> impl Iterator<Item = &Arc<dyn AuditLogger>> {
        self.sinks.iter().filter_map(|sink| match sink {
            Sink::Required(sink) => Some(sink),
            Sink::BestEffort(_) => None,
        })
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.sinks.iter().filter_map(|sink| match sink {
            Sink::Required(_) => None,
            Sink::BestEffort(lane) => Some(lane),
        })
    }

    fn check_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(closed()),
            false => Ok(()),
        }
    }

    /// The sinks that can be asked, those that are required first, each with its place in the configuration.
    fn readable(&self) -> Vec<(usize, &Arc<dyn AuditLogger>)> {
        let mut readable: Vec<_> = self.sinks.iter().enumerate().collect();
        readable.retain(|(_, sink)| sink.logger().capabilities().query);
        readable.sort_by_key(|(place, sink)| (matches!(sink, Sink::BestEffort(_)), *place));
        let readable = readable.into_iter();
        readable.map(|(place, sink)| (place, sink.logger())).collect()
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Conflict, "the audit sinks were shut down; build new ones")
}

/// The answers of all required sinks as one: an event is on record once all of them have it.
fn combine(count: usize, answers: Vec<Result<Vec<Result<()>>>>) -> Result<Vec<Result<()>>> {
    let mut outcomes: Vec<Result<()>> = (0..count).map(|_| Ok(())).collect();
    for answer in answers {
        let mut answer = answer?.into_iter();
        for outcome in &mut outcomes {
            let this = answer.next();
            let this = this.unwrap_or_else(|| Err(Error::unexpected("a sink did not report on each event")));
            if outcome.is_ok() {
                *outcome = this;
            }
        }
    }
    match outcomes.iter().any(Result::is_ok) {
        true => Ok(outcomes),
        false => outcomes.pop().map_or(Ok(Vec::new()), |last| last.map(|()| Vec::new())),
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AuditLogger for Composite {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("composite", env!("CARGO_PKG_VERSION")).with_name(self.location())
    }

    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none()
            .with_query(self.sinks.iter().any(|sink| sink.logger().capabilities().query))
            .with_durable(self.required().any(|sink| sink.capabilities().durable))
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.check_open()?;
        let asked = self.sinks.iter().map(|sink| sink.logger().check_availability());
        let mut all = Availability::ready();
        for (sink, answer) in self.sinks.iter().zip(join_all(asked).await) {
            let answer = answer
                .unwrap_or_else(|error| Availability::unavailable(error.report(), "see to what the message names"));
            let required = matches!(sink, Sink::Required(_));
            all.available &= answer.available || !required;
            all.facts.extend(answer.facts);
            all.problems.extend(answer.problems);
        }
        for lane in self.lanes().map(Lane::status).filter(|lane| lane.lost > 0) {
            all.problems.push(Problem::new(
                format!(
                    "{} events were lost to {}: {}",
                    lane.lost,
                    lane.location,
                    lane.error.unwrap_or_default()
                ),
                "see to that sink, put a spool in front of it, or require it",
            ));
        }
        Ok(all)
    }

    fn location(&self) -> String {
        let locations: Vec<_> = self.sinks.iter().map(|sink| sink.logger().location()).collect();
        locations.join(" and ")
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        let mut outcomes = self.emit_batch(vec![event]).await?;
        outcomes.pop().unwrap_or(Ok(()))
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        self.check_open()?;
        let asked = self.required().map(|sink| sink.emit_batch(events.clone()));
        let outcomes = combine(events.len(), join_all(asked).await)?;
        let recorded = events.into_iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
        let recorded: Vec<_> = recorded.map(|(event, _)| event).collect();
        if !recorded.is_empty() {
            self.lanes().for_each(|lane| lane.offer(recorded.clone()));
        }
        Ok(outcomes)
    }

    /// Asks the first sink that can be asked, and the next when it cannot be reached. A cursor belongs to the sink that gave
    /// it.
    async fn query(&self, mut query: AuditQuery) -> Result<AuditPage> {
        self.check_open()?;
        let readable = self.readable();
        if readable.is_empty() {
            return Err(Error::unsupported("none of the sinks can be asked; add one that can"));
        }
        let from = match query.cursor.take() {
            None => None,
            Some(cursor) => {
                let parsed = cursor.split_once('.').and_then(|(place, cursor)| {
                    let place: usize = place.parse().ok()?;
                    readable
                        .iter()
                        .find(|(known, _)| *known == place)
                        .map(|found| (*found, cursor.to_owned()))
                });
                let foreign = || Error::invalid(format!("{cursor:?} is no cursor of these sinks; start without one"));
                Some(parsed.ok_or_else(foreign)?)
            }
        };
        if let Some(((place, sink), cursor)) = from {
            return Ok(of(place, sink.query(query.with_cursor(Some(cursor))).await?));
        }
        let mut last = None;
        for (place, sink) in readable {
            match sink.query(query.clone()).await {
                Ok(page) => return Ok(of(place, page)),
                Err(error) if error.is_temporary() => {
                    tracing::warn!(sink = %sink.location(), error = %error.report(), "asking the next audit sink");
                    last.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(closed))
    }

    async fn flush(&self) -> Result<()> {
        self.check_open()?;
        let lanes = self.lanes().map(|lane| async {
            lane.flush(FLUSH).await;
            if let Err(error) = lane.sink.flush().await {
                tracing::warn!(sink = %lane.sink.location(), error = %error.report(), "a best-effort sink was not flushed");
            }
        });
        let required = self.required().map(|sink| sink.flush());
        let (answers, _) = join(join_all(required), join_all(lanes)).await;
        answers.into_iter().collect()
    }

    async fn shutdown(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Err(closed());
        }
        let lanes = self.lanes().map(|lane| async {
            lane.flush(SHUTDOWN).await;
            if let Err(error) = lane.sink.shutdown().await {
                tracing::warn!(sink = %lane.sink.location(), error = %error.report(), "a best-effort sink was not shut down");
            }
        });
        let required = self.required().map(|sink| sink.shutdown());
        let (answers, _) = join(join_all(required), join_all(lanes)).await;
        answers.into_iter().collect()
    }
}

/// A page whose cursor says which sink it is of.
fn of(place: usize, page: AuditPage) -> AuditPage {
    AuditPage {
        events: page.events,
        next: page.next.map(|cursor| format!("{place}.{cursor}")),
    }
}
