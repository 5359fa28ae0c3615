//! Pulling from a registry with `oci-client`.

use std::{
    error::Error as StdError,
    fs::File,
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use agents_core::error::{Error, ErrorKind, Result};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use oci_client::{
    Client, Reference,
    client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol, SizedStream},
    errors::{DigestError, OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use tokio::sync::mpsc;

use crate::{
    archive::{Image, layer_specs},
    auth::{self, Found},
    digest::Digest,
    layer::{Job, LayerSpec, mismatch, store_layer},
    manifest::{ConfigFile, Descriptor, Document, MAX_DOCUMENT, Manifest, too_large},
    options::{Credentials, ResolveOptions},
    reference::{RegistryRef, quoted},
    resolve::blocking,
    store::ImageStore,
};

const ACCEPT: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a single byte.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// For a whole manifest or configuration.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a blob is asked for before giving up.
const TRIES: u32 = 4;
/// Chunks between the network and the unpacker. One is at most a few hundred KiB.
const CHUNKS: usize = 4;

/// A repository in a registry.
pub(crate) struct Registry {
    client: Client,
    auth: RegistryAuth,
    name: RegistryRef,
    reference: Reference,
    /// Where credentials came from, for messages.
    file: Option<PathBuf>,
    given: bool,
}

impl Registry {
    pub(crate) fn connect(name: &RegistryRef, options: &ResolveOptions) -> Result<Self> {
        // Fails when the program has installed a provider of its own, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();

        let mut file = None;
        let auth = match &options.credentials {
            Credentials::Anonymous => RegistryAuth::Anonymous,
            Credentials::Basic { username, password } => RegistryAuth::Basic(username.clone(), password.clone()),
            Credentials::Files => match auth::find(name, &auth::files(|variable| std::env::var_os(variable)))? {
                Found::Nothing => RegistryAuth::Anonymous,
                Found::Basic {
                    username,
                    password,
                    file: from,
                } => {
                    file = Some(from);
                    RegistryAuth::Basic(username, password)
                }
                Found::Bearer { token, file: from } => {
                    file = Some(from);
                    RegistryAuth::Bearer(token)
                }
            },
        };
        let insecure = options
            .insecure_registries
            .iter()
            .any(|registry| registry == name.registry());
        let plain = insecure || name.is_loopback();
        let set_up = |extra_root_certificates| {
            let mut config = ClientConfig {
                protocol: if plain {
                    ClientProtocol::Http
                } else {
                    ClientProtocol::Https
                },
                connect_timeout: Some(CONNECT_TIMEOUT),
                read_timeout: Some(READ_TIMEOUT),
                user_agent: concat!("isolated-agents/", env!("CARGO_PKG_VERSION")),
                extra_root_certificates,
                ..ClientConfig::default()
            };
            if name.is_loopback() {
                spare_loopback(&mut config, |variable| std::env::var(variable).ok());
            }
            Client::try_from(config).map_err(|error| {
                Error::unsupported(format!(
                    "cannot pull {name}: this machine has no usable CA certificates; install the package ca-certificates or set SSL_CERT_FILE"
                ))
                .with_source(error)
            })
        };
        // oci-client makes a default client beside the one asked for, and panics when the system has no certificates at all.
        // Without certificates of our own the one asked for fails first, so that one comes first.
        let mut client = set_up(Vec::new())?;
        let own = if plain {
            Vec::new()
        } else {
            certificates(name.registry())
        };
        if !own.is_empty() {
            client = set_up(own)?;
        }
        let (registry, repository) = (name.registry().to_owned(), name.repository().to_owned());
        let reference = match (name.pinned(), name.tag()) {
            (Some(digest), _) => Reference::with_digest(registry, repository, digest.to_string()),
            (None, tag) => Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
        };
        let given = !matches!(auth, RegistryAuth::Anonymous);
        Ok(Self {
            client,
            auth,
            name: name.clone(),
            reference,
            file,
            given,
        })
    }

    /// The documents of the image for this machine, verified. A configuration that is in the store is not asked for.
    pub(crate) async fn image(&self, store: &ImageStore) -> Result<Image> {
        let mut reference = self.reference.clone();
        let mut expected = self.name.pinned().cloned();
        for _ in 0..4 {
            let bytes = self.manifest(&reference).await?;
            let digest = Digest::of(&bytes);
            if let Some(expected) = &expected
                && *expected != digest
            {
                return Err(self.named(mismatch("the manifest", expected, &digest)));
            }
            match Document::parse(&bytes).map_err(|error| self.named(error))? {
                Document::Index(index) => {
                    let chosen = index
                        .choose()
                        .and_then(Descriptor::digest)
                        .map_err(|error| self.named(error))?;
                    reference = self.reference.clone_with_digest(chosen.to_string());
                    expected = Some(chosen);
                }
                Document::Manifest(manifest) => {
                    return self
                        .with_config(store, (digest, bytes), &manifest)
                        .await
                        .map_err(|error| self.named(error));
                }
            }
        }
        Err(self.named(Error::new(
            ErrorKind::DataInvalid,
            "the indexes of the image are nested too deep",
        )))
    }

    async fn with_config(
        &self,
        store: &ImageStore,
        manifest_: (Digest, Vec<u8>),
        manifest: &Manifest,
    ) -> Result<Image> {
        let config = manifest.config.digest()?;
        let config_bytes = match store.read_blob(&config)? {
            Some(bytes) => bytes,
            None => self.small_blob(&config).await?,
        };
        let layers = layer_specs(manifest, &ConfigFile::parse(&config_bytes)?)?;
        Ok(Image {
            manifest: Some(manifest_),
            config,
            config_bytes,
            layers,
            files: Vec::new(),
        })
    }

    async fn manifest(&self, reference: &Reference) -> Result<Vec<u8>> {
        let mut tries = 0;
        loop {
            tries += 1;
            let pull = self.client.pull_manifest_raw(reference, &self.auth, ACCEPT);
            let error = match tokio::time::timeout(DOCUMENT_TIMEOUT, pull).await {
                Ok(Ok((bytes, _))) => return Ok(bytes.to_vec()),
                Ok(Err(error)) => self.error(error),
                Err(_) => self.slow(),
            };
            // A registry that is down is the caller's to wait for; only a hiccup is retried here.
            if tries >= 2 || !error.is_temporary() || error.kind() == ErrorKind::RateLimited {
                return Err(error);
            }
            tokio::time::sleep(backoff(tries)).await;
        }
    }

    async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let pull = async {
            let mut stream = self.blob(digest, 0).await?.0;
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.next().await {
                bytes.extend_from_slice(&chunk.map_err(|error| self.stream_error(error))?);
                if bytes.len() > MAX_DOCUMENT {
                    return Err(too_large("configuration"));
                }
            }
            let found = Digest::of(&bytes);
            if found != *digest {
                return Err(mismatch("the configuration", digest, &found));
            }
            Ok(bytes)
        };
        tokio::time::timeout(DOCUMENT_TIMEOUT, pull)
            .await
            .unwrap_or_else(|_| Err(self.slow()))
    }

    /// Streams a layer into the store.
    pub(crate) async fn layer(self: Arc<Self>, job: Job, spec: LayerSpec, lock: File) -> Result<Vec<String>> {
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let Some(digest) = spec.compressed.clone() else {
            return Err(Error::unexpected("a layer in a registry has no digest"));
        };
        let size = spec.size;
        let unpack = blocking(move || store_layer(&job, &spec, ChunkReader::new(receiver), lock));
        let download = async {
            // Owned by this future, so that its end closes the channel.
            let sender = sender;
            let last = self.download(&digest, size, &sender).await;
            // Nobody listens any more when unpacking has failed.
            let _ = sender.send(last.map(|()| None)).await;
        };
        let ((), unpacked) = tokio::join!(download, unpack);
        unpacked
    }

    /// Sends the blob in chunks. After a cut it goes on where it was.
    async fn download(&self, digest: &Digest, size: Option<u64>, sender: &mpsc::Sender<Chunk>) -> Result<()> {
        let mut offset = 0;
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.download_from(digest, size, &mut offset, sender).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if tries >= TRIES || !error.is_temporary() || error.kind() == ErrorKind::RateLimited {
                return Err(error);
            }
            tracing::debug!(%digest, offset, error = %error.report(), "trying again to pull a layer");
            tokio::time::sleep(backoff(tries)).await;
        }
    }

    async fn download_from(
        &self,
        digest: &Digest,
        size: Option<u64>,
        offset: &mut u64,
        sender: &mpsc::Sender<Chunk>,
    ) -> Result<()> {
        let (mut stream, partial) = self.blob(digest, *offset).await?;
        // A registry that does not know ranges starts from the beginning.
        let mut skip = if partial { 0 } else { *offset };
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk.map_err(|error| self.stream_error(error))?;
            let skipped = skip.min(chunk.len() as u64);
            chunk.advance(skipped as usize);
            skip -= skipped;
            *offset += chunk.len() as u64;
            if size.is_some_and(|size| *offset > size) {
                return Err(Error::new(
                    ErrorKind::DataInvalid,
                    "the layer is larger than its manifest says",
                ));
            }
            if !chunk.is_empty() && sender.send(Ok(Some(chunk))).await.is_err() {
                return Ok(());
            }
        }
        if size.is_some_and(|size| *offset < size) {
            return Err(self.cut());
        }
        Ok(())
    }

    async fn blob(&self, digest: &Digest, offset: u64) -> Result<(SizedStream, bool)> {
        let digest = digest.to_string();
        let digest = digest.as_str();
        let response = if offset == 0 {
            self.client
                .pull_blob_stream(&self.reference, digest)
                .await
                .map(|stream| (stream, false))
        } else {
            match self
                .client
                .pull_blob_stream_partial(&self.reference, digest, offset, None)
                .await
            {
                Ok(BlobResponse::Full(stream)) => Ok((stream, false)),
                Ok(BlobResponse::Partial(stream)) => Ok((stream, true)),
                Err(error) => Err(error),
            }
        };
        response.map_err(|error| self.error(error))
    }

    fn named(&self, error: Error) -> Error {
        error.with_context("image", &self.name)
    }

    fn slow(&self) -> Error {
        Error::new(
            ErrorKind::Timeout,
            format!(
                "the registry {} does not answer in time for {}; try again",
                self.name.registry(),
                self.name
            ),
        )
        .temporary(None)
    }

    fn cut(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "the connection to the registry {} was cut; try again",
                self.name.registry()
            ),
        )
        .temporary(None)
    }

    fn error(&self, error: OciDistributionError) -> Error {
        let registry = self.name.registry();
        let name = &self.name;
        let kind = classify(&error);
        let base = match kind {
            Failure::NotFound => Error::not_found(format!(
                "there is no image {name}; check its name and tag{}",
                if name.registry() == "docker.io" {
                    ", and whether it needs a registry in front"
                } else {
                    ""
                }
            )),
            Failure::Unauthenticated => {
                let advice = match &self.file {
                    Some(file) => format!("the credentials in {} were not accepted", quoted(file)),
                    None if self.given => "the given credentials were not accepted".into(),
                    None => {
                        let files = auth::files(|variable| std::env::var_os(variable));
                        let shown: Vec<_> = files.iter().map(quoted).collect();
                        format!("no credentials for {registry} are in {}", shown.join(", "))
                    }
                };
                return Error::new(
                    ErrorKind::Unauthenticated,
                    format!(
                        "the registry {registry} does not let us pull {name}: {advice}; run `docker login {registry}` or `podman login {registry}`, or check the name"
                    ),
                )
                .with_source(error);
            }
            Failure::Denied => Error::new(
                ErrorKind::PermissionDenied,
                format!("the registry {registry} denies access to {name}; check the name and what the account may do"),
            ),
            Failure::RateLimited => Error::new(
                ErrorKind::RateLimited,
                format!(
                    "the registry {registry} takes no more requests for {name} now; wait, or log in for a higher limit"
                ),
            )
            .temporary(None),
            Failure::Unavailable => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "cannot reach the registry {registry} for {name}; check the network and the name of the registry"
                ),
            )
            .temporary(None),
            Failure::Timeout => return self.slow().with_source(error),
            Failure::Certificate => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "cannot pull {name}: the certificate of the registry is not trusted; put its CA into /etc/containers/certs.d/{registry}/ca.crt"
                ),
            ),
            Failure::PlainHttp => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "cannot pull {name}: the registry does not speak TLS; name it as an insecure registry if that is meant"
                ),
            ),
            Failure::Damaged => Error::new(
                ErrorKind::DataInvalid,
                format!("the registry {registry} sent damaged data for {name}"),
            ),
            Failure::Other => Error::unexpected(format!("the registry {registry} failed to deliver {name}")),
        };
        base.with_source(error)
    }

    fn stream_error(&self, error: io::Error) -> Error {
        if error.get_ref().is_some_and(|inner| inner.is::<DigestError>()) {
            return Error::new(ErrorKind::DataInvalid, "the data is not what its digest promises").with_source(error);
        }
        self.cut().with_source(error)
    }
}

