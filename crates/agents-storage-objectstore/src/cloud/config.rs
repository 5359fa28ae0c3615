//! What the three services have in common in a configuration.

use std::{path::PathBuf, time::Duration};

use agents_core::{Error, Result};
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig as StoreRetry};
use serde::{Deserialize, Serialize};

use super::http::Connector;

/// What no proxy can reach: this machine, and the services of a cloud that tell a machine its credentials.
pub(crate) const NO_PROXY: &str =
    "localhost,127.0.0.0/8,::1,169.254.0.0/16,fe80::/10,fd00:ec2::/32,metadata.google.internal";

/// How a request that failed for a while is tried again.
///
/// Only what may be repeated without harm is: a request that never left, one that reads, and one that writes the same
/// again. A service that says how long to wait (`Retry-After`) is given that time, up to `max_elapsed_seconds`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RetryConfig {
    /// How often a request is tried again. 0 tries once. Default: 8.
    pub max_retries: u32,
    /// The first wait in milliseconds; later ones grow at random. Default: 100.
    pub initial_backoff_ms: u64,
    /// The longest wait in seconds. Default: 15.
    pub max_backoff_seconds: u64,
    /// After this many seconds nothing is tried again. At most 240, since a signature holds for five minutes. Default:
    /// 120.
    pub max_elapsed_seconds: u64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_retries: 8,
            initial_backoff_ms: 100,
            max_backoff_seconds: 15,
            max_elapsed_seconds: 120,
        }
    }
}

impl RetryConfig {
    fn check(&self) -> Result<()> {
        let bad = |field: &str, must: &str| Err(Error::invalid(format!("retry.{field} must be {must}")));
        if self.max_retries > 100 {
            return bad("max_retries", "at most 100");
        }
        if self.initial_backoff_ms == 0 || self.initial_backoff_ms > 60_000 {
            return bad("initial_backoff_ms", "1 to 60000");
        }
        if self.max_backoff_seconds == 0 || self.max_backoff_seconds * 1000 < self.initial_backoff_ms {
            return bad("max_backoff_seconds", "at least initial_backoff_ms");
        }
        if !(1..=240).contains(&self.max_elapsed_seconds) {
            return bad("max_elapsed_seconds", "1 to 240");
        }
        Ok(())
    }

    pub(crate) fn build(&self) -> StoreRetry {
        StoreRetry {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(self.initial_backoff_ms),
                max_backoff: Duration::from_secs(self.max_backoff_seconds),
                base: 2.0,
            },
            max_retries: self.max_retries as usize,
            retry_timeout: Duration::from_secs(self.max_elapsed_seconds),
        }
    }

    fn longest_wait(&self) -> Duration {
        match self.max_retries {
            0 => Duration::ZERO,
            _ => Duration::from_secs(self.max_elapsed_seconds),
        }
    }
}

