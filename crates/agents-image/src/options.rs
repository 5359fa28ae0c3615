//! How an image is resolved.

use std::{fmt, sync::Arc};

/// When to ask the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry which image the tag means now, and pull what is missing.
    Always,
    /// Use the image in the store when there is one, without any network traffic.
    #[default]
    Missing,
    /// Use only what is in the store.
    Never,
}

/// What [`ImageStore::resolve`](crate::ImageStore::resolve) is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The reference is being looked up.
    Resolving,
    /// Bytes of a layer have arrived.
    Layer {
        /// The digest of the layer as the manifest names it.
        digest: String,
        /// The size of the compressed layer, when known.
        total: Option<u64>,
        /// How much of it has arrived.
        done: u64,
    },
    /// All bytes of a layer have arrived, and the last of it is being unpacked and written to disk.
    Unpacking {
        /// The digest of the layer as the manifest names it.
        digest: String,
    },
    /// The image is ready.
    Done,
}

/// Receives [`Progress`]; called from any thread, and must not block.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// Who the caller is to a registry.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Credentials {
    /// What `docker login` or `podman login` has stored, or nothing.
    ///
    /// The first of these files that has an entry for the registry: `$REGISTRY_AUTH_FILE`,
    /// `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`,
    /// `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`.
    #[default]
    Files,
    /// No credentials.
    Anonymous,
    /// A user name and a password or token.
    Basic {
        /// The user name.
        username: String,
        /// The password or access token.
        password: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files => f.write_str("Files"),
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { username, .. } => f
                .debug_struct("Basic")
                .field("username", username)
                .field("password", &"<redacted>")
                .finish(),
        }
    }
}

/// What a hostile image may cost at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Entries in one layer, including folders that it implies. Default 1,000,000.
    pub max_entries: u64,
    /// Uncompressed bytes of all layers of one image. Default 64 GiB.
    pub max_bytes: u64,
    /// Bytes in the name of one entry. Default 4,095, as Linux has it.
    pub max_path: usize,
    /// Layers in one image. Default 500, as overlayfs has it.
    pub max_layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            max_bytes: 64 << 30,
            max_path: 4095,
            max_layers: 500,
        }
    }
}

impl Limits {
    /// Sets the most entries in one layer.
    #[must_use]
    pub fn with_max_entries(mut self, max_entries: u64) -> Self {
        self.max_entries = max_entries;
        self
    }

    /// Sets the most uncompressed bytes of one image.
    #[must_use]
    pub fn with_max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }
}

/// How an image is resolved.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct ResolveOptions {
    /// When to ask the registry. Default [`PullPolicy::Missing`].
    pub pull: PullPolicy,
    /// Receives progress. Default nobody.
    pub progress: Option<ProgressFn>,
    /// Registries (`host` or `host:port`) that are spoken to over plain HTTP, besides loopback ones,
    /// which always are. Default none.
    pub insecure_registries: Vec<String>,
    /// Who the caller is to the registry. Default [`Credentials::Files`].
    pub credentials: Credentials,
    /// What an image may cost at most.
    pub limits: Limits,
}

impl ResolveOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets when to ask the registry.
    #[must_use]
    pub fn with_pull(mut self, pull: PullPolicy) -> Self {
        self.pull = pull;
        self
    }

    /// Sets who receives progress.
    #[must_use]
    pub fn with_progress(mut self, progress: ProgressFn) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Adds a registry that is spoken to over plain HTTP.
    #[must_use]
    pub fn with_insecure_registry(mut self, registry: impl Into<String>) -> Self {
        self.insecure_registries.push(registry.into());
        self
    }

    /// Sets who the caller is to the registry.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// Sets what an image may cost at most.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub(crate) fn report(&self, progress: Progress) {
        if let Some(callback) = &self.progress {
            callback(progress);
        }
    }
}

impl fmt::Debug for ResolveOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolveOptions")
            .field("pull", &self.pull)
            .field("progress", &self.progress.is_some())
            .field("insecure_registries", &self.insecure_registries)
            .field("credentials", &self.credentials)
            .field("limits", &self.limits)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_password() {
        let options = ResolveOptions::new().with_credentials(Credentials::Basic {
            username: "ann".into(),
            password: "hunter2".into(),
        });
        let text = format!("{options:?}");
        assert!(text.contains("ann") && !text.contains("hunter2"), "{text}");
    }
}
