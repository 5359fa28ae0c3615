//! Servers that speak S3 and check what they are sent: signatures, expiry, conditions, checksums.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::golang::Program;
use super::{Launch, Place, Server, http};
use crate::error::{Context, Result};
use crate::random;

/// The bucket that tests find in each of them.
const BUCKET: &str = "agents";

/// The gateway of Versity over a plain folder: small, strict, and up at once.
pub(super) struct Versitygw;

const VERSITYGW: Program = Program::new("versitygw", "github.com/versity/versitygw/cmd/versitygw", "v1.8.0");

impl Server for Versitygw {
    fn name(&self) -> &'static str {
        "versitygw"
    }

    fn about(&self) -> &'static str {
        "S3 over a folder; ignores encryption headers"
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn install(&self, cache: &Path) -> Result<PathBuf> {
        VERSITYGW.install(cache)
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let buckets = place.data.join("buckets");
        let versions = place.data.join("versions");
        // A folder below the root is a bucket.
        for folder in [&buckets.join(BUCKET), &versions] {
            fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
        }
        let address = format!("127.0.0.1:{}", place.port);
        let key = random::hex(10)?;
        let secret = random::hex(20)?;
        let mut command = Command::new(place.program.join("bin/versitygw"));
        command
            .env("ROOT_ACCESS_KEY", &key)
            .env("ROOT_SECRET_KEY", &secret)
            .args(["--port", &address, "--region", "us-east-1", "--keep-alive", "--quiet"])
            .args(["--health", "/health"])
            .arg("posix")
            .arg("--versioning-dir")
            .arg(versions)
            .arg(buckets);
        Ok(Launch {
            command,
            env: vec![
                ("AGENTS_TEST_VERSITYGW", format!("http://{address}")),
                ("AGENTS_TEST_VERSITYGW_BUCKET", BUCKET.to_owned()),
                ("AGENTS_TEST_VERSITYGW_KEY", key),
                ("AGENTS_TEST_VERSITYGW_SECRET", secret),
            ],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        http::status(place.port, "/health") == Some(200)
    }
}
