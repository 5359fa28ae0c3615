//! Further processes, with the program as an ordinary process of the host.

mod common;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use agents_core::{ErrorKind, ExecEvent, Exit, KillReason, Process, StartFailure};
use agents_guest::SpawnRequest;
use bytes::Bytes;
use common::*;
use futures_util::{StreamExt, future::join_all};

#[tokio::test]
async fn outputs_are_apart_and_codes_are_exact() {
    let output = sh("echo out; echo err >&2; exit 7").await;
    assert_eq!(
        (output.exit, &*output.stdout.head, &*output.stderr.head),
        (exited(7), &b"out\n"[..], &b"err\n"[..])
    );
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 137, 255] {
        assert_eq!(sh(&format!("exit {code}")).await.exit, exited(code));
    }
}

#[tokio::test]
async fn signals_are_told_from_codes() {
    for signal in [9, 15, 11] {
        let exit = sh(&format!("kill -{signal} $$; sleep 5")).await.exit;
        assert_eq!(exit, Exit::Signalled { signal });
    }
}

#[tokio::test]
async fn what_does_not_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "no program").unwrap();
    let script = folder.path().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    for tty in [None, Some((24, 80))] {
        for (command, expected) in [
            ("/no/such/command".to_owned(), StartFailure::NotFound),
            ("no-such-command".to_owned(), StartFailure::NotFound),
            (path(&script), StartFailure::NotFound),
            (path(&text), StartFailure::NotExecutable),
            (path(folder.path()), StartFailure::NotExecutable),
        ] {
            match run(Process::new([&command]).with_tty(tty)).await.exit {
                Exit::NotStarted { reason, message } => {
                    assert_eq!(reason, expected, "{command}: {message}");
                    assert!(message.contains(&command), "{message}");
                }
                other => panic!("{command}: {other}"),
            }
        }
        let missing = shell("true")
            .with_working_dir(Some("/no/such/folder".to_owned()))
            .with_tty(tty);
        let exit = run(missing).await.exit;
        let fits = matches!(&exit, Exit::NotStarted { reason: StartFailure::Refused, message } if message.contains("/no/such/folder"));
        assert!(fits, "{exit:?}");
    }
}

#[tokio::test]
async fn words_and_environment_are_passed_as_they_are() {
    let arguments = ["a b", "", "*", "$HOME", "\"q'", "-n", "--", "späße", "line\nfeed", "\\"];
    let words = ["sh", "-c", "for a; do printf '%s|' \"$a\"; done", "sh"];
    let output = run(Process::new(words.into_iter().chain(arguments))).await;
    assert_eq!(
        output.stdout.to_text(),
        arguments.map(|argument| format!("{argument}|")).concat()
    );
    let env = [("A", "a b=c\n\"'$x"), ("B", "1"), ("B", "2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let output = run(shell("printf '%s,%s' \"$A\" \"$B\"").with_env(env)).await;
    assert_eq!(output.stdout.to_text(), "a b=c\n\"'$x,2");
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/echo", folder.path().join("renamed-echo")).unwrap();
    let path = [("PATH".to_owned(), format!("/nowhere:{}", folder.path().display()))];
    let output = run(Process::new(["renamed-echo", "found"]).with_env(path)).await;
    assert_eq!(output.stdout.to_text(), "found\n");
}

#[tokio::test]
async fn long_commands_fit_and_longer_ones_are_refused() {
    let word = "x".repeat(100_000);
    let command = |count: usize| {
        let words = std::iter::repeat_n(word.clone(), count);
        Process::new(
            ["sh", "-c", "printf '%s' $#", "sh"]
                .map(str::to_owned)
                .into_iter()
                .chain(words),
        )
    };
    assert_eq!(run(command(15)).await.stdout.to_text(), "15");
    let exit = run(command(60)).await.exit;
    assert_eq!(exit.code(), Some(126), "{exit:?}");
}

#[tokio::test]
async fn the_working_directory_is_the_process_s_or_the_default() {
    let request = SpawnRequest::new(shell("pwd")).with_default_working_dir("/usr");
    assert_eq!(to_the_end(start(request).await.0).await.0, b"/usr\n");
    let own = shell("pwd").with_working_dir(Some("/proc".to_owned()));
    let request = SpawnRequest::new(own).with_default_working_dir("/usr");
    assert_eq!(to_the_end(start(request).await.0).await.0, b"/proc\n");
}

