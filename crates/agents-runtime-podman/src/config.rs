//! The runtime's configuration and factory.

use std::{path::PathBuf, sync::Arc, time::Duration};

use agents_core::{BuildContext, ContainerRuntime, Error, Factory, Result};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{PodmanRuntime, address::Address};

/// The configuration of the podman runtime.
///
/// ```yaml
/// adapters:
///   container_runtime:
///     type: podman
///     config:
///       socket_path: /run/user/1000/podman/podman.sock
///       timeout_seconds: 30
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PodmanConfig {
    /// The engine's unix socket, an absolute path. Default: what `CONTAINER_HOST` says, else `/run/podman/podman.sock`
    /// for root and `$XDG_RUNTIME_DIR/podman/podman.sock` for others.
    #[serde(alias = "socket", skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<PathBuf>,
    /// The engine as a URL instead: `unix:///path`, `tcp://host:port` or `ssh://user@host:port/path/of/socket`.
    #[serde(alias = "url", skip_serializing_if = "Option::is_none")]
    pub remote_url: Option<String>,
    /// The private key for an `ssh://` URL. Default: what `CONTAINER_SSHKEY` says, else what `ssh` itself takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
    /// The certificates (PEM) that a `tcp://` engine's certificate must come from. Switches TLS on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// The client's certificate (PEM), with [`tls_key`](Self::tls_key).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// The client's private key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// How long one call to the engine may take, in seconds. Default: 60. Pulls and builds may take longer, as long as
    /// something is heard of them within five times that.
    pub timeout_seconds: u64,
    /// The platform of images that are pulled, as `os/arch` or `os/arch/variant`. Default: the engine's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The file with the credentials of registries. Default: podman's and Docker's own places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_file: Option<PathBuf>,
    /// Whether mounted host folders are relabelled for the container alone on hosts with SELinux, as `:Z` does. Default:
    /// false, so that SELinux keeps the container out of folders without a container's label.
    pub relabel: bool,
    /// Not used: the image comes from the policy. Setting it is an error that says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image: Option<String>,
}

impl Default for PodmanConfig {
    fn default() -> Self {
        Self {
            socket_path: None,
            remote_url: None,
            identity: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            timeout_seconds: 60,
            platform: None,
            auth_file: None,
            relabel: false,
            base_image: None,
        }
    }
}

impl PodmanConfig {
    /// Sets the engine's unix socket.
    #[must_use]
    pub fn with_socket_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket_path = Some(path.into());
        self
    }

    /// Sets the engine's URL.
    #[must_use]
    pub fn with_remote_url(mut self, url: impl Into<String>) -> Self {
        self.remote_url = Some(url.into());
        self
    }

    /// Sets how long one call may take.
    #[must_use]
    pub fn with_timeout_seconds(mut self, seconds: u64) -> Self {
        self.timeout_seconds = seconds;
        self
    }

    /// Sets the file with the credentials of registries.
    #[must_use]
    pub fn with_auth_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.auth_file = Some(path.into());
        self
    }

    /// Sets the platform of images that are pulled.
    #[must_use]
    pub fn with_platform(mut self, platform: impl Into<String>) -> Self {
        self.platform = Some(platform.into());
        self
    }

    /// Sets the files for TLS: the authority's certificates, and the client's certificate and key.
    #[must_use]
    pub fn with_tls(mut self, ca: impl Into<PathBuf>, client: Option<(PathBuf, PathBuf)>) -> Self {
        self.tls_ca = Some(ca.into());
        (self.tls_cert, self.tls_key) = client.unzip();
        self
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if let Some(image) = &self.base_image {
            return Err(Error::invalid(format!(
                "base_image: the image comes from the policy; write base_image: {image:?} there (or --image) and remove it here"
            )));
        }
        if self.socket_path.is_some() && self.remote_url.is_some() {
            return Err(Error::invalid(
                "socket_path and remote_url both say where the engine is; remove one",
            ));
        }
        if !(1..=86_400).contains(&self.timeout_seconds) {
            return Err(Error::invalid(format!(
                "timeout_seconds: {} is not between 1 and 86400",
                self.timeout_seconds
            )));
        }
        let paths = [
            ("socket_path", &self.socket_path),
            ("identity", &self.identity),
            ("tls_ca", &self.tls_ca),
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
            ("auth_file", &self.auth_file),
        ];
        for (key, path) in paths {
            if let Some(path) = path
                && !path.is_absolute()
            {
                return Err(Error::invalid(format!(
                    "{key}: {} is relative; write an absolute path",
                    path.display()
                )));
            }
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(Error::invalid("tls_cert and tls_key belong together; set both or none"));
        }
        let address = self.remote_url.as_deref().map(Address::parse).transpose()?;
        let over_tcp = matches!(address, Some(Address::Tcp { .. }));
        if (self.tls_ca.is_some() || self.tls_cert.is_some()) && !over_tcp && self.remote_url.is_some() {
            return Err(Error::invalid(
                "tls_ca and tls_cert are for a tcp:// remote_url; remove them",
            ));
        }
        if let Some(platform) = &self.platform {
            self::platform(platform)?;
        }
        Ok(())
    }
}

