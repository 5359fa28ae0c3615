//! Docker: a private daemon on a socket of its own, with its own containerd, beside whatever the machine runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::{Launch, Place, Server, engine};
use crate::error::{Context, Result};
use crate::sh;

pub(super) static OLD: Docker = Docker;

/// One of the daemons.
pub(super) struct Docker;

impl Server for Docker {
    fn name(&self) -> &'static str {
        "docker-old"
    }

    fn about(&self) -> &'static str {
        "Debian's dockerd 20.10, API 1.41"
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn patience(&self) -> u64 {
        60
    }

    fn install(&self, _cache: &Path) -> Result<PathBuf> {
        sh::need("dockerd")
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let socket = socket(place);
        let limit = json!({ "Name": "nofile", "Soft": engine::OPEN_FILES, "Hard": engine::OPEN_FILES });
        let config = json!({
            "hosts": [format!("unix://{}", socket.display())],
            "data-root": place.data.join("data"),
            "exec-root": place.data.join("exec"),
            "pidfile": place.data.join("docker.pid"),
            "storage-driver": "overlay2",
            // No network of the host is touched: containers have their loopback alone.
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "default-ulimits": { "nofile": limit },
            "shutdown-timeout": 5,
        });
        let file = place.data.join("daemon.json");
        fs::write(&file, config.to_string()).context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(&place.program);
        command.arg("--config-file").arg(file);
        let mut env = vec![("AGENTS_TEST_DOCKER_OLD", self.address(place))];
        env.extend(engine::image_variables());
        Ok(Launch { command, env })
    }

    fn address(&self, place: &Place) -> String {
        format!("unix://{}", socket(place).display())
    }

    fn ready(&self, place: &Place) -> bool {
        engine::ready(&socket(place))
    }

    fn fill(&self, place: &Place) -> Result<()> {
        engine::import_images(&socket(place))
    }

    fn retire(&self, place: &Place) {
        engine::remove_containers(&socket(place));
    }
}

fn socket(place: &Place) -> PathBuf {
    place.data.join("docker.sock")
}
