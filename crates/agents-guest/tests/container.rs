//! The program as the first process of a sandbox, which bubblewrap makes as an engine would: other namespaces, another user,
//! a read-only root, memory-backed places.

mod common;

use std::{fs, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use agents_core::{ContainerState, ErrorKind, Exit, Process, Secret, SecretBytes};
use agents_guest::{
    Connection, Quiet, SpawnRequest, StartOptions, exec_command, init_command, read_command, report_command,
    status_command, write_command,
};
use bytes::Bytes;
use common::*;
use futures_util::{StreamExt, TryStreamExt};
use tokio::process::{Child, Command};

struct Sandbox {
    bwrap: Child,
    /// The number of the sandbox's first process outside.
    first: u32,
    _folder: tempfile::TempDir,
}

impl Sandbox {
    /// A sandbox, and the connection to its first process.
    fn new(nofile: Option<u64>) -> (Self, Connection) {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(program(), folder.path().join("guest")).unwrap();
        let mut command = Command::new("bwrap");
        command
            .args([
                "--unshare-all",
                "--unshare-user",
                "--uid",
                "1000",
                "--gid",
                "1000",
                "--as-pid-1",
                "--cap-drop",
                "ALL",
            ])
            .args([
                "--die-with-parent",
                "--clearenv",
                "--setenv",
                "MARK",
                "container",
                "--chdir",
                "/output",
            ])
            .args([
                "--ro-bind",
                "/usr",
                "/usr",
                "--symlink",
                "usr/bin",
                "/bin",
                "--symlink",
                "usr/lib",
                "/lib",
            ])
            .args(["--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev"])
            .args([
                "--size",
                "16777216",
                "--tmpfs",
                "/output",
                "--size",
                "1048576",
                "--tmpfs",
                "/run/secrets",
            ])
            .arg("--ro-bind")
            .arg(folder.path())
            .args(["/.agents", "--remount-ro", "/"])
            .args(init_command(nofile, None));
        let found = std::process::Command::new("bwrap")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        assert!(found.is_ok(), "bubblewrap is not here; install the package bubblewrap");
        let (connection, bwrap) = connect(&mut command);
        let sandbox = Self {
            first: 0,
            bwrap,
            _folder: folder,
        };
        (sandbox, connection)
    }

    /// A sandbox whose first process has reported.
    async fn ready(nofile: Option<u64>) -> (Self, Connection, agents_guest::Report) {
        let (mut sandbox, mut connection) = Self::new(nofile);
        let report = tokio::time::timeout(SOON, connection.report()).await.unwrap().unwrap();
        let pid = sandbox.bwrap.id().unwrap();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        sandbox.first = children.trim().parse().unwrap();
        (sandbox, connection, report)
    }

    /// A command that comes in from outside, as an engine's exec does.
    fn enter(&self, words: &[String]) -> (Connection, Child) {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.first.to_string(),
                "--user",
                "--mount",
                "--pid",
                "--net",
                "--ipc",
                "--uts",
                "--cgroup",
            ])
            .args(["--setuid", "1000", "--setgid", "1000", "--wdns=/output", "--"])
            .args(words);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("MARK", "container");
        connect(&mut command)
    }

    async fn exec(&self, process: Process) -> agents_core::Result<agents_core::ExecOutput> {
        let (connection, _child) = self.enter(&exec_command());
        connection
            .spawn(SpawnRequest::new(process), Arc::new(Quiet))
            .await?
            .collect(1 << 20)
            .await
    }

    async fn read(&self, path: &str, quiesce: bool) -> agents_core::Result<Vec<u8>> {
        let (connection, _child) = self.enter(&read_command(path, quiesce));
        let chunks: Vec<Bytes> = connection.read().await?.try_collect().await?;
        Ok(chunks.concat())
    }

    async fn state(&self) -> ContainerState {
        let (connection, _child) = self.enter(&status_command());
        connection.status().await.unwrap()
    }
}

fn content(archive: &[u8], name: &str) -> String {
    let mut archive = tar::Archive::new(archive);
    let mut entry = archive
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .find(|entry| entry.path().unwrap() == PathBuf::from(name))
        .unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
    text
}

