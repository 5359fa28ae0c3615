//! Servers that speak S3 and check what they are sent: signatures, expiry, conditions, checksums.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::golang::Program;
use super::{Launch, Place, Server, certificates, http, pypi};
use crate::error::{Context, Result};
use crate::{paths, random, sh};

/// The bucket that tests find in each of them.
const BUCKET: &str = "agents";

/// Amazon's own client, as a second opinion.
const CLIENT: &[&str] = &["awscli==1.46.3"];

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
        let bucket = buckets.join(BUCKET);
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
                // Where its objects are files, for tests that look or tamper behind its back.
                ("AGENTS_TEST_VERSITYGW_FOLDER", bucket.display().to_string()),
                ("AGENTS_TEST_VERSITYGW_KEY", key),
                ("AGENTS_TEST_VERSITYGW_SECRET", secret),
                ("AGENTS_TEST_AWS_PYTHONPATH", client()?.display().to_string()),
            ],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        http::status(place.port, "/health") == Some(200)
    }
}

/// The other server, over TLS with a certificate authority of its own: encryption with the customer's keys, which
/// S3 refuses without TLS, and with the server's.
pub(super) struct Minio;

const MINIO: Program = Program::new("minio", "github.com/minio/minio", "v0.0.0-20260212201848-7aac2a2c5b7c");

impl Server for Minio {
    fn name(&self) -> &'static str {
        "minio"
    }

    fn about(&self) -> &'static str {
        "S3 over TLS with encryption, lifecycle rules and policies"
    }

    fn default_tier(&self) -> bool {
        false
    }

    fn install(&self, cache: &Path) -> Result<PathBuf> {
        MINIO.install(cache)
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let drive = place.data.join("drive");
        // A folder on the drive is a bucket.
        let bucket = drive.join(BUCKET);
        fs::create_dir_all(&bucket).context(|| format!("cannot create {}", bucket.display()))?;
        let authority = certificates::certify(&place.data.join("certs"))?;
        let address = format!("127.0.0.1:{}", place.port);
        let key = random::hex(10)?;
        let secret = random::hex(20)?;
        let mut command = Command::new(place.program.join("bin/minio"));
        command
            .env("MINIO_ROOT_USER", &key)
            .env("MINIO_ROOT_PASSWORD", &secret)
            .env("MINIO_KMS_SECRET_KEY", format!("{KMS_KEY}:{}", kms_secret()?))
            .env("MINIO_BROWSER", "off")
            .env("MINIO_UPDATE", "off")
            .args(["server", "--quiet", "--address", &address, "--certs-dir"])
            .arg(place.data.join("certs"))
            .arg(drive);
        Ok(Launch {
            command,
            env: vec![
                ("AGENTS_TEST_MINIO", format!("https://{address}")),
                ("AGENTS_TEST_MINIO_BUCKET", BUCKET.to_owned()),
                ("AGENTS_TEST_MINIO_KEY", key),
                ("AGENTS_TEST_MINIO_SECRET", secret),
                ("AGENTS_TEST_MINIO_CA", authority.display().to_string()),
                ("AGENTS_TEST_MINIO_KMS_KEY", KMS_KEY.to_owned()),
                ("AGENTS_TEST_AWS_PYTHONPATH", client()?.display().to_string()),
            ],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        // What it says to a client that forgot TLS.
        http::status(place.port, "/minio/health/live") == Some(400)
    }
}

/// The name of the key that the server encrypts with.
const KMS_KEY: &str = "agents-key";

fn kms_secret() -> Result<String> {
    Ok(sh::output(Command::new("openssl").args(["rand", "-base64", "32"]))?
        .trim()
        .to_owned())
}

fn client() -> Result<PathBuf> {
    pypi::install(&paths::cache()?.join("services"), "awscli", CLIENT)
}
