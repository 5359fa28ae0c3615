//! The way to the unix socket of another host: a forwarding of the `ssh` program, which knows the user's configuration,
//! agent and known hosts. It carries bytes and is no client of an engine.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use agents_core::{Error, ErrorKind, Result};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};

use crate::address::Address;

/// How long a tunnel may take to open: a name look-up, a handshake and an authentication.
const OPENING: Duration = Duration::from_secs(30);

/// A running `ssh`, which ends with this value.
pub(crate) struct Tunnel {
    child: Child,
    folder: tempfile::TempDir,
}

impl Tunnel {
    /// Starts `ssh` and waits until it forwards.
    pub(crate) async fn open(address: &Address, identity: Option<&Path>) -> Result<Self> {
        Self::open_with("ssh", address, identity).await
    }

    async fn open_with(program: &str, address: &Address, identity: Option<&Path>) -> Result<Self> {
        // Only this user can enter the folder, so that nobody else can use the socket or put another in its place.
        let folder = tempfile::Builder::new()
            .prefix("agents-podman-")
            .tempdir()
            .map_err(|error| Error::io("cannot make a folder for the ssh tunnel", error))?;
        let mut command = Command::new(program);
        command.args(arguments(address, identity, &folder.path().join("s"))?);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            Error::new(
                ErrorKind::Unavailable,
                "the program `ssh` cannot be started, which an ssh:// remote_url needs; install OpenSSH's client",
            )
            .with_source(error)
        })?;
        let mut errors = child.stderr.take();
        let tunnel = Self { child, folder };
        let opened = tunnel.wait().await;
        match opened {
            Ok(tunnel) => {
                // Somebody must read, or `ssh` would wait once the pipe is full.
                tokio::spawn(async move {
                    if let Some(errors) = errors.as_mut() {
                        let _ = tokio::io::copy(errors, &mut tokio::io::sink()).await;
                    }
                });
                Ok(tunnel)
            }
            Err(()) => {
                let mut text = Vec::new();
                if let Some(errors) = errors {
                    let mut errors = errors.take(4096);
                    let _ = tokio::time::timeout(Duration::from_secs(1), errors.read_to_end(&mut text)).await;
                }
                let text = String::from_utf8_lossy(&text);
                let last = text
                    .lines()
                    .rev()
                    .find(|line| !line.trim().is_empty())
                    .unwrap_or("no answer");
                Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "ssh does not reach podman at {address}: {}; try `ssh` with the same user, host and key by hand",
                        last.trim().escape_debug()
                    ),
                )
                .temporary(None))
            }
        }
    }

    /// Waits for the socket.
    async fn wait(mut self) -> Result<Self, ()> {
        let begun = Instant::now();
        loop {
            if self.socket().exists() {
                return Ok(self);
            }
            if !self.is_alive() || begun.elapsed() > OPENING {
                return Err(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }
}

/// What `ssh` is started with. The destination comes after `--`, and [`Address::parse`] lets no name begin with `-`.
fn arguments(address: &Address, identity: Option<&Path>, local: &Path) -> Result<Vec<std::ffi::OsString>> {
    let Address::Ssh {
        user,
        host,
        port,
        socket,
    } = address
    else {
        return Err(Error::unexpected("only an ssh:// address needs a tunnel"));
    };
    let mut arguments: Vec<std::ffi::OsString> = Vec::new();
    for option in [
        "BatchMode=yes",
        "ExitOnForwardFailure=yes",
        "ServerAliveInterval=15",
        "ControlMaster=no",
        "ControlPath=none",
        "ClearAllForwardings=no",
        "StreamLocalBindMask=0177",
    ] {
        arguments.extend(["-o".into(), option.into()]);
    }
    arguments.extend(["-N", "-T", "-x", "-a"].map(Into::into));
    if let Some(port) = port {
        arguments.extend(["-p".into(), port.to_string().into()]);
    }
    if let Some(identity) = identity {
        arguments.extend(["-i".into(), identity.into()]);
    }
    let mut forward = local.as_os_str().to_owned();
    forward.push(":");
    forward.push(socket);
    arguments.extend(["-L".into(), forward, "--".into()]);
    arguments.push(match user {
        Some(user) => format!("{user}@{host}").into(),
        None => host.into(),
    });
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn address() -> Address {
        Address::parse("ssh://core@engine.example:2222/run/podman/podman.sock").unwrap()
    }

    fn program(script: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ssh");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let path = path.display().to_string();
        (folder, path)
    }

    #[test]
    fn the_destination_is_never_an_option() {
        let arguments = arguments(&address(), Some(Path::new("/k")), Path::new("/l")).unwrap();
        let text: Vec<_> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(text[text.len() - 2..], ["--", "core@engine.example"]);
        assert!(text.windows(2).any(|pair| pair == ["-L", "/l:/run/podman/podman.sock"]));
        assert!(text.windows(2).any(|pair| pair == ["-p", "2222"]));
        assert!(text.windows(2).any(|pair| pair == ["-i", "/k"]));
    }

    #[tokio::test]
    async fn a_tunnel_ends_with_its_value() {
        let (_folder, ssh) = program(
            r#"while [ "$1" != -L ]; do shift; done; s=${2%%:*}; : > "$s"; echo $$ > "${0%/*}/pid"; exec sleep 100"#,
        );
        let mut tunnel = Tunnel::open_with(&ssh, &address(), None).await.unwrap();
        assert!(tunnel.is_alive());
        let pid = std::fs::read_to_string(format!("{}/pid", ssh.rsplit_once('/').unwrap().0));
        drop(tunnel);
        let process = format!("/proc/{}/stat", pid.unwrap().trim());
        for _ in 0..100 {
            // A zombie until it is waited for.
            match std::fs::read_to_string(&process) {
                Ok(stat) if !stat.contains(") Z ") => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => return,
            }
        }
        panic!("ssh lives on");
    }

    #[tokio::test]
    async fn what_ssh_says_is_in_the_error() {
        let (_folder, ssh) = program("echo 'Permission denied (publickey).' >&2; exit 255");
        let error = Tunnel::open_with(&ssh, &address(), None).await.err().unwrap();
        assert!(error.message().contains("Permission denied"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let missing = Tunnel::open_with("/no/such/ssh", &address(), None).await.err().unwrap();
        assert!(missing.message().contains("OpenSSH"), "{missing}");
    }
}