#[tokio::test]
async fn the_report_says_what_is_in_force() {
    let (sandbox, _connection, report) = Sandbox::ready(Some(64)).await;
    let state = report.effective();
    assert_eq!((state.uid, state.gid), (Some(1000), Some(1000)));
    assert_eq!(state.capabilities, Some(vec![]));
    assert_eq!(state.no_new_privileges, Some(true));
    assert_eq!(state.seccomp_filter, Some(false));
    assert_eq!(state.read_only_rootfs, Some(true));
    assert_eq!(state.nofile, Some(64));
    assert_eq!(state.network_interfaces, Some(vec!["lo".to_owned()]));
    let private = state.private_namespaces.clone().unwrap();
    for kind in ["ipc", "mnt", "net", "pid", "uts"] {
        assert!(private.iter().any(|known| known == kind), "{private:?}");
    }
    let mounts = state.mounts.clone().unwrap();
    let mount = |at: &str| mounts.iter().find(|mount| mount.destination == at).unwrap();
    assert!(mount("/usr").read_only && mount("/.agents").read_only && !mount("/output").read_only);
    assert_eq!(report.space("/output").unwrap().0, 16 << 20);
    assert_eq!(report.file_system("/output").as_deref(), Some("tmpfs"));
    assert!(!report.is_gvisor() && report.kernel().unwrap().starts_with("Linux version"));
    // Once more, from a process that came in later.
    let (mut connection, _child) = sandbox.enter(&report_command());
    let again = connection.report().await.unwrap().effective();
    assert_eq!(
        (again.uid, again.nofile, again.mounts),
        (state.uid, state.nofile, state.mounts)
    );
}

#[tokio::test]
async fn the_main_process_starts_once_and_everything_ends_with_it() {
    let (sandbox, mut connection, _) = Sandbox::ready(None).await;
    assert_eq!(sandbox.state().await, ContainerState::Running);
    let script = "( trap '' TERM HUP; while :; do echo x >> /output/left; sleep 0.02; done ) & \
                  while [ ! -s /output/left ]; do sleep 0.01; done; echo \"$MARK $PWD\"; read line; echo result > /output/r; exit 3";
    connection
        .prepare(SpawnRequest::new(shell(script).with_stdin(true)))
        .await
        .unwrap();
    let again = connection.prepare(SpawnRequest::new(shell("true"))).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(sandbox.state().await, ContainerState::Created);
    let early = sandbox.exec(shell("true")).await;
    assert_eq!(early.unwrap_err().kind(), ErrorKind::Conflict, "exec before the start");
    let (mut session, afterwards) = connection.start(StartOptions::new(), Arc::new(Quiet)).await.unwrap();
    assert_eq!(first_line(&mut session).await, "container /output");
    assert!(afterwards.read("/output").await.is_none(), "it is in use");
    assert_eq!(sandbox.state().await, ContainerState::Running);
    // A further process ends with the main one, and says so.
    let (other, _child) = sandbox.enter(&exec_command());
    let further = other
        .spawn(SpawnRequest::new(shell("sleep 100")), Arc::new(Quiet))
        .await
        .unwrap();
    drop(session.take_stdin());
    assert_eq!(to_the_end(session).await.1, exited(3));
    assert_eq!(to_the_end(further).await.1, Exit::Signalled { signal: 9 });
    assert_eq!(sandbox.state().await, ContainerState::Exited);
    let late = sandbox.exec(shell("true")).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Conflict, "exec after the end");
    // What it left is there, over the connection that there is already and by a further one, and nothing goes on writing.
    let first = sandbox.read("/output", false).await.unwrap();
    assert_eq!(content(&first, "output/r"), "result\n");
    for _ in 0..2 {
        let reading = afterwards.read("/output").await.unwrap().unwrap();
        assert!(afterwards.read("/output").await.is_none(), "it is in use");
        let chunks: Vec<Bytes> = reading.try_collect().await.unwrap();
        assert_eq!(chunks.concat(), first);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        content(&sandbox.read("/output", true).await.unwrap(), "output/left"),
        content(&first, "output/left")
    );
    assert_eq!(
        fs::read_to_string(format!("/proc/{}/comm", sandbox.first)).unwrap(),
        "agents-exited\n"
    );
}

#[tokio::test]
async fn an_idle_container_has_no_main_process_to_start() {
    let (sandbox, connection, _) = Sandbox::ready(None).await;
    let started = connection.start(StartOptions::new(), Arc::new(Quiet)).await;
    assert_eq!(started.unwrap_err().kind(), ErrorKind::Conflict);
    let output = sandbox
        .exec(shell("echo $MARK; pwd; ls /proc/self/fd | wc -l"))
        .await
        .unwrap();
    assert!(
        output.stdout.to_text().starts_with("container\n/output\n"),
        "{output:?}"
    );
}

