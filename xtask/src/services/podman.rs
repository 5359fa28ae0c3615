//! Podman: its API service on a socket of its own, with storage, state and configuration of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, Place, Server, engine, leftovers};
use crate::error::{Context, Result};
use crate::{random, sh};

pub(super) static ROOTFUL: Podman = Podman;

/// One of the services.
pub(super) struct Podman;

impl Server for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn about(&self) -> &'static str {
        "Debian's podman 4.3, run by root"
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn install(&self, _cache: &Path) -> Result<PathBuf> {
        sh::need("podman")
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let folder = &place.data;
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n",
            folder.join("root"),
            run_root(place)
        );
        let containers = containers_conf(folder);
        // Test registries on loopback have no certificate.
        let registries = "[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n";
        let mut command = Command::new(&place.program);
        for (variable, name, text) in [
            ("CONTAINERS_CONF", "containers.conf", containers.as_str()),
            ("CONTAINERS_STORAGE_CONF", "storage.conf", storage.as_str()),
            ("CONTAINERS_REGISTRIES_CONF", "registries.conf", registries),
        ] {
            let file = folder.join(name);
            fs::write(&file, text).context(|| format!("cannot write {}", file.display()))?;
            command.env(variable, file);
        }
        command
            .arg("--root")
            .arg(folder.join("root"))
            .arg("--runroot")
            .arg(run_root(place))
            .arg("--tmpdir")
            .arg(folder.join("tmp"))
            .args(["system", "service", "--time", "0"])
            .arg(self.address(place));
        let mut env = vec![("AGENTS_TEST_PODMAN", self.address(place))];
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

    fn clean(&self, place: &Place) -> Result<()> {
        leftovers::remove(&run_root(place))
    }
}

/// Podman takes no more than 50 characters here, because it makes sockets below.
fn run_root(place: &Place) -> PathBuf {
    let name = random::digest(&place.data.to_string_lossy());
    Path::new("/run/isolated-agents").join(name)
}

/// Two podmans share nothing: not even the locks, which are in shared memory under one name by default.
fn containers_conf(folder: &Path) -> String {
    format!(
        "[containers]\n\
         default_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\n\
         log_driver = \"k8s-file\"\n\
         \n\
         [engine]\n\
         cgroup_manager = \"cgroupfs\"\n\
         events_logger = \"file\"\n\
         lock_type = \"file\"\n\
         runtime = \"runc\"\n\
         static_dir = {:?}\n\
         tmp_dir = {:?}\n\
         volume_path = {:?}\n",
        folder.join("root/libpod"),
        folder.join("tmp"),
        folder.join("root/volumes"),
        files = engine::OPEN_FILES,
        processes = engine::PROCESSES,
    )
}

fn socket(place: &Place) -> PathBuf {
    place.data.join("podman.sock")
}
