//! The engines that `cargo xtask services` has started, each beside its own command line: the same image, the same limits, no
//! network, and hardened by the same flags.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;

use super::contenders::{Contender, MEMORY_MIB, Missing, PIDS, Target};
use crate::error::{Context, Error, Result};
use crate::scratch::Scratch;
use crate::{services, sh};

/// `agents run` may take this much of what the engine's command line takes.
const LIMIT: f64 = 0.8;

/// One engine with one kernel for its containers.
pub(super) struct Engine {
    pub(super) name: &'static str,
    /// The type of our runtime.
    runtime: &'static str,
    /// What `cargo xtask services up` calls it.
    server: &'static str,
    variable: &'static str,
    gvisor: bool,
}

const fn engine(name: &'static str, runtime: &'static str, server: &'static str, variable: &'static str) -> Engine {
    Engine {
        name,
        runtime,
        server,
        variable,
        gvisor: false,
    }
}

const fn on_gvisor(engine: Engine, name: &'static str) -> Engine {
    Engine {
        name,
        gvisor: true,
        ..engine
    }
}

const DOCKER_OLD: Engine = engine("docker 20.10", "docker", "docker-old", "AGENTS_TEST_DOCKER_OLD");
const DOCKER_NEW: Engine = engine("docker 29", "docker", "docker-new", "AGENTS_TEST_DOCKER_NEW");
const PODMAN: Engine = engine("podman", "podman", "podman", "AGENTS_TEST_PODMAN");
const PODMAN_GVISOR: Engine = engine("podman", "podman", "podman-runsc", "AGENTS_TEST_PODMAN_RUNSC");

pub(super) const ENGINES: [Engine; 6] = [
    DOCKER_OLD,
    DOCKER_NEW,
    PODMAN,
    on_gvisor(DOCKER_OLD, "docker 20.10, gVisor"),
    on_gvisor(DOCKER_NEW, "docker 29, gVisor"),
    on_gvisor(PODMAN_GVISOR, "podman, gVisor"),
];

/// An engine that runs.
#[derive(Clone)]
pub(super) struct Live {
    host: String,
    image: String,
    runtime: &'static str,
    policy: Option<PathBuf>,
    gvisor: bool,
}

impl Engine {
    /// Where it listens.
    pub(super) fn find(&self, scratch: &Path) -> Result<Live> {
        let variables: BTreeMap<_, _> = services::env()?.into_iter().collect();
        let given = |variable: &str| {
            let missing = || Error::new(format!("it does not run; cargo xtask services up {}", self.server));
            variables.get(variable).cloned().ok_or_else(missing)
        };
        let policy = self.gvisor.then(|| gvisor_policy(scratch)).transpose()?;
        Ok(Live {
            host: given(self.variable)?,
            image: given("AGENTS_TEST_ENGINE_IMAGE")?,
            runtime: self.runtime,
            policy,
            gvisor: self.gvisor,
        })
    }
}

