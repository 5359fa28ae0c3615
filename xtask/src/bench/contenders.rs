//! The tools that are compared: each runs `echo hello` in a root file system of busybox, with the same limits.

use std::cell::Cell;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::engines;
use crate::error::{Context, Result};
use crate::{services, sh};

/// The limits that `agents run` has by default; the others get the same.
pub(super) const MEMORY_MIB: u64 = 512;
pub(super) const PIDS: u64 = 256;

/// `agents run` may take this much of what `runc run` takes.
const LIMIT: f64 = 1.5;

/// One way to run the command.
pub(super) struct Contender {
    pub(super) name: String,
    /// What it is measured by.
    pub(super) target: Option<Target>,
    /// The command for the next run.
    pub(super) command: Box<dyn Fn() -> Command>,
}

/// How fast a contender has to be.
pub(super) struct Target {
    /// The name of another contender.
    pub(super) rival: String,
    /// The most that it may take of what the rival takes.
    pub(super) limit: f64,
}

impl Contender {
    pub(super) fn new(name: impl Into<String>, target: Option<Target>, command: Box<dyn Fn() -> Command>) -> Self {
        Self {
            name: name.into(),
            target,
            command,
        }
    }

    /// Whether it is `agents run`, which has to work.
    pub(super) fn is_ours(&self) -> bool {
        self.name.starts_with("agents ")
    }
}

/// A tool that is not compared, and why.
pub(super) struct Missing {
    pub(super) name: String,
    pub(super) reason: String,
}

const RUNC: &str = "runc run";

/// Prepares everything that can run here.
pub(super) fn prepare(agents: &Path, scratch: &Path) -> Result<(Vec<Contender>, Vec<Missing>)> {
    let rootfs = scratch.join("rootfs");
    make_rootfs(&rootfs)?;
    let target = |limit| {
        Some(Target {
            rival: RUNC.to_owned(),
            limit,
        })
    };
    let mut ready = vec![
        agents_run("agents run (host)", target(LIMIT), agents, scratch, "host"),
        agents_run("agents run (busybox)", None, agents, scratch, &rootfs.to_string_lossy()),
    ];
    let mut missing = Vec::new();
    let (mut add, mut miss) = (
        |name: &str, command| ready.push(Contender::new(name, None, command)),
        |name: &str, reason: &dyn std::fmt::Display| {
            missing.push(Missing {
                name: name.to_owned(),
                reason: reason.to_string(),
            });
        },
    );
    for (name, prepared) in [("bwrap", bwrap(&rootfs)), (RUNC, runc(&rootfs, scratch))] {
        match prepared {
            Ok(command) => add(name, command),
            Err(error) => miss(name, &error),
        }
    }
    match runsc() {
        Ok(program) => {
            add("runsc run", bundle_run(&program, &rootfs, scratch)?);
            add("agents run (gVisor)", sandboxed(&program, agents, scratch, &rootfs)?);
        }
        Err(error) => miss("runsc run", &error),
    }
    let (engines, absent) = engines::prepare(agents, scratch);
    ready.extend(engines);
    missing.extend(absent);
    Ok((ready, missing))
}

fn agents_run(name: &str, target: Option<Target>, agents: &Path, scratch: &Path, image: &str) -> Contender {
    let (agents, scratch, image) = (agents.to_owned(), scratch.to_owned(), image.to_owned());
    let command = move || super::agents(&agents, &scratch, &["--image", &image, "--", "echo", "hello"]);
    Contender::new(name, target, Box::new(command))
}

/// The `runsc` of `cargo xtask services`, or the one of the search path.
fn runsc() -> Result<PathBuf> {
    let built = services::env()?
        .into_iter()
        .find(|(variable, _)| variable == "AGENTS_TEST_RUNSC");
    built.map_or_else(|| sh::need("runsc"), |(_, path)| Ok(PathBuf::from(path)))
}

/// `agents run` on the embedded runtime, under gVisor.
fn sandboxed(runsc: &Path, agents: &Path, scratch: &Path, rootfs: &Path) -> Result<Box<dyn Fn() -> Command>> {
    let policy = engines::gvisor_policy(scratch)?.to_string_lossy().into_owned();
    let image = rootfs.to_string_lossy().into_owned();
    let (runsc, agents, scratch) = (runsc.to_owned(), agents.to_owned(), scratch.to_owned());
    Ok(Box::new(move || {
        let words = ["--policy", &policy, "--image", &image, "--", "echo", "hello"];
        let mut command = super::agents(&agents, &scratch, &words);
        command.env("ISOLATED_AGENTS_RUNTIME_NATIVE_RUNSC", &runsc);
        command
    }))
}

