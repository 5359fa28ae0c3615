//! Podman: its API service on a socket of its own, with storage, state and configuration of its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, Place, Server, account, engine, leftovers, runtimes};
use crate::error::{Context, Result};
use crate::sh;

pub(super) static ROOTFUL: Podman = Podman {
    name: "podman",
    about: "Debian's podman 4.3, run by root",
    variable: "AGENTS_TEST_PODMAN",
    rootless: false,
    runtime: "runc",
};

pub(super) static ROOTFUL_GVISOR: Podman = Podman {
    name: "podman-runsc",
    about: "the same with gVisor as its runtime",
    variable: "AGENTS_TEST_PODMAN_RUNSC",
    rootless: false,
    runtime: "runsc",
};

pub(super) static ROOTLESS: Podman = Podman {
    name: "podman-rootless",
    about: "Debian's podman 4.3, run by an ordinary user",
    variable: "AGENTS_TEST_PODMAN_ROOTLESS",
    rootless: true,
    runtime: "runc",
};

pub(super) static ROOTLESS_GVISOR: Podman = Podman {
    name: "podman-rootless-runsc",
    about: "the same with gVisor as its runtime",
    variable: "AGENTS_TEST_PODMAN_ROOTLESS_RUNSC",
    rootless: true,
    runtime: "runsc",
};

/// One of the services.
pub(super) struct Podman {
    name: &'static str,
    about: &'static str,
    /// Leads tests to it.
    variable: &'static str,
    rootless: bool,
    /// The runtime of all its containers: this version ignores the one that a request to its API names.
    runtime: &'static str,
}

impl Server for Podman {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn install(&self, _cache: &Path) -> Result<PathBuf> {
        engine::need_root(self.name)?;
        runtimes::install()?;
        account::create()?;
        sh::need("podman")
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let folders = self.folders(place);
        for folder in [Path::new(RUN), &folders.kept, &folders.run] {
            fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
        }
        // An older podman may have made it and closed it to the user of the rootless one.
        fs::set_permissions(RUN, Permissions::from_mode(0o755)).context(|| format!("cannot open {RUN} to all"))?;
        let mut command = if self.rootless {
            account::hand_over(&folders.kept)?;
            account::hand_over(&folders.run)?;
            let mut command = account::command()?;
            command.arg(format!("XDG_RUNTIME_DIR={}", folders.run.display()));
            command
        } else {
            Command::new("env")
        };
        for (variable, name, text) in [
            ("CONTAINERS_CONF", "containers.conf", self.containers_conf(&folders)?),
            ("CONTAINERS_STORAGE_CONF", "storage.conf", storage_conf(&folders)),
            (
                "CONTAINERS_REGISTRIES_CONF",
                "registries.conf",
                REGISTRIES_CONF.to_owned(),
            ),
        ] {
            let file = folders.kept.join(name);
            fs::write(&file, text).context(|| format!("cannot write {}", file.display()))?;
            command.arg(format!("{variable}={}", file.display()));
        }
        command
            // conmon writes a file `oom` where its podman was started when a container runs out of memory.
            .current_dir(&folders.run)
            .arg(&place.program)
            .arg("--root")
            .arg(folders.kept.join("root"))
            .arg("--runroot")
            .arg(folders.run_root())
            .arg("--tmpdir")
            .arg(folders.run.join("tmp"))
            .args(["system", "service", "--time", "0"])
            .arg(self.address(place));
        let mut env = engine::variables()?;
        env.push((self.variable, self.address(place)));
        if self.rootless {
            env.push(("AGENTS_TEST_PODMAN_ROOTLESS_USER", account::NAME.to_owned()));
        }
        Ok(Launch { command, env })
    }

    fn address(&self, place: &Place) -> String {
        format!("unix://{}", self.folders(place).socket().display())
    }

    fn ready(&self, place: &Place) -> bool {
        engine::ready(&self.folders(place).socket())
    }

    fn fill(&self, place: &Place) -> Result<()> {
        engine::import_images(&self.folders(place).socket())
    }

    fn retire(&self, place: &Place) {
        engine::remove_containers(&self.folders(place).socket());
    }

    fn clean(&self, place: &Place) -> Result<()> {
        let folders = self.folders(place);
        if self.rootless {
            // It has namespaces of its own, kept by a process that names no folder, and all its mounts are there.
            account::kill_those_with(&format!("XDG_RUNTIME_DIR={}", folders.run.display()));
        }
        leftovers::remove(&folders.run)?;
        leftovers::remove(&folders.kept)
    }
}

/// Above what must have a short path: podman takes no more than 50 characters, because it makes sockets below.
const RUN: &str = "/run/isolated-agents";

/// For how many seconds the supervisor of a command stays after the command's end. It is five minutes by default,
/// and after hundreds of tests that is hundreds of processes.
const EXEC_DELAY: u32 = 10;

/// Test registries on loopback have no certificate.
const REGISTRIES_CONF: &str = "[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n";

struct Folders {
    /// Configuration, images and containers.
    kept: PathBuf,
    /// The socket and the state of what runs.
    run: PathBuf,
}

impl Folders {
    fn socket(&self) -> PathBuf {
        self.run.join("podman.sock")
    }

    fn run_root(&self) -> PathBuf {
        self.run.join("containers")
    }
}

impl Podman {
    fn folders(&self, place: &Place) -> Folders {
        Folders {
            kept: if self.rootless {
                account::folder(place)
            } else {
                place.data.clone()
            },
            run: Path::new(RUN).join(account::digest(place)),
        }
    }

    /// Two podmans share nothing: not even the locks, which are in shared memory under one name by default.
    fn containers_conf(&self, folders: &Folders) -> Result<String> {
        Ok(format!(
            "[containers]\n\
             default_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\n\
             log_driver = \"k8s-file\"\n\
             \n\
             [engine]\n\
             cgroup_manager = \"cgroupfs\"\n\
             events_logger = \"file\"\n\
             exit_command_delay = {EXEC_DELAY}\n\
             lock_type = \"file\"\n\
             runtime = {:?}\n\
             static_dir = {:?}\n\
             tmp_dir = {:?}\n\
             volume_path = {:?}\n\
             \n\
             {}",
            self.runtime,
            folders.kept.join("root/libpod"),
            folders.run.join("tmp"),
            folders.kept.join("root/volumes"),
            runtimes::for_podman(&folders.kept, self.rootless)?,
            files = engine::OPEN_FILES,
            processes = engine::PROCESSES,
        ))
    }
}

fn storage_conf(folders: &Folders) -> String {
    format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n",
        folders.kept.join("root"),
        folders.run_root()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_sockets_has_a_path_that_podman_takes() {
        let place = Place {
            program: PathBuf::new(),
            data: PathBuf::from("/a/very/long/path".repeat(10)),
            port: 0,
        };
        for server in [&ROOTFUL, &ROOTLESS_GVISOR] {
            assert!(server.folders(&place).run_root().as_os_str().len() <= 50);
        }
    }
}
