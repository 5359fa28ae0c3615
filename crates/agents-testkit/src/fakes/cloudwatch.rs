//! A strict proxy before moto's CloudWatch Logs, and one before any service that wants signed requests.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{
    cloudwatch_pattern::Pattern,
    cloudwatch_sigv4::Signer,
    server::{Handler, Server, respond},
};

const BATCH_BYTES: usize = 1_048_576;
const EVENT_BYTES: usize = 1_048_576;
const EVENT_OVERHEAD: usize = 26;
const BATCH_EVENTS: usize = 10_000;
const SPAN: i64 = 24 * 3_600_000;
const PAST: i64 = 14 * 24 * 3_600_000;
const FUTURE: i64 = 2 * 3_600_000;
const PATTERN: usize = 1024;

/// A proxy that forwards requests which are signed rightly (AWS Signature Version 4) and refuses others with 403.
#[derive(Debug)]
pub struct SignedProxy {
    server: Server,
    signer: Arc<Mutex<Signer>>,
}

impl SignedProxy {
    /// Starts a proxy before a server, for a region and a service, that knows one access key. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// When loopback cannot be listened on.
    pub async fn start(upstream: SocketAddr, region: &str, service: &str, key: (&str, &str)) -> io::Result<Self> {
        let signer = signer(region, service, key);
        let shared = Arc::clone(&signer);
        let handler: Handler = Arc::new(move |request| {
            let checked = check(&shared, &request);
            async move {
                match checked {
                    Ok(()) => forward(upstream, request).await,
                    Err((code, message)) => respond(
                        StatusCode::FORBIDDEN,
                        json!({"message": format!("{code}: {message}")}).to_string(),
                    ),
                }
            }
            .boxed()
        });
        let server = Server::start(handler).await?;
        Ok(Self { server, signer })
    }

    /// Where it is: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Changes the session token that requests must have; another is one that has expired.
    pub fn set_session_token(&self, token: Option<&str>) {
        lock(&self.signer).session_token = token.map(str::to_owned);
    }
}

/// moto's CloudWatch Logs behind what the service documents and moto leaves out.
///
/// Signatures and session tokens are checked. `PutLogEvents` is refused with no event or an empty one, more than 10,000, more
/// than 1,048,576 bytes with 26 for each, an event of more than 1 MB, a time before the one before, a span of more than 24 hours;
/// what is older than 14 days or more than two hours ahead is rejected by itself, with indices as documented. `FilterLogEvents` knows
/// filter patterns for JSON, refuses those that are too long, and a stream beside a prefix, finds no stream that does not exist,
/// and gives an empty page with a token before the first.
#[derive(Debug)]
pub struct StrictCloudWatch {
    server: Server,
    signer: Arc<Mutex<Signer>>,
    throttled: Arc<AtomicU64>,
}

impl StrictCloudWatch {
    /// Starts a proxy before moto, for a region, that knows one access key. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When loopback cannot be listened on.
    pub async fn start(moto: SocketAddr, region: &str, key: (&str, &str)) -> io::Result<Self> {
        let signer = signer(region, "logs", key);
        let throttled = Arc::new(AtomicU64::new(0));
        let (shared, throttle) = (Arc::clone(&signer), Arc::clone(&throttled));
        let handler: Handler = Arc::new(move |request| {
            let checked = check(&shared, &request);
            let throttle = take(&throttle);
            async move {
                if let Err((code, message)) = checked {
                    return exception(code, &message);
                }
                if throttle {
                    return exception("ThrottlingException", "Rate exceeded");
                }
                match serve(moto, request).await {
                    Ok(response) => response,
                    Err(message) => exception("InvalidParameterException", &message),
                }
            }
            .boxed()
        });
        let server = Server::start(handler).await?;
        Ok(Self {
            server,
            signer,
            throttled,
        })
    }

    /// Where it is: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Changes the session token that requests must have; another is one that has expired.
    pub fn set_session_token(&self, token: Option<&str>) {
        lock(&self.signer).session_token = token.map(str::to_owned);
    }

    /// Refuses the next requests, so many, as too many.
    pub fn throttle(&self, requests: u64) {
        self.throttled.store(requests, Ordering::Relaxed);
    }
}

