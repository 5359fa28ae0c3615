//! The configuration.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use agents_core::{Error, Result, SecretRef};
use reqwest::{Url, header::HeaderName};
use serde::{Deserialize, Serialize};

/// What the requests are made of, and nobody else may set.
const OURS: [&str; 6] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
];

/// The configuration of an [`OtlpAudit`](crate::OtlpAudit).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct OtlpAuditConfig {
    /// The collector, to which `/v1/logs` is added. Default: `http://localhost:4318`.
    /// Example: `https://collector.example:4318`.
    pub endpoint: String,
    /// Headers of every request, each a reference to a secret. Default: none. Example: `authorization: env:OTLP_AUTHORIZATION`.
    pub headers: BTreeMap<String, SecretRef>,
    /// The resource attribute `service.name`. Default: `isolated-agents`.
    pub service_name: String,
    /// Further attributes of the resource. Default: none. Example: `deployment.environment.name: production`.
    pub resource_attributes: BTreeMap<String, String>,
    /// The certificate authority that the collector's certificate is checked against, as a PEM file. Default: those of the
    /// machine. Example: `/etc/agents/collector-ca.pem`.
    pub tls_ca_file: Option<PathBuf>,
    /// How long an operation may take, with everything that is tried again. Default: `30`.
    pub timeout_seconds: u64,
}

impl Default for OtlpAuditConfig {
    fn default() -> Self {
        Self {
            endpoint: "http://localhost:4318".to_owned(),
            headers: BTreeMap::new(),
            service_name: "isolated-agents".to_owned(),
            resource_attributes: BTreeMap::new(),
            tls_ca_file: None,
            timeout_seconds: 30,
        }
    }
}

impl OtlpAuditConfig {
    /// A collector.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            ..Self::default()
        }
    }

    /// Adds a header, as a reference to a secret.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: SecretRef) -> Self {
        self.headers.insert(name.into(), value);
        self
    }

    /// Sets the resource attribute `service.name`.
    #[must_use]
    pub fn with_service_name(mut self, name: impl Into<String>) -> Self {
        self.service_name = name.into();
        self
    }

    /// Adds an attribute of the resource.
    #[must_use]
    pub fn with_resource_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.resource_attributes.insert(key.into(), value.into());
        self
    }

    /// Sets the certificate authority.
    #[must_use]
    pub fn with_tls_ca_file(mut self, file: Option<PathBuf>) -> Self {
        self.tls_ca_file = file;
        self
    }

    /// Sets how long an operation may take.
    #[must_use]
    pub fn with_timeout_seconds(mut self, seconds: u64) -> Self {
        self.timeout_seconds = seconds;
        self
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// Where log records go.
    pub(crate) fn url(&self) -> Result<Url> {
        let text = format!("{}/v1/logs", self.endpoint.trim_end_matches('/'));
        let url = Url::parse(&text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.filter(Url::has_host).ok_or_else(|| {
            Error::invalid(format!(
                "endpoint {:?} is no URL of a collector; write one such as https://collector.example:4318",
                without_user(&self.endpoint)
            ))
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::invalid(
                "endpoint holds a user or a password; put them into headers, as a reference",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(Error::invalid(format!(
                "endpoint {:?} must have no query",
                self.endpoint
            )));
        }
        Ok(url)
    }

    /// Checks the values without any I/O.
    pub(crate) fn check(&self) -> Result<()> {
        let url = self.url()?;
        let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if !self.headers.is_empty() && url.scheme() == "http" && !loopback {
            return Err(Error::invalid(format!(
                "endpoint {:?} would carry the secrets of headers without TLS; write https",
                self.endpoint
            )));
        }
        for name in self.headers.keys() {
            let known = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                Error::invalid(format!(
                    "headers: {name:?} is no name of a header; write one such as authorization"
                ))
            })?;
            if OURS.contains(&known.as_str()) {
                return Err(Error::invalid(format!(
                    "headers: {known} is set by the sink; leave it out"
                )));
            }
        }
        if self.service_name.trim().is_empty() {
            return Err(Error::invalid("service_name is empty; write a name, or leave it out"));
        }
        for key in self.resource_attributes.keys() {
            if key.is_empty() || key == "service.name" {
                return Err(Error::invalid(format!(
                    "resource_attributes: {key:?} cannot be set here; service_name sets service.name"
                )));
            }
        }
        if self.timeout_seconds == 0 {
            return Err(Error::invalid("timeout_seconds is 0; write at least 1"));
        }
        Ok(())
    }
}

/// What stands before an `@` may be a password.
fn without_user(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use agents_core::ErrorKind;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_key_is_read_and_judged() {
        let all: OtlpAuditConfig = serde_json::from_value(json!({
            "endpoint": "https://c:4318/base/", "headers": {"authorization": "env:A"}, "service_name": "s",
            "resource_attributes": {"a": "b"}, "tls_ca_file": "/ca", "timeout_seconds": 8,
        }))
        .unwrap();
        let built = OtlpAuditConfig::new("https://c:4318/base/")
            .with_header("authorization", "env:A".parse().unwrap())
            .with_service_name("s")
            .with_resource_attribute("a", "b")
            .with_tls_ca_file(Some("/ca".into()))
            .with_timeout_seconds(8);
        assert_eq!(all, built);
        all.check().unwrap();
        assert_eq!(all.url().unwrap().as_str(), "https://c:4318/base/v1/logs");
        let plain = OtlpAuditConfig::default();
        plain.check().unwrap();
        assert_eq!(plain.url().unwrap().as_str(), "http://localhost:4318/v1/logs");
        for value in [json!({"url": "x"}), json!({"headers": {"authorization": "hunter2"}})] {
            let error = serde_json::from_value::<OtlpAuditConfig>(value).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let bad: [(Value, &str); 11] = [
            (json!({"endpoint": "collector"}), "is no URL"),
            (json!({"endpoint": "grpc://c:4317"}), "is no URL"),
            (json!({"endpoint": "u:hunter2@c:1"}), "is no URL"),
            (json!({"endpoint": "https://u:hunter2@c"}), "a user or a password"),
            (json!({"endpoint": "https://c?x=1"}), "must have no query"),
            (
                json!({"endpoint": "http://c", "headers": {"a": "env:A"}}),
                "without TLS",
            ),
            (json!({"headers": {"a b": "env:A"}}), "no name of a header"),
            (json!({"headers": {"Content-Type": "env:A"}}), "is set by the sink"),
            (json!({"service_name": " "}), "service_name is empty"),
            (
                json!({"resource_attributes": {"service.name": "x"}}),
                "service_name sets",
            ),
            (json!({"timeout_seconds": 0}), "timeout_seconds is 0"),
        ];
        for (value, words) in bad {
            let config: OtlpAuditConfig = serde_json::from_value(value.clone()).unwrap();
            let error = config.check().expect_err(&value.to_string());
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{value}");
            assert!(error.message().contains(words), "{value}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_example_is_read() {
        let file: Value = serde_saphyr::from_str(include_str!("../example.yaml")).unwrap();
        let logger = &file["adapters"]["audit_logger"];
        assert_eq!(logger["type"], "otlp");
        let config: OtlpAuditConfig = serde_json::from_value(logger["config"].clone()).unwrap();
        config.check().unwrap();
        assert_eq!(
            config.headers["authorization"],
            "env:OTLP_AUTHORIZATION".parse().unwrap()
        );
    }
}
