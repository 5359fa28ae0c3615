//! HTTP to a collector.

use std::{fmt, time::Duration};

use agents_audit_remote::{Retry, http};
use agents_core::{Error, Result};
use jiff::Timestamp;
use reqwest::{
    Method, Request, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};

use crate::{
    config::OtlpAuditConfig,
    error::{partial_success, rejected, request_error, status_error, wait},
    record::request,
};

/// The headers that a configuration refers to. Never printed.
#[derive(Clone, Default)]
pub struct Headers(HeaderMap);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Headers {
    /// No headers.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a header.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for what can be no header, without its value.
    pub fn with(mut self, name: &str, value: &str) -> Result<Self> {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| Error::invalid(format!("headers: {name:?} is no name of a header")))?;
        // The error would say nothing more.
        let mut value = HeaderValue::try_from(value.trim())
            .map_err(|_| Error::invalid(format!("headers: the value of {name} can be in no header")))?;
        value.set_sensitive(true);
        self.0.insert(name, value);
        Ok(self)
    }
}

pub(crate) struct Client {
    http: reqwest::Client,
    headers: HeaderMap,
    url: Url,
    config: OtlpAuditConfig,
}

impl Client {
    pub(crate) fn new(config: OtlpAuditConfig, headers: Headers) -> Result<Self> {
        let http = http::client(
            concat!("agents-audit-otlp/", env!("CARGO_PKG_VERSION")),
            config.tls_ca_file.as_deref(),
        )?;
        Ok(Self {
            http,
            headers: headers.0,
            url: config.url()?,
            config,
        })
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Sends log records, with everything that is tried again.
    pub(crate) async fn submit(&self, records: &[String]) -> Result<()> {
        let body = http::gzip(request(records, &self.config).as_bytes())?;
        let mut retry = Retry::new(self.config.timeout());
        loop {
            match self.attempt(body.clone(), records.len(), retry.attempt()).await {
                Ok(()) => return Ok(()),
                Err(error) => retry.wait(error).await?,
            }
        }
    }

    /// Sends nothing, which a collector takes. One attempt.
    pub(crate) async fn probe(&self) -> Result<()> {
        let timeout = Retry::new(self.config.timeout()).attempt();
        self.attempt(http::gzip(br#"{"resourceLogs":[]}"#)?, 0, timeout).await
    }

    async fn attempt(&self, body: Vec<u8>, count: usize, timeout: Duration) -> Result<()> {
        let mut request = Request::new(Method::POST, self.url.clone());
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *request.body_mut() = Some(body.into());
        *request.timeout_mut() = Some(timeout);
        let response = self.http.execute(request).await.map_err(request_error)?;
        let status = response.status().as_u16();
        let wait = wait(response.headers(), Timestamp::now());
        let body = response.bytes().await.map_err(request_error)?;
        if !(200..300).contains(&status) {
            return Err(status_error(status, wait, &body));
        }
        match partial_success(&body) {
            (0, message) if message.is_empty() => Ok(()),
            (0, message) => {
                tracing::warn!(%message, "the collector accepted the events, and has something to say");
                Ok(())
            }
            (rejects, message) => Err(rejected(rejects, count, &message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_not_printed() {
        let headers = Headers::none().with("Authorization", "hunter2\n").unwrap();
        assert_eq!(format!("{headers:?}"), "[redacted]");
        assert!(!format!("{:?}", headers.0).contains("hunter2"));
        let error = Headers::none().with("authorization", "hun\nter2").unwrap_err();
        assert!(
            error.message().contains("authorization") && !error.message().contains("ter2"),
            "{error}"
        );
    }
}
