//! From sources of configuration to an engine.

use std::{path::PathBuf, sync::Arc};

use agents_config::{Config, Dirs, Environment, Kind, Loader, LocalSecrets, Registry};
use agents_core::{
    AuditLogger, AuditSettings, BuildContext, ContainerRuntime, Error, Layer, PolicyValidator, Result, SecretResolver,
    StorageBackend,
};
use agents_session::{Engine, EngineConfig};
use serde_json::Value;

/// An adapter by the name of its type, or one that is ready.
pub enum AdapterChoice<A: ?Sized> {
    /// A type that is registered.
    Type(String),
    /// An adapter that the program made.
    Ready(Arc<A>),
}

impl<A: ?Sized> From<&str> for AdapterChoice<A> {
    fn from(name: &str) -> Self {
        Self::Type(name.to_owned())
    }
}

impl<A: ?Sized> From<String> for AdapterChoice<A> {
    fn from(name: String) -> Self {
        Self::Type(name)
    }
}

impl<A: ?Sized> From<Arc<A>> for AdapterChoice<A> {
    fn from(adapter: Arc<A>) -> Self {
        Self::Ready(adapter)
    }
}

impl<A: ?Sized> std::fmt::Debug for AdapterChoice<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Type(name) => f.debug_tuple("Type").field(name).finish(),
            Self::Ready(_) => f.write_str("Ready"),
        }
    }
}

/// Chooses adapters in code, over what file and environment choose. Nothing is kept behind the program's back: the choice
/// is the value that this returns.
pub fn configure_adapters() -> Configure {
    Configure {
        registry: None,
        loader: Loader::new(),
        environment: None,
        state_dir: None,
        secrets: None,
        layers: Vec::new(),
    }
}

/// Gathers choices; see [`configure_adapters`].
#[derive(Debug)]
#[must_use]
pub struct Configure {
    registry: Option<Registry>,
    loader: Loader,
    environment: Option<Environment>,
    state_dir: Option<PathBuf>,
    secrets: Option<Arc<dyn SecretResolver>>,
    layers: Vec<Arc<dyn Layer>>,
}

impl Configure {
    /// Uses these adapters instead of those of [`default_registry`](crate::default_registry).
    pub fn with_registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Chooses where containers run.
    pub fn with_container_runtime(mut self, choice: impl Into<AdapterChoice<dyn ContainerRuntime>>) -> Self {
        self.loader = match choice.into() {
            AdapterChoice::Type(name) => self.loader.with_type(Kind::ContainerRuntime, name),
            AdapterChoice::Ready(adapter) => self.loader.with_runtime(adapter),
        };
        self
    }

    /// Chooses where artifacts go.
    pub fn with_storage_backend(mut self, choice: impl Into<AdapterChoice<dyn StorageBackend>>) -> Self {
        self.loader = match choice.into() {
            AdapterChoice::Type(name) => self.loader.with_type(Kind::StorageBackend, name),
            AdapterChoice::Ready(adapter) => self.loader.with_storage(adapter),
        };
        self
    }

    /// Chooses where the audit trail goes.
    pub fn with_audit_logger(mut self, choice: impl Into<AdapterChoice<dyn AuditLogger>>) -> Self {
        self.loader = match choice.into() {
            AdapterChoice::Type(name) => self.loader.with_type(Kind::AuditLogger, name),
            AdapterChoice::Ready(adapter) => self.loader.with_audit(adapter),
        };
        self
    }

    /// Sets what must be on record before it is done, and how much of it is shown.
    pub fn with_audit_settings(mut self, settings: AuditSettings) -> Self {
        self.loader = self.loader.with_audit_settings(settings);
        self
    }

    /// Chooses what decides the policy.
    pub fn with_policy_validator(mut self, choice: impl Into<AdapterChoice<dyn PolicyValidator>>) -> Self {
        self.loader = match choice.into() {
            AdapterChoice::Type(name) => self.loader.with_type(Kind::PolicyValidator, name),
            AdapterChoice::Ready(adapter) => self.loader.with_policy(adapter),
        };
        self
    }

