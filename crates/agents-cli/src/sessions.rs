//! Sessions after their beginning: `ps`, `exec`, `cp`, `logs`, `stats`, `inspect`, `stop` and `gc`.

use std::{io::IsTerminal, path::Path, sync::Arc, time::Duration};

use agents_sdk::{
    core::{Error, ErrorKind, ExecControl, ExecEvent, ExecInput, KillReason, Process, SessionId},
    session::{CancellationToken, OutputStream, SessionHandle, SessionInfo, Upload},
};
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use owo_colors::OwoColorize;
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};

use crate::{
    args::{Adapters, CpArgs, ExecArgs, LogsArgs, PsArgs, SessionArg, StopArgs},
    context::{Context, find_session},
    envfile,
    failure::{CODE_FAILED, CODE_PIPE, Failure, Outcome, ending_code},
    output::{self, one_line},
    progress::ago,
    run::{Sink, watch_signals},
    terminal,
    units::{self, Limit},
};

/// Twelve digits of an id are its time in milliseconds; some more tell apart what began together.
const SHORT_ID: usize = 16;

pub(crate) async fn ps(context: &Context, args: &PsArgs) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let sessions = engine.list(args.all).await?;
    if context.json() {
        output::json(&sessions)?;
        return Ok(0);
    }
    // Elsewhere than on a terminal a script reads it, and scripts get whole ids.
    let shown = match std::io::stdout().is_terminal() {
        true => unique_length(&sessions),
        false => usize::MAX,
    };
    let rows = sessions.iter().map(|info| ps_row(info, shown)).collect();
    let nothing = match args.all {
        true => "no sessions",
        false => "no running sessions; agents ps -a lists those that have ended",
    };
    output::table(
        ["SESSION", "AGENT", "STATUS", "STARTED", "IMAGE", "COMMAND"],
        rows,
        true,
        nothing,
    )?;
    Ok(0)
}

/// How much of an id tells each session from the others.
fn unique_length(sessions: &[SessionInfo]) -> usize {
    let mut ids: Vec<_> = sessions.iter().map(|info| info.session_id.as_str()).collect();
    ids.sort_unstable();
    let common = |(a, b): (&str, &str)| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let longest = ids.windows(2).map(|pair| common((pair[0], pair[1]))).max();
    longest.map_or(SHORT_ID, |common| SHORT_ID.max(common + 1))
}

fn ps_row(info: &SessionInfo, shown: usize) -> [String; 6] {
    let since = Timestamp::now().duration_since(info.started_at);
    let id = info.session_id.as_str();
    [
        id.get(..shown).unwrap_or(id).to_owned(),
        info.agent_id.to_string(),
        info.status.as_str().to_owned(),
        ago(Duration::try_from(since).unwrap_or_default()),
        info.image.clone(),
        info.command.join(" "),
    ]
}

pub(crate) async fn inspect(context: &Context, args: &SessionArg) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let id = find_session(&engine, &args.session).await?;
    let found = engine.inspect(&id).await?;
    match context.json() {
        true => output::json(&found)?,
        false => output::pretty_json(&found)?,
    }
    Ok(0)
}

pub(crate) async fn stats(context: &Context, args: &SessionArg) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let id = find_session(&engine, &args.session).await?;
    let stats = engine.attach(&id).await?.stats().await?;
    if context.json() {
        output::json(&stats)?;
        return Ok(0);
    }
    let unknown = || "-".to_owned();
    let limit = match stats.memory_limit_mb {
        limit if limit > 0.0 => format!("{limit:.0} MiB"),
        _ => "unlimited".to_owned(),
    };
    let row = [
        format!("{:.1} %", stats.cpu_percent),
        format!("{:.1} MiB / {limit}", stats.memory_mb),
        stats.pids.map_or_else(unknown, |pids| pids.to_string()),
        stats.disk_used_bytes.map_or_else(unknown, units::bytes),
        format!(
            "{} / {}",
            units::bytes(stats.network_rx_bytes),
            units::bytes(stats.network_tx_bytes)
        ),
    ];
    output::table(["CPU", "MEMORY", "PIDS", "DISK", "NET RX / TX"], vec![row], false, "")?;
    Ok(0)
}

