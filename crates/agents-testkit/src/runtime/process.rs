//! The cases about running processes.

use std::{
    fs,
    time::{Duration, Instant},
};

use agents_core::{ErrorKind, ExecEvent, ExecRequest, Exit, KillReason, Process, StartFailure, StartRequest};
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};

use super::{
    Fx, RuntimeFixture, SOON, STUBBORN, exited, first_line, kind_of, nothing_beats, shell, stdout, succeeded,
    to_the_end,
};
use crate::{
    Case, CaseResult, Failure,
    case::{cases, failed},
};

/// The cases about running processes.
pub fn process_cases() -> Vec<Case<RuntimeFixture>> {
    cases![
        output_and_exit_of_the_main_process,
        output_and_exit_of_an_exec,
        exit_codes,
        a_killed_process_says_so,
        a_missing_command_is_not_found,
        a_command_that_cannot_be_executed,
        arguments_are_passed_as_they_are,
        environment,
        working_directory,
        stdin_is_echoed,
        without_stdin_the_end_is_read,
        a_closed_stdin_is_a_conflict,
        output_is_bytes,
        output_keeps_its_order,
        no_output_is_lost,
        a_slow_reader_does_not_cost_memory,
        the_deadline_kills_the_tree,
        the_deadline_of_an_exec_kills_the_tree,
        dropping_kills_the_tree,
        cancelling_kills_the_tree,
        a_signal_reaches_the_process,
        start_works_once,
        execs_run_side_by_side,
        a_terminal,
    ]
}

async fn output_and_exit_of_the_main_process(fx: Fx) -> CaseResult {
    let (_, session) = fx
        .start(fx.request(), shell("echo out; echo err >&2; exit 7"), None)
        .await?;
    let output = session.collect(1000).await?;
    assert_eq!(
        (output.exit, &*output.stdout.head, &*output.stderr.head),
        (exited(7), &b"out\n"[..], &b"err\n"[..])
    );
    Ok(())
}

async fn output_and_exit_of_an_exec(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let output = fx.sh(&container, "echo out; echo err >&2; exit 7").await?;
    assert_eq!(
        (output.exit, &*output.stdout.head, &*output.stderr.head),
        (exited(7), &b"out\n"[..], &b"err\n"[..])
    );
    Ok(())
}

async fn exit_codes(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 137, 255] {
        let output = fx.sh(&container, &format!("exit {code}")).await?;
        assert_eq!(output.exit, exited(code));
    }
    if fx.capabilities().main_process.is_enforced() {
        for code in [0, 1, 42, 255] {
            let (_, output) = fx.run(fx.request(), shell(&format!("exit {code}"))).await?;
            assert_eq!(output.exit, exited(code));
        }
    }
    Ok(())
}

async fn a_killed_process_says_so(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    for signal in [9, 15, 11] {
        let output = fx.sh(&container, &format!("kill -{signal} $$; sleep 5")).await?;
        // An engine may know only the code; but 137 alone is never called "out of memory".
        let fits = matches!(output.exit, Exit::Signalled { signal: got } if got == signal)
            || output.exit == exited(128 + signal);
        assert!(fits, "signal {signal} ended as {:?}", output.exit);
    }
    Ok(())
}

async fn a_missing_command_is_not_found(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    for command in ["/no/such/command", "no-such-command"] {
        let mut exits = vec![fx.exec(&container, Process::new([command])).await?.exit];
        if fx.capabilities().main_process.is_enforced() {
            exits.push(fx.run(fx.request(), Process::new([command])).await?.1.exit);
        }
        for exit in exits {
            let fits = matches!(&exit, Exit::NotStarted { reason: StartFailure::NotFound, message } if message.contains(command));
            assert!(fits, "{exit:?}");
            assert_eq!(exit.code(), Some(127));
        }
    }
    Ok(())
}

async fn a_command_that_cannot_be_executed(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    succeeded(
        &fx.sh(&container, "echo 'no program' > /output/text; chmod 644 /output/text")
            .await?,
    )?;
    for command in ["/output/text", "/output"] {
        let exit = fx.exec(&container, Process::new([command])).await?.exit;
        let fits = matches!(
            exit,
            Exit::NotStarted {
                reason: StartFailure::NotExecutable,
                ..
            }
        );
        assert!(fits, "{command}: {exit:?}");
        assert_eq!(exit.code(), Some(126));
    }
    Ok(())
}

