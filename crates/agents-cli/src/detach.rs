//! `agents run --detach`: a process of its own owns the session.

use std::{
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
};

use agents_sdk::core::{Error, SessionId};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::{
    context::Context,
    failure::{CODE_REFUSED, Outcome},
    output, run,
};

/// The first argument of the process that owns a detached session; the arguments of the whole follow.
pub(crate) const SUPERVISE: &str = "--supervise";
/// What the owner says once the session's ownership record is on disk; the id follows.
const BEGUN: &str = "begun ";

/// Starts the owner, and returns once its session has begun, or when it failed before. Its errors go to our standard error.
pub(crate) async fn start(context: &Context) -> Outcome {
    let cannot = |error| Error::io("cannot start a process for the detached session", error);
    let program = std::env::current_exe().map_err(cannot)?;
    let mut child = Command::new(program)
        .arg(SUPERVISE)
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    let said = listen(&mut child).await?;
    if let Some(id) = said.strip_prefix(BEGUN) {
        let id = id.trim_end();
        match context.json() {
            true => output::json(&json!({"session_id": id}))?,
            false => output::text(&format!("{id}\n"))?,
        }
        return Ok(0);
    }
    // It failed, and has said why on standard error; on standard output is at most the object of --json.
    output::text(&said)?;
    let status = child.wait().map_err(cannot)?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .filter(|code| *code != 0)
        .unwrap_or(CODE_REFUSED))
}

/// What the owner says, up to the session's beginning or its own end. A signal to us goes on to it.
async fn listen(child: &mut Child) -> Result<String, Error> {
    let cannot = |error| Error::io("cannot listen to the detached session's process", error);
    let stdout = child.stdout.take().map(OwnedFd::from);
    let Some(stdout) = stdout else {
        return Ok(String::new());
    };
    let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(stdout).map_err(cannot)?;
    let mut said = Vec::new();
    loop {
        tokio::select! {
            read = pipe.read_buf(&mut said) => {
                let ended = read.map_err(cannot)? == 0;
                if ended || (said.starts_with(BEGUN.as_bytes()) && said.ends_with(b"\n")) {
                    return Ok(String::from_utf8_lossy(&said).into_owned());
                }
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map_err(cannot)?;
                let _ = rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM);
            }
        }
    }
}

/// Leaves the terminal's session, so that closing the terminal does not end the agent.
pub(crate) fn leave_terminal() -> Result<(), Error> {
    rustix::process::setsid()
        .map(drop)
        .map_err(|error| Error::io("cannot leave the terminal's session", error.into()))
}

/// The session has begun: says so, and lets go of everything that whoever started us holds.
pub(crate) fn begun(session_id: &SessionId, state_dir: &Path) {
    // If nobody listens any more, the session goes on all the same.
    let _ = output::text(&format!("{BEGUN}{session_id}\n"));
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(run::supervisor_log(state_dir, session_id));
    if let Ok(null) = null {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(log.as_ref().unwrap_or(&null));
    }
}
