//! No record, no action: every operation of the engine goes through the audit layer.

use std::sync::Arc;

use agents_core::{Adapters, AuditSettings, Layer as _, StorageBackend};
use agents_layers::audit::{AuditKey, AuditLayer, Scope, Trail};

/// The adapters, and the trail that everything that is done through them is recorded in. Made by
/// [`Engine::recorded`](crate::Engine::recorded).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recorded {
    /// The adapters. What changes something is not done before its intent is on record.
    pub adapters: Adapters,
    /// Where it is recorded. An outcome is durable within 50 ms; [`Trail::flush`] waits for it.
    pub trail: Trail,
}

impl Recorded {
    /// Another storage backend, with what is done through it on the same record.
    pub fn storage(&self, storage: Arc<dyn StorageBackend>) -> Arc<dyn StorageBackend> {
        AuditLayer::new(self.trail.clone()).wrap_storage(storage)
    }

    pub(crate) fn new(adapters: &Adapters, settings: &AuditSettings, key: &AuditKey, scope: Scope) -> Self {
        let trail = Trail::new(adapters.audit.clone(), settings.clone(), key.clone(), scope);
        Self {
            adapters: adapters.clone().layer(&AuditLayer::new(trail.clone())),
            trail,
        }
    }
}
