//! Several audit sinks at once.
//!
//! A *required* sink must have an event before it is acknowledged; all of them are asked at the same time. A sink that is
//! *best effort* gets an event after that, in the background: it holds nobody up, and what it does not take is lost to it and
//! counted. Queries go to the first sink that answers them.
//!
//! ```
//! use std::sync::Arc;
//!
//! use agents_core::{AuditEvent, AuditLogger, EventType};
//! use agents_layers::composite::{Composite, Part};
//! use agents_testkit::fakes::MemoryAudit;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> agents_core::Result<()> {
//! let (one, two) = (MemoryAudit::new(), MemoryAudit::new());
//! let audit = Composite::new(vec![Part::required(Arc::new(one.clone())), Part::best_effort(Arc::new(two.clone()))])?;
//! audit.emit(AuditEvent::now(EventType::SessionCreated)).await?;
//! audit.flush().await?;
//! assert_eq!((one.events().len(), two.events().len()), (1, 1));
//! # Ok(())
//! # }
//! ```

mod lane;
mod logger;

use std::sync::Arc;

use agents_core::AuditLogger;

pub use lane::BestEffortStatus;
pub use logger::Composite;

/// One of several sinks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Part {
    /// The sink.
    pub sink: Arc<dyn AuditLogger>,
    /// Whether it must have an event before that is acknowledged.
    pub required: bool,
}

impl Part {
    /// A sink that must have an event before that is acknowledged.
    pub fn required(sink: Arc<dyn AuditLogger>) -> Self {
        Self { sink, required: true }
    }

    /// A sink that is tried, and whose losses are counted.
    pub fn best_effort(sink: Arc<dyn AuditLogger>) -> Self {
        Self { sink, required: false }
    }
}
