//! An HTTP server on loopback, for fakes of web services.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};

pub(super) type Handler = Arc<dyn Fn(Request<Bytes>) -> BoxFuture<'static, Response<Bytes>> + Send + Sync>;

/// A server that ends, with its connections, when it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Server {
    /// Starts a server. Must be called within a tokio runtime.
    pub(super) async fn start(handler: Handler) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            // Connections end with this task.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let handler = Arc::clone(&handler);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&handler), request));
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(client), service);
                    // A connection that breaks is the client's business.
                    let _ = connection.await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            accepting: accepting.abort_handle(),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn answer(handler: Handler, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let response = match body.collect().await {
        Ok(body) => handler(Request::from_parts(head, body.to_bytes())).await,
        Err(_) => respond(StatusCode::BAD_REQUEST, ""),
    };
    Ok(response.map(Full::new))
}

/// A response with a body of JSON.
pub(super) fn respond(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}