/// Defines a service's configuration: its own fields, then those that all services have.
macro_rules! cloud_config {
    (
        $(#[$doc:meta])*
        pub struct $name:ident {
            $($(#[$field_doc:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            /// The folder in the bucket below which everything is, for example `agents/production`. Default: the whole
            /// bucket.
            pub prefix: String,
            /// The service's address, for a service that is not the cloud's own, for example `https://minio.internal:9000`.
            pub endpoint: Option<String>,
            /// Whether `http://` may be used for an endpoint that is not on this machine. Default: false.
            pub allow_http: bool,
            /// The proxy for all requests, for example `http://proxy.internal:3128`. Default: what `HTTPS_PROXY`,
            /// `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
            pub proxy: Option<String>,
            /// A file of certificates in PEM that are trusted besides those of the system.
            pub ca_file: Option<std::path::PathBuf>,
            /// How long the service may stay silent before a request has failed. Default: 60.
            pub timeout_seconds: u64,
            /// How many requests are under way at once. Default: 32.
            pub max_concurrency: usize,
            /// How failed requests are tried again.
            pub retry: crate::RetryConfig,
            /// An upload whose owner gave no sign of life for so long is removed by `agents gc`. Default: 3600.
            pub orphan_after_seconds: u64,
        }

        impl $name {
            fn common(&self) -> crate::cloud::config::Common<'_> {
                crate::cloud::config::Common {
                    endpoint: self.endpoint.as_deref(),
                    allow_http: self.allow_http,
                    proxy: self.proxy.as_deref(),
                    ca_file: self.ca_file.as_ref(),
                    timeout_seconds: self.timeout_seconds,
                    max_concurrency: self.max_concurrency,
                    retry: &self.retry,
                    orphan_after_seconds: self.orphan_after_seconds,
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($field: Default::default(),)*
                    prefix: String::new(),
                    endpoint: None,
                    allow_http: false,
                    proxy: None,
                    ca_file: None,
                    timeout_seconds: 60,
                    max_concurrency: 32,
                    retry: Default::default(),
                    orphan_after_seconds: 3600,
                }
            }
        }
    };
}

pub(crate) use cloud_config;

/// The fields that all services have.
#[derive(Debug)]
pub(crate) struct Common<'a> {
    pub(crate) endpoint: Option<&'a str>,
    pub(crate) allow_http: bool,
    pub(crate) proxy: Option<&'a str>,
    pub(crate) ca_file: Option<&'a PathBuf>,
    pub(crate) timeout_seconds: u64,
    pub(crate) max_concurrency: usize,
    pub(crate) retry: &'a RetryConfig,
    pub(crate) orphan_after_seconds: u64,
}

impl Common<'_> {
    /// Checks the fields without any I/O.
    pub(crate) fn check(&self) -> Result<()> {
        self.retry.check()?;
        if !(1..=3600).contains(&self.timeout_seconds) {
            return Err(Error::invalid("timeout_seconds must be 1 to 3600"));
        }
        if !(1..=1000).contains(&self.max_concurrency) {
            return Err(Error::invalid("max_concurrency must be 1 to 1000"));
        }
        if self.orphan_after_seconds == 0 {
            return Err(Error::invalid("orphan_after_seconds must be at least 1"));
        }
        if let Some(endpoint) = self.endpoint {
            self.check_endpoint(endpoint)?;
        }
        if let Some(proxy) = self.proxy {
            let url =
                url::Url::parse(proxy).map_err(|_| Error::invalid("proxy must be a URL such as http://host:3128"))?;
            if !matches!(url.scheme(), "http" | "https") {
                return Err(Error::invalid("proxy must begin with http:// or https://"));
            }
            if !url.username().is_empty() || url.password().is_some() {
                return Err(Error::invalid(
                    "proxy must not hold a user or a password; set HTTPS_PROXY in the environment instead",
                ));
            }
        }
        Ok(())
    }

    fn check_endpoint(&self, endpoint: &str) -> Result<()> {
        // What was meant as a secret may stand in it, so it is not quoted.
        let url = url::Url::parse(endpoint)
            .map_err(|_| Error::invalid("endpoint must be a URL such as https://minio.internal:9000"))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(Error::invalid(
                "endpoint must be a scheme, a host and a path, without credentials and parameters",
            ));
        }
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.allow_http || is_loopback(&url) => Ok(()),
            "http" => Err(Error::invalid(format!(
                "endpoint http://{} is not encrypted; use https://, or set allow_http to true",
                url.host_str().unwrap_or_default()
            ))),
            _ => Err(Error::invalid("endpoint must begin with https:// or http://")),
        }
    }

    /// The options of the HTTP client.
    pub(crate) fn client(&self) -> Result<ClientOptions> {
        let plain = self.endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let timeout = Duration::from_secs(self.timeout_seconds);
        let mut options = ClientOptions::new()
            .with_allow_http(plain)
            // A whole transfer may take long, so only silence counts.
            .with_timeout_disabled()
            .with_read_timeout(timeout)
            .with_connect_timeout(timeout.min(Duration::from_secs(10)))
            .with_http1_only()
            .with_user_agent(http::HeaderValue::from_static(concat!(
                "isolated-agents/",
                env!("CARGO_PKG_VERSION")
            )));
        if let Some(proxy) = self.proxy {
            options = options.with_proxy_url(proxy).with_proxy_excludes(NO_PROXY);
        }
        if let Some((path, pem)) = self.certificates()? {
            let bad = |told: &str| Error::invalid(told).with_context("ca_file", path.display());
            let certificates =
                Certificate::from_pem_bundle(&pem).map_err(|_| bad("ca_file must hold certificates in PEM"))?;
            if certificates.is_empty() {
                return Err(bad("ca_file holds no certificate in PEM"));
            }
            for certificate in certificates {
                options = options.with_root_certificate(certificate);
            }
        }
        Ok(options)
    }

    /// What `ca_file` holds.
    pub(crate) fn certificates(&self) -> Result<Option<(&PathBuf, Vec<u8>)>> {
        let Some(path) = self.ca_file else { return Ok(None) };
        match std::fs::read(path) {
            Ok(pem) => Ok(Some((path, pem))),
            Err(error) => Err(Error::io("cannot read the certificates", error).with_context("ca_file", path.display())),
        }
    }

    pub(crate) fn connector(&self) -> Connector {
        Connector::new(self.max_concurrency, self.retry.longest_wait())
    }

    pub(crate) fn orphan_after(&self) -> Duration {
        Duration::from_secs(self.orphan_after_seconds)
    }
}

fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// Whether an address is on this machine or on its link, as the metadata services of clouds are.
#[cfg(any(feature = "azure", feature = "gcs"))]
pub(crate) fn is_local(url: &url::Url) -> bool {
    let link_local = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_link_local(),
        Some(url::Host::Ipv6(ip)) => ip.is_unicast_link_local(),
        Some(url::Host::Domain(name)) => name == "metadata.google.internal",
        None => false,
    };
    link_local || is_loopback(url)
}

/// The library's complaint about a configuration, which may quote values.
pub(crate) fn refused(what: &str, error: &object_store::Error) -> Error {
    Error::invalid(format!("the configuration of {what} is refused"))
        .with_context("cause", super::error::without_urls(&error.to_string()))
}

/// A secret as text, without a line's end.
pub(crate) fn text(field: &str, secret: &agents_core::SecretBytes) -> Result<String> {
    let text = std::str::from_utf8(secret.expose())
        .map_err(|_| Error::invalid(format!("the secret of {field} is not text")))?
        .trim();
    if text.is_empty() {
        return Err(Error::invalid(format!("the secret of {field} is empty")));
    }
    Ok(text.to_owned())
}
