//! A thin client of the libpod API: one connection a call, so that an engine that was restarted is never met through an old
//! connection, and a deadline for each call.

use std::{fmt::Write as _, time::Duration};

use agents_core::{ByteStream, Error, ErrorKind, Result};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};

use crate::{address::Address, connect::Connector, error};

/// The oldest API that has all that is used; every later engine answers to it too.
const API: &str = "/v4.0.0/libpod";

/// The longest answer that is kept in memory: an `inspect` has some kilobytes, a list of a thousand containers a megabyte.
const LONGEST_ANSWER: usize = 32 << 20;

/// One call.
pub(crate) struct Call {
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
    body: UnsyncBoxBody<Bytes, Error>,
    what: &'static str,
}

impl Call {
    /// A call of the libpod API: `what` is what cannot be done when it fails, and the path's parts are encoded.
    pub(crate) fn new(method: Method, what: &'static str, parts: &[&str]) -> Self {
        let mut path = API.to_owned();
        for part in parts {
            path.push('/');
            encode(&mut path, part);
        }
        Self::at(method, what, path)
    }

    /// A call whose path is written out.
    pub(crate) fn at(method: Method, what: &'static str, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: String::new(),
            headers: HeaderMap::new(),
            body: Full::default().map_err(|never| match never {}).boxed_unsync(),
            what,
        }
    }

    pub(crate) fn get(what: &'static str, parts: &[&str]) -> Self {
        Self::new(Method::GET, what, parts)
    }

    pub(crate) fn post(what: &'static str, parts: &[&str]) -> Self {
        Self::new(Method::POST, what, parts)
    }

    /// Adds to the query. Name and value are encoded.
    pub(crate) fn query(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.query.push(if self.query.is_empty() { '?' } else { '&' });
        encode(&mut self.query, name);
        self.query.push('=');
        encode(&mut self.query, value.as_ref());
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| Error::unexpected("a request cannot be written as JSON").with_source(error))?;
        self.body = Full::from(bytes).map_err(|never| match never {}).boxed_unsync();
        self.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(self)
    }

    /// A body that is sent as it comes.
    pub(crate) fn tar(mut self, body: ByteStream) -> Self {
        self.body = BodyExt::boxed_unsync(StreamBody::new(SyncStream(body).map_ok(Frame::data)));
        self.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.insert(HeaderName::from_static(name), value);
        self
    }
}

/// `StreamBody` needs nothing of its stream but that it can be sent; this only gives the boxed stream a name.
struct SyncStream(ByteStream);

impl futures_core::Stream for SyncStream {
    type Item = Result<Bytes>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

/// An answer that is no error.
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// The client.
#[derive(Debug)]
pub(crate) struct Client {
    connector: Connector,
    deadline: Duration,
}

impl Client {
    pub(crate) fn new(connector: Connector, deadline: Duration) -> Self {
        Self { connector, deadline }
    }

    pub(crate) fn address(&self) -> &Address {
        self.connector.address()
    }

    /// The deadline of a call that names none.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Sends a call and reads its whole answer.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer> {
        let what = call.what;
        self.within(what, self.deadline, async {
            let response = self.send(call, false).await?;
            let status = response.status();
            let (parts, body) = response.into_parts();
            let body = whole(body, what).await?;
            if status.is_success() || status == StatusCode::NOT_MODIFIED {
                return Ok(Answer {
                    headers: parts.headers,
                    body,
                });
            }
            Err(error::from_answer(what, status.as_u16(), &body))
        })
        .await
    }