/// What went wrong, before it has words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    NotFound,
    Unauthenticated,
    Denied,
    RateLimited,
    Unavailable,
    Timeout,
    Certificate,
    PlainHttp,
    Damaged,
    Other,
}

fn classify(error: &OciDistributionError) -> Failure {
    use OciDistributionError as E;
    match error {
        E::UnauthorizedError { .. } | E::AuthenticationFailure(_) => Failure::Unauthenticated,
        E::ImageManifestNotFoundError(_) => Failure::NotFound,
        E::ServerError { code, .. } => of_status(*code),
        E::RegistryError { envelope, .. } => envelope
            .errors
            .first()
            .map_or(Failure::Other, |error| match error.code {
                OciErrorCode::ManifestUnknown
                | OciErrorCode::NameUnknown
                | OciErrorCode::BlobUnknown
                | OciErrorCode::NotFound => Failure::NotFound,
                OciErrorCode::Unauthorized => Failure::Unauthenticated,
                OciErrorCode::Denied => Failure::Denied,
                OciErrorCode::Toomanyrequests => Failure::RateLimited,
                _ => Failure::Other,
            }),
        E::RequestError(error) => {
            if let Some(status) = error.status() {
                of_status(status.as_u16())
            } else if let Some(failure) = tls_failure(error) {
                failure
            } else if error.is_timeout() && !error.is_connect() {
                Failure::Timeout
            } else if error.is_builder() {
                Failure::Other
            } else {
                Failure::Unavailable
            }
        }
        E::IoError(_) => Failure::Unavailable,
        E::DigestError(_)
        | E::JsonError(_)
        | E::ManifestEncodingError(_)
        | E::ManifestParsingError(_)
        | E::VersionedParsingError(_)
        | E::RegistryNoDigestError
        | E::SpecViolationError(_) => Failure::Damaged,
        _ => Failure::Other,
    }
}

