//! What this process knows of a container.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use agents_core::{ContainerStats, Result};
use agents_guest::{Afterwards, Connection};
use tokio::sync::OnceCell;

use crate::{
    engine::Engine,
    inspect::Inspected,
    ports::Published,
    streams::Said,
    watch::{News, Watch},
};

/// One container of the engine's.
#[derive(Debug)]
pub(crate) struct Known {
    /// The engine's identifier: a name could be another container's by tomorrow, and a short one is the beginning of many.
    pub(crate) id: String,
    has_memory_limit: bool,
    /// The host sees the threads of gVisor's kernel instead of the container's processes.
    gvisor: bool,
    phase: Mutex<Phase>,
    /// When what was created, and how much CPU time it had used when it was last asked.
    reading: Mutex<Reading>,
    pub(crate) published: Mutex<Option<Published>>,
    /// The connection that the main process was started over from here.
    afterwards: Mutex<Option<Afterwards>>,
    watch: OnceCell<Watch>,
}

#[derive(Debug)]
struct Reading {
    at: Instant,
    cpu_seconds: f64,
    last: Option<ContainerStats>,
}

/// How far the main process is, as far as this process knows.
#[derive(Debug)]
pub(crate) enum Phase {
    /// There is none.
    Idle,
    /// It is prepared, and this is the connection to start it by.
    Prepared(Connection, Said),
    /// It was started from here.
    Started,
    /// It was started from here and has ended.
    Ended,
    /// Another process made the container.
    Unknown,
}

impl Known {
    pub(crate) fn new(inspected: &Inspected, gvisor: bool, phase: Phase, watch: Option<Watch>) -> Arc<Self> {
        Arc::new(Self {
            id: inspected.id.clone(),
            has_memory_limit: inspected.host_config.memory > 0,
            gvisor,
            phase: Mutex::new(phase),
            reading: Mutex::new(Reading {
                at: age(inspected),
                cpu_seconds: 0.0,
                last: None,
            }),
            published: Mutex::new(None),
            afterwards: Mutex::new(None),
            watch: OnceCell::new_with(watch),
        })
    }

    /// What is heard of the container from now on.
    pub(crate) async fn news(&self, engine: &Arc<Engine>) -> Result<News> {
        let watch = self.watch.get_or_try_init(|| Watch::open(engine, &self.id)).await?;
        Ok(watch.news())
    }

    /// What is left of the connection that the main process was started over from here.
    pub(crate) fn afterwards(&self) -> Option<Afterwards> {
        self.afterwards.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn started(&self, afterwards: Afterwards) {
        *self.afterwards.lock().unwrap_or_else(PoisonError::into_inner) = Some(afterwards);
    }

    /// Looks at the phase, or changes it.
    pub(crate) fn with_phase<T>(&self, look: impl FnOnce(&mut Phase) -> T) -> T {
        look(&mut self.phase.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Completes a reading with the percentage since the one before. `None` is a container that does not run any more,
    /// for which the last reading stands.
    pub(crate) fn reading(&self, stats: Option<ContainerStats>) -> ContainerStats {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut stats) = stats else {
            let mut last = reading.last.clone().unwrap_or_default();
            last.cpu_percent = 0.0;
            last.pids = Some(0);
            return last;
        };
        if !self.has_memory_limit {
            // The engine says how much memory the host has then.
            stats.memory_limit_mb = 0.0;
        }
        if self.gvisor {
            stats.pids = None;
        }
        if let Some(seconds) = stats.cpu_seconds {
            let now = Instant::now();
            let elapsed = now.duration_since(reading.at).as_secs_f64();
            if elapsed > 0.0 {
                stats.cpu_percent = (seconds - reading.cpu_seconds).max(0.0) / elapsed * 100.0;
            }
            reading.at = now;
            reading.cpu_seconds = seconds;
        }
        reading.last = Some(stats.clone());
        stats
    }
}

/// When the container was created, by this process's clock.
fn age(inspected: &Inspected) -> Instant {
    let now = Instant::now();
    let created: Option<jiff::Timestamp> = inspected.created.parse().ok();
    let age =
        created.and_then(|created| std::time::Duration::try_from(jiff::Timestamp::now().duration_since(created)).ok());
    age.and_then(|age| now.checked_sub(age)).unwrap_or(now)
}