fn signer(region: &str, service: &str, (id, secret): (&str, &str)) -> Arc<Mutex<Signer>> {
    Arc::new(Mutex::new(Signer {
        region: region.to_owned(),
        service: service.to_owned(),
        access_key_id: id.to_owned(),
        secret_access_key: secret.to_owned(),
        session_token: None,
    }))
}

fn lock(signer: &Mutex<Signer>) -> std::sync::MutexGuard<'_, Signer> {
    signer.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(signer: &Mutex<Signer>, request: &Request<Bytes>) -> Result<(), super::cloudwatch_sigv4::Refusal> {
    lock(signer).check(request)
}

/// Takes one of a count, if there is one.
fn take(count: &AtomicU64) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1))
        .is_ok()
}

fn exception(code: &str, message: &str) -> Response<Bytes> {
    respond(
        StatusCode::BAD_REQUEST,
        json!({"__type": code, "message": message}).to_string(),
    )
}

async fn serve(moto: SocketAddr, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
    let target = request
        .headers()
        .get("x-amz-target")
        .and_then(|target| target.to_str().ok());
    let operation = target
        .and_then(|target| target.rsplit('.').next())
        .unwrap_or_default()
        .to_owned();
    let body: Value = serde_json::from_slice(request.body()).map_err(|_| "no JSON".to_owned())?;
    match operation.as_str() {
        "PutLogEvents" => put(moto, request, body).await,
        "FilterLogEvents" => filter(moto, request, body).await,
        _ => Ok(forward(moto, request).await),
    }
}

async fn put(moto: SocketAddr, request: Request<Bytes>, mut body: Value) -> Result<Response<Bytes>, String> {
    let events = body["logEvents"].as_array().cloned().unwrap_or_default();
    let time = |event: &Value| event["timestamp"].as_i64().unwrap_or(i64::MIN);
    let size = |event: &Value| event["message"].as_str().map_or(0, str::len);
    if events.is_empty() || events.iter().any(|event| size(event) == 0) {
        return Err("a batch and its messages must not be empty".to_owned());
    }
    if events.len() > BATCH_EVENTS {
        return Err(format!("{} events in a batch", events.len()));
    }
    if events.iter().any(|event| size(event) > EVENT_BYTES) {
        return Err("Log event too large".to_owned());
    }
    let bytes: usize = events.iter().map(|event| size(event) + EVENT_OVERHEAD).sum();
    if bytes > BATCH_BYTES {
        return Err(format!(
            "Upload too large: {bytes} bytes exceeds limit of {BATCH_BYTES}"
        ));
    }
    if !events.is_sorted_by_key(time) {
        return Err("Log events in a single PutLogEvents request must be in chronological order.".to_owned());
    }
    if events.last().map_or(0, time) - events.first().map_or(0, time) > SPAN {
        return Err(
            "The batch of log events in a single PutLogEvents request cannot span more than 24 hours.".to_owned(),
        );
    }
    let now = Timestamp::now().as_millisecond();
    let old = events.iter().take_while(|event| time(event) < now - PAST).count();
    let new = events
        .iter()
        .position(|event| time(event) > now + FUTURE)
        .unwrap_or(events.len());
    let mut rejected = json!({});
    if old > 0 {
        rejected["tooOldLogEventEndIndex"] = old.into();
    }
    if new < events.len() {
        rejected["tooNewLogEventStartIndex"] = new.into();
    }
    if old >= new {
        return Ok(respond(
            StatusCode::OK,
            json!({"rejectedLogEventsInfo": rejected}).to_string(),
        ));
    }
    body["logEvents"] = events[old..new].to_vec().into();
    let response = forward(moto, with_body(request, &body)).await;
    if !response.status().is_success() || rejected == json!({}) {
        return Ok(response);
    }
    let mut answer: Value = serde_json::from_slice(response.body()).unwrap_or_default();
    answer["rejectedLogEventsInfo"] = rejected;
    Ok(respond(StatusCode::OK, answer.to_string()))
}

/// What the token of the page after the empty one starts with.
const EMPTY: &str = "after-the-empty-page";

