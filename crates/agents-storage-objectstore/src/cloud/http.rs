//! The HTTP client below the library: limits how many requests are under way, and waits as long as a service asks.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{HeaderMap, Method, StatusCode, header::RETRY_AFTER};
use jiff::Timestamp;
use object_store::{
    ClientOptions, Result,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
    },
};
use tokio::sync::Semaphore;

use super::error::retry_after;

/// Makes clients that share one limit.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    slots: Arc<Semaphore>,
    /// The longest that a service's wish to wait is honoured; zero when there are no retries to wait for.
    longest_wait: Duration,
    /// Headers of every request that makes an object.
    object_headers: Option<Arc<ObjectHeaders>>,
}

impl Connector {
    pub(crate) fn new(max_concurrency: usize, longest_wait: Duration) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(max_concurrency)),
            longest_wait,
            object_headers: None,
        }
    }

    /// Adds headers to every request that makes an object below this address, for a service that does not sign them.
    #[must_use]
    #[cfg(feature = "gcs")]
    pub(crate) fn with_object_headers(mut self, endpoint: &str, headers: HeaderMap) -> Self {
        self.object_headers = Some(Arc::new(ObjectHeaders {
            endpoint: endpoint.to_owned(),
            headers,
        }));
        self
    }
}

#[derive(Debug)]
struct ObjectHeaders {
    endpoint: String,
    headers: HeaderMap,
}

impl ObjectHeaders {
    /// A part of an object has them from the request that began it.
    fn add(&self, request: &mut HttpRequest) {
        let query = request.uri().query().unwrap_or_default();
        let makes = match *request.method() {
            Method::PUT => !query.contains("uploadId="),
            Method::POST => query.starts_with("uploads"),
            _ => false,
        };
        if makes && request.uri().to_string().starts_with(&self.endpoint) {
            request.headers_mut().extend(self.headers.clone());
        }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        // The client wants one for the process. If another part of the program chose one, that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(HttpClient::new(Service {
            inner: ReqwestConnector::default().connect(options)?,
            connector: self.clone(),
        }))
    }
}

#[derive(Debug)]
struct Service {
    inner: HttpClient,
    connector: Connector,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(headers) = &self.connector.object_headers {
            headers.add(&mut request);
        }
        let slot = self.connector.slots.acquire().await;
        let slot = slot.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let response = self.inner.execute(request).await;
        drop(slot);
        // The library tries again after a wait of its own, which knows nothing of this header.
        if let Ok(response) = &response
            && (response.status().is_server_error() || response.status() == StatusCode::TOO_MANY_REQUESTS)
            && let Some(wait) = response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| retry_after(value.to_str().ok()?, Timestamp::now()))
        {
            tokio::time::sleep(wait.min(self.connector.longest_wait)).await;
        }
        response
    }
}