async fn arguments_are_passed_as_they_are(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let arguments = ["a b", "", "*", "$HOME", "\"q'", "-n", "--", "späße", "line\nfeed", "\\"];
    let script = ["sh", "-c", "for a; do printf '%s|' \"$a\"; done", "sh"];
    let output = fx
        .exec(&container, Process::new(script.into_iter().chain(arguments)))
        .await?;
    assert_eq!(
        stdout(&output),
        arguments.map(|argument| format!("{argument}|")).concat()
    );
    Ok(())
}

async fn environment(fx: Fx) -> CaseResult {
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    };
    let request = fx
        .request()
        .with_env(pairs(&[("A", "container"), ("B", "container"), ("C", "a b=c\n\"'$x")]));
    let process = shell("printf '%s,%s,%s,%s' \"$A\" \"$B\" \"$C\" \"${CARGO_MANIFEST_DIR-none}\"")
        .with_env(pairs(&[("B", "process")]));
    let expected = "container,process,a b=c\n\"'$x,none";
    let (_, output) = fx.run(request.clone(), process.clone()).await?;
    assert_eq!(stdout(&output), expected);
    let mut again = request;
    again.name = fx.request().name;
    let container = fx.provision(again).await?.handle;
    assert_eq!(stdout(&fx.exec(&container, process).await?), expected);
    Ok(())
}

async fn working_directory(fx: Fx) -> CaseResult {
    let container = fx.provision(fx.request().with_working_dir("/output")).await?.handle;
    assert_eq!(stdout(&fx.sh(&container, "pwd").await?), "/output\n");
    let elsewhere = shell("pwd").with_working_dir(Some("/proc".to_owned()));
    assert_eq!(stdout(&fx.exec(&container, elsewhere).await?), "/proc\n");
    let missing = shell("pwd").with_working_dir(Some("/no/such/folder".to_owned()));
    let exit = match fx.runtime.exec(ExecRequest::new(container, missing)).await {
        Ok(session) => session.collect(100).await?.exit,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            return Ok(());
        }
    };
    assert!(matches!(exit, Exit::NotStarted { .. }), "{exit:?}");
    Ok(())
}

