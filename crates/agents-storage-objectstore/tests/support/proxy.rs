//! A proxy between the storage and a server, which breaks what it is told to break.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, Uri, request::Parts};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is passed on.
    None,
    /// The connection ends after so many bytes of the body, and the server hears nothing.
    CutRequest(usize),
    /// The server gets it, and the connection ends without an answer.
    LoseAnswer,
    /// This is answered, and the server hears nothing.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// Nothing is answered, ever.
    Hang,
    /// One bit of the request's body is changed.
    CorruptRequest,
    /// One bit of the answer's body is changed.
    Corrupt,
    /// The answer's body ends after so many bytes.
    CutAnswer(usize),
    /// It is passed on later.
    Delay(Duration),
}

/// A request that matches gets a fault.
type Rule = Box<dyn Fn(&Parts) -> Fault + Send + Sync>;

type Answer = Response<BoxBody<Bytes, io::Error>>;

/// Serves a request whose body is there.
pub type Serve = Arc<dyn Fn(Parts, Bytes) -> BoxFuture<'static, io::Result<Response<Bytes>>> + Send + Sync>;

pub struct Proxy {
    /// Its address.
    pub url: String,
    rule: Arc<Mutex<Rule>>,
    seen: Arc<Mutex<Vec<String>>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Stands before the server at this address.
    pub async fn before(target: &str) -> Self {
        let authority = target.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
        let (authority, path) = match authority.split_once('/') {
            Some((authority, path)) => (authority.to_owned(), format!("/{path}")),
            None => (authority, String::new()),
        };
        let mut proxy = Self::serving(Arc::new(move |parts, body| {
            let authority = authority.clone();
            Box::pin(async move { forward(&authority, parts, body).await })
        }))
        .await;
        proxy.url.push_str(&path);
        proxy
    }

    /// Serves by itself.
    pub async fn serving(serve: Serve) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(|_| Fault::None)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn({
            let (rule, seen) = (Arc::clone(&rule), Arc::clone(&seen));
            async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else {
                        return;
                    };
                    let (rule, seen, serve) = (Arc::clone(&rule), Arc::clone(&seen), Arc::clone(&serve));
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (rule, seen, serve) = (Arc::clone(&rule), Arc::clone(&seen), Arc::clone(&serve));
                        async move {
                            let (parts, body) = request.into_parts();
                            seen.lock().unwrap().push(format!("{} {}", parts.method, parts.uri));
                            let fault = rule.lock().unwrap()(&parts);
                            suffer(fault, parts, body, &serve).await
                        }
                    });
                    tokio::spawn(
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                    );
                }
            }
        });
        Self {
            url,
            rule,
            seen,
            task: task.abort_handle(),
        }
    }

    /// Every request from now on gets what this says.
    pub fn set(&self, rule: impl Fn(&Parts) -> Fault + Send + Sync + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    /// The first requests that match get these faults, one each; the others pass.
    pub fn script(&self, matches: impl Fn(&Parts) -> bool + Send + Sync + 'static, faults: &[Fault]) {
        let faults = Mutex::new(VecDeque::from(faults.to_vec()));
        self.set(move |parts| match matches(parts) {
            true => faults.lock().unwrap().pop_front().unwrap_or(Fault::None),
            false => Fault::None,
        });
    }

    /// What was asked so far, as `METHOD URI`.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// Whether a request sends a part of an upload.
pub fn is_part(parts: &Parts) -> bool {
    let query = parts.uri.query().unwrap_or_default();
    parts.method == Method::PUT && (query.contains("partNumber=") || query.contains("comp=block&"))
}

/// Whether a request makes a whole object, below `.uploads` or elsewhere.
pub fn is_put(parts: &Parts, note: bool) -> bool {
    parts.method == Method::PUT && parts.uri.query().is_none() && parts.uri.path().contains("/.uploads/") == note
}

/// One bit is another.
fn changed(body: &[u8]) -> Bytes {
    let mut body = body.to_vec();
    if let Some(byte) = body.last_mut() {
        *byte ^= 1;
    }
    body.into()
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "closed on purpose")
}

fn full(response: Response<Bytes>) -> Answer {
    response.map(|body| Full::new(body).map_err(|never: Infallible| match never {}).boxed())
}

async fn suffer(fault: Fault, parts: Parts, mut body: Incoming, serve: &Serve) -> io::Result<Answer> {
    if let Fault::CutRequest(after) = fault {
        let mut got = 0;
        while got <= after {
            match body.frame().await {
                Some(Ok(frame)) => got += frame.data_ref().map_or(0, Bytes::len),
                _ => break,
            }
        }
        return Err(closed());
    }
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    match fault {
        Fault::None | Fault::CutRequest(_) => serve(parts, body).await.map(full),
        Fault::CorruptRequest => serve(parts, changed(&body)).await.map(full),
        Fault::LoseAnswer => {
            serve(parts, body).await?;
            Err(closed())
        }
        Fault::Answer(status, headers, text) => {
            let mut response = Response::new(Bytes::from(text));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            Ok(full(response))
        }
        Fault::Hang => std::future::pending().await,
        Fault::Corrupt => {
            let response = serve(parts, body).await?;
            Ok(full(response.map(|body| changed(&body))))
        }
        Fault::CutAnswer(after) => {
            let response = serve(parts, body).await?;
            Ok(response.map(|body| {
                let first = body.slice(..after.min(body.len()));
                let pieces = futures_util::stream::iter([Ok(Frame::data(first)), Err(closed())]);
                BoxBody::new(StreamBody::new(pieces))
            }))
        }
        Fault::Delay(time) => {
            tokio::time::sleep(time).await;
            serve(parts, body).await.map(full)
        }
    }
}

/// Passes a request on as it is, the name of the host included, so that its signature holds.
pub async fn forward(authority: &str, mut parts: Parts, body: Bytes) -> io::Result<Response<Bytes>> {
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    parts.uri = parts
        .uri
        .path_and_query()
        .map_or_else(Uri::default, |path| Uri::from(path.clone()));
    let request = Request::from_parts(parts, Full::new(body));
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let (mut parts, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    // The body is whole here, and of a known length.
    parts.headers.remove(http::header::TRANSFER_ENCODING);
    connection.abort();
    Ok(Response::from_parts(parts, body))
}