/// A policy that asks for gVisor.
pub(super) fn gvisor_policy(scratch: &Path) -> Result<PathBuf> {
    let file = scratch.join("gvisor.yaml");
    fs::write(&file, "runtime_class: gvisor\n").context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

impl Live {
    /// `agents run` on the engine.
    pub(super) fn agents(&self, binary: &Path, scratch: &Path, args: &[&str]) -> Command {
        let policy = self.policy.as_ref().map(|file| file.to_string_lossy().into_owned());
        let mut words = vec!["--runtime", self.runtime, "--image", &self.image, "--pull", "never"];
        if let Some(policy) = &policy {
            words.extend(["--policy", policy]);
        }
        words.extend(args);
        let mut command = super::agents(binary, scratch, &words);
        let variable = if self.runtime == "docker" {
            "DOCKER_HOST"
        } else {
            "CONTAINER_HOST"
        };
        command.env(variable, &self.host);
        command
    }

    /// The engine's own command line.
    fn cli(&self, scratch: &Path) -> Result<Box<dyn Fn() -> Command>> {
        if self.runtime == "podman" {
            return podman(scratch, self.gvisor);
        }
        let docker = sh::need("docker")?;
        let live = self.clone();
        Ok(Box::new(move || {
            let mut command = Command::new(&docker);
            command.arg("--host").arg(&live.host).args(["run", "--pull", "never"]);
            if live.gvisor {
                command.args(["--runtime", "runsc"]);
            }
            hardened(&mut command).args([live.image.as_str(), "echo", "hello"]);
            command
        }))
    }
}

/// What stands for our policy on the command lines of both.
fn hardened(command: &mut Command) -> &mut Command {
    command
        .args(["--rm", "--network", "none", "--read-only"])
        .args(["--cap-drop", "all", "--security-opt", "no-new-privileges"])
        .args(["--user", "1000:1000"])
        .arg(format!("--memory={MEMORY_MIB}m"))
        .arg(format!("--pids-limit={PIDS}"))
}

/// Every engine that runs, and its command line.
pub(super) fn prepare(agents: &Path, scratch: &Path) -> (Vec<Contender>, Vec<Missing>) {
    let (mut ready, mut missing) = (Vec::new(), Vec::new());
    for engine in ENGINES {
        let rival = format!("{} run ({})", engine.runtime, engine.name);
        let ours = format!("agents run ({})", engine.name);
        let prepared = engine.find(scratch).and_then(|live| Ok((live.cli(scratch)?, live)));
        match prepared {
            Ok((cli, live)) => {
                ready.push(Contender::new(rival.clone(), None, cli));
                let (agents, scratch) = (agents.to_owned(), scratch.to_owned());
                let command = move || live.agents(&agents, &scratch, &["--", "echo", "hello"]);
                let target = Target { rival, limit: LIMIT };
                ready.push(Contender::new(ours, Some(target), Box::new(command)));
            }
            Err(error) => missing.push(Missing {
                name: ours,
                reason: error.to_string(),
            }),
        }
    }
    (ready, missing)
}

/// Podman's command line is its engine too, so it gets storage of its own, with the same image.
fn podman(scratch: &Path, gvisor: bool) -> Result<Box<dyn Fn() -> Command>> {
    let program = sh::need("podman")?;
    let variables: BTreeMap<_, _> = services::env()?.into_iter().collect();
    let (runtime, path) = if gvisor {
        let runsc = variables.get("AGENTS_TEST_RUNSC").map(PathBuf::from);
        ("runsc", runsc.map_or_else(|| sh::need("runsc"), Ok)?)
    } else {
        ("runc", sh::need("runc")?)
    };
    let folder = scratch.join(format!("podman-{runtime}"));
    // podman takes no longer path than 50 characters for what it keeps while it runs.
    let short = Scratch::temporary("bench")?;
    fs::create_dir_all(&folder).context(|| format!("cannot create {}", folder.display()))?;
    let settings = folder.join("containers.conf");
    // Limits that also a machine without CAP_SYS_RESOURCE can set.
    let text = format!(
        "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=10000:10000\"]\n\
         [engine]\nruntime = \"{runtime}\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
         lock_type = \"file\"\n[engine.runtimes]\n{runtime} = [{}]\n",
        json!(path)
    );
    fs::write(&settings, text).context(|| format!("cannot write {}", settings.display()))?;
    let storage = Storage {
        folder: folder.join("storage"),
        short,
    };
    let base = move || {
        let mut command = Command::new(&program);
        command
            .env("CONTAINERS_CONF", &settings)
            .arg("--root")
            .arg(&storage.folder)
            .arg("--runroot")
            .arg(storage.short.path().join("run"))
            .arg("--tmpdir")
            .arg(storage.short.path().join("tmp"));
        if gvisor {
            // Without it gVisor leaves the profile aside, which ours does not.
            command.args(["--runtime-flag", "oci-seccomp"]);
        }
        command
    };
    let archive = scratch.join("rootfs.tar");
    sh::output(
        Command::new("tar")
            .arg("-C")
            .arg(scratch.join("rootfs"))
            .arg("-cf")
            .arg(&archive)
            .arg("."),
    )?;
    sh::output(base().arg("import").arg(&archive).arg("bench"))?;
    Ok(Box::new(move || {
        let mut command = base();
        hardened(command.arg("run")).args(["bench", "echo", "hello"]);
        command
    }))
}

/// What podman keeps. It mounts its storage onto itself, which must be undone before the folder can go.
struct Storage {
    folder: PathBuf,
    short: Scratch,
}

impl Drop for Storage {
    fn drop(&mut self) {
        // Which of them are mounted depends on the storage driver.
        for mounted in ["overlay", "vfs", "."] {
            let _ = unmount(self.folder.join(mounted), UnmountFlags::DETACH);
        }
    }
}
