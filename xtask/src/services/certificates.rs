//! Certificates for servers that tests reach over TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Result};
use crate::sh;

/// Makes `public.crt` with `private.key` in the folder, for the loopback address; returns the certificate of the
/// authority that signed it.
pub(super) fn certify(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
    let openssl = |arguments: &[&str]| sh::output(Command::new("openssl").args(arguments).current_dir(folder));
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
    ];
    openssl(
        &[
            &[
                "req",
                "-x509",
                "-subj",
                "/CN=tests",
                "-keyout",
                "ca.key",
                "-out",
                "ca.crt",
            ],
            key.as_slice(),
        ]
        .concat(),
    )?;
    openssl(
        &[
            &[
                "req",
                "-x509",
                "-subj",
                "/CN=localhost",
                "-keyout",
                "private.key",
                "-out",
                "public.crt",
            ],
            key.as_slice(),
            &[
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ],
            &["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
        ]
        .concat(),
    )?;
    Ok(folder.join("ca.crt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_vouches_for_the_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let authority = certify(folder.path()).unwrap();
        sh::output(
            Command::new("openssl")
                .args(["verify", "-verify_ip", "127.0.0.1", "-CAfile"])
                .arg(authority)
                .arg(folder.path().join("public.crt")),
        )
        .unwrap();
    }
}
