//! An audit trail in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    EventType, Result,
};
use async_trait::async_trait;

/// Keeps events in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryAudit(Arc<Mutex<Trail>>);

#[derive(Debug, Default)]
struct Trail {
    events: Vec<AuditEvent>,
    closed: bool,
}

impl MemoryAudit {
    /// An empty trail.
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything so far, oldest first.
    pub fn events(&self) -> Vec<AuditEvent> {
        self.trail().events.clone()
    }

    /// The types of everything so far, oldest first.
    pub fn event_types(&self) -> Vec<EventType> {
        self.trail().events.iter().map(|event| event.event_type).collect()
    }

    /// The same trail, opened again after a shutdown.
    #[must_use]
    pub fn reopened(&self) -> Self {
        let events = self.events();
        Self(Arc::new(Mutex::new(Trail { events, closed: false })))
    }

    fn trail(&self) -> MutexGuard<'_, Trail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_trail(&self) -> Result<MutexGuard<'_, Trail>> {
        let trail = self.trail();
        if trail.closed {
            return Err(Error::new(ErrorKind::Conflict, "the audit trail is shut down"));
        }
        Ok(trail)
    }
}

#[async_trait]
impl AuditLogger for MemoryAudit {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("memory", env!("CARGO_PKG_VERSION"))
    }

    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none().with_query(true)
    }

    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }

    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.emit_batch(vec![event]).await.map(drop)
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        let mut trail = self.open_trail()?;
        let results = events.iter().map(|_| Ok(())).collect();
        for event in events {
            if !trail.events.iter().any(|known| known.event_id == event.event_id) {
                trail.events.push(event);
            }
        }
        Ok(results)
    }

    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        let trail = self.open_trail()?;
        let start = match query.cursor.as_deref() {
            None => 0,
            Some(cursor) => cursor
                .parse()
                .map_err(|_| Error::invalid(format!("{cursor:?} is not a cursor of this trail")))?,
        };
        let mut found = trail.events.iter().enumerate().skip(start);
        let mut matching = found.by_ref().filter(|(_, event)| query.matches(event));
        let events: Vec<_> = matching
            .by_ref()
            .take(query.limit)
            .map(|(_, event)| event.clone())
            .collect();
        let next = matching.next().map(|(index, _)| index.to_string());
        Ok(AuditPage { events, next })
    }

    async fn flush(&self) -> Result<()> {
        self.open_trail().map(drop)
    }

    async fn shutdown(&self) -> Result<()> {
        self.open_trail()?.closed = true;
        Ok(())
    }
}