#[tokio::test]
async fn input_is_echoed_and_ends() {
    let content: Vec<u8> = (0..1_000_003_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let (mut session, _child) = start(SpawnRequest::new(Process::new(["cat"]).with_stdin(true))).await;
    let mut stdin = session.take_stdin().unwrap();
    let sent = content.clone();
    let writer = tokio::spawn(async move {
        for chunk in sent.chunks(70_001) {
            stdin.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        stdin.close().await.unwrap();
    });
    let (echoed, exit) = to_the_end(session).await;
    assert_eq!(exit, exited(0));
    assert!(
        echoed == content,
        "{} bytes came back of {}",
        echoed.len(),
        content.len()
    );
    writer.await.unwrap();
}

#[tokio::test]
async fn input_is_taken_while_nobody_reads_the_output() {
    let (mut session, _child) = start(SpawnRequest::new(shell("wc -c").with_stdin(true))).await;
    let mut stdin = session.take_stdin().unwrap();
    for _ in 0..64 {
        let wrote = tokio::time::timeout(SOON, stdin.write(Bytes::from(vec![1; 64 << 10]))).await;
        wrote.unwrap().unwrap();
    }
    drop(stdin);
    assert_eq!(to_the_end(session).await, (b"4194304\n".to_vec(), exited(0)));
}

#[tokio::test]
async fn without_input_the_end_is_read() {
    let (mut session, _child) = start(SpawnRequest::new(shell("cat; echo end"))).await;
    assert!(session.take_stdin().is_none());
    assert_eq!(to_the_end(session).await, (b"end\n".to_vec(), exited(0)));
}

#[tokio::test]
async fn a_closed_input_is_a_conflict() {
    let (mut session, _child) = start(SpawnRequest::new(
        shell("exec <&-; echo ready; sleep 1").with_stdin(true),
    ))
    .await;
    first_line(&mut session).await;
    let mut stdin = session.take_stdin().unwrap();
    let writing = async {
        for _ in 0..256 {
            stdin.write(Bytes::from(vec![0; 64 << 10])).await?;
        }
        Ok::<_, agents_core::Error>(())
    };
    let (written, ended) = tokio::join!(writing, to_the_end(session));
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(ended.1, exited(0), "a write that failed must not end the process");
}

#[tokio::test]
async fn output_keeps_its_order() {
    let script = "i=0; while [ $i -lt 10 ]; do echo o$i; sleep 0.03; echo e$i >&2; sleep 0.03; i=$((i+1)); done";
    let (mut session, _child) = start(SpawnRequest::new(shell(script))).await;
    let mut text = String::new();
    while let Some(event) = session.next().await {
        match event.unwrap() {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            ExecEvent::Exit(_) => {}
        }
    }
    assert_eq!(text, (0..10).map(|i| format!("o{i}\ne{i}\n")).collect::<String>());
}

#[tokio::test]
async fn no_output_is_lost() {
    for i in 0..100 {
        let output = sh(&format!("echo out {i}; echo err {i} >&2")).await;
        assert_eq!(
            (output.stdout.to_text(), output.stderr.to_text()),
            (format!("out {i}\n"), format!("err {i}\n"))
        );
    }
    // All that a pipe holds is there when the process ends.
    let output = run(Process::new(["dd", "if=/dev/zero", "bs=65536", "count=1"])).await;
    assert_eq!(output.stdout.total, 65_536);
}

#[tokio::test]
async fn what_is_left_behind_is_not_waited_for_and_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("late");
    let begun = Instant::now();
    let script = format!(
        "( sleep 1; echo late > '{}' ) & yes > /dev/null & echo $!; echo done",
        file.display()
    );
    let output = sh(&script).await;
    assert!(begun.elapsed() < Duration::from_millis(900));
    assert!(output.stdout.to_text().ends_with("done\n"));
    let yes = output.stdout.to_text().lines().next().unwrap().to_owned();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(file.exists());
    std::process::Command::new("kill").args(["-9", &yes]).status().unwrap();
}

#[tokio::test]
async fn a_writer_in_the_background_does_not_hold_the_end_up() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let (session, _child) = start(SpawnRequest::new(shell(&format!(
        "yes & echo $! > '{}'; exit 3",
        pid.display()
    ))))
    .await;
    let ended = tokio::time::timeout(SOON, to_the_end(session)).await.unwrap();
    assert_eq!(ended.1, exited(3));
    let _ = std::process::Command::new("kill")
        .arg("-9")
        .arg(fs::read_to_string(&pid).unwrap().trim())
        .status();
}