pub(crate) async fn stop(context: &Context, args: &StopArgs) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let mut stopped = Vec::new();
    let mut failed = false;
    for text in &args.sessions {
        let ended = match find_session(&engine, text).await {
            Ok(id) => engine.stop(&id).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(info) if context.json() => stopped.push(info),
            Ok(info) => output::text(&format!("{}\n", info.session_id))?,
            Err(error) => {
                failed = true;
                output::error(&error.report());
            }
        }
    }
    if context.json() {
        output::json(&stopped)?;
    }
    Ok(if failed { CODE_FAILED } else { 0 })
}

pub(crate) async fn gc(context: &Context) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let report = engine.gc().await?;
    if context.json() {
        output::json(&report)?;
    } else {
        for id in &report.ended_sessions {
            output::text(&format!("ended session {id}\n"))?;
        }
        for removed in &report.removed {
            output::text(&format!("removed {}\n", one_line(removed)))?;
        }
        if report.ended_sessions.is_empty() && report.removed.is_empty() && !context.common.quiet {
            output::note("nothing to clean up");
        }
        for problem in &report.problems {
            output::error(problem);
        }
    }
    Ok(if report.problems.is_empty() { 0 } else { CODE_FAILED })
}

pub(crate) async fn logs(context: &Context, args: &LogsArgs) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let id = find_session(&engine, &args.session).await?;
    let mut chunks = engine.logs(&id, args.follow).await?;
    let never = CancellationToken::new();
    let sinks = [Sink::new(OutputStream::Stdout), Sink::new(OutputStream::Stderr)];
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        if context.json() {
            output::json(&json!({"stream": chunk.stream, "text": String::from_utf8_lossy(&chunk.bytes)}))?;
            continue;
        }
        sinks[chunk.stream as usize].write(chunk.bytes, &never).await;
        if sinks[0].has_failed() {
            return Ok(CODE_PIPE);
        }
    }
    Ok(0)
}

pub(crate) async fn exec(context: &Context, args: ExecArgs) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let id = find_session(&engine, &args.session).await?;
    let env = envfile::parse_flags(&args.env).map_err(Failure::Usage)?;
    let deadline = match args.timeout {
        Some(Limit::Of(seconds)) => Some(Duration::from_secs_f64(seconds)),
        Some(Limit::Unlimited) | None => None,
    };
    let process = Process::new(args.command)
        .with_env(env)
        .with_working_dir(args.workdir)
        .with_stdin(args.interactive)
        .with_tty(args.tty.then(|| terminal::size().unwrap_or((24, 80))));
    let mut session = engine.attach(&id).await?.exec(process, deadline).await?;
    let control = session.control();
    let cancel = CancellationToken::new();
    watch_signals(&cancel, context.common.quiet)?;
    if let Some(stdin) = session.take_stdin() {
        tokio::spawn(feed(stdin));
    }
    if args.tty {
        watch_size(Arc::clone(&control))?;
        if args.interactive && terminal::stdin_is_terminal() {
            terminal::make_raw()?;
        }
    }
    let capture = context.json();
    let sinks = [Sink::new(OutputStream::Stdout), Sink::new(OutputStream::Stderr)];
    let mut captured = [const {
        agents_sdk::core::Captured {
            head: Vec::new(),
            tail: Vec::new(),
            total: 0,
        }
    }; 2];
    let mut captures = [
        agents_sdk::core::Capture::new(64 << 10),
        agents_sdk::core::Capture::new(64 << 10),
    ];
    let mut killed = false;
    let ending = loop {
        let event = tokio::select! {
            event = session.next() => event,
            () = cancel.cancelled(), if !killed => {
                killed = true;
                control.kill(KillReason::Cancelled).await?;
                continue;
            }
        };
        let (stream, bytes) = match event {
            Some(Ok(ExecEvent::Stdout(bytes))) => (OutputStream::Stdout, bytes),
            Some(Ok(ExecEvent::Stderr(bytes))) => (OutputStream::Stderr, bytes),
            Some(Ok(ExecEvent::Exit(exit))) => break exit,
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Error::unexpected("the output ended without an exit").into()),
        };
        if capture {
            captures[stream as usize].push(&bytes);
            continue;
        }
        sinks[stream as usize].write(bytes, &cancel).await;
        if sinks[0].has_failed() {
            cancel.cancel();
        }
    };
    terminal::restore();
    if capture {
        for (captured, capture) in captured.iter_mut().zip(captures) {
            *captured = capture.finish();
        }
        output::json(&json!({
            "session_id": id,
            "exit_code": ending.code(),
            "ending": ending,
            "stdout": captured[0].to_text(),
            "stderr": captured[1].to_text(),
            "stdout_truncated": captured[0].truncated(),
            "stderr_truncated": captured[1].truncated(),
        }))?;
    } else if sinks[0].has_failed() {
        return Ok(CODE_PIPE);
    }
    if let agents_sdk::core::Exit::NotStarted { message, .. } = &ending {
        output::error(message);
    }
    Ok(ending_code(&ending))
}