#[tokio::test]
async fn the_deadline_of_the_main_process_kills_everything() {
    let (sandbox, mut connection, _) = Sandbox::ready(None).await;
    connection
        .prepare(SpawnRequest::new(shell(&stubborn(std::path::Path::new("/output")))))
        .await
        .unwrap();
    let options = StartOptions::new().with_deadline(Some(Duration::from_secs(1)));
    let (session, _) = connection.start(options, Arc::new(Quiet)).await.unwrap();
    assert_eq!(to_the_end(session).await.1, Exit::Deadline);
    let first = sandbox.read("/output", false).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(first == sandbox.read("/output", false).await.unwrap());
}

#[tokio::test]
async fn nobody_inside_looks_into_the_program_or_ends_it() {
    let (sandbox, _connection, _) = Sandbox::ready(None).await;
    let script = "for f in environ maps mem fd/0 fd/1 root; do head -c 1 /proc/1/$f 2>/dev/null && echo $f; \
                  head -c 1 /proc/$PPID/$f 2>/dev/null && echo own $f; done; \
                  kill -9 1; kill -STOP 1; kill -TERM 1; sleep 0.1; cat /proc/1/comm; echo x > /proc/1/comm; \
                  head -c 4 /.agents/guest; cat /proc/1/comm";
    let output = sandbox.exec(shell(script)).await.unwrap();
    assert_eq!(output.stdout.to_text(), "agents-idle\nagents-idle\n");
    assert_eq!(sandbox.state().await, ContainerState::Running);
}

#[tokio::test]
async fn secrets_are_files_of_the_agent_s() {
    let (sandbox, mut connection, _) = Sandbox::ready(None).await;
    let secret = |name: &str, value: &[u8]| Secret {
        name: name.to_owned(),
        value: SecretBytes::new(value),
    };
    let big = vec![7; 200_000];
    connection
        .deliver_secrets(&[
            secret("token", b"hunter2"),
            secret("binary", b"\0\xff\n"),
            secret("big", &big),
        ])
        .await
        .unwrap();
    let output = sandbox
        .exec(shell(
            "cd /run/secrets; cat token binary; stat -c '%a %u' token; wc -c < big",
        ))
        .await
        .unwrap();
    assert_eq!(output.stdout.head, b"hunter2\0\xff\n400 1000\n200000\n");
    let twice = connection
        .deliver_secrets(&[secret("token", b"other")])
        .await
        .unwrap_err();
    assert!(!twice.to_string().contains("other"));
    let too_big = connection
        .deliver_secrets(&[secret("huge", &vec![1; 2 << 20])])
        .await
        .unwrap_err();
    assert_eq!(too_big.kind(), ErrorKind::ResourceExhausted, "{too_big}");
}

#[tokio::test]
async fn the_limit_on_open_files_holds_for_all() {
    let (sandbox, mut connection, _) = Sandbox::ready(Some(40)).await;
    let further = sandbox
        .exec(shell("ulimit -S -n; ulimit -H -n; ulimit -c"))
        .await
        .unwrap();
    assert_eq!(further.stdout.to_text(), "40\n40\n0\n");
    connection
        .prepare(SpawnRequest::new(shell("ulimit -S -n; ulimit -H -n")))
        .await
        .unwrap();
    let (session, _) = connection.start(StartOptions::new(), Arc::new(Quiet)).await.unwrap();
    assert_eq!(to_the_end(session).await.0, b"40\n40\n");
}

