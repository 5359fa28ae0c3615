//! Running other programs.

use std::env;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result, fail};
use crate::proc;

/// The command as a person would type it (for messages only).
pub(crate) fn display(command: &Command) -> String {
    let program = Path::new(command.get_program());
    // Cargo tells us its full path, which would only hide what matters.
    let shown = match program.file_name() {
        Some(name) if name == "cargo" => name,
        _ => program.as_os_str(),
    };
    let mut text = quote(&shown.to_string_lossy());
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&quote(&arg.to_string_lossy()));
    }
    text
}

/// Quotes `word` for a POSIX shell where that is needed.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs to the end with our own output; an error unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| not_started(command, &error))?;
    if status.success() {
        return Ok(());
    }
    fail(format!("`{}` ended with {status}", display(command)))
}

/// Runs to the end and returns what it printed; an error, with the end of its messages, unless it succeeds.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(command, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return fail(format!(
            "`{}` ended with {}:\n{}",
            display(command),
            output.status,
            tail(&said, 15)
        ));
    }
    String::from_utf8(output.stdout).context(|| format!("`{}` printed text that is not UTF-8", display(command)))
}

/// Runs to the end and returns what it printed, while its messages go where ours go; an error unless it succeeds.
pub(crate) fn printed(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| not_started(command, &error))?;
    if !output.status.success() {
        return fail(format!("`{}` ended with {}", display(command), output.status));
    }
    String::from_utf8(output.stdout).context(|| format!("`{}` printed text that is not UTF-8", display(command)))
}

/// Runs to the end with both output streams as one, line by line in order.
///
/// The program is killed with everything below it when `limit` has passed.
pub(crate) fn stream(command: &mut Command, limit: Duration, mut on_line: impl FnMut(&str)) -> Result<ExitStatus> {
    let (reader, writer) = io::pipe().context(|| "cannot make a pipe".to_owned())?;
    let second = writer.try_clone().context(|| "cannot make a pipe".to_owned())?;
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let spawned = command.spawn();
    // The command holds the write ends; the reader would never see the end of file otherwise.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawned.map_err(|error| not_started(command, &error))?;

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });

    let deadline = Instant::now() + limit;
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => on_line(&line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() {
            ended = child
                .try_wait()
                .context(|| format!("cannot wait for `{}`", display(command)))?
                .map(|status| (status, Instant::now()));
        }
        // A background process that inherited the pipe must not keep us waiting.
        if ended.is_some_and(|(_, since)| since.elapsed() > Duration::from_secs(3)) {
            while let Ok(line) = lines.try_recv() {
                on_line(&line);
            }
            break;
        }
        if Instant::now() >= deadline {
            proc::kill_tree(child.id());
            let _ = child.wait();
            return fail(format!(
                "`{}` did not end within {} s and was killed",
                display(command),
                limit.as_secs()
            ));
        }
    }
    match ended {
        Some((status, _)) => Ok(status),
        None => child
            .wait()
            .context(|| format!("cannot wait for `{}`", display(command))),
    }
}

/// The path of a program, looked up where root's tools are too: Debian leaves them out of users' `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| executable(file))
}

/// As [`find`], with an error that says how to get it.
pub(crate) fn need(program: &str) -> Result<PathBuf> {
    find(program).ok_or_else(|| Error::new(format!("`{program}` is missing; run `cargo xtask install`")))
}

/// Cargo, as the caller runs it.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo xtask` describes xtask itself in these; a build script or test of another crate must not see them.
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(key);
        }
    }
    command
}

/// The last `count` lines of a text.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn not_started(command: &Command, error: &io::Error) -> Error {
    let program = command.get_program();
    let hint = if error.kind() == io::ErrorKind::NotFound && program != OsStr::new("cargo") {
        "; `cargo xtask install` installs what is needed"
    } else {
        ""
    };
    Error::new(format!("cannot start `{}`: {error}{hint}", program.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_split_them() {
        assert_eq!(quote("a-b/c"), "a-b/c");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }

    #[test]
    fn both_streams_arrive_in_order() {
        let mut lines = Vec::new();
        let status = stream(
            Command::new("sh").args(["-c", "echo a; echo b >&2; echo c; exit 3"]),
            Duration::from_secs(20),
            |line| lines.push(line.to_owned()),
        )
        .unwrap();
        assert_eq!(lines, ["a", "b", "c"]);
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let before = Instant::now();
        let error = stream(
            Command::new("sh").args(["-c", "sleep 60 & sleep 60"]),
            Duration::from_millis(300),
            |_| {},
        )
        .unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        assert!(before.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn an_orphan_that_holds_the_output_does_not_keep_us() {
        let before = Instant::now();
        // It is ours to end: the shell prints its id.
        let mut orphan = String::new();
        let status = stream(
            Command::new("sh").args(["-c", "sleep 30 & echo $!"]),
            Duration::from_secs(25),
            |line| orphan = line.to_owned(),
        )
        .unwrap();
        assert!(status.success());
        assert!(before.elapsed() < Duration::from_secs(20));
        run(Command::new("kill").arg(&orphan)).unwrap();
    }

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(error.to_string().contains("cargo xtask install"), "{error}");
    }
}
