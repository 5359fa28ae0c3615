//! TLS as docker has it: a folder with the engine's CA, and this side's certificate and key.

use std::{io, path::Path, sync::Arc};

use agents_core::{Error, Result};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

/// The client's side, with the certificates of a folder.
pub(crate) fn client(folder: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&folder.join("ca.pem"))? {
        roots
            .add(certificate)
            .map_err(|error| Error::invalid(format!("{}/ca.pem is no CA", folder.display())).with_source(error))?;
    }
    // By name: a program that uses two providers has no default one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::unexpected("TLS cannot be set up").with_source(error))?
        .with_root_certificates(roots);
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    if !certificate.exists() && !key.exists() {
        return Ok(builder.with_no_client_auth());
    }
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| unreadable(&key, error))?;
    builder
        .with_client_auth_cert(certificates(&certificate)?, key)
        .map_err(|error| {
            Error::invalid(format!(
                "the certificate and the key in {} do not fit",
                folder.display()
            ))
            .with_source(error)
        })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| unreadable(path, error))?
        .collect();
    let all = all.map_err(|error| unreadable(path, error))?;
    if all.is_empty() {
        return Err(Error::invalid(format!("{} has no certificate", path.display())));
    }
    Ok(all)
}

/// The source is left out where it could quote the file.
fn unreadable(path: &Path, error: pem::Error) -> Error {
    match error {
        pem::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => Error::not_found(format!(
            "{} is missing; cert_path is the folder with ca.pem, cert.pem and key.pem",
            path.display()
        )),
        pem::Error::Io(error) => Error::io(format!("cannot read {}", path.display()), error),
        _ => Error::invalid(format!("{} is not in the PEM format", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use agents_core::ErrorKind;

    use super::*;

    #[test]
    fn what_is_missing_or_broken_is_named_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let missing = client(folder.path()).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(missing.message().contains("ca.pem"), "{missing}");
        std::fs::write(folder.path().join("ca.pem"), "hunter2").unwrap();
        let broken = client(folder.path()).unwrap_err();
        assert_eq!(broken.kind(), ErrorKind::ConfigInvalid);
        assert!(!broken.report().contains("hunter2"), "{broken:?}");
    }
}
