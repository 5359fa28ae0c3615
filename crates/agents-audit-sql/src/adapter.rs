//! The adapter.

use std::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use agents_audit_remote::{Batch, chunks, closed};
use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    EventType, Result,
};
use async_trait::async_trait;
use tokio::sync::{Mutex, OnceCell};

use crate::{
    DatabaseAuditConfig, cursor,
    database::{self, Engine},
    error::map,
    retry,
    row::Row,
};

/// The most rows and bytes of a transaction. MySQL takes statements of 16 MiB or, when old, 4 MiB.
const CHUNK_ROWS: usize = 1000;
const CHUNK_BYTES: usize = 2 << 20;

/// The most rows that a query reads at once.
const READ_ROWS: usize = 1000;

/// The audit trail in a table of PostgreSQL, MySQL, MariaDB or SQLite.
///
/// Nothing is connected before the first operation. Any number of processes, and of values of this type, may share a trail.
pub struct DatabaseAudit {
    engine: Box<dyn Engine>,
    config: DatabaseAuditConfig,
    tables: OnceCell<()>,
    /// Whoever writes, in turn. The database orders writers anyway, and so they do not take all connections from readers.
    writer: Mutex<()>,
    closed: AtomicBool,
}

impl fmt::Debug for DatabaseAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The engine's options hold the password.
        f.debug_struct("DatabaseAudit")
            .field("engine", &self.engine)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl DatabaseAudit {
    /// Takes a configuration and, for a server, the URL that [`DatabaseAuditConfig::url`] refers to. Must be called within
    /// a tokio runtime.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key, and never quotes the URL.
    pub fn new(config: DatabaseAuditConfig, url: Option<&str>) -> Result<Self> {
        config.check()?;
        Ok(Self {
            engine: database::open(&config, url)?,
            config,
            tables: OnceCell::new(),
            writer: Mutex::new(()),
            closed: AtomicBool::new(false),
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        Ok(())
    }

    fn map(&self, error: sqlx::Error) -> Error {
        map(error, self.engine.class())
    }

    /// Creates the tables once, if that is wanted.
    async fn tables(&self) -> Result<()> {
        let create = || async { self.engine.migrate().await.map_err(|error| self.map(error)) };
        let ready = self.tables.get_or_try_init(|| async {
            match self.config.create_tables {
                true => retry::within(self.config.timeout(), create).await,
                false => Ok(()),
            }
        });
        ready.await.copied()
    }

    async fn insert(&self, rows: &[Row]) -> Result<()> {
        let insert = || async { self.engine.insert(rows).await.map_err(|error| self.map(error)) };
        retry::within(self.config.timeout(), insert).await
    }

    /// Writes rows, and puts what became of each into `outcomes`, which has one for each row.
    async fn write(&self, rows: &[Row], outcomes: &mut [Result<()>]) {
        // A stack, with the first on top.
        let mut todo = transactions(rows);
        todo.reverse();
        while let Some(range) = todo.pop() {
            let Err(error) = self.insert(&rows[range.clone()]).await else {
                outcomes[range].fill_with(|| Ok(()));
                continue;
            };
            if error.kind() != ErrorKind::DataInvalid {
                // To go on would bring later events before these.
                outcomes[range.start] = Err(error);
                return;
            }
            if range.len() == 1 {
                outcomes[range.start] = Err(error);
                continue;
            }
            // One of them is at fault: look for it.
            let middle = range.start + range.len() / 2;
            todo.push(middle..range.end);
            todo.push(range.start..middle);
        }
    }
}

/// Splits rows into what fits into a transaction each.
fn transactions(rows: &[Row]) -> Vec<Range<usize>> {
    chunks(rows, (CHUNK_ROWS, CHUNK_BYTES), |row| row.record.len() + 512)
}

#[async_trait]
impl AuditLogger for DatabaseAudit {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("database", env!("CARGO_PKG_VERSION")).with_name(self.engine.location())
    }

    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none().with_query(true).with_durable(true)
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.check_open()?;
        let row = Row::new(AuditEvent::now(EventType::SystemWarning).with_tag("check"))?;
        let limit = self.config.timeout().min(Duration::from_secs(10));
        let probe = tokio::time::timeout(limit, self.engine.probe(self.config.create_tables, &row));
        let location = self.engine.location();
        let error = match probe.await {
            Ok(Ok(version)) => {
                let availability = Availability::ready().with_fact(format!("writes to {location}"));
                return Ok(availability.with_fact(version));
            }
            Ok(Err(error)) => self.map(error),
            Err(_) => {
                let reason = format!("{location} did not answer within {} s", limit.as_secs());
                let remedy = "see whether the server runs, and whether a firewall is in between";
                return Ok(Availability::unavailable(reason, remedy));
            }
        };
        // The message is what to do, the source what happened.
        let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Ok(Availability::unavailable(
            format!("{location}: {reason}"),
            error.message(),
        ))
    }

    fn location(&self) -> String {
        self.engine.location()
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.check_open()?;
        let row = Row::new(event)?;
        self.tables().await?;
        let _turn = self.writer.lock().await;
        self.check_open()?;
        self.insert(&[row]).await
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        self.check_open()?;
        let batch = Batch::new(events.into_iter().map(Row::new));
        let mut written = batch.untried();
        if !written.is_empty() {
            self.tables().await?;
            let _turn = self.writer.lock().await;
            self.check_open()?;
            self.write(batch.items(), &mut written).await;
        }
        batch.settle(written)
    }

    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        self.check_open()?;
        if query.limit == 0 {
            return Err(Error::invalid("limit is 0; ask for at least one event"));
        }
        let mut after = match &query.cursor {
            Some(text) => cursor::parse(text)?,
            None => 0,
        };
        self.tables().await?;
        let mut page = AuditPage::default();
        let mut skipped = 0_u64;
        loop {
            // One more than wanted tells whether there is a next page.
            let limit = (query.limit - page.events.len()).saturating_add(1).min(READ_ROWS);
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let select = || async {
                let rows = self.engine.select(&query, after, limit).await;
                rows.map_err(|error| self.map(error))
            };
            let rows = retry::within(self.config.timeout(), select).await?;
            let last = i64::try_from(rows.len()).unwrap_or(i64::MAX) < limit;
            for (seq, record) in rows {
                match serde_json::from_str::<AuditEvent>(&record) {
                    Ok(event) if !query.matches(&event) => {}
                    Ok(_) if page.events.len() == query.limit => {
                        page.next = Some(cursor::format(after));
                        warn_of(skipped);
                        return Ok(page);
                    }
                    Ok(event) => page.events.push(event),
                    Err(_) => skipped += 1,
                }
                after = seq;
            }
            if last {
                warn_of(skipped);
                return Ok(page);
            }
        }
    }

    async fn flush(&self) -> Result<()> {
        self.check_open()?;
        // What was accepted is what a writer holds.
        drop(self.writer.lock().await);
        self.check_open()
    }

    async fn shutdown(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Err(closed());
        }
        drop(self.writer.lock().await);
        let close = tokio::time::timeout(self.config.timeout(), self.engine.close());
        if close.await.is_err() {
            tracing::warn!("the connections to the audit database did not close in time and were left");
        }
        Ok(())
    }
}

fn warn_of(skipped: u64) {
    if skipped > 0 {
        tracing::warn!(
            skipped,
            "records of the audit table are no events of this version and were skipped"
        );
    }
}
