//! A proxy that cuts, delays and throttles connections: toxiproxy.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::golang::Program;
use super::{Launch, Place, Server, http};
use crate::error::Result;

/// Tests make their own proxies through its HTTP API, on ports that it chooses.
pub(super) struct Toxiproxy;

const TOXIPROXY: Program = Program::new("toxiproxy", "github.com/Shopify/toxiproxy/v2/cmd/server", "v2.5.0");

impl Server for Toxiproxy {
    fn name(&self) -> &'static str {
        "toxiproxy"
    }

    fn about(&self) -> &'static str {
        "TCP proxy that cuts, delays and throttles on demand"
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn install(&self, cache: &Path) -> Result<PathBuf> {
        TOXIPROXY.install(cache)
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let mut command = Command::new(place.program.join("bin/toxiproxy"));
        command
            .args(["-host", "127.0.0.1", "-port", &place.port.to_string()])
            // No line per connection.
            .env("LOG_LEVEL", "warn");
        Ok(Launch {
            command,
            env: vec![("AGENTS_TEST_TOXIPROXY", format!("http://127.0.0.1:{}", place.port))],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        http::status(place.port, "/version") == Some(200)
    }
}
