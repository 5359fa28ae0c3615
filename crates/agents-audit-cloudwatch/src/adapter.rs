//! The adapter.

use std::{
    collections::HashSet,
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use agents_audit_remote::{closed, not_tried, places, unavailable};
use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    EventType, Result,
};
use async_trait::async_trait;
use aws_sdk_cloudwatchlogs::types::RejectedLogEventsInfo;
use tokio::sync::RwLock;

use crate::{
    Credentials,
    client::Client,
    config::CloudWatchAuditConfig,
    cursor::Cursor,
    message::{Message, requests, stream},
    search::{Hit, Search, hit, suspects},
};

/// The audit trail in Amazon CloudWatch Logs: a stream for each session, in one log group.
///
/// Nothing is connected before the first operation. Any number of processes, and of values of this type, may share a trail.
pub struct CloudWatchAudit {
    client: Client,
    config: CloudWatchAuditConfig,
    /// Read by whoever writes, so that `flush` can wait for them.
    writers: RwLock<()>,
    closed: AtomicBool,
}

impl fmt::Debug for CloudWatchAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client holds the credentials.
        f.debug_struct("CloudWatchAudit")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The log events of one stream, and where their events are in a batch.
struct Part {
    stream: String,
    messages: Vec<Message>,
    at: Vec<usize>,
}

