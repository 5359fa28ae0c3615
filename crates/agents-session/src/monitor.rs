//! What a container uses while it runs: thresholds are watched, and readings are kept for the record.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use agents_core::{ContainerHandle, ContainerRuntime, ContainerStats, Error, EventType, Policy};
use agents_layers::audit::Trail;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::Observer;

/// The most readings that go on record: some 10 KiB, below what any sink takes in one event.
const SAMPLES_MAX: usize = 120;

/// Readings over the whole session. When there are too many every second one is given up, of those to come too.
#[derive(Debug)]
pub(crate) struct Samples {
    began: Instant,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    rows: Vec<Value>,
    /// One of so many readings is kept.
    stride: usize,
    /// How many were read since the last one that was kept.
    passed: usize,
}

impl Samples {
    /// Of a session that began then.
    pub(crate) fn since(began: Instant) -> Self {
        Self {
            began,
            kept: Mutex::new(Kept {
                rows: Vec::new(),
                stride: 1,
                passed: 0,
            }),
        }
    }

    fn add(&self, stats: &ContainerStats) {
        let at = self.began.elapsed();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.passed += 1;
        if kept.passed < kept.stride {
            return;
        }
        kept.passed = 0;
        let rounded = |number: f64| (number * 10.0).round() / 10.0;
        kept.rows.push(json!({
            "at_ms": at.as_millis() as u64,
            "cpu_percent": rounded(stats.cpu_percent),
            "memory_mb": rounded(stats.memory_mb),
            "pids": stats.pids,
        }));
        if kept.rows.len() == SAMPLES_MAX {
            let mut index = 0;
            kept.rows.retain(|_| {
                index += 1;
                index % 2 == 0
            });
            kept.stride *= 2;
        }
    }

    /// What was kept, oldest first; nothing of a session that ended before the first reading.
    pub(crate) fn take(&self) -> Vec<Value> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut kept.rows)
    }
}

/// Reads what a container uses at the policy's interval, and puts it on record whenever that rises above a threshold.
pub(crate) async fn monitor(
    runtime: Arc<dyn ContainerRuntime>,
    container: ContainerHandle,
    policy: Policy,
    samples: Arc<Samples>,
    trail: Trail,
    observer: Option<Arc<dyn Observer>>,
) {
    let interval = Duration::from_secs_f64(policy.resource_monitor_interval);
    let (mut cpu_above, mut memory_above) = (false, false);
    loop {
        sleep(interval).await;
        // A container that has just ended has nothing to tell; the end itself is noticed elsewhere.
        let Ok(stats) = runtime.stats(&container).await else {
            continue;
        };
        samples.add(&stats);
        let cpu = policy.cpu_cores.map(|cores| stats.cpu_percent / cores);
        let memory = (stats.memory_limit_mb > 0.0).then(|| stats.memory_mb / stats.memory_limit_mb * 100.0);
        let readings = [
            (
                "cpu_threshold_exceeded",
                cpu,
                policy.cpu_threshold_percent,
                &mut cpu_above,
            ),
            (
                "memory_threshold_exceeded",
                memory,
                policy.memory_threshold_percent,
                &mut memory_above,
            ),
        ];
        let mut events = Vec::new();
        for (violation, percent, threshold, above) in readings {
            let now_above = percent.is_some_and(|percent| percent >= threshold);
            if now_above && !*above {
                events.push(
                    trail
                        .event(EventType::ResourceLimitExceeded)
                        .with_fact("violation_type", violation)
                        .with_fact("percent", percent)
                        .with_fact("threshold_percent", threshold),
                );
            }
            *above = now_above;
        }
        if !events.is_empty()
            && let Err(error) = trail.record(events).await
            && let Some(observer) = &observer
        {
            observer.warning(&format!(
                "a threshold was exceeded and is not on record: {}",
                Error::report(&error)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_session_has_fewer_readings_and_not_more() {
        let samples = Samples::since(Instant::now());
        for second in 0..10_000 {
            let mut stats = ContainerStats::default();
            stats.memory_mb = f64::from(second) + 0.04;
            samples.add(&stats);
        }
        let rows = samples.take();
        assert!((SAMPLES_MAX / 2..SAMPLES_MAX).contains(&rows.len()), "{}", rows.len());
        let memory: Vec<f64> = rows.iter().map(|row| row["memory_mb"].as_f64().unwrap()).collect();
        let step = memory[1] - memory[0];
        assert!(memory.windows(2).all(|pair| pair[1] - pair[0] == step), "{memory:?}");
        assert!(memory[0] <= step && 10_000.0 - memory[memory.len() - 1] <= step);
        assert!(samples.take().is_empty());
    }
}