#[tokio::test]
async fn execs_run_side_by_side() {
    let execs = (0..16).map(|i| async move {
        let output = sh(&format!("sleep 0.2; echo {i}; exit {i}")).await;
        (output.exit.clone(), output.stdout.to_text())
    });
    for (i, output) in join_all(execs).await.into_iter().enumerate() {
        assert_eq!(output, (exited(i as i32), format!("{i}\n")));
    }
}

#[tokio::test]
async fn the_deadline_kills_the_whole_tree() {
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let deadline = Duration::from_millis(1500);
    let request = SpawnRequest::new(shell(&stubborn(folder.path()))).with_deadline(Some(deadline));
    let (session, _child) = start(request).await;
    assert_eq!(to_the_end(session).await.1, Exit::Deadline);
    assert!(begun.elapsed() >= deadline && begun.elapsed() < SOON);
    nothing_beats(folder.path()).await;
}

#[tokio::test]
async fn cancelling_kills_the_whole_tree() {
    let folder = tempfile::tempdir().unwrap();
    let (mut session, _child) = start(SpawnRequest::new(shell(&stubborn(folder.path())))).await;
    first_line(&mut session).await;
    let control = session.control();
    control.kill(KillReason::Cancelled).await.unwrap();
    assert_eq!(to_the_end(session).await.1, Exit::Cancelled);
    control.kill(KillReason::Cancelled).await.unwrap();
    nothing_beats(folder.path()).await;
}

#[tokio::test]
async fn dropping_kills_the_whole_tree() {
    let folder = tempfile::tempdir().unwrap();
    let (mut session, _child) = start(SpawnRequest::new(shell(&stubborn(folder.path())))).await;
    first_line(&mut session).await;
    drop(session);
    tokio::time::sleep(Duration::from_millis(500)).await;
    nothing_beats(folder.path()).await;
}

#[tokio::test]
async fn a_reader_that_stopped_reading_does_not_keep_the_tree_alive() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("{} & yes", stubborn(folder.path()));
    let (mut session, _child) =
        start(SpawnRequest::new(shell(&script)).with_deadline(Some(Duration::from_secs(2)))).await;
    first_line(&mut session).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    nothing_beats(folder.path()).await;
    assert_eq!(to_the_end(session).await.1, Exit::Deadline);
}

#[tokio::test]
async fn a_signal_reaches_the_process() {
    let script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.05; done";
    let (mut session, _child) = start(SpawnRequest::new(shell(script)).with_deadline(Some(SOON))).await;
    first_line(&mut session).await;
    session.control().signal(10).await.unwrap();
    assert_eq!(
        session.control().signal(0).await.unwrap_err().kind(),
        ErrorKind::ConfigInvalid
    );
    assert_eq!(
        session.control().resize(1, 1).await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(to_the_end(session).await, (b"got\n".to_vec(), exited(3)));
}

#[tokio::test]
async fn a_terminal_has_its_size_and_its_end() {
    let process = shell("echo $(tty) $(stty size); read line; stty size; echo \"<$line>\"; exit 5")
        .with_tty(Some((11, 77)))
        .with_stdin(true);
    let (mut session, _child) = start(SpawnRequest::new(process).with_deadline(Some(SOON))).await;
    let mut text = first_line(&mut session).await;
    session.control().resize(33, 99).await.unwrap();
    let mut stdin = session.take_stdin().unwrap();
    stdin.write(Bytes::from_static(b"typed\n")).await.unwrap();
    let (rest, exit) = to_the_end(session).await;
    assert_eq!(exit, exited(5));
    text.push_str(&String::from_utf8_lossy(&rest));
    assert!(text.starts_with("/dev/pts/"), "{text:?}");
    for part in ["11 77", "33 99", "<typed>"] {
        assert!(text.contains(part), "{text:?}");
    }
    // The end of the input is read as such.
    let process = shell("cat; echo end; test -t 2 && echo terminal")
        .with_tty(Some((24, 80)))
        .with_stdin(true);
    let (mut session, _child) = start(SpawnRequest::new(process).with_deadline(Some(SOON))).await;
    drop(session.take_stdin());
    let (output, exit) = to_the_end(session).await;
    assert_eq!(exit, exited(0));
    assert!(
        String::from_utf8_lossy(&output).ends_with("end\r\nterminal\r\n"),
        "{output:?}"
    );
    // A hang-up of a terminal is a kill as well.
    let process = shell("trap '' HUP; while :; do sleep 1; done").with_tty(Some((24, 80)));
    let (session, _child) = start(SpawnRequest::new(process).with_deadline(Some(Duration::from_millis(300)))).await;
    assert_eq!(to_the_end(session).await.1, Exit::Deadline);
}

#[tokio::test]
async fn only_the_three_streams_are_inherited() {
    // What this test itself has inherited is not the program's fault.
    let without = std::process::Command::new("ls")
        .arg("/proc/self/fd")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let without = String::from_utf8(without.stdout).unwrap();
    for tty in [None, Some((24, 80))] {
        let output = run(Process::new(["ls", "/proc/self/fd"]).with_tty(tty).with_stdin(true)).await;
        let text = output.stdout.to_text();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&text), words(&without), "{tty:?}");
        let signals = run(Process::new(["cat", "/proc/self/status"]).with_tty(tty))
            .await
            .stdout
            .to_text();
        let bits = |key: &str| {
            let line = signals.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        // Neither SIGPIPE (13) nor SIGCHLD (17) is ignored, and none is blocked.
        assert_eq!((bits("SigBlk:"), bits("SigIgn:") & (1 << 12 | 1 << 16)), (0, 0));
    }
}

