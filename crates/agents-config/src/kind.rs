//! The four kinds of adapters, and the names that each goes by.

use std::fmt;

/// One of the four kinds of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Where containers run.
    ContainerRuntime,
    /// Where artifacts go.
    StorageBackend,
    /// Where the audit trail goes.
    AuditLogger,
    /// What decides the policy.
    PolicyValidator,
}

impl Kind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 4] = [
        Self::ContainerRuntime,
        Self::StorageBackend,
        Self::AuditLogger,
        Self::PolicyValidator,
    ];

    /// The key below `adapters` in a file.
    pub const fn key(self) -> &'static str {
        match self {
            Self::ContainerRuntime => "container_runtime",
            Self::StorageBackend => "storage_backend",
            Self::AuditLogger => "audit_logger",
            Self::PolicyValidator => "policy_validator",
        }
    }

    /// The word that the older shapes use: `storage_adapter`, `storage.type`, `ISOLATED_AGENTS_STORAGE_ADAPTER`.
    pub(crate) const fn old_word(self) -> &'static str {
        match self {
            Self::ContainerRuntime => "container",
            Self::StorageBackend => "storage",
            Self::AuditLogger => "audit",
            Self::PolicyValidator => "policy",
        }
    }

    /// The variable that chooses the type.
    pub(crate) const fn variable(self) -> &'static str {
        match self {
            Self::ContainerRuntime => "ISOLATED_AGENTS_CONTAINER_RUNTIME",
            Self::StorageBackend => "ISOLATED_AGENTS_STORAGE_BACKEND",
            Self::AuditLogger => "ISOLATED_AGENTS_AUDIT_LOGGER",
            Self::PolicyValidator => "ISOLATED_AGENTS_POLICY_VALIDATOR",
        }
    }

    /// What the variables for single keys begin with; the type and the key follow.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::ContainerRuntime => "ISOLATED_AGENTS_RUNTIME_",
            Self::StorageBackend => "ISOLATED_AGENTS_STORAGE_",
            Self::AuditLogger => "ISOLATED_AGENTS_AUDIT_",
            Self::PolicyValidator => "ISOLATED_AGENTS_POLICY_",
        }
    }

    /// The older variable that chooses the type.
    pub(crate) const fn old_variable(self) -> &'static str {
        match self {
            Self::ContainerRuntime => "ISOLATED_AGENTS_CONTAINER_ADAPTER",
            Self::StorageBackend => "ISOLATED_AGENTS_STORAGE_ADAPTER",
            Self::AuditLogger => "ISOLATED_AGENTS_AUDIT_ADAPTER",
            Self::PolicyValidator => "ISOLATED_AGENTS_POLICY_ADAPTER",
        }
    }

    /// What the older variables for single keys begin with; the key follows.
    pub(crate) const fn old_prefix(self) -> &'static str {
        match self {
            Self::ContainerRuntime => "ISOLATED_AGENTS_CONTAINER_",
            _ => self.prefix(),
        }
    }

    /// The types that are taken when none is named, the first that works.
    pub(crate) const fn defaults(self) -> &'static [&'static str] {
        match self {
            Self::ContainerRuntime => &["podman", "native"],
            Self::StorageBackend => &["local"],
            Self::AuditLogger => &["file"],
            Self::PolicyValidator => &["default"],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.key())
    }
}