    /// Sets one key of the chosen type's configuration.
    pub fn with_value(mut self, kind: Kind, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.loader = self.loader.with_value(kind, key, value);
        self
    }

    /// Reads this configuration file; without one, the file that `ISOLATED_AGENTS_CONFIG` names, and else
    /// `isolated_agents_config.yaml` of the working directory or of the user's configuration folder.
    pub fn with_file(mut self, file: Option<PathBuf>) -> Self {
        self.loader = self.loader.with_file(file);
        self
    }

    /// Reads these variables instead of those of the process.
    pub fn with_environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Keeps sessions, the default audit log and the default store here.
    pub fn with_state_dir(mut self, folder: Option<PathBuf>) -> Self {
        self.state_dir = folder;
        self
    }

    /// Resolves secret references with this, instead of from variables and files.
    pub fn with_secrets(mut self, secrets: Arc<dyn SecretResolver>) -> Self {
        self.secrets = Some(secrets);
        self
    }

    /// Wraps the adapters. The layer that is added last is the outermost.
    pub fn with_layer(mut self, layer: Arc<dyn Layer>) -> Self {
        self.layers.push(layer);
        self
    }

    /// Reads and checks everything, without building an adapter.
    ///
    /// # Errors
    ///
    /// As [`Loader::load`] and [`Dirs::new`].
    pub fn load(self) -> Result<Loaded> {
        let environment = self.environment.unwrap_or_else(Environment::from_process);
        let dirs = Dirs::new(&environment, self.state_dir)?;
        let here = std::env::current_dir()
            .map_err(|error| Error::io("cannot find the working directory, where a configuration may be", error))?;
        let registry = match self.registry {
            Some(registry) => registry,
            None => crate::default_registry()?,
        };
        let config = self
            .loader
            .with_environment(environment.clone())
            .with_folders([here])
            .with_folders(dirs.config.clone())
            .load(&registry)?;
        Ok(Loaded {
            config,
            dirs,
            secrets: self.secrets.unwrap_or_else(|| Arc::new(LocalSecrets::new(environment))),
            layers: self.layers,
        })
    }

    /// Builds the engine. Warnings of the configuration go to `tracing`.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load) and [`Loaded::build`].
    pub async fn build(self) -> Result<Engine> {
        let loaded = self.load()?;
        loaded.trace_warnings();
        loaded.build().await
    }
}

/// A configuration that was read and checked, ready to be built.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where things live.
    pub dirs: Dirs,
    /// What resolves secret references.
    pub secrets: Arc<dyn SecretResolver>,
    layers: Vec<Arc<dyn Layer>>,
}

impl Loaded {
    /// Builds the adapters, wraps them, and puts the engine over them.
    ///
    /// # Errors
    ///
    /// As [`Config::build`], and when the state folder cannot be made.
    pub async fn build(self) -> Result<Engine> {
        self.dirs.create_state()?;
        let context = BuildContext::new(&self.dirs.state, &self.dirs.data, self.secrets);
        let audit = self.config.audit_settings().clone();
        let audit_key = match &audit.key {
            Some(reference) => {
                let resolved = context.secrets.resolve(reference).await;
                Some(resolved.map_err(|error| error.with_context("key", "audit_trail.key"))?)
            }
            None => None,
        };
        let built = self.config.build(&context).await?;
        for note in &built.notes {
            tracing::debug!("{note}");
        }
        let adapters = self
            .layers
            .iter()
            .fold(built.adapters, |adapters, layer| adapters.layer(layer.as_ref()));
        let config = EngineConfig::new(self.dirs.state)
            .with_audit(audit)
            .with_audit_key(audit_key);
        Engine::new(adapters, config)
    }

    pub(crate) fn trace_warnings(&self) {
        for warning in self.config.warnings() {
            tracing::warn!("{warning}");
        }
    }
}
