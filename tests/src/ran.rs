//! What a call of `agents` came to.

use std::{
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// The keys of the object that `agents run --json` prints, in their order.
pub const OBJECT_KEYS: [&str; 18] = [
    "agent_id",
    "artifact_details",
    "artifacts",
    "audit",
    "ending",
    "error",
    "error_kind",
    "exit_code",
    "output",
    "refused_artifacts",
    "session_id",
    "status",
    "stderr",
    "stderr_truncated",
    "stdout",
    "stdout_truncated",
    "timings_ms",
    "usage",
];

/// The most that any call may take; far more than it should on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// How `agents` ended and what it printed.
#[derive(Debug)]
pub struct Ran {
    args: String,
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        Self::wait(child.expect("cannot start agents"), &args.join(" "))
    }

    /// Waits for a command that was started with piped output.
    pub fn wait(mut child: Child, args: &str) -> Self {
        let drain = |mut pipe: Box<dyn Read + Send>| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                pipe.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
            })
        };
        let stdout = child.stdout.take().map(|pipe| drain(Box::new(pipe)));
        let stderr = child.stderr.take().map(|pipe| drain(Box::new(pipe)));
        let status = wait_for(&mut child, LIMIT).unwrap_or_else(|| panic!("agents {args} does not end"));
        let bytes = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
            reader
                .map(|reader| reader.join().unwrap_or_default())
                .unwrap_or_default()
        };
        Self {
            args: args.to_owned(),
            code: status.code(),
            signal: status.signal(),
            stdout: bytes(stdout),
            stderr: String::from_utf8_lossy(&bytes(stderr)).into_owned(),
        }
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(
            (self.code, self.signal),
            (Some(expected), None),
            "agents {}\nstdout: {}\nstderr: {}",
            self.args,
            self.text(),
            self.stderr
        );
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The only line on standard error that begins with `error:`.
    #[track_caller]
    pub fn error(&self) -> &str {
        let mut errors = self.stderr.lines().filter(|line| line.starts_with("error:"));
        let error = errors
            .next()
            .unwrap_or_else(|| panic!("agents {} gave no error: {}", self.args, self.stderr));
        assert_eq!(errors.next(), None, "agents {} gave two: {}", self.args, self.stderr);
        error
    }

    /// The one JSON value on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        let text = self.text();
        assert_eq!(
            text.lines().count(),
            1,
            "agents {} did not print one line: {text}\n{}",
            self.args,
            self.stderr
        );
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// Waits for a process, and kills it when it takes longer.
pub fn wait_for(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("cannot wait for a process") {
            return Some(status);
        }
        if begun.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until something holds, and panics when it takes too long.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what} did not come");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Asserts that an object of `agents run --json` has every key of the contract, and no other, with values of their types.
#[track_caller]
pub fn assert_object(object: &Value) {
    let members = object.as_object().unwrap_or_else(|| panic!("no object: {object}"));
    let mut keys: Vec<_> = members.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, OBJECT_KEYS);
    let expect = |key: &str, fits: bool, what: &str| assert!(fits, "{key} is not {what}: {}", object[key]);
    let text_or_null = |value: &Value| value.is_null() || value.is_string();
    for key in ["session_id", "agent_id", "audit", "error", "error_kind"] {
        expect(key, text_or_null(&object[key]), "text or null");
    }
    for key in ["stdout", "stderr"] {
        expect(key, object[key].is_string(), "text");
    }
    for key in ["stdout_truncated", "stderr_truncated"] {
        expect(key, object[key].is_boolean(), "true or false");
    }
    expect(
        "exit_code",
        object["exit_code"].is_null() || object["exit_code"].is_u64(),
        "a number or null",
    );
    let statuses = ["completed", "failed", "refused", "lost"];
    let status = object["status"].as_str().unwrap_or_default();
    expect("status", statuses.contains(&status), "one of the four");
    let kinds = [
        "exited",
        "signalled",
        "out_of_memory",
        "pids_limit",
        "disk_limit",
        "output_limit",
        "deadline",
        "cancelled",
        "runtime_lost",
        "not_started",
    ];
    let kind = object["ending"]["kind"].as_str().unwrap_or_default();
    expect("ending", kinds.contains(&kind), "one of the ten");
    let uris = object["artifacts"].as_object();
    expect(
        "artifacts",
        uris.is_some_and(|uris| uris.values().all(Value::is_string)),
        "an object of URIs",
    );
    let details = object["artifact_details"].as_array();
    let detail = |detail: &Value| {
        detail["name"].is_string()
            && detail["uri"] == object["artifacts"][detail["name"].as_str().unwrap_or_default()]
            && detail["size"].is_u64()
            && detail["version"].is_u64()
            && detail["sha256"].as_str().is_some_and(|hash| hash.len() == 64)
    };
    expect(
        "artifact_details",
        details.is_some_and(|details| details.iter().all(detail)),
        "an array of details",
    );
    let refused = object["refused_artifacts"].as_array();
    let refusal = |refused: &Value| refused["name"].is_string() && refused["reason"].is_string();
    expect(
        "refused_artifacts",
        refused.is_some_and(|refused| refused.iter().all(refusal)),
        "an array of names and reasons",
    );
    let timings = object["timings_ms"].as_object();
    expect(
        "timings_ms",
        timings.is_some_and(|timings| timings.values().all(Value::is_number)),
        "an object of numbers",
    );
    for key in ["cpu_seconds", "memory_peak_bytes"] {
        let value = object["usage"].get(key);
        expect(
            "usage",
            value.is_some_and(|value| value.is_null() || value.is_number()),
            "numbers or null",
        );
    }
}