impl CloudWatchAudit {
    /// Takes a configuration, and the credentials that it refers to.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key.
    pub async fn new(config: CloudWatchAuditConfig, credentials: Credentials) -> Result<Self> {
        config.check()?;
        Ok(Self {
            client: Client::new(config.clone(), credentials).await?,
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

    /// Writes the log events of a stream, and puts what became of each into `outcomes`.
    ///
    /// # Errors
    ///
    /// What kept the rest from being written. To go on would bring later events before these.
    async fn write(&self, part: &Part, outcomes: &mut [Result<()>]) -> Result<()> {
        // A stack, with the first on top.
        let mut todo = requests(&part.messages);
        todo.reverse();
        while let Some(range) = todo.pop() {
            match self.client.put(&part.stream, &part.messages[range.clone()]).await {
                Ok(rejected) => {
                    for (n, place) in range.clone().enumerate() {
                        outcomes[part.at[place]] = rejection(rejected.as_ref(), n).map_or(Ok(()), Err);
                    }
                }
                // One of them is at fault: look for it.
                Err(error) if error.kind() == ErrorKind::DataInvalid && range.len() > 1 => {
                    let middle = range.start + range.len() / 2;
                    todo.push(middle..range.end);
                    todo.push(range.start..middle);
                }
                Err(error) if error.kind() == ErrorKind::DataInvalid => outcomes[part.at[range.start]] = Err(error),
                Err(error) => {
                    outcomes[part.at[range.start]] = Err(error);
                    return Err(not_tried());
                }
            }
        }
        Ok(())
    }

    /// Drops events that were found up to the cursor already: what was delivered again is there twice.
    async fn drop_repeats(&self, hits: &mut Vec<Hit>, after: &Cursor) -> Result<()> {
        let (ids, since) = suspects(hits, after);
        let mut before = HashSet::new();
        for search in Search::of_events(&ids, since, after.millisecond(), &self.config) {
            let mut token = None;
            loop {
                let (found, next) = self.client.search(&search, token).await?;
                let places = found.iter().filter_map(hit).map(|hit| hit.at);
                before.extend(places.filter(|at| at <= after).map(|at| at.id));
                token = next;
                if token.is_none() {
                    break;
                }
            }
        }
        hits.retain(|hit| !before.contains(&hit.at.id));
        Ok(())
    }

    async fn probe(&self) -> Result<()> {
        let message = Message::new(&AuditEvent::now(EventType::SystemWarning), places(1))?;
        match self.client.probe(&message).await {
            Err(error) if error.kind() == ErrorKind::NotFound && self.config.create_log_group => {
                self.client.create_group().await
            }
            other => other,
        }
    }
}

/// Why the service did not take the nth log event of a request that it took otherwise.
fn rejection(rejected: Option<&RejectedLogEventsInfo>, n: usize) -> Option<Error> {
    let rejected = rejected?;
    let index = |index: Option<i32>| index.and_then(|index| usize::try_from(index).ok());
    // The ends are exclusive, the start is not.
    let why = if index(rejected.too_old_log_event_end_index).is_some_and(|end| n < end) {
        "CloudWatch Logs took the event for too old; see whether the clock of this machine is right"
    } else if index(rejected.expired_log_event_end_index).is_some_and(|end| n < end) {
        "the log group forgets events of this time at once; see its retention and the clock of this machine"
    } else if index(rejected.too_new_log_event_start_index).is_some_and(|start| n >= start) {
        "CloudWatch Logs took the event for one of the future; see whether the clock of this machine is right"
    } else {
        return None;
    };
    Some(Error::new(ErrorKind::DataInvalid, why))
}

#[async_trait]
impl AuditLogger for CloudWatchAudit {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("cloudwatch", env!("CARGO_PKG_VERSION")).with_name(self.location())
    }

    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none().with_query(true).with_durable(true)
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.check_open()?;
        match self.probe().await {
            Ok(()) => Ok(Availability::ready().with_fact(format!("writes to {}", self.location()))),
            Err(error) => Ok(unavailable(&self.location(), &error)),
        }
    }

    fn location(&self) -> String {
        format!("log group {} in {}", self.config.log_group, self.client.region())
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
        let mut parts: Vec<Part> = Vec::new();
        let mut outcomes: Vec<Result<()>> = Vec::with_capacity(events.len());
        for (place, event) in (first..).zip(&events) {
            let message = match Message::new(event, place) {
                Ok(message) => message,
                Err(error) => {
                    outcomes.push(Err(error));
                    continue;
                }
            };
            let stream = stream(&self.config.stream_prefix, event.session_id.as_ref());
            let part = match parts.iter_mut().position(|part| part.stream == stream) {
                Some(part) => &mut parts[part],
                None => {
                    parts.push(Part {
                        stream,
                        messages: Vec::new(),
                        at: Vec::new(),
                    });
                    let last = parts.len() - 1;
                    &mut parts[last]
                }
            };
            part.messages.push(message);
            part.at.push(outcomes.len());
            outcomes.push(Err(not_tried()));
        }
        for part in &parts {
            if self.write(part, &mut outcomes).await.is_err() {
                break;
            }
        }
        // What happened, rather than that others were not tried for it.
        let told = |outcome: &Result<()>| {
            outcome
                .as_ref()
                .is_err_and(|error| error.message() != not_tried().message())
        };
        if !outcomes.is_empty() && outcomes.iter().all(Result::is_err) {
            let at = outcomes.iter().position(told).unwrap_or_default();
            return Err(outcomes.swap_remove(at).err().unwrap_or_else(not_tried));
        }
        Ok(outcomes)
    }

    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        self.check_open()?;
        if query.limit == 0 {
            return Err(Error::invalid("limit is 0; ask for at least one event"));
        }
        let after = query.cursor.as_deref().map(Cursor::parse).transpose()?;
        let search = Search::new(&query, after.as_ref(), &self.config);
        let mut page = AuditPage::default();
        let (mut waiting, mut token) = (Vec::new(), None);
        let (mut seen, mut skipped) = (HashSet::new(), 0_u64);
        let mut last = None;
        loop {
            // It may be empty while there are more.
            let (found, next) = self.client.search(&search, token).await?;
            waiting.extend(found.iter().filter_map(hit));
            // The service sorts by the millisecond, so one of them is in order only once all of it is here.
            let end = match (&next, waiting.last()) {
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
            token = next;
            if token.is_none() {
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
            "log events of the audit trail are no events of this version and were skipped"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_are_told_for_each_event() {
        let rejected = RejectedLogEventsInfo::builder()
            .too_old_log_event_end_index(1)
            .expired_log_event_end_index(2)
            .too_new_log_event_start_index(4)
            .build();
        let told: Vec<_> = (0..5)
            .map(|n| rejection(Some(&rejected), n).map(|error| error.message().to_owned()))
            .collect();
        assert!(told[0].as_deref().unwrap().contains("too old"));
        assert!(told[1].as_deref().unwrap().contains("forgets"));
        assert!(told[2].is_none() && told[3].is_none());
        assert!(told[4].as_deref().unwrap().contains("future"));
        assert!(rejection(None, 0).is_none());
    }
}