    /// Sends a call and reads its answer as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let what = call.what;
        let answer = self.call(call).await?;
        serde_json::from_slice(&answer.body).map_err(|error| {
            Error::new(
                ErrorKind::DataInvalid,
                format!("podman cannot {what}: its answer is not understood; this version may be too old or too new"),
            )
            .with_context("engine", self.address())
            .with_source(error)
        })
    }

    /// Sends a call and gives its answer as it comes; `idle` bounds how long nothing may come.
    pub(crate) async fn stream(&self, call: Call, idle: Duration) -> Result<ByteStream> {
        let what = call.what;
        let response = self.within(what, idle, self.send(call, false)).await?;
        let status = response.status();
        if !status.is_success() {
            let body = self
                .within(what, self.deadline, whole(response.into_body(), what))
                .await?;
            return Err(error::from_answer(what, status.as_u16(), &body));
        }
        let chunks = futures_util::stream::try_unfold(response.into_body(), move |mut body| async move {
            loop {
                let frame = tokio::time::timeout(idle, body.frame())
                    .await
                    .map_err(|_| late(what, idle))?;
                match frame {
                    None => return Ok(None),
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            return Ok(Some((data, body)));
                        }
                    }
                    Some(Err(error)) => return Err(cut(what, error)),
                }
            }
        });
        Ok(chunks.boxed())
    }

    /// Sends a call and takes the connection over.
    pub(crate) async fn upgrade(&self, call: Call) -> Result<TokioIo<Upgraded>> {
        let what = call.what;
        self.within(what, self.deadline, async {
            let response = self.send(call, true).await?;
            let status = response.status();
            if status != StatusCode::SWITCHING_PROTOCOLS {
                let body = whole(response.into_body(), what).await?;
                return Err(if status.is_success() {
                    Error::unexpected(format!(
                        "podman cannot {what}: it did not hand the connection over; a proxy between may not know upgrades"
                    ))
                } else {
                    error::from_answer(what, status.as_u16(), &body)
                });
            }
            let upgraded = hyper::upgrade::on(response).await.map_err(|error| cut(what, error))?;
            Ok(TokioIo::new(upgraded))
        })
        .await
    }

    async fn within<T>(
        &self,
        what: &'static str,
        deadline: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match tokio::time::timeout(deadline, work).await {
            Ok(result) => result.map_err(|error| error.with_context("engine", self.address())),
            Err(_) => Err(late(what, deadline).with_context("engine", self.address())),
        }
    }

    async fn send(&self, call: Call, upgrade: bool) -> Result<Response<Incoming>> {
        let what = call.what;
        let stream = self.connector.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| cut(what, error))?;
        // Ends with the answer's body, with the connection that is taken over, or when the sender is dropped.
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::new(call.body);
        *request.method_mut() = call.method;
        *request.uri_mut() = format!("{}{}", call.path, call.query)
            .parse()
            .map_err(|error| Error::unexpected("a call's path cannot be written").with_source(error))?;
        *request.headers_mut() = call.headers;
        request.headers_mut().insert(HOST, HeaderValue::from_static("d"));
        if upgrade {
            let headers = request.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
        }
        sender.send_request(request).await.map_err(|error| cut(what, error))
    }
}

/// The whole body, within the bound.
async fn whole(body: Incoming, what: &'static str) -> Result<Bytes> {
    let limited = http_body_util::Limited::new(body, LONGEST_ANSWER);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("podman cannot {what}: its answer was cut off or has more than {LONGEST_ANSWER} bytes"),
        )
        .with_source(error)
        .temporary(None)),
    }
}

fn late(what: &str, deadline: Duration) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!(
            "podman cannot {what}: nothing came within {} s; raise timeout_seconds if the engine is slow, or restart it if it hangs",
            deadline.as_secs_f64()
        ),
    )
    .temporary(None)
}

fn cut(what: &str, error: hyper::Error) -> Error {
    // What a body that is sent says is its own error.
    let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(&error);
    while let Some(inner) = source {
        if let Some(own) = inner.downcast_ref::<Error>() {
            return Error::new(own.kind(), own.message().to_owned()).with_source(error);
        }
        source = inner.source();
    }
    Error::new(
        ErrorKind::Unavailable,
        format!("podman cannot {what}: the connection was cut; the engine may have been restarted"),
    )
    .with_source(error)
    .temporary(None)
}

/// Percent-encodes all but what RFC 3986 calls unreserved, so that no value ends a path or begins a query.
fn encode(text: &mut String, part: &str) {
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_leaves_its_place_in_a_path_or_a_query() {
        let call = Call::get("look", &["images", "a/../b?x=1&y#z %\n", "json"]).query("k&", "v=1&w ü");
        assert_eq!(
            format!("{}{}", call.path, call.query),
            "/v4.0.0/libpod/images/a%2F..%2Fb%3Fx%3D1%26y%23z%20%25%0A/json?k%26=v%3D1%26w%20%C3%BC"
        );
    }
}