/// Splits `os/arch[/variant]`.
pub(crate) fn platform(text: &str) -> Result<(&str, &str, Option<&str>)> {
    let word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let parts: Vec<_> = text.split('/').collect();
    match parts.as_slice() {
        [os, arch] if word(os) && word(arch) => Ok((os, arch, None)),
        [os, arch, variant] if [os, arch, variant].iter().all(|part| word(part)) => Ok((os, arch, Some(variant))),
        _ => Err(Error::invalid(format!(
            "platform: {text:?} is not os/arch or os/arch/variant, such as linux/arm64"
        ))),
    }
}

/// Makes the podman runtime, `type: podman`.
#[derive(Clone, Copy, Debug)]
pub struct PodmanFactory;

#[async_trait]
impl Factory for PodmanFactory {
    const TYPE: &'static str = "podman";
    type Config = PodmanConfig;
    type Adapter = dyn ContainerRuntime;

    fn validate(config: &PodmanConfig) -> Result<()> {
        config.check()
    }

    async fn build(config: PodmanConfig, context: &BuildContext) -> Result<Arc<dyn ContainerRuntime>> {
        let runtime = PodmanRuntime::new(config, context.data_dir.join("podman"))?;
        runtime.learn().await;
        Ok(Arc::new(runtime))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<PodmanConfig, String> {
        serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_parses_and_both_names_of_a_key_mean_the_same() {
        let config = parse(include_str!("../example.yaml")).unwrap();
        config.check().unwrap();
        assert_eq!(
            parse("socket: /s").unwrap(),
            PodmanConfig::default().with_socket_path("/s")
        );
        assert_eq!(
            parse("url: tcp://h:1").unwrap(),
            PodmanConfig::default().with_remote_url("tcp://h:1")
        );
        assert!(parse("sokcet_path: /s").unwrap_err().contains("socket_path"));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (yaml, word) in [
            ("base_image: python", "policy"),
            ("socket_path: run/podman.sock", "absolute"),
            ("{socket_path: /s, remote_url: 'unix:///s'}", "remove one"),
            ("timeout_seconds: 0", "timeout_seconds"),
            ("remote_url: 'ftp://host'", "remote_url"),
            ("remote_url: 'ssh://-oProxyCommand=x/s'", "remote_url"),
            ("{remote_url: 'tcp://h:1', tls_cert: /c}", "tls_key"),
            ("{remote_url: 'unix:///s', tls_ca: /c}", "tls_ca"),
            ("platform: linux", "platform"),
        ] {
            let error = parse(yaml).unwrap().check().unwrap_err();
            assert!(error.message().contains(word), "{yaml}: {error}");
        }
    }

    #[test]
    fn platforms_have_two_or_three_parts() {
        assert_eq!(platform("linux/arm/v7").unwrap(), ("linux", "arm", Some("v7")));
        assert!(platform("linux/").is_err() && platform("a/b/c/d").is_err() && platform("linux/a&b").is_err());
    }
}
