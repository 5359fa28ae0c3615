//! The configuration.

use std::time::Duration;

use agents_core::{Error, Result, SecretRef};
use serde::{Deserialize, Serialize};

/// The configuration of a [`DatadogAudit`](crate::DatadogAudit).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DatadogAuditConfig {
    /// The API key, as a reference. Required. Example: `env:DD_API_KEY`.
    pub api_key: Option<SecretRef>,
    /// The application key, as a reference, with the scope `logs_read_data`: without one there is no `query`. Default: none.
    /// Example: `env:DD_APP_KEY`.
    pub app_key: Option<SecretRef>,
    /// The site of the organisation. Default: `datadoghq.com`. Example: `datadoghq.eu`.
    pub site: String,
    /// The service that logs are filed under, and looked for. Default: `isolated-agents`.
    pub service: String,
    /// The host that logs are filed under. Default: none. Example: `runner-7`.
    pub hostname: Option<String>,
    /// Tags of every log, separated by commas. Default: none. Example: `env:prod,team:security`.
    pub tags: String,
    /// Where logs are sent to, instead of the site's intake. Default: none. Example: `https://pipelines.example`.
    pub intake_url: Option<String>,
    /// Where logs are looked for, instead of the site's API. Default: none. Example: `https://proxy.example`.
    pub api_url: Option<String>,
    /// How long an operation may take, with everything that is tried again. Default: `30`.
    pub timeout_seconds: u64,
}

impl Default for DatadogAuditConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            app_key: None,
            site: "datadoghq.com".to_owned(),
            service: "isolated-agents".to_owned(),
            hostname: None,
            tags: String::new(),
            intake_url: None,
            api_url: None,
            timeout_seconds: 30,
        }
    }
}

impl DatadogAuditConfig {
    /// An organisation's site, and the API key, as a reference.
    pub fn new(site: impl Into<String>, api_key: SecretRef) -> Self {
        Self {
            site: site.into(),
            api_key: Some(api_key),
            ..Self::default()
        }
    }

    /// Sets the application key, as a reference.
    #[must_use]
    pub fn with_app_key(mut self, app_key: Option<SecretRef>) -> Self {
        self.app_key = app_key;
        self
    }

    /// Sets the service that logs are filed under.
    #[must_use]
    pub fn with_service(mut self, service: impl Into<String>) -> Self {
        self.service = service.into();
        self
    }

    /// Sets the tags of every log, separated by commas.
    #[must_use]
    pub fn with_tags(mut self, tags: impl Into<String>) -> Self {
        self.tags = tags.into();
        self
    }

    /// Sets where logs are sent to and looked for.
    #[must_use]
    pub fn with_urls(mut self, intake: Option<String>, api: Option<String>) -> Self {
        (self.intake_url, self.api_url) = (intake, api);
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

    /// Where logs are sent to.
    pub(crate) fn intake(&self) -> String {
        let site = format!("https://http-intake.logs.{}", self.site);
        self.intake_url.clone().unwrap_or(site)
    }

    /// Where logs are looked for.
    pub(crate) fn api(&self) -> String {
        let site = format!("https://api.{}", self.site);
        self.api_url.clone().unwrap_or(site)
    }

    /// Checks the values without any I/O.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::invalid(text));
        if self.api_key.is_none() {
            return invalid("api_key is not set; write a reference such as env:DD_API_KEY".to_owned());
        }
        let site = &self.site;
        let plain = site
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte));
        if !plain || !site.contains('.') || site.starts_with("app.") || site.starts_with("api.") {
            return invalid(format!(
                "site {site:?} is no site of Datadog; write one such as datadoghq.com, us3.datadoghq.com, datadoghq.eu or \
                 ddog-gov.com"
            ));
        }
        let service = &self.service;
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 100
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        if !word(service) {
            return invalid(format!(
                "service {service:?} must have 1 to 100 letters, digits, '-', '_' and '.'"
            ));
        }
        if self.tags.chars().any(|c| c.is_control()) {
            return invalid("tags hold control characters; write them as env:prod,team:security".to_owned());
        }
        for (key, url) in [("intake_url", &self.intake_url), ("api_url", &self.api_url)] {
            if let Some(url) = url {
                check_url(key, url)?;
            }
        }
        if !(1..=3600).contains(&self.timeout_seconds) {
            return invalid(format!("timeout_seconds is {}; write 1 to 3600", self.timeout_seconds));
        }
        Ok(())
    }
}

