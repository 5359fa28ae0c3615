//! The runtime's configuration and factory.

use std::{path::PathBuf, sync::Arc, time::Duration};

use agents_core::{BuildContext, ContainerRuntime, Error, Factory, Result};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{DockerRuntime, endpoint::Endpoint};

/// The configuration of the docker runtime. What is not set is taken from where the `docker` program takes it.
///
/// ```yaml
/// adapters:
///   container_runtime:
///     type: docker
///     config:
///       host: unix:///var/run/docker.sock
///       timeout_seconds: 60
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DockerConfig {
    /// The engine: `unix:///path`, `tcp://name:port` or `ssh://user@name`. Default: `DOCKER_HOST`, else the context, else
    /// `/var/run/docker.sock`, else the socket of rootless docker. Example: `ssh://ci@build.example`.
    pub host: Option<String>,
    /// A docker context by name; excludes `host`. Default: `DOCKER_CONTEXT`, else the current one. Example: `remote`.
    pub context: Option<String>,
    /// Whether a `tcp://` engine is spoken to over TLS, with both sides proving who they are. Default: `true` when
    /// `cert_path` or `DOCKER_TLS_VERIFY` is set. `false` allows plain text to another machine, which everybody on the
    /// way can read and change.
    pub tls_verify: Option<bool>,
    /// The folder with `ca.pem`, `cert.pem` and `key.pem`. Default: `DOCKER_CERT_PATH`, else `~/.docker`.
    pub cert_path: Option<PathBuf>,
    /// The folder with docker's `config.json`, which has the credentials for registries, and its contexts. Default:
    /// `DOCKER_CONFIG`, else `~/.docker`.
    pub config_path: Option<PathBuf>,
    /// How long one call to the engine may take. Also `timeout`. Default: 60. Example: `20`.
    #[serde(alias = "timeout")]
    pub timeout_seconds: f64,
    /// How long fetching an image may take in all. Default: 1800.
    pub pull_timeout_seconds: f64,
    /// The engine's runtime, by its own name, for containers whose policy names no `runtime_class`. Default: the engine's
    /// default. Example: `crun`.
    pub runtime: Option<String>,
    /// The platform of images, as `os/arch` or `os/arch/variant`. Default: the engine's. Example: `linux/arm64`.
    pub platform: Option<String>,
}

impl Default for DockerConfig {
    fn default() -> Self {
        Self {
            host: None,
            context: None,
            tls_verify: None,
            cert_path: None,
            config_path: None,
            timeout_seconds: 60.0,
            pull_timeout_seconds: 1800.0,
            runtime: None,
            platform: None,
        }
    }
}

impl DockerConfig {
    /// The engine at a host.
    pub fn host(host: impl Into<String>) -> Self {
        Self {
            host: Some(host.into()),
            ..Self::default()
        }
    }

    /// Sets how long one call may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout_seconds = timeout.as_secs_f64();
        self
    }

    /// Sets the folder with docker's `config.json`.
    #[must_use]
    pub fn with_config_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_path = Some(path.into());
        self
    }

    /// Sets the folder with the certificates, and asks for TLS.
    #[must_use]
    pub fn with_cert_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.cert_path = Some(path.into());
        self
    }

    /// Sets the engine's runtime.
    #[must_use]
    pub fn with_runtime(mut self, runtime: impl Into<String>) -> Self {
        self.runtime = Some(runtime.into());
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.host.is_some() && self.context.is_some() {
            return Err(Error::invalid("host and context exclude each other; leave one out"));
        }
        if let Some(host) = &self.host {
            Endpoint::parse(host).map_err(|reason| Error::invalid(format!("host: {reason}")))?;
        }
        for (key, seconds) in [
            ("timeout_seconds", self.timeout_seconds),
            ("pull_timeout_seconds", self.pull_timeout_seconds),
        ] {
            if !(0.1..=86_400.0).contains(&seconds) {
                return Err(Error::invalid(format!(
                    "{key}: {seconds} is not between 0.1 and 86400 seconds"
                )));
            }
        }
        for (key, path) in [("cert_path", &self.cert_path), ("config_path", &self.config_path)] {
            if let Some(path) = path
                && !path.is_absolute()
            {
                return Err(Error::invalid(format!(
                    "{key}: {} is relative; write an absolute path",
                    path.display()
                )));
            }
        }
        for (key, value) in [("runtime", &self.runtime), ("context", &self.context)] {
            if let Some(value) = value
                && (value.is_empty() || value.chars().any(|c| c.is_control() || c == '/' || c == ' '))
            {
                return Err(Error::invalid(format!("{key}: {value:?} is not a name")));
            }
        }
        if let Some(platform) = &self.platform {
            let parts: Vec<_> = platform.split('/').collect();
            let word = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric());
            if !(2..=3).contains(&parts.len()) || !parts.iter().all(word) {
                return Err(Error::invalid(format!(
                    "platform: {platform:?} is not os/arch or os/arch/variant, such as linux/arm64"
                )));
            }
        }
        Ok(())
    }
}

