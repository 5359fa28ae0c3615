//! How requests reach the engine: one connection each, so that giving up a call ends it, and none is ever found stale.
//!
//! bollard makes the requests and reads the answers; its own transports leave the API's version out of the path
//! (fussybeaver/bollard#736), so this one puts it in.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use agents_core::{Error, Result};
use bollard::{BollardRequest, errors::Error as EngineError};
use http::{HeaderValue, Response, Uri, header::HOST, uri::PathAndQuery};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    endpoint::{Endpoint, Tls},
    ssh::Forward,
    tls,
};

/// The way to one engine.
#[derive(Debug)]
pub(crate) struct Transport {
    target: Target,
    /// `/v1.41`, once the version was negotiated.
    prefix: OnceLock<String>,
}

enum Target {
    Unix(PathBuf),
    Tcp(String, u16),
    Tls(String, u16, Box<(TlsConnector, ServerName<'static>)>),
    Ssh(Box<Forward>),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unix(_) => "Unix",
            Self::Tcp(..) => "Tcp",
            Self::Tls(..) => "Tls",
            Self::Ssh(_) => "Ssh",
        })
    }
}

impl Transport {
    /// Prepares the way; nothing is connected yet.
    pub(crate) fn new(endpoint: &Endpoint) -> Result<Self> {
        let target = match endpoint {
            Endpoint::Unix(path) => Target::Unix(path.clone()),
            Endpoint::Tcp {
                host,
                port,
                tls: Tls::Off,
            } => Target::Tcp(host.clone(), *port),
            Endpoint::Tcp {
                host,
                port,
                tls: Tls::Folder(folder),
            } => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| Error::invalid(format!("host: {host:?} cannot be a name in a certificate")))?;
                let connector = TlsConnector::from(Arc::new(tls::client(folder)?));
                Target::Tls(host.clone(), *port, Box::new((connector, name)))
            }
            Endpoint::Ssh(target) => Target::Ssh(Box::new(Forward::new(target.clone()))),
        };
        Ok(Self {
            target,
            prefix: OnceLock::new(),
        })
    }

    /// From now on every path has this version.
    pub(crate) fn use_version(&self, version: &str) {
        // A second negotiation comes to the same.
        let _ = self.prefix.set(format!("/v{version}"));
    }

    async fn connect(&self) -> io::Result<Connection> {
        Ok(match &self.target {
            Target::Unix(path) => Connection::Unix(UnixStream::connect(path).await?),
            Target::Ssh(forward) => Connection::Unix(UnixStream::connect(forward.socket().await?).await?),
            Target::Tcp(host, port) => Connection::Tcp(tcp(host, *port).await?),
            Target::Tls(host, port, with) => {
                let (connector, name) = &**with;
                let stream = tcp(host, *port).await?;
                Connection::Tls(Box::new(connector.connect(name.clone(), stream).await?))
            }
        })
    }

    /// Sends one request on a connection of its own.
    pub(crate) async fn request(&self, mut request: BollardRequest) -> Result<Response<Incoming>, EngineError> {
        let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        let prefix = self.prefix.get().map_or("", String::as_str);
        *request.uri_mut() = format!("{prefix}{path}").parse::<Uri>()?;
        request.headers_mut().insert(HOST, HeaderValue::from_static("docker"));
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(async move {
            // Whoever waits for the answer hears of its fault.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender.send_request(request).await?)
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! each {
    ($connection:expr, $stream:ident => $call:expr) => {
        match $connection.get_mut() {
            Connection::Unix($stream) => $call,
            Connection::Tcp($stream) => $call,
            Connection::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
