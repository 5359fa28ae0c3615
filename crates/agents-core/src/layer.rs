//! Layers wrap adapters: one hook a kind, each of which leaves the adapter as it is unless the layer says otherwise.

use std::{fmt, sync::Arc};

use crate::{AuditLogger, ContainerRuntime, PolicyValidator, StorageBackend};

/// Wraps adapters with a further behaviour, such as retries or traces.
///
/// State lives in the layer; what a hook returns is a cheap projection of it, and a hook may be called several times.
/// A wrapper must forward every method (deny `clippy::missing_trait_methods`), must forward `info` untouched, and wraps
/// returned bodies and streams too, not only the call.
pub trait Layer: fmt::Debug + Send + Sync + 'static {
    /// Wraps a runtime.
    fn wrap_runtime(&self, inner: Arc<dyn ContainerRuntime>) -> Arc<dyn ContainerRuntime> {
        inner
    }

    /// Wraps a storage backend.
    fn wrap_storage(&self, inner: Arc<dyn StorageBackend>) -> Arc<dyn StorageBackend> {
        inner
    }

    /// Wraps an audit logger.
    fn wrap_audit(&self, inner: Arc<dyn AuditLogger>) -> Arc<dyn AuditLogger> {
        inner
    }

    /// Wraps a policy validator.
    fn wrap_policy(&self, inner: Arc<dyn PolicyValidator>) -> Arc<dyn PolicyValidator> {
        inner
    }
}

/// One adapter of each kind.
#[derive(Clone, Debug)]
pub struct Adapters {
    /// Where containers run.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Where artifacts go.
    pub storage: Arc<dyn StorageBackend>,
    /// Where the audit trail goes.
    pub audit: Arc<dyn AuditLogger>,
    /// What decides the policy.
    pub policy: Arc<dyn PolicyValidator>,
}

impl Adapters {
    /// Wraps all four. The layer that is added last is the outermost: `adapters.layer(&a).layer(&b)` calls `b`, then `a`,
    /// then the adapter. (tower's `ServiceBuilder` has the opposite order.)
    #[must_use]
    pub fn layer(self, layer: &dyn Layer) -> Self {
        Self {
            runtime: layer.wrap_runtime(self.runtime),
            storage: layer.wrap_storage(self.storage),
            audit: layer.wrap_audit(self.audit),
            policy: layer.wrap_policy(self.policy),
        }
    }
}
