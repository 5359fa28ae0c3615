//! The internet, as far as a test wants it: a proxy that answers for every host itself, over TLS with a certificate that
//! its own authority signed. So the addresses that are built in are the ones that are asked.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::proxy::Serve;

/// Every host that is asked must be one of these.
const HOSTS: [&str; 5] = [
    "*.googleapis.com",
    "accounts.google.com",
    "login.microsoftonline.com",
    "portal.sso.us-east-1.amazonaws.com",
    "sts.us-east-1.amazonaws.com",
];

pub struct Internet {
    /// The address of the proxy.
    pub url: String,
    folder: tempfile::TempDir,
    task: tokio::task::AbortHandle,
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Internet {
    /// What is asked has the name of the host in its `Host` header.
    pub async fn of(serve: Serve) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let acceptor = certify(folder.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (serve, acceptor) = (Arc::clone(&serve), acceptor.clone());
                let service = service_fn(move |request| proxied(request, Arc::clone(&serve), acceptor.clone()));
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection.with_upgrades());
            }
        });
        Self {
            url,
            folder,
            task: task.abort_handle(),
        }
    }

    /// The certificate of the authority.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// What leads a process here. Servers on this machine are asked directly.
    pub fn env(&self) -> [(&'static str, String); 3] {
        [
            ("HTTPS_PROXY", self.url.clone()),
            ("HTTP_PROXY", self.url.clone()),
            ("NO_PROXY", "127.0.0.1".to_owned()),
        ]
    }
}

/// A tunnel is opened and its TLS is ended; what is not encrypted is served as it is.
async fn proxied(request: Request<Incoming>, serve: Serve, acceptor: TlsAcceptor) -> io::Result<Response<Full<Bytes>>> {
    if request.method() != Method::CONNECT {
        return answer(request, serve).await;
    }
    tokio::spawn(async move {
        let tunnel = hyper::upgrade::on(request).await.unwrap();
        // A client that does not trust the certificate goes away.
        if let Ok(stream) = acceptor.accept(TokioIo::new(tunnel)).await {
            let service = service_fn(move |request| answer(request, Arc::clone(&serve)));
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    });
    Ok(Response::new(Full::default()))
}

async fn answer(request: Request<Incoming>, serve: Serve) -> io::Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(serve(parts, body).await?.map(Full::new))
}

/// An answer, whose media type is told by how it begins.
pub fn said(status: u16, body: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::copy_from_slice(body.as_bytes()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let kind = match body.starts_with('<') {
        true => "text/xml",
        false => "application/json",
    };
    response.headers_mut().insert("content-type", kind.parse().unwrap());
    response
}

fn certify(folder: &Path) -> TlsAcceptor {
    let openssl = |text: &str| {
        let output = Command::new("openssl")
            .args(text.split(' '))
            .args("-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split(' '))
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    openssl("req -x509 -subj /CN=tests -keyout ca.key -out ca.crt");
    let names = HOSTS.map(|host| format!("DNS:{host}")).join(",");
    openssl(&format!(
        "req -x509 -subj /CN=internet -keyout leaf.key -out leaf.crt -CA ca.crt -CAkey ca.key \
         -addext basicConstraints=critical,CA:FALSE -addext subjectAltName={names}"
    ));
    let chain = vec![CertificateDer::from_pem_file(folder.join("leaf.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join("leaf.key")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    TlsAcceptor::from(Arc::new(config.unwrap()))
}
