//! A sink that fails as it is told.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    EventType, Result,
};
use agents_testkit::fakes::MemoryAudit;
use async_trait::async_trait;

/// How the sink is today.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Mood {
    #[default]
    Fine,
    /// Every call fails so.
    Fails(ErrorKind),
    /// Every call fails so, and it asks for a pause.
    Throttles(Duration),
    /// No call ever ends.
    Hangs,
    /// Everything is stored, and the answer is lost.
    LosesAnswers,
    /// Of each batch every other event is stored.
    Partial,
    /// Events with the fact `bad` are refused for good.
    Judges,
    /// Everything is refused for good, though the fault is its own.
    Misconfigured,
}

#[derive(Debug, Default)]
struct Inner {
    mood: Mood,
    calls: Vec<std::time::Instant>,
    deliveries: usize,
}

/// A sink in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fickle {
    pub(crate) trail: MemoryAudit,
    inner: Arc<Mutex<Inner>>,
}

impl Fickle {
    pub(crate) fn set(&self, mood: Mood) {
        self.lock().mood = mood;
    }

    /// When it was called.
    pub(crate) fn calls(&self) -> Vec<std::time::Instant> {
        self.lock().calls.clone()
    }

    /// How many events were handed over, each as often as it was.
    pub(crate) fn deliveries(&self) -> usize {
        self.lock().deliveries
    }

    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.trail.events().iter().map(number).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl AuditLogger for Fickle {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("fickle", "0")
    }
    fn capabilities(&self) -> AuditCapabilities {
        self.trail.capabilities()
    }
    async fn check_availability(&self) -> Result<Availability> {
        let mood = self.lock().mood.clone();
        Ok(match mood {
            Mood::Fine | Mood::Judges | Mood::Partial => Availability::ready(),
            _ => Availability::unavailable("it is in a mood", "wait"),
        })
    }
    fn location(&self) -> String {
        "fickle memory".to_owned()
    }
    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.emit_batch(vec![event]).await?.remove(0)
    }
    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        let mood = {
            let mut inner = self.lock();
            inner.calls.push(std::time::Instant::now());
            inner.mood.clone()
        };
        let down = |kind| Error::new(kind, "the sink is in a mood");
        match mood {
            Mood::Fails(kind) => return Err(down(kind).temporary(None)),
            Mood::Throttles(pause) => return Err(down(ErrorKind::RateLimited).temporary(Some(pause))),
            Mood::Hangs => std::future::pending().await,
            Mood::Misconfigured => return Err(down(ErrorKind::DataInvalid)),
            _ => {}
        }
        let mut outcomes = Vec::new();
        for (n, event) in events.into_iter().enumerate() {
            outcomes.push(match mood {
                Mood::Partial if n % 2 == 1 => Err(down(ErrorKind::Unavailable).temporary(None)),
                Mood::Judges if event.payload.contains_key("bad") => Err(down(ErrorKind::DataInvalid)),
                _ => {
                    self.lock().deliveries += 1;
                    self.trail.emit(event).await
                }
            });
        }
        if mood == Mood::LosesAnswers {
            return Err(down(ErrorKind::Unavailable).temporary(None));
        }
        if !outcomes.is_empty() && outcomes.iter().all(Result::is_err) {
            return Err(outcomes.remove(0).unwrap_err());
        }
        Ok(outcomes)
    }
    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        self.trail.query(query).await
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    // It is shared with the sink of the next process.
    async fn shutdown(&self) -> Result<()> {
        Ok(())
    }
}

pub(crate) fn event(n: u64) -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning).with_fact("n", n)
}

pub(crate) fn number(event: &AuditEvent) -> u64 {
    event.payload["n"].as_u64().unwrap()
}
