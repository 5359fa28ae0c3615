//! The configuration.

use std::{path::PathBuf, time::Duration};

use agents_core::{Error, Result, SecretRef};
use serde::{Deserialize, Serialize};

/// The configuration of an [`ElasticsearchAudit`](crate::ElasticsearchAudit).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ElasticsearchAuditConfig {
    /// The server, without a user and a password. Default: `http://localhost:9200`. Example: `https://search.example:9200`.
    pub endpoint: String,
    /// The name of the data stream, or what the names of daily indices begin with. Default: `agents-audit`.
    pub index: String,
    /// How events are laid out. Default: `data_stream`. Example: `daily`.
    pub layout: IndexLayout,
    /// Whether a missing index template is created. Default: `true`.
    pub create_template: bool,
    /// Whether a query first makes visible what was written just before. Default: `true`.
    pub refresh_on_query: bool,
    /// The user, for basic authentication. Default: none. Example: `agents`.
    pub username: Option<String>,
    /// The user's password, as a reference. Default: none. Example: `env:SEARCH_PASSWORD`.
    pub password: Option<SecretRef>,
    /// An API key in its encoded form, as a reference. Default: none. Example: `env:SEARCH_API_KEY`.
    pub api_key: Option<SecretRef>,
    /// The region of an Amazon OpenSearch Service domain: requests are signed. Default: none. Example: `eu-central-1`.
    pub aws_region: Option<String>,
    /// The profile of `~/.aws/config`, with `aws_region`. Default: `AWS_PROFILE`, or `default`.
    pub aws_profile: Option<String>,
    /// The access key's id, as a reference, with `aws_region`. Default: where every program of AWS looks.
    pub access_key_id: Option<SecretRef>,
    /// The secret access key, as a reference; goes with `access_key_id`.
    pub secret_access_key: Option<SecretRef>,
    /// The session token, as a reference, for temporary credentials. Default: none.
    pub session_token: Option<SecretRef>,
    /// The certificate authority that the server's certificate is checked against, as a PEM file. Default: those of the
    /// system. Example: `/etc/ssl/search-ca.pem`.
    pub tls_ca_file: Option<PathBuf>,
    /// How long an operation may take, with everything that is tried again. Default: `30`.
    pub timeout_seconds: u64,
}

/// How events are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexLayout {
    /// A data stream, which the server rolls over by its own rules.
    #[default]
    DataStream,
    /// An index a day, named by the day, in UTC, on which the event happened: `agents-audit-2026.02.28`.
    Daily,
}

impl Default for ElasticsearchAuditConfig {
    fn default() -> Self {
        Self {
            endpoint: "http://localhost:9200".to_owned(),
            index: "agents-audit".to_owned(),
            layout: IndexLayout::DataStream,
            create_template: true,
            refresh_on_query: true,
            username: None,
            password: None,
            api_key: None,
            aws_region: None,
            aws_profile: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            tls_ca_file: None,
            timeout_seconds: 30,
        }
    }
}

impl ElasticsearchAuditConfig {
    /// A server.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            ..Self::default()
        }
    }

    /// Sets the name of the data stream, or what the names of daily indices begin with.
    #[must_use]
    pub fn with_index(mut self, index: impl Into<String>) -> Self {
        self.index = index.into();
        self
    }

    /// Sets how events are laid out.
    #[must_use]
    pub fn with_layout(mut self, layout: IndexLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Sets whether a missing index template is created.
    #[must_use]
    pub fn with_create_template(mut self, create: bool) -> Self {
        self.create_template = create;
        self
    }

    /// Sets whether a query first makes visible what was written just before.
    #[must_use]
    pub fn with_refresh_on_query(mut self, refresh: bool) -> Self {
        self.refresh_on_query = refresh;
        self
    }

    /// Sets the certificate authority.
    #[must_use]
    pub fn with_tls_ca_file(mut self, file: Option<PathBuf>) -> Self {
        self.tls_ca_file = file;
        self
    }

    /// Sets the region of an Amazon OpenSearch Service domain.
    #[must_use]
    pub fn with_aws_region(mut self, region: Option<String>) -> Self {
        self.aws_region = region;
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

    /// Checks the values without any I/O.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::invalid(text));
        check_endpoint(&self.endpoint)?;
        let index = &self.index;
        let plain = index
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte));
        if index.is_empty() || index.len() > 200 || !plain || index.starts_with(['-', '_', '.']) {
            return invalid(format!(
                "index {index:?} must have 1 to 200 of a-z, 0-9, '-', '_' and '.', and begin with a letter or a digit"
            ));
        }
        let ways = [
            self.username.is_some() || self.password.is_some(),
            self.api_key.is_some(),
            self.aws_region.is_some(),
        ];
        if ways.iter().filter(|way| **way).count() > 1 {
            return invalid(
                "username with password, api_key and aws_region exclude each other; keep one way to prove who you are"
                    .to_owned(),
            );
        }
        if self.username.is_some() != self.password.is_some() {
            return invalid("username and password go together; set both or none".to_owned());
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return invalid("access_key_id and secret_access_key go together; set both or none".to_owned());
        }
        if self.session_token.is_some() && self.access_key_id.is_none() {
            return invalid("session_token needs access_key_id and secret_access_key".to_owned());
        }
        let aws = [
            ("access_key_id", self.access_key_id.is_some()),
            ("aws_profile", self.aws_profile.is_some()),
        ];
        for (key, set) in aws {
            if set && self.aws_region.is_none() {
                return invalid(format!("{key} needs aws_region, such as eu-central-1"));
            }
        }
        if self.aws_profile.is_some() && self.access_key_id.is_some() {
            return invalid("aws_profile and access_key_id exclude each other; keep one of them".to_owned());
        }
        if self.aws_region.is_some() && cfg!(not(feature = "aws")) {
            return Err(Error::unsupported(
                "aws_region needs signed requests, which are not built in; enable the feature aws of \
                 agents-audit-elasticsearch",
            ));
        }
        if ways.contains(&true) && self.endpoint.starts_with("http://") && !is_loopback(&self.endpoint) {
            return invalid(format!(
                "endpoint {} would carry credentials without TLS; write https://, or take the credentials out",
                self.endpoint
            ));
        }
        if !(1..=3600).contains(&self.timeout_seconds) {
            return invalid(format!("timeout_seconds is {}; write 1 to 3600", self.timeout_seconds));
        }
        Ok(())
    }
}

