//! An engine behind ssh: the program `ssh` carries its socket here. No docker program runs, on neither side.

use std::{io, path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    sync::Mutex,
};

use crate::endpoint::SshTarget;

/// How long ssh may take to connect.
const CONNECT: Duration = Duration::from_secs(30);

/// A socket here that leads to the engine's socket there, as long as the value lives.
#[derive(Debug)]
pub(crate) struct Forward {
    target: SshTarget,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    folder: tempfile::TempDir,
}

impl Forward {
    pub(crate) fn new(target: SshTarget) -> Self {
        Self {
            target,
            running: Mutex::new(None),
        }
    }

    /// The socket; ssh is started when it does not run.
    pub(crate) async fn socket(&self) -> io::Result<PathBuf> {
        let mut running = self.running.lock().await;
        if let Some(existing) = running.as_mut()
            && existing.child.try_wait()?.is_none()
        {
            return Ok(existing.folder.path().join("docker.sock"));
        }
        let (started, socket) = start(&self.target).await?;
        *running = Some(started);
        Ok(socket)
    }
}

async fn start(target: &SshTarget) -> io::Result<(Running, PathBuf)> {
    // Only this user may enter the folder, and so use the socket.
    let folder = tempfile::Builder::new().prefix("agents-docker-").tempdir()?;
    let socket = folder.path().join("docker.sock");
    let mut child = command(target, &socket)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot start the program ssh: {error}")))?;
    let begun = tokio::time::Instant::now();
    loop {
        if socket.exists() {
            return Ok((Running { child, folder }, socket));
        }
        if let Some(status) = child.try_wait()? {
            let mut said = Vec::new();
            if let Some(stderr) = child.stderr.take() {
                stderr.take(2000).read_to_end(&mut said).await?;
            }
            let said = crate::error::one_line(&String::from_utf8_lossy(&said));
            return Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("ssh ended with {status}: {said}"),
            ));
        }
        if begun.elapsed() > CONNECT {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "ssh did not connect"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn command(target: &SshTarget, socket: &std::path::Path) -> Command {
    let mut command = Command::new("ssh");
    // Nobody is there to type a password, and a host that is not known is not trusted.
    command.args(["-N", "-T", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"]);
    command.args(["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"]);
    if let Some(port) = target.port {
        command.arg("-p").arg(port.to_string());
    }
    if let Some(user) = &target.user {
        command.arg("-l").arg(user);
    }
    let mut forward = socket.as_os_str().to_owned();
    forward.push(":");
    forward.push(&target.socket);
    command.arg("-L").arg(forward);
    command.arg("--").arg(&target.host);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for the caller, who decides what it means.
        .process_group(0)
        .kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_named_becomes_an_option() {
        let target = SshTarget {
            user: Some("ci".to_owned()),
            host: "build.example".to_owned(),
            port: Some(2222),
            socket: "/run/docker.sock".to_owned(),
        };
        let command = command(&target, std::path::Path::new("/t/docker.sock"));
        let arguments: Vec<_> = command.as_std().get_args().map(|word| word.to_string_lossy()).collect();
        let end = arguments.len();
        assert_eq!(arguments[end - 2..], ["--", "build.example"]);
        assert!(
            arguments
                .windows(2)
                .any(|pair| pair == ["-L", "/t/docker.sock:/run/docker.sock"])
        );
        assert!(arguments.windows(2).any(|pair| pair == ["-l", "ci"]));
    }
}
