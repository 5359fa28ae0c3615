//! How adapters are made from a configuration, and references to secrets.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use crate::{AuditLogger, ContainerRuntime, Error, PolicyValidator, Result, SecretBytes, StorageBackend};

/// Makes an adapter of one type from its typed configuration.
///
/// `Adapter` is one of the four trait objects, for example `dyn StorageBackend`. A configuration struct denies unknown
/// fields and is `#[serde(default)]`, so that an absent `config:` means the defaults.
#[async_trait]
pub trait Factory: Send + Sync + 'static {
    /// The type, as in a configuration: `[a-z][a-z0-9]*`.
    const TYPE: &'static str;

    /// The configuration.
    type Config: DeserializeOwned + Serialize + Send + Sync;

    /// The trait object that is made.
    type Adapter: AdapterKind + ?Sized;

    /// Checks a configuration without any I/O.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key and says what to write.
    fn validate(config: &Self::Config) -> Result<()>;

    /// Makes the adapter. Resolves secrets and builds clients; whether the other side can be reached is asked by
    /// `check_availability`.
    ///
    /// # Errors
    ///
    /// As `validate`, and what building needs.
    async fn build(config: Self::Config, context: &BuildContext) -> Result<Arc<Self::Adapter>>;
}

/// One of the four kinds of adapters. Implemented for the four trait objects alone.
pub trait AdapterKind: sealed::Sealed + Send + Sync + 'static {
    /// The key below `adapters` in a configuration.
    const KEY: &'static str;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! kinds {
    ($($adapter:ident = $key:literal;)*) => {
        $(
            impl sealed::Sealed for dyn $adapter {}
            impl AdapterKind for dyn $adapter {
                const KEY: &'static str = $key;
            }
        )*
    };
}

kinds! {
    ContainerRuntime = "container_runtime";
    StorageBackend = "storage_backend";
    AuditLogger = "audit_logger";
    PolicyValidator = "policy_validator";
}

/// What every adapter may need to be built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BuildContext {
    /// Where sessions, the default audit log and the default store live.
    pub state_dir: PathBuf,
    /// Where what can be fetched again lives, such as images.
    pub data_dir: PathBuf,
    /// How secret references are resolved.
    pub secrets: Arc<dyn SecretResolver>,
}

impl BuildContext {
    /// The folders, which need not exist yet, and the resolver.
    pub fn new(state_dir: impl Into<PathBuf>, data_dir: impl Into<PathBuf>, secrets: Arc<dyn SecretResolver>) -> Self {
        Self {
            state_dir: state_dir.into(),
            data_dir: data_dir.into(),
            secrets,
        }
    }
}

/// Resolves references to secrets.
#[async_trait]
pub trait SecretResolver: fmt::Debug + Send + Sync + 'static {
    /// The secret's value.
    ///
    /// # Errors
    ///
    /// `NotFound` or `PermissionDenied` that names the reference; `Unsupported` for a provider that is not built in.
    async fn resolve(&self, reference: &SecretRef) -> Result<SecretBytes>;
}

/// A reference to a secret: `env:NAME`, `file:/path` or `provider:key`. Prints and serialises safely, since it holds no
/// secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretRef {
    provider: String,
    key: String,
}

impl SecretRef {
    /// The provider, for example `env`.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The key within the provider, for example a variable's name.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl FromStr for SecretRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The text may be a literal secret written by mistake, so it is never quoted.
        let (provider, key) = text.split_once(':').ok_or_else(|| {
            Error::invalid("a secret must be a reference such as env:NAME or file:/path, never the secret itself")
        })?;
        let known = matches!(provider, "env" | "file" | "vault" | "aws-sm" | "keyring");
        if !known || key.is_empty() {
            return Err(Error::invalid(
                "a secret reference is env:NAME, file:/path, vault:KEY, aws-sm:KEY or keyring:KEY",
            ));
        }
        Ok(Self {
            provider: provider.to_owned(),
            key: key.to_owned(),
        })
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.provider, self.key)
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretRef({self})")
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_secret_is_refused_and_not_quoted() {
        for literal in ["hunter2", "pa:ss", "env:"] {
            let error = literal.parse::<SecretRef>().unwrap_err();
            assert!(!error.to_string().contains("hunter2") && !error.to_string().contains("pa:ss"));
        }
        assert_eq!("env:TOKEN".parse::<SecretRef>().unwrap().key(), "TOKEN");
    }
}
