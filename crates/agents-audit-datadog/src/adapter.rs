//! The adapter.

use std::{
    collections::HashSet,
    fmt,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use agents_audit_remote::{Batch, chunks, closed, not_tried, places, unavailable};
use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    Problem, Result,
};
use async_trait::async_trait;
use tokio::sync::RwLock;

use crate::{
    Keys,
    client::Client,
    config::DatadogAuditConfig,
    cursor::Cursor,
    log::log,
    search::{self, Hit, Search},
};

/// The most logs and bytes of a request. Datadog does not say which megabyte it means.
const ROWS: usize = 1000;
const BYTES: usize = 5_000_000;

/// The most events that are asked for by their ids at once.
const IDS: usize = 100;

/// The audit trail in Datadog Logs.
///
/// Nothing is connected before the first operation. Any number of processes, and of values of this type, may share a trail.
pub struct DatadogAudit {
    client: Client,
    config: DatadogAuditConfig,
    /// Read by whoever writes, so that `flush` can wait for them.
    writers: RwLock<()>,
    closed: AtomicBool,
}

impl fmt::Debug for DatadogAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client holds the keys.
        f.debug_struct("DatadogAudit")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl DatadogAudit {
    /// Takes a configuration, and the keys that it refers to.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key of the configuration.
    pub fn new(config: DatadogAuditConfig, keys: Keys) -> Result<Self> {
        config.check()?;
        Ok(Self {
            client: Client::new(&config, keys)?,
            config,
            writers: RwLock::new(()),
            closed: AtomicBool::new(false),
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        Ok(())
    }

    /// Sends logs, with everything that is tried again.
    async fn submit(&self, logs: &[String]) -> Result<()> {
        let body = format!("[{}]", logs.join(","));
        let mut retry = self.client.retry();
        loop {
            match self.client.submit(body.as_bytes(), retry.attempt()).await {
                Ok(()) => return Ok(()),
                Err(error) => retry.wait(error).await?,
            }
        }
    }

    /// Writes logs, and puts what became of each into `outcomes`, which has one for each log.
    async fn write(&self, logs: &[String], outcomes: &mut [Result<()>]) {
        // A stack, with the first on top.
        let mut todo = requests(logs);
        todo.reverse();
        while let Some(range) = todo.pop() {
            let Err(error) = self.submit(&logs[range.clone()]).await else {
                outcomes[range].fill_with(|| Ok(()));
                continue;
            };
            // Too large together, or one of them is at fault: look for it.
            let one_at_fault = matches!(error.kind(), ErrorKind::DataInvalid | ErrorKind::ResourceExhausted);
            if one_at_fault && range.len() > 1 {
                let middle = range.start + range.len() / 2;
                todo.push(middle..range.end);
                todo.push(range.start..middle);
                continue;
            }
            outcomes[range.start] = Err(error);
            if !one_at_fault {
                // To go on would bring later events before these.
                return;
            }
        }
    }

    /// Drops events that were found up to the cursor already: what was delivered again is there twice.
    async fn drop_repeats(&self, hits: &mut Vec<Hit>, after: &Cursor) -> Result<()> {
        let mut before = HashSet::new();
        let (ids, since) = search::suspects(hits, after);
        for ids in ids.chunks(IDS) {
            let search = Search::of_events(ids, since, after, &self.config.service);
            let mut page = None;
            loop {
                let answer = self.client.search(&search.body(page.as_deref())).await?;
                let (found, next) = search::hits(&answer);
                before.extend(found.into_iter().filter(|hit| hit.at <= *after).map(|hit| hit.at.id));
                page = next;
                if page.is_none() {
                    break;
                }
            }
        }
        hits.retain(|hit| !before.contains(&hit.at.id));
        Ok(())
    }

    async fn probe(&self) -> Result<()> {
        self.client.validate().await?;
        if self.client.keys().can_query() {
            let one = AuditQuery::new().with_limit(1);
            let search = Search::new(&one, None, &self.config.service);
            self.client.search(&search.body(None)).await?;
        }
        Ok(())
    }
}

/// Splits logs into what fits into a request each, in brackets and with a comma behind each.
fn requests(logs: &[String]) -> Vec<Range<usize>> {
    chunks(logs, (ROWS, BYTES - 2), |log| log.len() + 1)
}

#[async_trait]
impl AuditLogger for DatadogAudit {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("datadog", env!("CARGO_PKG_VERSION")).with_name(self.location())
    }

    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none()
            .with_query(self.client.keys().can_query())
            .with_durable(true)
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.check_open()?;
        let error = match self.probe().await {
            Ok(()) if self.client.keys().can_query() => {
                return Ok(Availability::ready().with_fact(format!("writes to {}", self.location())));
            }
            Ok(()) => {
                let problem = Problem::new("events cannot be read back", "set app_key to query them");
                let ready = Availability::ready().with_fact(format!("writes to {}", self.location()));
                return Ok(ready.with_problem(problem));
            }
            Err(error) => error,
        };
        Ok(unavailable(&self.location(), &error))
    }

    fn location(&self) -> String {
        format!("{}, service {}", self.config.intake(), self.config.service)
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        let mut outcomes = self.emit_batch(vec![event]).await?;
        outcomes.pop().unwrap_or_else(|| Err(not_tried()))
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        self.check_open()?;
        let _writer = self.writers.read().await;
        self.check_open()?;
        let first = places(events.len());
        let logs = (first..)
            .zip(&events)
            .map(|(place, event)| log(event, place, &self.config));
        let batch = Batch::new(logs);
        let mut written = batch.untried();
        if !written.is_empty() {
            self.write(batch.items(), &mut written).await;
        }
        batch.settle(written)
    }

    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        self.check_open()?;
        if !self.client.keys().can_query() {
            return Err(Error::unsupported(
                "Datadog lets nobody read without an application key; set app_key",
            ));
        }
        if query.limit == 0 {
            return Err(Error::invalid("limit is 0; ask for at least one event"));
        }
        let after = query.cursor.as_deref().map(Cursor::parse).transpose()?;
        let search = Search::new(&query, after.as_ref(), &self.config.service);
        let mut page = AuditPage::default();
        let (mut waiting, mut next) = (Vec::new(), None);
        let (mut seen, mut skipped) = (HashSet::new(), 0_u64);
        let mut last = None;
        loop {
            let answer = self.client.search(&search.body(next.as_deref())).await?;
            let (found, more) = search::hits(&answer);
            waiting.extend(found);
            // Datadog sorts by the millisecond alone, so one of them is in order only once all of it is here.
            let end = match (&more, waiting.last()) {
                (Some(_), Some(hit)) => hit.millisecond,
                _ => i64::MAX,
            };
            let (mut ready, rest): (Vec<Hit>, Vec<Hit>) = waiting.into_iter().partition(|hit| hit.millisecond < end);
            waiting = rest;
            ready.retain(|hit| after.as_ref().is_none_or(|after| hit.at > *after));
            ready.sort_by(|a, b| a.at.cmp(&b.at));
            if let Some(after) = &after {
                self.drop_repeats(&mut ready, after).await?;
            }
            for hit in ready {
                if !seen.insert(hit.at.id.clone()) {
                    continue;
                }
                match hit.event {
                    Some(event) if !query.matches(&event) => {}
                    Some(_) if page.events.len() == query.limit => {
                        page.next = last.as_ref().map(Cursor::to_string);
                        warn_of(skipped);
                        return Ok(page);
                    }
                    Some(event) => page.events.push(event),
                    None => skipped += 1,
                }
                last = Some(hit.at);
            }
            next = more;
            if next.is_none() {
                warn_of(skipped);
                return Ok(page);
            }
        }
    }

    async fn flush(&self) -> Result<()> {
        self.check_open()?;
        drop(self.writers.write().await);
        self.check_open()
    }

    async fn shutdown(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Err(closed());
        }
        drop(self.writers.write().await);
        Ok(())
    }
}

fn warn_of(skipped: u64) {
    if skipped > 0 {
        tracing::warn!(
            skipped,
            "logs of the audit trail are no events of this version and were skipped"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_limits() {
        assert!(requests(&[]).is_empty());
        assert_eq!(
            requests(&vec!["{}".to_owned(); 2001]),
            [0..1000, 1000..2000, 2000..2001]
        );
        // Five of a million bytes are too large by their brackets and commas.
        assert_eq!(requests(&vec!["x".repeat(1_000_000); 9]), [0..4, 4..8, 8..9]);
    }
}