/// Passes our standard input on until it ends or the process closes its own.
async fn feed(mut stdin: Box<dyn ExecInput>) {
    let mut ours = tokio::io::stdin();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = ours.read(&mut buffer).await {
        if stdin.write(Bytes::copy_from_slice(&buffer[..read])).await.is_err() {
            return;
        }
    }
    let _ = stdin.close().await;
}

fn watch_size(control: Arc<dyn ExecControl>) -> Result<(), Failure> {
    let mut changes =
        signal(SignalKind::window_change()).map_err(|error| Error::io("cannot watch the terminal's size", error))?;
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            if let Some((rows, columns)) = terminal::size() {
                let _ = control.resize(rows, columns).await;
            }
        }
    });
    Ok(())
}

pub(crate) async fn cp(context: &Context, args: &CpArgs) -> Outcome {
    let (from, to) = (Place::parse(&args.source), Place::parse(&args.destination));
    let engine = context.engine(&Adapters::default()).await?;
    let attach = async |session: &str| -> Result<SessionHandle, Error> {
        let id: SessionId = find_session(&engine, session).await?;
        engine.attach(&id).await
    };
    match (from, to) {
        (Place::Inside { session, path }, Place::Here(folder)) => {
            let copied = attach(session).await?.download(path, Path::new(folder)).await?;
            for refused in &copied.refused {
                output::warning(&format!("{} was left out: {}", refused.name, refused.reason));
            }
            if context.json() {
                output::json(&json!({"files": copied.files, "bytes": copied.bytes, "refused": copied.refused}))?;
            } else if !context.common.quiet && std::io::stderr().is_terminal() {
                let (files, bytes) = (copied.files, units::bytes(copied.bytes));
                output::note(&format!("{}", format!("{files} files, {bytes}").dimmed()));
            }
            Ok(if copied.refused.is_empty() { 0 } else { CODE_FAILED })
        }
        (Place::Here(file), Place::Inside { session, path }) => {
            // A missing file is known before anything is asked of the session.
            std::fs::symlink_metadata(file).map_err(|error| Error::io(format!("cannot read {file}"), error))?;
            attach(session).await?.upload(Upload::Path(file.into()), path).await?;
            if context.json() {
                output::json(&json!({"copied": file, "to": path}))?;
            }
            Ok(0)
        }
        (Place::Here(_), Place::Here(_)) => Err(Failure::Usage(Error::invalid(
            "neither is in a session; write one of them as SESSION:PATH",
        ))),
        (Place::Inside { .. }, Place::Inside { .. }) => Err(Failure::Usage(Error::new(
            ErrorKind::Unsupported,
            "both are in sessions; copy to a folder here first",
        ))),
    }
}

/// One side of a copy. As in Docker, what begins with `/` or `.` is here, and else a colon makes it a session's.
#[derive(Debug, PartialEq)]
enum Place<'a> {
    Here(&'a str),
    Inside { session: &'a str, path: &'a str },
}

impl<'a> Place<'a> {
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((session, path)) if !text.starts_with(['/', '.']) && SessionId::new(session).is_ok() => {
                Self::Inside { session, path }
            }
            _ => Self::Here(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_it_a_sessions() {
        let inside = |session, path| Place::Inside { session, path };
        let table = [
            ("abc:/output/x", inside("abc", "/output/x")),
            ("abc:/a:b", inside("abc", "/a:b")),
            ("./abc:/x", Place::Here("./abc:/x")),
            ("/abc:x", Place::Here("/abc:x")),
            ("file", Place::Here("file")),
            ("a b:/x", Place::Here("a b:/x")),
        ];
        for (text, place) in table {
            assert_eq!(Place::parse(text), place, "{text}");
        }
    }
}
