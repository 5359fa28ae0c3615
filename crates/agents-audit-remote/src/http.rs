//! A client of HTTP, and bodies that are compressed.

use std::{io::Write, path::Path, time::Duration};

use agents_core::{Error, Result};
use flate2::{Compression, write::GzEncoder};
use reqwest::{Certificate, Client, redirect::Policy};

/// How long it may take until a connection stands.
const CONNECT: Duration = Duration::from_secs(5);

/// A client with this `User-Agent`, which trusts these certificates (PEM, the configuration's `tls_ca_file`) alone, or those of
/// the system. It follows no redirection, since elsewhere nobody has a right to the credentials in its headers.
///
/// # Errors
///
/// `ConfigInvalid` for a file without a certificate, and those of reading it.
pub fn client(user_agent: &str, tls_ca_file: Option<&Path>) -> Result<Client> {
    // The client wants one for the process. If another part of the program chose one, that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(user_agent)
        .connect_timeout(CONNECT)
        .redirect(Policy::none());
    if let Some(file) = tls_ca_file {
        let pem = std::fs::read(file)
            .map_err(|error| Error::io(format!("cannot read tls_ca_file {}", file.display()), error))?;
        let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if certificates.is_empty() {
            return Err(Error::invalid(format!(
                "tls_ca_file {} holds no certificate in PEM",
                file.display()
            )));
        }
        builder = builder.tls_certs_only(certificates);
    }
    builder
        .build()
        .map_err(|error| Error::unexpected("no HTTP client could be made").with_source(error))
}

/// A body for `Content-Encoding: gzip`.
///
/// # Errors
///
/// Those of the encoder.
pub fn gzip(body: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder
        .write_all(body)
        .and_then(|()| encoder.finish())
        .map_err(|error| Error::io("the request could not be compressed", error))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn certificates_are_read_or_named() {
        client("test/1", None).unwrap();
        let error = client("test/1", Some(Path::new("/no/such.pem"))).unwrap_err();
        assert!(error.message().contains("tls_ca_file /no/such.pem"), "{error}");
        let error = client("test/1", Some(Path::new("/dev/null"))).unwrap_err();
        assert!(error.message().contains("no certificate"), "{error}");
    }

    #[test]
    fn what_is_compressed_is_the_same_again() {
        let mut text = String::new();
        let body = gzip(b"one two").unwrap();
        flate2::read::GzDecoder::new(&*body).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
    }
}
