//! The program as an ordinary process of the host, and in a sandbox.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use agents_core::{ExecEvent, ExecOutput, ExecSession, Exit, Process};
use agents_guest::{Connection, Judge, PROGRAM, Quiet, SpawnRequest};
use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::process::{Child, Command};

/// How long something that is on its way may take.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The program as a file that lives as long as the tests.
pub(crate) fn program() -> &'static Path {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest");
        fs::write(&path, PROGRAM).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o111)).unwrap();
        (folder, path)
    });
    path
}

/// Connects to a command's standard input and output.
pub(crate) fn connect(command: &mut Command) -> (Connection, Child) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    (Connection::new(stdout, stdin), child)
}

/// The program on the host.
pub(crate) fn guest(arguments: &[&str]) -> (Connection, Child) {
    connect(Command::new(program()).args(arguments))
}

/// A process under the program, and the program.
pub(crate) async fn start(request: SpawnRequest) -> (ExecSession, Child) {
    let (connection, child) = guest(&["exec"]);
    (connection.spawn(request, Arc::new(Quiet)).await.unwrap(), child)
}

pub(crate) fn shell(script: &str) -> Process {
    Process::new(["sh", "-c", script])
}

pub(crate) async fn run(process: Process) -> ExecOutput {
    let (session, mut child) = start(SpawnRequest::new(process)).await;
    let output = session.collect(1 << 20).await.unwrap();
    // The program itself ends with its process.
    tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
    output
}

pub(crate) async fn sh(script: &str) -> ExecOutput {
    run(shell(script)).await
}

pub(crate) fn exited(code: i32) -> Exit {
    Exit::Exited { code }
}

pub(crate) async fn first_line(session: &mut ExecSession) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        match tokio::time::timeout(SOON, session.next()).await {
            Ok(Some(Ok(ExecEvent::Stdout(bytes)))) => line.extend_from_slice(&bytes),
            Ok(Some(Ok(ExecEvent::Stderr(_)))) => {}
            other => panic!("no line came, but {other:?}"),
        }
    }
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

/// The output up to the only exit, and the exit.
pub(crate) async fn to_the_end(mut session: ExecSession) -> (Vec<u8>, Exit) {
    let mut stdout = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(60), session.next()).await {
            Ok(Some(Ok(ExecEvent::Stdout(bytes)))) => stdout.extend_from_slice(&bytes),
            Ok(Some(Ok(ExecEvent::Stderr(_)))) => {}
            Ok(Some(Ok(ExecEvent::Exit(exit)))) => {
                assert!(session.next().await.is_none());
                return (stdout, exit);
            }
            other => panic!("no end, but {other:?}"),
        }
    }
}

/// Remembers what it was asked.
#[derive(Debug, Default)]
pub(crate) struct Recorder(pub(crate) Mutex<Vec<String>>);

#[async_trait]
impl Judge for Recorder {
    async fn failed(&self, exit: Exit) -> Exit {
        self.0.lock().unwrap().push(format!("failed {exit}"));
        match exit {
            Exit::Signalled { signal: 9 } => Exit::OutOfMemory,
            other => other,
        }
    }

    async fn lost(&self, reason: String) -> Exit {
        self.0.lock().unwrap().push(format!("lost {reason}"));
        Exit::RuntimeLost { reason }
    }
}

/// A process tree that is hard to kill: each writes on and on to a file of its own in the folder.
pub(crate) fn stubborn(folder: &Path) -> String {
    format!(
        r#"cd '{}'
        beat() {{ trap '' TERM INT HUP; while :; do echo x >> $1; sleep 0.05; done; }}
        beat one &
        ( beat two & ) &
        setsid sh -c 'trap "" TERM INT HUP; ( while :; do echo x >> three; sleep 0.05; done ) & exit 0'
        while [ ! -s one ] || [ ! -s two ] || [ ! -s three ]; do sleep 0.02; done
        echo ready
        while :; do sleep 1; done"#,
        folder.display()
    )
}

pub(crate) async fn nothing_beats(folder: &Path) {
    let lengths = || ["one", "two", "three"].map(|name| fs::metadata(folder.join(name)).unwrap().len());
    let before = lengths();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(lengths(), before, "a process of the tree is alive");
}
