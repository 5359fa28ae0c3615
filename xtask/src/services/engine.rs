//! What the container engines have in common: their API on a unix socket, and the images that tests find in them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{http, runtimes};
use crate::error::{Context, Result, fail};
use crate::scratch::Scratch;
use crate::sh;

/// Busybox and a table of users, with nothing configured.
const IMAGE: &str = "localhost/agents-test";

/// The same files with everything configured that an image can ask for.
const CONFIGURED_IMAGE: &str = "localhost/agents-test-configured";

const TAG: &str = "latest";

/// What the configured image asks for, as lines of a Containerfile.
const CONFIGURATION: &[&str] = &[
    "ENTRYPOINT [\"/bin/echo\", \"from the entrypoint\"]",
    "CMD [\"and the command\"]",
    "ENV IMAGE_VARIABLE=of-the-image",
    "LABEL agents.test=configured",
    "USER agent",
    "VOLUME /volume",
    "WORKDIR /srv",
];

/// Limits that hold where an engine lacks `CAP_SYS_RESOURCE`: what it may not raise, it must not try to.
pub(super) const OPEN_FILES: u32 = 20_000;
pub(super) const PROCESSES: u32 = 10_000;

/// An error unless we are root, who alone can start an engine.
pub(crate) fn need_root(name: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    fail(format!(
        "only root can start {name}; run `sudo cargo xtask services up {name}`"
    ))
}

/// The variables that every engine gives, with the same values.
pub(super) fn variables() -> Result<Vec<(&'static str, String)>> {
    let mut variables = vec![
        ("AGENTS_TEST_ENGINE_IMAGE", format!("{IMAGE}:{TAG}")),
        (
            "AGENTS_TEST_ENGINE_IMAGE_CONFIGURED",
            format!("{CONFIGURED_IMAGE}:{TAG}"),
        ),
    ];
    variables.extend(runtimes::variables()?);
    Ok(variables)
}

/// The question that both engines answer once they are ready.
pub(super) fn ready(socket: &Path) -> bool {
    http::socket_status(socket, "/_ping") == Some(200)
}

/// Gives the engine both images.
pub(super) fn import_images(socket: &Path) -> Result<()> {
    let archive = archive()?;
    for (name, changes) in [(IMAGE, &[][..]), (CONFIGURED_IMAGE, CONFIGURATION)] {
        let mut path = format!("/images/create?fromSrc=-&repo={}&tag={TAG}", escape(name));
        for change in changes {
            path.push_str("&changes=");
            path.push_str(&escape(change));
        }
        http::socket_request(socket, "POST", &path, "application/x-tar", &archive)?;
    }
    Ok(())
}

/// Removes all containers, which would outlive the engine or keep it waiting while it stops.
pub(super) fn remove_containers(socket: &Path) {
    let ask = |method, path: &str| http::socket_request(socket, method, path, "application/json", b"");
    let Ok(answer) = ask("GET", "/containers/json?all=1") else {
        return;
    };
    let list: Value = serde_json::from_slice(&answer).unwrap_or_default();
    for id in list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["Id"].as_str())
    {
        // Whatever is left is ended and unmounted after the engine.
        let _ = ask("DELETE", &format!("/containers/{id}?force=1&v=1"));
    }
}

/// The images' files: busybox under all its names, the users `root`, `agent` and `nobody`, and the usual folders.
pub(crate) fn archive() -> Result<Vec<u8>> {
    let program = sh::need("busybox")?;
    let scratch = Scratch::new("engine-image")?;
    let root = scratch.path().join("root");
    let making = || format!("cannot make the test image in {}", root.display());
    for folder in ["bin", "etc", "home/agent", "root", "srv", "tmp", "volume"] {
        fs::create_dir_all(root.join(folder)).context(making)?;
    }
    fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).context(making)?;
    fs::copy(&program, root.join("bin/busybox")).context(making)?;
    fs::set_permissions(root.join("bin/busybox"), Permissions::from_mode(0o755)).context(making)?;
    for name in sh::output(Command::new(&program).arg("--list"))?
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", root.join("bin").join(name)).context(making)?;
    }
    for (file, text) in [
        (
            "passwd",
            "root:x:0:0:root:/root:/bin/sh\n\
             agent:x:4242:4343:agent:/home/agent:/bin/sh\n\
             nobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        (
            "group",
            "root:x:0:\nagent:x:4343:\nextra:x:4444:agent\nnogroup:x:65534:\n",
        ),
        // Without it a static glibc looks for libraries that are not there, and crashes.
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ] {
        fs::write(root.join("etc").join(file), text).context(making)?;
    }
    let archive = scratch.path().join("root.tar");
    sh::run(
        Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
            .arg("--directory")
            .arg(&root)
            .arg("--create")
            .arg("--file")
            .arg(&archive)
            .arg("."),
    )?;
    fs::read(&archive).context(making)
}

/// Percent-encodes what a query may not hold.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_the_query() {
        assert_eq!(escape("CMD [\"a b\"]&é"), "CMD%20%5B%22a%20b%22%5D%26%C3%A9");
    }
}
