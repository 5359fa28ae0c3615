//! The tools that are compared: each runs `echo hello` in a root file system of busybox, with the same limits.

use std::cell::Cell;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};

use crate::error::{Context, Result};
use crate::scratch::Scratch;
use crate::sh;

/// The limits that `agents run` has by default; the others get the same.
const MEMORY_MIB: u64 = 512;
const PIDS: u64 = 256;

/// One way to run the command.
pub(super) struct Contender {
    pub(super) name: &'static str,
    /// The command for the next run.
    pub(super) command: Box<dyn Fn() -> Command>,
}

/// A tool that is not compared, and why.
pub(super) struct Missing {
    pub(super) name: &'static str,
    pub(super) reason: String,
}

pub(super) const AGENTS_HOST: &str = "agents run (host)";
pub(super) const RUNC: &str = "runc run";

/// Prepares everything that can run here.
pub(super) fn prepare(agents: &Path, scratch: &Path) -> Result<(Vec<Contender>, Vec<Missing>)> {
    let rootfs = scratch.join("rootfs");
    make_rootfs(&rootfs)?;
    let mut ready = vec![
        agents_run(AGENTS_HOST, agents, scratch, Path::new("host")),
        agents_run("agents run (busybox)", agents, scratch, &rootfs),
    ];
    let mut missing = Vec::new();
    for (name, prepared) in [
        ("bwrap", bwrap(&rootfs)),
        (RUNC, runc(&rootfs, scratch)),
        ("podman run --rm", podman(&rootfs, scratch)),
    ] {
        match prepared {
            Ok(command) => ready.push(Contender { name, command }),
            Err(error) => missing.push(Missing {
                name,
                reason: error.to_string(),
            }),
        }
    }
    Ok((ready, missing))
}

fn agents_run(name: &'static str, agents: &Path, scratch: &Path, image: &Path) -> Contender {
    let (agents, scratch) = (agents.to_owned(), scratch.to_owned());
    let image = image.to_string_lossy().into_owned();
    Contender {
        name,
        command: Box::new(move || super::agents(&agents, &scratch, &["--image", &image, "--", "echo", "hello"])),
    }
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
    let program = sh::need("runc")?;
    let bundle = scratch.join("bundle");
    fs::create_dir_all(&bundle).context(|| format!("cannot create {}", bundle.display()))?;
    sh::output(Command::new(&program).arg("spec").current_dir(&bundle))?;
    let file = bundle.join("config.json");
    let text = fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
    let mut config: Value = serde_json::from_str(&text).context(|| format!("cannot parse {}", file.display()))?;
    harden(&mut config, rootfs);
    fs::write(&file, config.to_string()).context(|| format!("cannot write {}", file.display()))?;
    let state = scratch.join("runc");
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

/// The bundle that `runc spec` makes has a private, empty network already.
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

fn podman(rootfs: &Path, scratch: &Path) -> Result<Box<dyn Fn() -> Command>> {
    let program = sh::need("podman")?;
    let runc = sh::need("runc")?;
    let folder = scratch.join("podman");
    // podman takes no longer path than 50 characters for what it keeps while it runs.
    let short = Scratch::temporary("bench")?;
    fs::create_dir_all(&folder).context(|| format!("cannot create {}", folder.display()))?;
    let settings = folder.join("containers.conf");
    // Limits that also a machine without CAP_SYS_RESOURCE can set.
    let text = format!(
        "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=10000:10000\"]\n\
         [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
         [engine.runtimes]\nrunc = [{}]\n",
        json!(runc)
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
        command
    };
    let archive = scratch.join("rootfs.tar");
    sh::output(
        Command::new("tar")
            .arg("-C")
            .arg(rootfs)
            .arg("-cf")
            .arg(&archive)
            .arg("."),
    )?;
    sh::output(base().arg("import").arg(&archive).arg("bench"))?;
    Ok(Box::new(move || {
        let mut command = base();
        command
            .args(["run", "--rm", "--network", "none", "--read-only"])
            .args(["--cap-drop", "all", "--security-opt", "no-new-privileges"])
            .args(["--user", "1000:1000"])
            .arg(format!("--memory={MEMORY_MIB}m"))
            .arg(format!("--pids-limit={PIDS}"))
            .args(["bench", "echo", "hello"]);
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