fn of_status(code: u16) -> Failure {
    match code {
        401 => Failure::Unauthenticated,
        403 => Failure::Denied,
        404 => Failure::NotFound,
        408 | 504 => Failure::Timeout,
        429 => Failure::RateLimited,
        500.. => Failure::Unavailable,
        _ => Failure::Other,
    }
}

fn tls_failure(error: &(dyn StdError + 'static)) -> Option<Failure> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return match tls {
                rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                    Some(Failure::Certificate)
                }
                rustls::Error::InvalidMessage(_) => Some(Failure::PlainHttp),
                _ => None,
            };
        }
        // The source of an I/O error is that of the error inside, so look at the one inside first.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// A proxy from the environment would be asked for loopback, too, unless `NO_PROXY` says otherwise.
fn spare_loopback(config: &mut ClientConfig, variable: impl Fn(&str) -> Option<String>) {
    let first = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| variable(name).filter(|value| !value.is_empty()))
    };
    let all = first(&["all_proxy", "ALL_PROXY"]);
    config.http_proxy = first(&["http_proxy", "HTTP_PROXY"]).or_else(|| all.clone());
    config.https_proxy = first(&["https_proxy", "HTTPS_PROXY"]).or(all);
    let others = first(&["no_proxy", "NO_PROXY"]).unwrap_or_default();
    config.no_proxy = Some(format!("localhost,127.0.0.0/8,::1,{others}"));
}