/// Makes the docker runtime, `type: docker`.
#[derive(Clone, Copy, Debug)]
pub struct DockerFactory;

#[async_trait]
impl Factory for DockerFactory {
    const TYPE: &'static str = "docker";
    type Config = DockerConfig;
    type Adapter = dyn ContainerRuntime;

    fn validate(config: &DockerConfig) -> Result<()> {
        config.check()
    }

    async fn build(config: DockerConfig, context: &BuildContext) -> Result<Arc<dyn ContainerRuntime>> {
        let runtime = DockerRuntime::connect_with_memory(config, context.data_dir.join("docker")).await?;
        Ok(Arc::new(runtime))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_are_in_use_are_read_and_others_refused() {
        let read = |json: &str| serde_json::from_str::<DockerConfig>(json);
        let config = read(r#"{"host": "unix:///run/docker.sock", "timeout": 5}"#).unwrap();
        assert_eq!(config.timeout_seconds, 5.0);
        config.check().unwrap();
        assert!(read(r#"{"socket": "x"}"#).is_err());
        assert_eq!(read("{}").unwrap(), DockerConfig::default());
    }

    #[test]
    fn the_example_is_read() {
        #[derive(Deserialize)]
        struct File {
            adapters: Adapters,
        }
        #[derive(Deserialize)]
        struct Adapters {
            container_runtime: Runtime,
        }
        #[derive(Deserialize)]
        struct Runtime {
            r#type: String,
            config: DockerConfig,
        }
        let file: File = serde_saphyr::from_str(include_str!("../example.yaml")).unwrap();
        let runtime = file.adapters.container_runtime;
        assert_eq!(runtime.r#type, DockerFactory::TYPE);
        runtime.config.check().unwrap();
        assert_eq!(runtime.config, DockerConfig::host("unix:///var/run/docker.sock"));
    }

    #[test]
    fn faults_are_found_without_the_engine() {
        let both = DockerConfig {
            context: Some("x".to_owned()),
            ..DockerConfig::host("unix:///x")
        };
        let platform = |platform: &str| DockerConfig {
            platform: Some(platform.to_owned()),
            ..DockerConfig::default()
        };
        for (config, key) in [
            (both, "context"),
            (DockerConfig::host("--privileged"), "host"),
            (DockerConfig::host("ftp://x"), "host"),
            (DockerConfig::default().with_timeout(Duration::ZERO), "timeout_seconds"),
            (DockerConfig::default().with_cert_path("certs"), "cert_path"),
            (DockerConfig::default().with_runtime("--x y"), "runtime"),
            (platform("arm64"), "platform"),
            (platform("linux/../x"), "platform"),
        ] {
            let error = config.check().unwrap_err();
            assert!(error.message().contains(key), "{error} does not name {key}");
        }
        platform("linux/arm/v7").check().unwrap();
    }
}