#[tokio::test]
async fn the_judge_is_asked_about_failures_alone() {
    let judged = async |script: &str, deadline| {
        let (connection, _child) = guest(&["exec"]);
        let judge = Arc::new(Recorder::default());
        let request = SpawnRequest::new(shell(script)).with_deadline(deadline);
        let session = connection.spawn(request, Arc::<Recorder>::clone(&judge)).await.unwrap();
        let exit = to_the_end(session).await.1;
        let asked = judge.0.lock().unwrap().clone();
        (exit, asked)
    };
    assert_eq!(judged("true", None).await, (exited(0), vec![]));
    assert_eq!(
        judged("kill -9 $$", None).await,
        (Exit::OutOfMemory, vec!["failed ended by signal 9".to_owned()])
    );
    let killed = judged("sleep 100", Some(Duration::from_millis(100))).await;
    assert_eq!(killed, (Exit::Deadline, vec![]));
    let (exit, asked) = judged("kill -9 $PPID; sleep 5", None).await;
    assert!(
        matches!(exit, Exit::RuntimeLost { .. }) && asked.len() == 1 && asked[0].starts_with("lost"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_program_that_was_stopped_is_given_up() {
    let (connection, _child) = guest(&["exec"]);
    let judge = Arc::new(Recorder::default());
    let request = SpawnRequest::new(shell("sleep 0.2; kill -STOP $PPID; sleep 60"))
        .with_deadline(Some(Duration::from_millis(500)));
    let session = connection.spawn(request, Arc::<Recorder>::clone(&judge)).await.unwrap();
    let begun = Instant::now();
    assert_eq!(to_the_end(session).await.1, Exit::Deadline);
    assert!(begun.elapsed() < SOON);
    assert_eq!(judge.0.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_host_that_dies_ends_the_tree() {
    let folder = tempfile::tempdir().unwrap();
    let (connection, mut child) = guest(&["exec"]);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let script = stubborn(folder.path());
    let handle = runtime.spawn(async move {
        let mut session = connection
            .spawn(SpawnRequest::new(shell(&script)), Arc::new(agents_guest::Quiet))
            .await
            .unwrap();
        first_line(&mut session).await;
        session
    });
    let session = handle.await.unwrap();
    // All tasks die at once, without a word.
    runtime.shutdown_background();
    std::mem::forget(session);
    tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
    nothing_beats(folder.path()).await;
}

#[tokio::test]
async fn one_process_a_supervisor() {
    let (mut connection, _child) = guest(&["exec"]);
    let error = connection.prepare(SpawnRequest::new(shell("true"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataInvalid);
}

#[tokio::test]
async fn starting_takes_little() {
    let (mut times, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        let begun = Instant::now();
        let (session, _child) = start(SpawnRequest::new(Process::new(["/bin/true"]))).await;
        assert_eq!(to_the_end(session).await.1, exited(0));
        times.push(begun.elapsed());
        let begun = Instant::now();
        assert!(
            tokio::process::Command::new("/bin/true")
                .status()
                .await
                .unwrap()
                .success()
        );
        plain.push(begun.elapsed());
    }
    times.sort();
    plain.sort();
    println!(
        "exec of /bin/true: median {:?}, without the program {:?}",
        times[30], plain[30]
    );
    // Two processes instead of one. A machine that is busy with other things slows both down.
    assert!(
        times[30] < plain[30] * 6 + Duration::from_millis(5),
        "{:?} and {:?}",
        times[30],
        plain[30]
    );
}