fn backoff(tries: u32) -> Duration {
    Duration::from_millis(100 << tries.min(6))
}

/// CA certificates for one registry, from where Docker and podman look for them.
fn certificates(registry: &str) -> Vec<Certificate> {
    let mut found = Vec::new();
    for folder in ["/etc/docker/certs.d", "/etc/containers/certs.d"] {
        let Ok(entries) = std::fs::read_dir(PathBuf::from(folder).join(registry)) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "crt")
                && let Ok(data) = std::fs::read(&path)
            {
                found.push(Certificate {
                    encoding: CertificateEncoding::Pem,
                    data,
                });
            }
        }
    }
    found
}

/// Bytes, the end, or why there are no more.
type Chunk = Result<Option<Bytes>>;

/// Reads in a blocking thread what the network delivers.
struct ChunkReader {
    receiver: mpsc::Receiver<Chunk>,
    chunk: Bytes,
    ended: bool,
}

impl ChunkReader {
    fn new(receiver: mpsc::Receiver<Chunk>) -> Self {
        Self {
            receiver,
            chunk: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Ok(Some(chunk))) => self.chunk = chunk,
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => return Err(io::Error::other(error)),
                // The end is always announced, so this is none.
                None => {
                    return Err(io::Error::other(Error::new(
                        ErrorKind::Cancelled,
                        "the image is no longer wanted",
                    )));
                }
            }
        }
        let n = buf.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_become_kinds() {
        for (code, failure) in [
            (401, Failure::Unauthenticated),
            (403, Failure::Denied),
            (404, Failure::NotFound),
            (429, Failure::RateLimited),
            (500, Failure::Unavailable),
            (503, Failure::Unavailable),
            (504, Failure::Timeout),
            (418, Failure::Other),
        ] {
            let error = OciDistributionError::ServerError {
                code,
                url: String::new(),
                message: String::new(),
            };
            assert_eq!(classify(&error), failure, "{code}");
        }
    }

    #[test]
    fn tls_errors_are_found_inside_io_errors() {
        let inner = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let outer = io::Error::other(io::Error::other(inner));
        assert_eq!(tls_failure(&outer), Some(Failure::Certificate));
        assert_eq!(tls_failure(&io::Error::other("x")), None);
    }
}