async fn stdin_is_echoed(fx: Fx) -> CaseResult {
    let content: Vec<u8> = (0..1_000_003_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let (_, mut session) = fx
        .begin(fx.request(), Process::new(["cat"]).with_stdin(true), None)
        .await?;
    let Some(mut stdin) = session.take_stdin() else {
        return failed("there is no stdin");
    };
    assert!(session.take_stdin().is_none(), "stdin can be taken twice");
    let sent = content.clone();
    let writer = tokio::spawn(async move {
        for chunk in sent.chunks(70_001) {
            stdin.write(Bytes::copy_from_slice(chunk)).await?;
        }
        stdin.close().await
    });
    let (events, exit) = to_the_end(session).await?;
    assert_eq!(exit, exited(0));
    let echoed: Vec<u8> = events
        .iter()
        .flat_map(|event| match event {
            ExecEvent::Stdout(bytes) => bytes.to_vec(),
            _ => Vec::new(),
        })
        .collect();
    assert!(
        echoed == content,
        "{} bytes came back of {}",
        echoed.len(),
        content.len()
    );
    match writer.await {
        Ok(written) => written?,
        Err(error) => return failed(error.to_string()),
    }
    Ok(())
}

async fn without_stdin_the_end_is_read(fx: Fx) -> CaseResult {
    let (_, mut session) = fx.begin(fx.request(), shell("cat; echo end"), Some(SOON)).await?;
    assert!(session.take_stdin().is_none(), "nobody asked for stdin");
    let output = session.collect(100).await?;
    assert_eq!((output.exit.clone(), stdout(&output)), (exited(0), "end\n".to_owned()));
    Ok(())
}

async fn a_closed_stdin_is_a_conflict(fx: Fx) -> CaseResult {
    let (_, mut session) = fx
        .begin(
            fx.request(),
            shell("exec <&-; echo ready; sleep 2").with_stdin(true),
            None,
        )
        .await?;
    first_line(&mut session).await?;
    let Some(mut stdin) = session.take_stdin() else {
        return failed("there is no stdin");
    };
    let writing = async {
        // What the pipes between us hold may be taken without an error.
        for _ in 0..256 {
            stdin.write(Bytes::from(vec![0; 64 << 10])).await?;
        }
        Ok(())
    };
    let reading = to_the_end(session);
    let (written, ended) = tokio::join!(writing, reading);
    assert_eq!(kind_of(written), Some(ErrorKind::Conflict));
    assert_eq!(ended?.1, exited(0), "a write that failed must not end the process");
    Ok(())
}

async fn output_is_bytes(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let output = fx
        .sh(&container, r"printf '\377\376\000\r\n\200'; printf '\300' >&2")
        .await?;
    assert_eq!(output.stdout.head, b"\xff\xfe\0\r\n\x80");
    assert_eq!(output.stderr.head, b"\xc0");
    Ok(())
}

async fn output_keeps_its_order(fx: Fx) -> CaseResult {
    let script = "i=0; while [ $i -lt 10 ]; do echo o$i; sleep 0.05; echo e$i >&2; sleep 0.05; i=$((i+1)); done";
    let (_, session) = fx.begin(fx.request(), shell(script), None).await?;
    let (events, _) = to_the_end(session).await?;
    let mut text = String::new();
    for event in events {
        let bytes = match event {
            ExecEvent::Stdout(bytes) => {
                assert!(!bytes.contains(&b'e'));
                bytes
            }
            ExecEvent::Stderr(bytes) => bytes,
            ExecEvent::Exit(_) => continue,
        };
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    let expected: String = (0..10).map(|i| format!("o{i}\ne{i}\n")).collect();
    assert_eq!(text, expected);
    Ok(())
}

/// What is written just before the end is lost easily, and not every time.
async fn no_output_is_lost(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    for i in 0..100 {
        let output = fx.sh(&container, &format!("echo out {i}; echo err {i} >&2")).await?;
        assert_eq!(
            (stdout(&output), output.stderr.to_text()),
            (format!("out {i}\n"), format!("err {i}\n"))
        );
    }
    for i in 0..5 {
        let (_, output) = fx
            .run(fx.request(), shell(&format!("echo out {i}; echo err {i} >&2")))
            .await?;
        assert_eq!(
            (stdout(&output), output.stderr.to_text()),
            (format!("out {i}\n"), format!("err {i}\n"))
        );
    }
    Ok(())
}

async fn a_slow_reader_does_not_cost_memory(fx: Fx) -> CaseResult {
    let process = Process::new(["dd", "if=/dev/zero", "bs=1048576", "count=64"]);
    let (_, mut session) = fx.begin(fx.request(), process, None).await?;
    let mut total = 0;
    let mut biggest = 0;
    let before = resident();
    let mut grown = 0;
    while let Some(event) = session.next().await {
        match event? {
            ExecEvent::Stdout(bytes) => {
                biggest = biggest.max(bytes.len());
                if total == 0 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    grown = resident().saturating_sub(before);
                }
                total += bytes.len();
            }
            ExecEvent::Stderr(_) => {}
            ExecEvent::Exit(exit) => assert_eq!(exit, exited(0)),
        }
    }
    assert_eq!(total, 64 << 20);
    assert!(biggest <= 4 << 20, "one event had {biggest} bytes");
    assert!(grown < 32 << 20, "memory grew by {grown} bytes while nobody read");
    Ok(())
}

/// The memory of this process, in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or_default() * 4096
}

async fn the_deadline_kills_the_tree(fx: Fx) -> CaseResult {
    let begun = Instant::now();
    let (container, session) = fx
        .start(fx.request(), shell(STUBBORN), Some(Duration::from_secs(2)))
        .await?;
    assert_eq!(to_the_end(session).await?.1, Exit::Deadline);
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "it was killed before its deadline"
    );
    assert!(
        begun.elapsed() < SOON,
        "it was killed {:?} after its start",
        begun.elapsed()
    );
    nothing_beats(&fx, &container).await
}

