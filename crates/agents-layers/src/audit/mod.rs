//! No record, no action: an intent before and an outcome after every operation that changes something.
//!
//! [`AuditLayer`] wraps runtime, storage and policy. Before an operation it writes `operation_intended`, and the operation is
//! not done before that is durable; after it `operation_ended`, with the same `operation_id`. Reads are left alone.
//!
//! | operation | classes | facts of the intent | facts of the outcome |
//! |---|---|---|---|
//! | `runtime.provision` | `provision`, `secret` with secrets, `egress` with a network | what is asked for | `container_id` |
//! | `runtime.build_image` | `provision`, `egress` with a network | `context`, `tag`, `network` | `image` |
//! | `runtime.start`, `runtime.exec` | `exec` | `container_id`, `command`, `environment`, … | `ending`, `exit_code` |
//! | `runtime.signal` | `exec` | `container_id`, `signal` | |
//! | `runtime.copy_from`, `runtime.copy_to` | `copy` | `container_id`, `path` | `bytes` |
//! | `runtime.kill`, `runtime.destroy`, `runtime.reap` | `destroy` | `container_id` | what was removed |
//! | `storage.store`, `storage.presign`, `storage.presign_put` | `store` | `name` or `uri` | `uri`, `sha256`, `size`, `version` |
//! | `storage.delete`, `storage.reap` | `delete` | `name` | what is gone |
//! | `policy.enforce`, `policy.validate` | `policy` | | `changes`, or `decision` and `findings` |
//!
//! - `outcome` is `succeeded`, `failed`, `refused` (it was not done) or `unknown`; then there are `error_kind` and `error`,
//!   or a `reason`. A process that ran has `succeeded`, whatever it exited with.
//! - Outcomes do not hold anybody up: they are durable with the next intent, or after 50 ms. [`Trail::flush`] waits for them.
//! - What only makes safe, `kill` and `destroy`, is not held up either: its intent is written meanwhile. Nor is a decision
//!   about a policy, which changes nothing; it is durable before the next operation begins.
//! - An operation whose future or stream is dropped ends as `unknown`, with the reason `cancelled`; what a crash left open,
//!   [`end_open`] ends.
//! - A class that is `best_effort` in [`AuditSettings`](agents_core::AuditSettings) goes on without a record, and
//!   [`Trail::losses`] counts what is lost.
//!
//! ```
//! use std::sync::Arc;
//!
//! use agents_core::{Adapters, AuditSettings, Result, SessionId};
//! use agents_layers::audit::{AuditKey, AuditLayer, Scope, Trail};
//!
//! # fn example(adapters: Adapters, key: AuditKey) -> Result<()> {
//! let scope = Scope::new().with_session(Some(SessionId::new("nightly")?));
//! let trail = Trail::new(Arc::clone(&adapters.audit), AuditSettings::new(), key, scope);
//! let adapters = adapters.layer(&AuditLayer::new(trail.clone()));
//! # Ok(())
//! # }
//! ```

mod key;
mod open;
mod operation;
mod policy;
mod process;
mod redact;
mod runtime;
mod storage;
mod trail;

use std::sync::Arc;

use agents_core::{ContainerRuntime, Layer, PolicyValidator, StorageBackend};

pub use self::{
    key::AuditKey,
    open::{end_open, is_on_record},
    redact::{RedactedStream, Redactor},
    trail::{Scope, Trail},
};

/// Puts on record what is done through the adapters that it wraps.
#[derive(Clone, Debug)]
pub struct AuditLayer {
    trail: Trail,
}

impl AuditLayer {
    /// A layer that writes to this trail.
    pub fn new(trail: Trail) -> Self {
        Self { trail }
    }
}

// An audit logger is left alone: a record of a record would never end.
impl Layer for AuditLayer {
    fn wrap_runtime(&self, inner: Arc<dyn ContainerRuntime>) -> Arc<dyn ContainerRuntime> {
        Arc::new(runtime::RecordedRuntime {
            inner,
            trail: self.trail.clone(),
        })
    }

    fn wrap_storage(&self, inner: Arc<dyn StorageBackend>) -> Arc<dyn StorageBackend> {
        Arc::new(storage::RecordedStorage {
            inner,
            trail: self.trail.clone(),
        })
    }

    fn wrap_policy(&self, inner: Arc<dyn PolicyValidator>) -> Arc<dyn PolicyValidator> {
        Arc::new(policy::RecordedPolicy {
            inner,
            trail: self.trail.clone(),
        })
    }
}
