//! The adapter.

use std::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use agents_audit_remote::{Batch, again, chunks, closed, not_tried, unavailable};
use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    Result,
};
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::RwLock;

use crate::{Headers, client::Client, config::OtlpAuditConfig, record::log_record};

/// The most log records and bytes of a request, before it is compressed. A collector takes 20 MiB unless told otherwise.
const RECORDS: usize = 1000;
const BYTES: usize = 4_000_000;

/// The audit trail as OpenTelemetry log records, over OTLP/HTTP.
///
/// Nothing is connected before the first operation.
pub struct OtlpAudit {
    client: Client,
    /// Read by whoever writes, so that `flush` can wait for them.
    writers: RwLock<()>,
    closed: AtomicBool,
}

impl fmt::Debug for OtlpAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client holds the headers.
        f.debug_struct("OtlpAudit")
            .field("url", &self.client.url().as_str())
            .finish_non_exhaustive()
    }
}

impl OtlpAudit {
    /// Takes a configuration, and the headers that it refers to.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key; what reading `tls_ca_file` gives.
    pub fn new(config: OtlpAuditConfig, headers: Headers) -> Result<Self> {
        config.check()?;
        Ok(Self {
            client: Client::new(config, headers)?,
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

    /// Writes records, and puts what became of each into `outcomes`, which has one for each record.
    async fn write(&self, records: &[String], outcomes: &mut [Result<()>]) {
        // A stack, with the first on top.
        let mut todo = requests(records);
        todo.reverse();
        while let Some(range) = todo.pop() {
            let Err(error) = self.client.submit(&records[range.clone()]).await else {
                outcomes[range].fill_with(|| Ok(()));
                continue;
            };
            if error.kind() == ErrorKind::ResourceExhausted && range.len() > 1 {
                let middle = range.start + range.len() / 2;
                todo.push(middle..range.end);
                todo.push(range.start..middle);
                continue;
            }
            // Which of them were rejected nobody knows, so none is acknowledged; nor are those after them, in this order.
            let at_fault = error.kind() == ErrorKind::DataInvalid || error.kind() == ErrorKind::ResourceExhausted;
            outcomes[range.clone()].fill_with(|| Err(again(&error)));
            outcomes[range.start] = Err(error);
            if !at_fault {
                return;
            }
        }
    }
}

/// Splits records into what fits into a request each, with a comma behind each.
fn requests(records: &[String]) -> Vec<Range<usize>> {
    chunks(records, (RECORDS, BYTES), |record| record.len() + 1)
}

#[async_trait]
impl AuditLogger for OtlpAudit {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("otlp", env!("CARGO_PKG_VERSION")).with_name(self.location())
    }

    /// What a collector has accepted may still be in its memory alone.
    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none()
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.check_open()?;
        Ok(match self.client.probe().await {
            Ok(()) => Availability::ready().with_fact(format!("writes to {}", self.location())),
            Err(error) => unavailable(&self.location(), &error),
        })
    }

    fn location(&self) -> String {
        self.client.url().to_string()
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        let mut outcomes = self.emit_batch(vec![event]).await?;
        outcomes.pop().unwrap_or_else(|| Err(not_tried()))
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        self.check_open()?;
        let _writer = self.writers.read().await;
        self.check_open()?;
        let observed = Timestamp::now();
        let batch = Batch::new(events.iter().map(|event| log_record(event, observed)));
        let mut written = batch.untried();
        if !written.is_empty() {
            self.write(batch.items(), &mut written).await;
        }
        batch.settle(written)
    }

    async fn query(&self, _: AuditQuery) -> Result<AuditPage> {
        Err(Error::unsupported(
            "OTLP only writes; look for events in the backend of the collector, or add a sink that can be read",
        ))
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
        assert_eq!(requests(&vec!["x".repeat(1_000_000); 9]), [0..3, 3..6, 6..9]);
    }
}
