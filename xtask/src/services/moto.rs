//! moto: the shapes of Amazon's services. It checks neither signatures nor most limits.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, Place, Server, http, pypi};
use crate::error::Result;
use crate::sh;

pub(super) static MOTO: Moto = Moto;

const PACKAGES: &[&str] = &["moto[server]==5.2.1"];

/// The server.
pub(super) struct Moto;

impl Server for Moto {
    fn name(&self) -> &'static str {
        "moto"
    }

    fn about(&self) -> &'static str {
        "shapes of AWS services, such as CloudWatch Logs; checks no signature"
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn patience(&self) -> u64 {
        60
    }

    fn install(&self, cache: &Path) -> Result<PathBuf> {
        pypi::install(cache, "moto", PACKAGES)
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let mut command = Command::new(sh::need("python3")?);
        command
            .env("PYTHONPATH", &place.program)
            .args(["-m", "moto.server", "--host", "127.0.0.1", "--port"])
            .arg(place.port.to_string());
        Ok(Launch {
            command,
            env: vec![("AGENTS_TEST_MOTO", format!("http://127.0.0.1:{}", place.port))],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        http::status(place.port, "/moto-api/") == Some(200)
    }
}