fn check_endpoint(endpoint: &str) -> Result<()> {
    // Quoted only when it holds no password.
    let url = reqwest::Url::parse(endpoint)
        .map_err(|_| Error::invalid("endpoint is no URL; write one such as https://search.example:9200"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::invalid(
            "endpoint holds a user or a password; use username and password, which is a reference to a secret",
        ));
    }
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err(Error::invalid(format!(
            "endpoint {endpoint:?} must be http:// or https:// without a query; write one such as https://search.example:9200"
        )));
    }
    Ok(())
}

fn is_loopback(endpoint: &str) -> bool {
    let url = reqwest::Url::parse(endpoint);
    url.is_ok_and(|url| match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use agents_core::ErrorKind;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_key_is_read_and_judged() {
        let all: ElasticsearchAuditConfig = serde_json::from_value(json!({
            "endpoint": "https://s:9200", "index": "trail", "layout": "daily", "create_template": false,
            "refresh_on_query": false, "tls_ca_file": "/ca", "timeout_seconds": 8,
        }))
        .unwrap();
        let built = ElasticsearchAuditConfig::new("https://s:9200")
            .with_index("trail")
            .with_layout(IndexLayout::Daily)
            .with_create_template(false)
            .with_refresh_on_query(false)
            .with_tls_ca_file(Some("/ca".into()))
            .with_timeout_seconds(8);
        assert_eq!(all, built);
        ElasticsearchAuditConfig::default().check().unwrap();
        for value in [
            json!({"username": "u", "password": "env:P"}),
            json!({"endpoint": "https://s", "api_key": "env:K"}),
        ] {
            serde_json::from_value::<ElasticsearchAuditConfig>(value)
                .unwrap()
                .check()
                .unwrap();
        }
        for value in [
            json!({"url": "x"}),
            json!({"layout": "weekly"}),
            json!({"password": "hunter2"}),
        ] {
            let error = serde_json::from_value::<ElasticsearchAuditConfig>(value).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let bad: [(Value, &str); 15] = [
            (json!({"endpoint": "search"}), "endpoint is no URL"),
            (json!({"endpoint": "ftp://s"}), "must be http:// or https://"),
            (json!({"endpoint": "https://u:hunter2@s"}), "holds a user or a password"),
            (json!({"endpoint": "https://s/?a=b"}), "without a query"),
            (json!({"index": ""}), "index \"\" must have"),
            (json!({"index": "Audit"}), "index \"Audit\""),
            (json!({"index": "a,b"}), "index \"a,b\""),
            (json!({"index": "-a"}), "index \"-a\""),
            (json!({"username": "u"}), "go together"),
            (
                json!({"username": "u", "password": "env:P", "api_key": "env:K"}),
                "exclude each other",
            ),
            (json!({"access_key_id": "env:A"}), "go together"),
            (json!({"session_token": "env:A"}), "session_token needs"),
            (json!({"aws_profile": "p"}), "needs aws_region"),
            (json!({"endpoint": "http://s", "api_key": "env:K"}), "without TLS"),
            (json!({"timeout_seconds": 0}), "timeout_seconds is 0"),
        ];
        for (value, words) in bad {
            let config: ElasticsearchAuditConfig = serde_json::from_value(value.clone()).unwrap();
            let error = config.check().expect_err(&value.to_string());
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{value}");
            assert!(error.message().contains(words), "{value}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let aws = ElasticsearchAuditConfig::new("https://s").with_aws_region(Some("eu-central-1".to_owned()));
        let kind = aws.check().err().map(|error| error.kind());
        assert_eq!(kind, (!cfg!(feature = "aws")).then_some(ErrorKind::Unsupported));
    }

    #[test]
    fn the_example_is_read() {
        let file: Value = serde_saphyr::from_str(include_str!("../example.yaml")).unwrap();
        let logger = &file["adapters"]["audit_logger"];
        assert_eq!(logger["type"], "elasticsearch");
        let config: ElasticsearchAuditConfig = serde_json::from_value(logger["config"].clone()).unwrap();
        config.check().unwrap();
        assert_eq!(config.endpoint, "https://search.example:9200");
    }
}
