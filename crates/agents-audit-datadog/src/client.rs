//! HTTP to Datadog.

use std::{fmt, time::Duration};

use agents_audit_remote::{Retry, http};
use agents_core::{Error, Result};
use reqwest::{
    Method, Request, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue},
};
use serde_json::Value;

use crate::{
    config::DatadogAuditConfig,
    error::{request_error, status_error, wait},
};

/// The keys that a configuration refers to. Never printed.
pub struct Keys {
    api: HeaderValue,
    app: Option<HeaderValue>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Keys {
    /// The API key and, for queries, an application key.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for what can be no key.
    pub fn new(api: impl AsRef<str>, app: Option<&str>) -> Result<Self> {
        let header = |key: &str, text: &str| -> Result<HeaderValue> {
            let text = text.trim();
            // The error would say nothing more.
            let mut value = HeaderValue::try_from(text)
                .ok()
                .filter(|_| !text.is_empty())
                .ok_or_else(|| Error::invalid(format!("the value of {key} is no key of Datadog")))?;
            value.set_sensitive(true);
            Ok(value)
        };
        Ok(Self {
            api: header("api_key", api.as_ref())?,
            app: app.map(|app| header("app_key", app)).transpose()?,
        })
    }

    pub(crate) fn can_query(&self) -> bool {
        self.app.is_some()
    }
}

pub(crate) struct Client {
    http: reqwest::Client,
    keys: Keys,
    logs: Url,
    search: Url,
    validate: Url,
    timeout: Duration,
}

impl Client {
    pub(crate) fn new(config: &DatadogAuditConfig, keys: Keys) -> Result<Self> {
        let http = http::client(concat!("agents-audit-datadog/", env!("CARGO_PKG_VERSION")), None)?;
        let url = |base: String, path: &str| {
            let text = format!("{}/{path}", base.trim_end_matches('/'));
            Url::parse(&text).map_err(|_| Error::invalid("site, intake_url or api_url make no URL"))
        };
        Ok(Self {
            http,
            keys,
            logs: url(config.intake(), "api/v2/logs")?,
            search: url(config.api(), "api/v2/logs/events/search")?,
            validate: url(config.api(), "api/v1/validate")?,
            timeout: config.timeout(),
        })
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn retry(&self) -> Retry {
        Retry::new(self.timeout)
    }

    async fn send(&self, mut request: Request, timeout: Duration) -> Result<Value> {
        *request.timeout_mut() = Some(timeout);
        request.headers_mut().insert("dd-api-key", self.keys.api.clone());
        let response = self.http.execute(request).await.map_err(request_error)?;
        let status = response.status().as_u16();
        let wait = wait(response.headers());
        let body = response.bytes().await.map_err(request_error)?;
        if !(200..300).contains(&status) {
            return Err(status_error(status, wait, &body));
        }
        // The intake answers with `{}`, or with nothing.
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .map_err(|error| Error::unexpected("the answer of Datadog is no JSON").with_source(error))
    }

    /// Sends logs, an array in JSON. One attempt.
    pub(crate) async fn submit(&self, logs: &[u8], timeout: Duration) -> Result<()> {
        let mut request = Request::new(Method::POST, self.logs.clone());
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *request.body_mut() = Some(http::gzip(logs)?.into());
        self.send(request, timeout).await.map(|_| ())
    }

    /// Searches, with everything that is tried again.
    pub(crate) async fn search(&self, body: &Value) -> Result<Value> {
        let mut retry = self.retry();
        loop {
            let mut request = Request::new(Method::POST, self.search.clone());
            request
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if let Some(app) = &self.keys.app {
                request.headers_mut().insert("dd-application-key", app.clone());
            }
            *request.body_mut() = Some(body.to_string().into());
            let answer = self.send(request, retry.attempt()).await;
            match answer.and_then(crate::search::complete) {
                Ok(answer) => return Ok(answer),
                Err(error) => retry.wait(error).await?,
            }
        }
    }

    /// Whether the API key is one. One attempt.
    pub(crate) async fn validate(&self) -> Result<()> {
        let request = Request::new(Method::GET, self.validate.clone());
        let answer = self.send(request, self.retry().attempt()).await?;
        match answer["valid"].as_bool() {
            Some(true) => Ok(()),
            _ => Err(status_error(403, None, b"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_printed() {
        let keys = Keys::new("hunter2\n", Some("hunter2")).unwrap();
        assert_eq!(format!("{keys:?}"), "[redacted]");
        assert!(keys.can_query() && !format!("{:?}", keys.api).contains("hunter2"));
        for key in ["", " ", "hun\nter2"] {
            let error = Keys::new(key, None).unwrap_err();
            assert!(
                error.message().contains("api_key") && !error.message().contains("ter2"),
                "{error}"
            );
        }
    }
}
