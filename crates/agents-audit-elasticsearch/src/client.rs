//! HTTP to the server.

use std::time::Duration;

use agents_audit_remote::{Retry, http};
use agents_core::{Error, Result};
use reqwest::{
    Method, Request, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use serde_json::Value;

use crate::{
    Credentials,
    auth::Auth,
    config::ElasticsearchAuditConfig,
    error::{request_error, retry_after, status_error},
};

/// Bodies below this size are not worth compressing.
const COMPRESS_FROM: usize = 1024;

pub(crate) struct Client {
    http: reqwest::Client,
    endpoint: Url,
    auth: Auth,
    timeout: Duration,
}

/// What is sent.
pub(crate) struct Call<'c> {
    pub(crate) method: Method,
    pub(crate) path: &'c str,
    pub(crate) content_type: &'static str,
    pub(crate) body: Option<&'c [u8]>,
}

impl<'c> Call<'c> {
    pub(crate) fn get(path: &'c str) -> Self {
        Self::new(Method::GET, path, None)
    }

    pub(crate) fn new(method: Method, path: &'c str, body: Option<&'c [u8]>) -> Self {
        Self {
            method,
            path,
            content_type: "application/json",
            body,
        }
    }
}

impl Client {
    pub(crate) fn new(config: &ElasticsearchAuditConfig, credentials: Credentials) -> Result<Self> {
        let http = http::client(
            concat!("agents-audit-elasticsearch/", env!("CARGO_PKG_VERSION")),
            config.tls_ca_file.as_deref(),
        )?;
        // A path in it stays, for servers behind a proxy.
        let text = format!("{}/", config.endpoint.trim_end_matches('/'));
        let endpoint = Url::parse(&text).map_err(|_| Error::invalid("endpoint is no URL"))?;
        Ok(Self {
            http,
            endpoint,
            auth: Auth::new(credentials, config)?,
            timeout: config.timeout(),
        })
    }

    pub(crate) fn retry(&self) -> Retry {
        Retry::new(self.timeout)
    }

    fn request(&self, call: &Call<'_>, timeout: Duration) -> Result<Request> {
        let url = self.endpoint.join(call.path);
        let url = url.map_err(|_| Error::unexpected(format!("{:?} is no path", call.path)))?;
        let mut request = Request::new(call.method.clone(), url);
        *request.timeout_mut() = Some(timeout);
        if let Some(body) = call.body {
            let headers = request.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(call.content_type));
            if body.len() >= COMPRESS_FROM {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                *request.body_mut() = Some(http::gzip(body)?.into());
            } else {
                *request.body_mut() = Some(body.to_vec().into());
            }
        }
        Ok(request)
    }

    /// One attempt.
    ///
    /// # Errors
    ///
    /// Also for every status that is no success.
    pub(crate) async fn once(&self, call: &Call<'_>, timeout: Duration) -> Result<Value> {
        let mut request = self.request(call, timeout)?;
        self.auth.apply(&mut request).await?;
        let response = self.http.execute(request).await.map_err(request_error)?;
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        let wait = retry_after(wait);
        let body = response.bytes().await.map_err(request_error)?;
        if !(200..300).contains(&status) {
            if matches!(status, 401 | 403) {
                self.auth.refused().await;
            }
            return Err(status_error(status, wait, &body));
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|error| {
            Error::unexpected("the answer of the search server is no JSON; see whether endpoint names such a server")
                .with_source(error)
        })
    }

    /// Attempts until it succeeds, fails for good, or the time is up. What is sent must be harmless to repeat.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Value> {
        let mut retry = self.retry();
        loop {
            match self.once(call, retry.attempt()).await {
                Ok(value) => return Ok(value),
                Err(error) => retry.wait(error).await?,
            }
        }
    }
}
