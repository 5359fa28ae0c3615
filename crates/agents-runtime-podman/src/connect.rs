//! Opening a stream to the engine.

use std::{path::Path, sync::Arc};

use agents_core::{Error, ErrorKind, Result};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::Mutex,
};
use tokio_rustls::TlsConnector;

use crate::{address::Address, config::PodmanConfig, tunnel::Tunnel};

/// A stream to the engine.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// Opens streams to one engine.
pub(crate) struct Connector {
    address: Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    identity: Option<std::path::PathBuf>,
    tunnel: Mutex<Option<Tunnel>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connector({})", self.address)
    }
}

impl Connector {
    /// Reads what TLS needs; connects to nothing.
    pub(crate) fn new(address: Address, config: &PodmanConfig) -> Result<Self> {
        let tls = match &address {
            Address::Tcp { host, .. } if config.tls_ca.is_some() || config.tls_cert.is_some() => {
                let name = ServerName::try_from(host.clone()).map_err(|_| {
                    Error::invalid(format!("remote_url: {host:?} is no name that a certificate can have"))
                })?;
                Some((TlsConnector::from(Arc::new(client_config(config)?)), name))
            }
            Address::Tcp { host, .. } if !is_loopback(host) => {
                return Err(Error::invalid(format!(
                    "remote_url: without TLS everybody on the way to {host} could run containers; set tls_ca (and tls_cert \
                     with tls_key), or use ssh://"
                )));
            }
            _ => None,
        };
        let identity = config.identity.clone().or_else(|| {
            std::env::var_os("CONTAINER_SSHKEY")
                .filter(|path| !path.is_empty())
                .map(Into::into)
        });
        Ok(Self {
            address,
            tls,
            identity,
            tunnel: Mutex::new(None),
        })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// A new stream. The caller sets the deadline.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Stream>> {
        match &self.address {
            Address::Unix(path) => Ok(Box::new(self.unix(path).await?)),
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(|error| self.unreachable(error))?;
                // Frames are small, and each is waited for.
                let _ = stream.set_nodelay(true);
                match &self.tls {
                    None => Ok(Box::new(stream)),
                    Some((connector, name)) => {
                        let stream = connector
                            .connect(name.clone(), stream)
                            .await
                            .map_err(|error| self.unreachable(error))?;
                        Ok(Box::new(stream))
                    }
                }
            }
            Address::Ssh { .. } => {
                let mut tunnel = self.tunnel.lock().await;
                if let Some(open) = tunnel.as_mut()
                    && open.is_alive()
                    && let Ok(stream) = self.unix(&open.socket()).await
                {
                    return Ok(Box::new(stream));
                }
                // The old one ends before a new one begins.
                drop(tunnel.take());
                let open = Tunnel::open(&self.address, self.identity.as_deref()).await?;
                let stream = self.unix(&open.socket()).await?;
                *tunnel = Some(open);
                Ok(Box::new(stream))
            }
        }
    }

    async fn unix(&self, path: &Path) -> Result<UnixStream> {
        UnixStream::connect(path).await.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, error: std::io::Error) -> Error {
        let remedy = self.remedy(&error);
        Error::new(
            ErrorKind::Unavailable,
            format!("podman cannot be reached at {}; {remedy}", self.address),
        )
        .with_source(error)
        .temporary(None)
    }

    fn remedy(&self, error: &std::io::Error) -> &'static str {
        match (&self.address, error.kind()) {
            (Address::Unix(_), std::io::ErrorKind::PermissionDenied) => {
                "this user may not use the socket; use the user's own engine (`systemctl --user start podman.socket`) or run as root"
            }
            (Address::Unix(path), _) if path == Path::new("/run/podman/podman.sock") => {
                "start it with `systemctl start podman.socket`, or set socket_path, remote_url or CONTAINER_HOST"
            }
            (Address::Unix(_), _) => {
                "start it with `systemctl --user start podman.socket`, or set socket_path, remote_url or CONTAINER_HOST"
            }
            (Address::Tcp { .. }, _) => {
                "check remote_url, the certificates and that `podman system service` listens there"
            }
            (Address::Ssh { .. }, _) => "check that podman.socket is started on the other host",
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn client_config(config: &PodmanConfig) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.tls_ca {
        for certificate in certificates("tls_ca", path)? {
            roots.add(certificate).map_err(|error| {
                Error::invalid(format!(
                    "tls_ca: {} holds a certificate that cannot be used",
                    path.display()
                ))
                .with_source(error)
            })?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::unexpected("TLS cannot be set up").with_source(error))?
        .with_root_certificates(roots);
    match (&config.tls_cert, &config.tls_key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("tls_cert", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key)
                // The source would show where in a key the fault is, and nothing of it.
                .map_err(|_| Error::invalid(format!("tls_key: {} holds no private key in PEM", key.display())))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| Error::invalid("tls_cert and tls_key do not fit together").with_source(error))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let broken = || Error::invalid(format!("{key}: {} holds no certificates in PEM", path.display()));
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| broken().with_source(error))?
        .collect::<Result<_, _>>()
        .map_err(|error| broken().with_source(error))?;
    if certificates.is_empty() {
        Err(broken())
    } else {
        Ok(certificates)
    }
}