fn check_url(key: &str, text: &str) -> Result<()> {
    // Quoted only when it holds no password.
    let url = reqwest::Url::parse(text)
        .map_err(|_| Error::invalid(format!("{key} is no URL; write one such as https://pipelines.example")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::invalid(format!(
            "{key} holds a user or a password; take them out"
        )));
    }
    let loopback = match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    if url.scheme() != "https" && !(url.scheme() == "http" && loopback) {
        return Err(Error::invalid(format!(
            "{key} {text:?} would carry the keys without TLS; write https://"
        )));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::invalid(format!("{key} {text:?} must have no query")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use agents_core::ErrorKind;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_key_is_read_and_judged() {
        let all: DatadogAuditConfig = serde_json::from_value(json!({
            "api_key": "env:DD_API_KEY", "app_key": "env:DD_APP_KEY", "site": "datadoghq.eu", "service": "trail",
            "tags": "env:prod", "intake_url": "https://i", "api_url": "http://127.0.0.1:1", "timeout_seconds": 8,
        }))
        .unwrap();
        let built = DatadogAuditConfig::new("datadoghq.eu", "env:DD_API_KEY".parse().unwrap())
            .with_app_key(Some("env:DD_APP_KEY".parse().unwrap()))
            .with_service("trail")
            .with_tags("env:prod")
            .with_urls(Some("https://i".to_owned()), Some("http://127.0.0.1:1".to_owned()))
            .with_timeout_seconds(8);
        assert_eq!(all, built);
        all.check().unwrap();
        let plain = DatadogAuditConfig::new("us3.datadoghq.com", "env:K".parse().unwrap());
        plain.check().unwrap();
        assert_eq!(plain.intake(), "https://http-intake.logs.us3.datadoghq.com");
        assert_eq!(plain.api(), "https://api.us3.datadoghq.com");
        for value in [
            json!({"key": "x"}),
            json!({"api_key": "hunter2"}),
            json!({"tags": ["a"]}),
        ] {
            let error = serde_json::from_value::<DatadogAuditConfig>(value).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let bad: [(Value, &str); 9] = [
            (json!({"api_key": null}), "api_key is not set"),
            (json!({"site": "https://datadoghq.com"}), "is no site"),
            (json!({"site": "app.datadoghq.com"}), "is no site"),
            (json!({"service": "a b"}), "service \"a b\""),
            (json!({"tags": "a\nb"}), "tags hold control"),
            (json!({"intake_url": "nowhere"}), "intake_url is no URL"),
            (json!({"intake_url": "http://pipelines.example"}), "without TLS"),
            (json!({"api_url": "https://u:hunter2@a"}), "holds a user or a password"),
            (json!({"timeout_seconds": 0}), "timeout_seconds is 0"),
        ];
        for (mut value, words) in bad {
            if value.get("api_key").is_none() {
                value["api_key"] = "env:K".into();
            }
            let config: DatadogAuditConfig = serde_json::from_value(value.clone()).unwrap();
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
        assert_eq!(logger["type"], "datadog");
        let config: DatadogAuditConfig = serde_json::from_value(logger["config"].clone()).unwrap();
        config.check().unwrap();
        assert_eq!(
            (config.site.as_str(), config.tags.as_str()),
            ("datadoghq.eu", "env:prod")
        );
    }
}
