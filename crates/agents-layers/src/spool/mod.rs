//! The spool: a journal on local disk in front of a sink that may be away.
//!
//! An event is acknowledged once it is in the journal, and is delivered from there: in order, at least once, through outages
//! and restarts. When the spool is full the caller is refused. See `docs/audit-spool.md` for what is promised.
//!
//! ```
//! use std::sync::Arc;
//!
//! use agents_core::{AuditEvent, AuditLogger, AuditQuery, EventType};
//! use agents_layers::spool::{Spool, SpoolOptions};
//! use agents_testkit::fakes::MemoryAudit;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> agents_core::Result<()> {
//! # let folder = tempfile::tempdir().map_err(|error| agents_core::Error::io("no folder", error))?;
//! let sink = MemoryAudit::new();
//! let audit = Spool::new(Arc::new(sink.clone()), SpoolOptions::new(folder.path()))?;
//! audit.emit(AuditEvent::now(EventType::SessionCreated)).await?; // on disk
//! audit.flush().await?; // delivered
//! assert_eq!(sink.events().len(), 1);
//! assert_eq!(audit.status().events, 0);
//! audit.shutdown().await?;
//! # Ok(())
//! # }
//! ```

mod config;
mod delivery;
mod factory;
mod files;
mod intercept;
mod logger;
mod lost;
mod options;
mod report;

pub use config::{SpoolConfig, SpoolSetting};
pub use factory::{Always, Never, SpoolByDefault, Spooled, SpooledConfig};
pub use logger::Spool;
pub use options::SpoolOptions;
pub use report::{Failing, SpoolReport, SpoolStatus, SpoolWriter, inspect, inspect_all};

/// The cursor of a journal that says how far delivery is.
const CURSOR: &str = "sink";