async fn filter(moto: SocketAddr, request: Request<Bytes>, mut body: Value) -> Result<Response<Bytes>, String> {
    let text = body["filterPattern"].as_str().unwrap_or_default().to_owned();
    if text.len() > PATTERN {
        return Err(format!("a filter pattern of {} characters", text.len()));
    }
    let pattern = if text.is_empty() {
        None
    } else {
        Some(Pattern::parse(&text)?)
    };
    if !(1..=10_000).contains(&body["limit"].as_u64().unwrap_or(10_000)) {
        return Err("limit".to_owned());
    }
    let streams = body["logStreamNames"].as_array().cloned().unwrap_or_default();
    let prefix = body["logStreamNamePrefix"].as_str().map(str::to_owned);
    if !streams.is_empty() && prefix.is_some() {
        return Err("logStreamNames and logStreamNamePrefix exclude each other".to_owned());
    }
    match body["nextToken"].as_str() {
        None => {
            // The group must exist, and the service says so at once.
            body["limit"] = 1.into();
            let response = forward(moto, with_body(request, &body)).await;
            let missing = response.status().is_success() && {
                let answer: Value = serde_json::from_slice(response.body()).unwrap_or_default();
                let searched = answer["searchedLogStreams"].as_array().map_or(0, Vec::len);
                searched < streams.len()
            };
            return Ok(match (response.status().is_success(), missing) {
                (false, _) => response,
                (true, true) => exception("ResourceNotFoundException", "The specified log stream does not exist."),
                (true, false) => respond(StatusCode::OK, json!({"events": [], "nextToken": EMPTY}).to_string()),
            });
        }
        Some(EMPTY) => {
            body.as_object_mut().map(|body| body.remove("nextToken"));
        }
        Some(_) => {}
    }
    // moto knows no patterns for JSON and no prefix, and sorts only when it is asked to.
    if let Some(body) = body.as_object_mut() {
        body.remove("filterPattern");
        body.remove("logStreamNamePrefix");
    }
    body["interleaved"] = true.into();
    let response = forward(moto, with_body(request, &body)).await;
    if !response.status().is_success() {
        return Ok(response);
    }
    let mut answer: Value = serde_json::from_slice(response.body()).map_err(|_| "no answer".to_owned())?;
    if let Some(events) = answer["events"].as_array_mut() {
        events.retain(|event| {
            let stream = event["logStreamName"].as_str().unwrap_or_default();
            let message = serde_json::from_str(event["message"].as_str().unwrap_or_default()).unwrap_or_default();
            prefix.as_deref().is_none_or(|prefix| stream.starts_with(prefix))
                && pattern.as_ref().is_none_or(|pattern| pattern.matches(&message))
        });
    }
    Ok(respond(StatusCode::OK, answer.to_string()))
}

fn with_body(request: Request<Bytes>, body: &Value) -> Request<Bytes> {
    request.map(|_| Bytes::from(body.to_string()))
}

/// Sends a request on, and gives the answer.
async fn forward(upstream: SocketAddr, request: Request<Bytes>) -> Response<Bytes> {
    match tokio::time::timeout(Duration::from_secs(60), exchange(upstream, request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(why)) => respond(StatusCode::BAD_GATEWAY, why),
        Err(_) => respond(StatusCode::GATEWAY_TIMEOUT, ""),
    }
}

async fn exchange(upstream: SocketAddr, mut request: Request<Bytes>) -> Result<Response<Bytes>, String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect(upstream).await.map_err(|error| told(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| told(&error))?;
    // It ends with the sender.
    tokio::spawn(connection);
    // The length is that of another body now.
    request.headers_mut().remove(header::CONTENT_LENGTH);
    let response = sender
        .send_request(request.map(Full::new))
        .await
        .map_err(|error| told(&error))?;
    let (mut head, body) = response.into_parts();
    head.headers.remove(header::TRANSFER_ENCODING);
    head.headers.remove(header::CONTENT_LENGTH);
    let body = body.collect().await.map_err(|error| told(&error))?;
    Ok(Response::from_parts(head, body.to_bytes()))
}