#[tokio::test]
async fn a_full_disk_is_told_from_a_failure() {
    let (sandbox, _connection, _) = Sandbox::ready(None).await;
    assert_eq!(sandbox.exec(shell("exit 1")).await.unwrap().exit, exited(1));
    let fill = Process::new(["dd", "if=/dev/zero", "of=/output/big", "bs=1048576", "count=64"]);
    assert_eq!(
        sandbox.exec(fill).await.unwrap().exit,
        Exit::DiskLimit { code: Some(1) }
    );
    assert_eq!(sandbox.exec(shell("exit 0")).await.unwrap().exit, exited(0));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4 << 20);
    header.set_mode(0o644);
    builder.append_data(&mut header, "more", &vec![1; 4 << 20][..]).unwrap();
    let archive = builder.into_inner().unwrap();
    let write = async |path: &str| {
        let chunks: Vec<_> = archive.chunks(50_000).map(Bytes::copy_from_slice).map(Ok).collect();
        let (connection, _child) = sandbox.enter(&write_command(path));
        connection.write(futures_util::stream::iter(chunks).boxed()).await
    };
    assert_eq!(write("/output").await.unwrap_err().kind(), ErrorKind::ResourceExhausted);
    assert_eq!(write("/usr").await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(write("/none").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_read_while_processes_write_belongs_together() {
    let (sandbox, _connection, _) = Sandbox::ready(None).await;
    let script = "echo ready; i=0; while :; do i=$((i+1)); echo $i > /output/a; echo $i > /output/b; done";
    let (connection, _child) = sandbox.enter(&exec_command());
    let mut session = connection
        .spawn(SpawnRequest::new(shell(script)), Arc::new(Quiet))
        .await
        .unwrap();
    first_line(&mut session).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let archive = sandbox.read("/output", true).await.unwrap();
        let number = |name: &str| content(&archive, name).trim().parse::<i64>().unwrap_or(-1);
        let (a, b) = (number("output/a"), number("output/b"));
        // A shell truncates before it writes, so a file may be empty; but the two are never further apart than one step.
        assert!(
            a < 0 || b < 0 || a == b || a == b + 1,
            "{a} and {b} were not read at one time"
        );
        seen.insert(a.max(b));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(seen.len() > 3, "the process did not go on: {seen:?}");
    // Two at once do not stop each other.
    let both = tokio::time::timeout(SOON, async {
        tokio::join!(sandbox.read("/output", true), sandbox.read("/output", true))
    });
    let (one, two) = both.await.unwrap();
    assert!(one.is_ok() && two.is_ok());
    // Whoever goes away in the middle leaves nobody stopped.
    let (connection, mut child) = sandbox.enter(&read_command("/usr", true));
    drop(connection.read().await.unwrap());
    tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
    let last = *seen.last().unwrap();
    let goes_on = async {
        loop {
            let archive = sandbox.read("/output", true).await.unwrap();
            let number = content(&archive, "output/a").trim().parse::<i64>();
            if number.is_ok_and(|number| number > last + 100) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, goes_on).await.unwrap();
}

#[tokio::test]
async fn orphans_are_taken_off_and_a_hidden_file_is_read() {
    let (sandbox, _connection, _) = Sandbox::ready(None).await;
    let script = "i=0; while [ $i -lt 20 ]; do ( sleep 0.05 & ); i=$((i+1)); done; printf x > closed; chmod 0 closed; \
                  mkdir shut; printf y > shut/f; chmod 0 shut";
    assert_eq!(sandbox.exec(shell(script)).await.unwrap().exit, exited(0));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let zombies = sandbox
        .exec(shell("cat /proc/[0-9]*/stat | grep -c ') Z 1 '"))
        .await
        .unwrap();
    assert_eq!(zombies.stdout.to_text(), "0\n");
    let archive = sandbox.read("/output", false).await.unwrap();
    assert_eq!(
        (content(&archive, "output/closed"), content(&archive, "output/shut/f")),
        ("x".to_owned(), "y".to_owned())
    );
    let modes = sandbox.exec(shell("stat -c %a closed shut")).await.unwrap();
    assert_eq!(modes.stdout.to_text(), "0\n0\n");
}

#[tokio::test]
async fn a_main_process_outlives_its_client_only_when_told_to() {
    for outlives in [true, false] {
        let (sandbox, mut connection, _) = Sandbox::ready(None).await;
        let script = "sleep 0.7; echo done > /output/r";
        connection.prepare(SpawnRequest::new(shell(script))).await.unwrap();
        let options = if outlives {
            StartOptions::new().outliving_the_client()
        } else {
            StartOptions::new()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (session, _afterwards) = runtime
            .spawn(connection.start(options, Arc::new(Quiet)))
            .await
            .unwrap()
            .unwrap();
        runtime.shutdown_background();
        std::mem::forget(session);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(sandbox.state().await, ContainerState::Exited);
        let archive = sandbox.read("/output/r", false).await;
        assert_eq!(archive.is_ok(), outlives, "{archive:?}");
    }
}