async fn the_deadline_of_an_exec_kills_the_tree(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let request = ExecRequest::new(container.clone(), shell(STUBBORN)).with_deadline(Some(Duration::from_secs(2)));
    let session = fx.runtime.exec(request).await?;
    assert_eq!(to_the_end(session).await?.1, Exit::Deadline);
    nothing_beats(&fx, &container).await?;
    succeeded(&fx.sh(&container, "true").await?)
}

async fn dropping_kills_the_tree(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let mut session = fx
        .runtime
        .exec(ExecRequest::new(container.clone(), shell(STUBBORN)))
        .await?;
    first_line(&mut session).await?;
    drop(session);
    tokio::time::sleep(Duration::from_secs(1)).await;
    nothing_beats(&fx, &container).await
}

async fn cancelling_kills_the_tree(fx: Fx) -> CaseResult {
    let (container, mut session) = fx.begin(fx.request(), shell(STUBBORN), None).await?;
    first_line(&mut session).await?;
    let control = session.control();
    control.kill(KillReason::Cancelled).await?;
    let ended = tokio::time::timeout(SOON, to_the_end(session)).await;
    match ended {
        Ok(ended) => assert_eq!(ended?.1, Exit::Cancelled),
        Err(_) => return failed("it lives on after it was killed"),
    }
    control.kill(KillReason::Cancelled).await?;
    nothing_beats(&fx, &container).await
}

async fn a_signal_reaches_the_process(fx: Fx) -> CaseResult {
    let script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.05; done";
    let (_, mut session) = fx.begin(fx.request(), shell(script), Some(SOON)).await?;
    first_line(&mut session).await?;
    session.control().signal(10).await?;
    let (events, exit) = to_the_end(session).await?;
    assert_eq!(exit, exited(3));
    assert!(
        events.contains(&ExecEvent::Stdout(Bytes::from_static(b"got\n"))),
        "{events:?}"
    );
    Ok(())
}

async fn start_works_once(fx: Fx) -> CaseResult {
    let idle = fx.idle().await?;
    let start = fx.runtime.start(StartRequest::new(idle)).await;
    assert_eq!(
        kind_of(start),
        Some(ErrorKind::Conflict),
        "an idle container has no main process"
    );
    let (container, session) = fx.start(fx.request(), shell("exit 0"), None).await?;
    let again = || fx.runtime.start(StartRequest::new(container.clone()));
    assert_eq!(kind_of(again().await), Some(ErrorKind::Conflict));
    to_the_end(session).await?;
    assert_eq!(kind_of(again().await), Some(ErrorKind::Conflict));
    Ok(())
}

async fn execs_run_side_by_side(fx: Fx) -> CaseResult {
    let container = fx.idle().await?;
    let execs = (0..16).map(|i| {
        let (fx, container) = (&fx, &container);
        async move {
            let output = fx.sh(container, &format!("sleep 0.2; echo {i}; exit {i}")).await?;
            Ok::<_, Failure>((output.exit.clone(), stdout(&output)))
        }
    });
    for (i, output) in join_all(execs).await.into_iter().enumerate() {
        assert_eq!(output?, (exited(i as i32), format!("{i}\n")));
    }
    Ok(())
}

async fn a_terminal(fx: Fx) -> CaseResult {
    fx.needs("tty", |c| &c.tty)?;
    let process = shell("tty; stty size; read line; stty size; exit 5")
        .with_tty(Some((11, 77)))
        .with_stdin(true);
    let container = fx.idle().await?;
    let request = ExecRequest::new(container, process).with_deadline(Some(SOON));
    let mut session = fx.runtime.exec(request).await?;
    let mut text = first_line(&mut session).await?;
    session.control().resize(33, 99).await?;
    if let Some(mut stdin) = session.take_stdin() {
        stdin.write(Bytes::from_static(b"\n")).await?;
        let (events, exit) = to_the_end(session).await?;
        drop(stdin);
        assert_eq!(exit, exited(5));
        for event in events {
            if let ExecEvent::Stdout(bytes) = event {
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        assert!(text.starts_with("/dev/pts/"), "{text:?}");
        assert!(text.contains("33 99"), "{text:?}");
        return Ok(());
    }
    failed("there is no stdin")
}
