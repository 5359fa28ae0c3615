//! Azure Blob Storage: Azurite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, Place, Server, cache, http, pypi};
use crate::error::{Context, Error, Result};
use crate::{paths, random, sh};

/// Microsoft's own emulator: checks keys and shared access signatures with their expiry.
pub(super) struct Azurite;

const VERSION: &str = "3.35.0";
const RECIPE: &str = "npm install --omit=dev; 1";
const MAIN: &str = "node_modules/azurite/dist/src/blob/main.js";

const CONTAINER: &str = "agents";
const ACCOUNT: &str = "agentstest";
const KEY_FILE: &str = "account-key";

/// Microsoft's own client, as a second opinion.
const CLIENT: &[&str] = &["azure-storage-blob==12.31.1"];

/// Makes the container: an account is born without one, and every request must be signed.
const FILL: &str = r#"
import sys
from azure.storage.blob import BlobServiceClient
url, account, key_file, container = sys.argv[1:]
key = open(key_file).read()
BlobServiceClient(url, {"account_name": account, "account_key": key}).create_container(container)
"#;

impl Server for Azurite {
    fn name(&self) -> &'static str {
        "azurite"
    }

    fn about(&self) -> &'static str {
        "Azure Blob Storage; no user delegation, no versions"
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn install(&self, cache: &Path) -> Result<PathBuf> {
        cache::once(&cache.join("azurite"), VERSION, RECIPE, |building| {
            let npm = sh::find("npm")
                .ok_or_else(|| Error::new("`npm` is missing; install Node.js 20 or newer, or `apt-get install npm`"))?;
            println!("installing azurite {VERSION}");
            let kept = building.join("kept");
            fs::create_dir(&kept).context(|| format!("cannot create {}", kept.display()))?;
            sh::output(
                Command::new(npm)
                    .args(["install", "--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts"])
                    .arg("--cache")
                    .arg(building.join("npm-cache"))
                    .arg("--prefix")
                    .arg(&kept)
                    .arg(format!("azurite@{VERSION}"))
                    .current_dir(&kept),
            )?;
            Ok(kept)
        })
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        // Keys are base64, and a hexadecimal text of this length is that too.
        let key = random::hex(32)?;
        let file = place.data.join(KEY_FILE);
        fs::write(&file, &key).context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new("node");
        command
            .arg(place.program.join(MAIN))
            .args(["--blobHost", "127.0.0.1", "--blobPort", &place.port.to_string()])
            .args([
                "--skipApiVersionCheck",
                "--disableProductStyleUrl",
                "--disableTelemetry",
                "--silent",
            ])
            .arg("--location")
            .arg(&place.data)
            .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{key}"));
        Ok(Launch {
            command,
            env: vec![
                ("AGENTS_TEST_AZURITE", url(place)),
                ("AGENTS_TEST_AZURITE_ACCOUNT", ACCOUNT.to_owned()),
                ("AGENTS_TEST_AZURITE_KEY", key),
                ("AGENTS_TEST_AZURITE_CONTAINER", CONTAINER.to_owned()),
                ("AGENTS_TEST_AZURITE_PYTHONPATH", client()?.display().to_string()),
            ],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        // Unsigned and incomplete, and refused as such.
        http::status(place.port, "/") == Some(400)
    }

    fn fill(&self, place: &Place) -> Result<()> {
        sh::output(
            Command::new("python3")
                .args(["-c", FILL, &url(place), ACCOUNT])
                .arg(place.data.join(KEY_FILE))
                .arg(CONTAINER)
                .env("PYTHONPATH", client()?),
        )
        .map(drop)
    }
}

/// The account's own address: the account is the first part of the path, as there is no name service here.
fn url(place: &Place) -> String {
    format!("http://127.0.0.1:{}/{ACCOUNT}", place.port)
}

fn client() -> Result<PathBuf> {
    pypi::install(&paths::cache()?.join("services"), "azure-storage-blob", CLIENT)
}