fn bwrap(rootfs: &Path) -> Result<Box<dyn Fn() -> Command>> {
    let program = sh::need("bwrap")?;
    let rootfs = rootfs.to_owned();
    Ok(Box::new(move || {
        let mut command = Command::new(&program);
        command
            .arg("--ro-bind")
            .arg(&rootfs)
            .args([
                "/",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--tmpfs",
                "/tmp",
                "--unshare-all",
            ])
            .args(["--cap-drop", "ALL", "--die-with-parent", "--new-session"])
            .args(["--", "echo", "hello"]);
        command
    }))
}

fn runc(rootfs: &Path, scratch: &Path) -> Result<Box<dyn Fn() -> Command>> {
    bundle_run(&sh::need("runc")?, rootfs, scratch)
}

/// An OCI runtime that runs a bundle without an engine.
fn bundle_run(program: &Path, rootfs: &Path, scratch: &Path) -> Result<Box<dyn Fn() -> Command>> {
    let name = program.file_name().unwrap_or_default().to_owned();
    let bundle = scratch.join("bundle").join(&name);
    fs::create_dir_all(&bundle).context(|| format!("cannot create {}", bundle.display()))?;
    sh::output(Command::new(program).arg("spec").current_dir(&bundle))?;
    let file = bundle.join("config.json");
    let text = fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
    let mut config: Value = serde_json::from_str(&text).context(|| format!("cannot parse {}", file.display()))?;
    harden(&mut config, rootfs);
    fs::write(&file, config.to_string()).context(|| format!("cannot write {}", file.display()))?;
    let (program, state) = (program.to_owned(), scratch.join("bundle-state").join(name));
    let count = Cell::new(0);
    Ok(Box::new(move || {
        count.set(count.get() + 1);
        let mut command = Command::new(&program);
        command
            .arg("--root")
            .arg(&state)
            .args(["run", "--bundle"])
            .arg(&bundle)
            .arg(format!("bench-{}-{}", std::process::id(), count.get()));
        command
    }))
}

/// The bundle that `spec` makes has a private, empty network already.
fn harden(config: &mut Value, rootfs: &Path) {
    let process = &mut config["process"];
    process["terminal"] = json!(false);
    process["args"] = json!(["echo", "hello"]);
    process["noNewPrivileges"] = json!(true);
    process["user"] = json!({ "uid": 1000, "gid": 1000 });
    process["capabilities"] = json!({
        "bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": [],
    });
    config["root"] = json!({ "path": rootfs, "readonly": true });
    config["linux"]["resources"]["memory"] = json!({ "limit": MEMORY_MIB << 20 });
    config["linux"]["resources"]["pids"] = json!({ "limit": PIDS });
}

fn make_rootfs(rootfs: &Path) -> Result<()> {
    for name in ["bin", "dev", "etc", "output", "proc", "run", "sys", "tmp", "workspace"] {
        let path = rootfs.join(name);
        fs::create_dir_all(&path).context(|| format!("cannot create {}", path.display()))?;
    }
    let busybox: PathBuf = rootfs.join("bin/busybox");
    fs::copy(sh::need("busybox")?, &busybox)
        .and_then(|_| fs::set_permissions(&busybox, Permissions::from_mode(0o755)))
        .context(|| format!("cannot create {}", busybox.display()))?;
    for applet in ["sh", "echo", "cat", "ls"] {
        let path = rootfs.join("bin").join(applet);
        symlink("busybox", &path).context(|| format!("cannot create {}", path.display()))?;
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\nagent:x:1000:1000::/:/bin/sh\n",
    )
    .context(|| "cannot write etc/passwd".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_has_the_limits_of_agents_run() {
        let mut config = json!({
            "process": { "terminal": true, "args": ["sh"], "capabilities": { "bounding": ["CAP_KILL"] } },
            "linux": { "resources": { "devices": [] } },
        });
        harden(&mut config, Path::new("/rootfs"));
        assert_eq!(config["process"]["args"], json!(["echo", "hello"]));
        assert_eq!(config["process"]["capabilities"]["bounding"], json!([]));
        assert_eq!(config["root"]["readonly"], json!(true));
        assert_eq!(config["linux"]["resources"]["memory"]["limit"], json!(536_870_912));
        assert_eq!(config["linux"]["resources"]["devices"], json!([]));
    }
}
