//! Docker: a private daemon on a socket of its own, with its own containerd, beside whatever the machine runs.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::golang::Program;
use super::{Launch, Place, Server, engine, runtimes};
use crate::error::{Context, Result};
use crate::sh;

pub(super) static OLD: Docker = Docker { new: false };
pub(super) static NEW: Docker = Docker { new: true };

/// Today's daemon, of the line that became Docker 29.
const DOCKERD: Program = Program::new("dockerd", "github.com/moby/moby/v2/cmd/dockerd", "v2.0.0-beta.24")
    .tags("netgo,osusergo,exclude_graphdriver_btrfs,exclude_graphdriver_devicemapper");

/// One of the daemons.
pub(super) struct Docker {
    new: bool,
}

impl Server for Docker {
    fn name(&self) -> &'static str {
        if self.new { "docker-new" } else { "docker-old" }
    }

    fn about(&self) -> &'static str {
        if self.new {
            "dockerd of the moby module, API 1.56"
        } else {
            "Debian's dockerd 20.10, API 1.41"
        }
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn patience(&self) -> u64 {
        60
    }

    fn install(&self, cache: &Path) -> Result<PathBuf> {
        engine::need_root(self.name())?;
        runtimes::install()?;
        if self.new {
            return Ok(DOCKERD.install(cache)?.join("bin/dockerd"));
        }
        sh::need("dockerd")
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let limit = json!({ "Name": "nofile", "Soft": engine::OPEN_FILES, "Hard": engine::OPEN_FILES });
        let config = json!({
            "hosts": [self.address(place)],
            "data-root": place.data.join("data"),
            "exec-root": place.data.join("exec"),
            "pidfile": place.data.join("docker.pid"),
            "storage-driver": "overlay2",
            // No network of the host is touched: containers have their loopback alone.
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "default-ulimits": { "nofile": limit },
            "runtimes": runtimes::for_docker()?,
            "shutdown-timeout": 5,
        });
        let file = place.data.join("daemon.json");
        fs::write(&file, config.to_string()).context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(&place.program);
        command.arg("--config-file").arg(file);
        if self.new {
            // The daemon takes the first `runc` that it finds, and Debian's is too old for it.
            command.env("PATH", path_with(&runtimes::runc()?));
        }
        let mut env = engine::variables()?;
        let variable = if self.new {
            "AGENTS_TEST_DOCKER_NEW"
        } else {
            "AGENTS_TEST_DOCKER_OLD"
        };
        env.push((variable, self.address(place)));
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

/// Our own search path with the program's folder before all others.
fn path_with(program: &Path) -> OsString {
    let mut path = OsString::from(program.parent().unwrap_or(program));
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path.push(":/usr/sbin:/sbin");
    path
}
