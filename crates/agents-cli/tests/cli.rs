//! The contract of the command line, with the real binary.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// A state folder, a home and a working directory of its own.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("work")).unwrap();
        Self { folder }
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.work().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agents"));
        command
            .args(args)
            .current_dir(self.work())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path().join("home"))
            .env("ISOLATED_AGENTS_STATE_DIR", self.state())
            .stdin(Stdio::null());
        command
    }

    fn agents(&self, args: &[&str]) -> Ran {
        Ran::new(args, self.command(args).output().unwrap())
    }
}

struct Ran {
    args: String,
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn new(args: &[&str], output: Output) -> Self {
        Self {
            args: args.join(" "),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn code(self, expected: i32) -> Self {
        assert_eq!(
            self.code,
            Some(expected),
            "agents {}\nstdout: {}\nstderr: {}",
            self.args,
            self.stdout,
            self.stderr
        );
        self
    }

    /// The only line on standard error that begins with `error:`.
    #[track_caller]
    fn error(&self) -> &str {
        let mut errors = self.stderr.lines().filter(|line| line.starts_with("error:"));
        let error = errors
            .next()
            .unwrap_or_else(|| panic!("agents {} gave no error: {}", self.args, self.stderr));
        assert_eq!(errors.next(), None, "{}", self.stderr);
        error
    }

    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "not one line: {}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// The keys of the object that `agents run --json` prints.
const KEYS: [&str; 18] = [
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

#[track_caller]
fn assert_keys(object: &Value) {
    let mut keys: Vec<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, KEYS);
}

#[test]
fn help_names_every_flag_and_command_of_the_contract() {
    let place = Place::new();
    let help = place.agents(&["--help"]).code(0).stdout;
    let commands = [
        "run",
        "ps",
        "exec",
        "cp",
        "logs",
        "stats",
        "inspect",
        "stop",
        "gc",
        "artifacts",
        "audit",
        "policy",
        "config",
        "doctor",
        "completions",
    ];
    for command in commands {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(command)),
            "{command}: {help}"
        );
        place.agents(&[command, "--help"]).code(0);
    }
    let help = place.agents(&["run", "--help"]).code(0).stdout;
    for flag in [
        "--image",
        "--workspace",
        "--output",
        "--memory",
        "--cpus",
        "--cpu",
        "--pids",
        "--disk",
        "--timeout",
        "-e, --env",
        "--env-file",
        "--secret",
        "--network",
        "--allow",
        "--mount",
        "--stdin",
        "-i, --interactive",
        "-t, --tty",
        "--policy",
        "--config",
        "--runtime",
        "--storage",
        "--audit",
        "-d, --detach",
        "--state-dir",
        "--json",
        "--user",
        "--no-color",
        "-q, --quiet",
        "-v, --verbose",
    ] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
    assert!(!help.contains("supervise"), "{help}");
    for (command, subs) in [
        ("artifacts", vec!["ls", "get", "put", "rm"]),
        (
            "audit",
            vec!["tail", "query", "verify", "checkpoint", "export", "report"],
        ),
        ("policy", vec!["check"]),
        ("config", vec!["check", "show", "init"]),
    ] {
        let help = place.agents(&[command, "--help"]).code(0).stdout;
        for sub in subs {
            assert!(
                help.lines().any(|line| line.trim_start().starts_with(sub)),
                "{command} {sub}"
            );
        }
    }
}

#[test]
fn what_belongs_to_later_does_not_exist() {
    let place = Place::new();
    for words in [vec!["policy", "explain"], vec!["config", "migrate"], vec!["init"]] {
        place.agents(&words).code(2);
    }
}

#[test]
fn only_a_command_without_its_separator_is_told_of_it() {
    let place = Place::new();
    for (words, told) in [
        (vec!["run", "--bogus", "--", "true"], false),
        (vec!["exec", "abc", "--bogus", "--", "true"], false),
        (vec!["exec", "abc", "true"], true),
        (vec!["exec", "abc"], true),
    ] {
        let ran = place.agents(&words).code(2);
        assert_eq!(ran.error().contains("after --"), told, "{}", ran.stderr);
    }
}

#[test]
fn an_artifact_and_json_do_not_share_standard_output() {
    let place = Place::new();
    let ran = place
        .agents(&["artifacts", "get", "abc", "a", "-o", "-", "--json"])
        .code(2);
    assert_eq!(ran.json()["error_kind"], "config_invalid");
}

#[test]
fn a_missing_seccomp_profile_is_wrong_with_a_policy() {
    let place = Place::new();
    let profile = place.file("seccomp.json", "{}");
    let there = place.file("there.json", &json!({"seccomp_profile": profile}).to_string());
    place.agents(&["policy", "check", &there]).code(0);
    let absent = place.file("absent.yaml", "seccomp_profile: /no/such/file\n");
    let ran = place.agents(&["policy", "check", "--json", &absent]).code(1).json();
    assert_eq!(ran["findings"][0]["path"], "seccomp_profile", "{ran}");
}

#[test]
fn a_trail_is_followed_as_it_is_written_and_not_by_time() {
    let place = Place::new();
    let event = |number: usize, time: &str| {
        let event = json!({
            "event_id": format!("01a20c74-fbcf-70b5-b8c4-{number:012}"), "event_type": "system_warning",
            "timestamp": time, "session_id": null, "agent_id": null, "user_id": null,
            "payload": {"number": number}, "severity": "warning", "tags": [],
        });
        format!("{event}\n")
    };
    let folder = place.state().join("audit");
    fs::create_dir_all(&folder).unwrap();
    let append = |text: &str| {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("2999-01-02.jsonl"))
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append(&event(0, "2999-01-02T00:00:01Z"));
    append(&event(1, "2999-01-02T00:00:02Z"));
    let mut child = place
        .command(&["audit", "tail", "-f", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut numbers = |count: usize| -> Vec<Value> {
        lines
            .by_ref()
            .take(count)
            .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["payload"]["number"].clone())
            .collect()
    };
    assert_eq!(numbers(2), [0, 1]);
    // Another process writes down what happened before, and then what is delivered twice.
    append(&event(2, "2999-01-01T23:59:59Z"));
    assert_eq!(numbers(1), [2]);
    append(&event(1, "2999-01-02T00:00:02Z"));
    append(&event(3, "2999-01-02T00:00:02Z"));
    append(&event(4, "2999-01-02T00:00:00Z"));
    assert_eq!(numbers(2), [3, 4]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn bad_flags_are_one_line_and_code_2() {
    let place = Place::new();
    let table: [(&[&str], &str); 16] = [
        (&["run"], "put the command after --"),
        (&["run", "echo", "hi"], "put the command after --"),
        (&["run", "--memry", "1", "--", "true"], "'--memory'"),
        (&["run", "--memory", "5x", "--", "true"], "such as 2g"),
        (&["run", "--memory", "-1", "--", "true"], "--memory"),
        (&["run", "--cpus", "0", "--", "true"], "above 0"),
        (&["run", "--pids", "1.5", "--", "true"], "whole number"),
        (&["run", "--timeout", "soon", "--", "true"], "30s"),
        (&["run", "--network", "bridge", "--", "true"], "disabled"),
        (
            &["run", "--network", "disabled", "--allow", "a:1", "--", "true"],
            "--allow",
        ),
        (&["run", "--mount", "/a", "--", "true"], "SRC:DST"),
        (&["run", "--secret", "tok", "--", "true"], "NAME=env:VAR"),
        (&["run", "--env", "=x", "--", "true"], "--env"),
        (&["run", "--name", "a b", "--", "true"], "a b"),
        (&["frobnicate"], "frobnicate"),
        (&["audit", "query", "--type", "session_create"], "session_created"),
    ];
    for (args, words) in table {
        let ran = place.agents(args).code(2);
        assert_eq!(ran.stdout, "", "{}", ran.args);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(ran.error().contains(words), "{words}: {}", ran.stderr);
    }
    assert!(
        !place.state().exists(),
        "a command line that is wrong leaves something behind"
    );
}

#[test]
fn a_run_that_is_refused_is_one_object_with_every_key() {
    let place = Place::new();
    let bad_policy = place.file("bad.yaml", "memory_mb: -1\ncpu_cors: 2\n");
    let table: [(&[&str], i32, &str, &str); 6] = [
        (&["--memory", "5x"], 2, "config_invalid", "--memory"),
        (
            &["--policy", &bad_policy],
            125,
            "config_invalid",
            "did you mean cpu_cores?",
        ),
        (&["--policy", "/no/such.yaml"], 125, "not_found", "/no/such.yaml"),
        (&["--config", "/no/such.yaml"], 125, "not_found", "/no/such.yaml"),
        (&["--runtime", "dockr"], 125, "config_invalid", "available: native"),
        (
            &["--secret", "tok=env:SURELY_NOT_SET"],
            125,
            "not_found",
            "SURELY_NOT_SET",
        ),
    ];
    for (flags, code, kind, words) in table {
        let args = [&["run", "--json"], flags, &["--", "true"]].concat();
        let ran = place.agents(&args).code(code);
        let object = ran.json();
        assert_keys(&object);
        assert_eq!(object["status"], "refused", "{object}");
        assert_eq!(object["ending"]["kind"], "not_started");
        assert_eq!(object["error_kind"], kind);
        assert_eq!(object["exit_code"], Value::Null);
        assert!(object["error"].as_str().unwrap().contains(words), "{words}: {object}");
        assert!(ran.error().contains(words), "{}", ran.stderr);
    }
}

#[test]
fn every_fault_of_a_policy_is_shown_with_its_path() {
    let place = Place::new();
    let file = place.file(
        "bad.json",
        r#"{"memory_mb": -1, "cpu_cors": 2, "network": {"allowed_endpoints": ["a b"]}}"#,
    );
    let ran = place.agents(&["run", "--policy", &file, "--", "true"]).code(125);
    for path in ["memory_mb", "cpu_cors", "network.allowed_endpoints[0]"] {
        assert!(ran.error().contains(path), "{path}: {}", ran.stderr);
    }
    let ran = place.agents(&["policy", "check", &file]).code(1);
    assert_eq!(ran.stdout.lines().count(), 3, "{}", ran.stdout);
    let ran = place.agents(&["policy", "check", &file, "--json"]).code(1);
    assert_eq!(ran.json()["allowed"], false);
    assert_eq!(ran.json()["findings"].as_array().unwrap().len(), 3);
}

#[test]
fn a_policy_is_judged_by_the_configured_validator() {
    let place = Place::new();
    let policy = place.file("p.toml", "memory_mb = 4096\n");
    assert_eq!(
        place.agents(&["policy", "check", &policy, "--json"]).code(0).json()["allowed"],
        true
    );
    let config = "adapters: {policy_validator: {type: default, config: {max_memory_mb: 1024, strict_mode: true}}}";
    let config = place.file("c.yaml", config);
    let ran = place.agents(&["policy", "check", &policy, "--config", &config]).code(1);
    assert!(ran.stdout.contains("MEMORY_EXCEEDED"), "{}", ran.stdout);
    let lenient = place.file(
        "l.yaml",
        "adapters: {policy_validator: {type: default, config: {max_memory_mb: 1024}}}",
    );
    let ran = place
        .agents(&["policy", "check", &policy, "--config", &lenient, "--json"])
        .code(0);
    assert_eq!(ran.json()["changes"][0]["to"], 1024);
    let later = place.file("later.yaml", "durable: true\n");
    assert!(
        place
            .agents(&["policy", "check", &later])
            .code(1)
            .stdout
            .contains("NOT_IMPLEMENTED")
    );
}

#[test]
fn a_misspelt_key_names_the_file_the_key_and_the_nearest() {
    let place = Place::new();
    place.file(
        "isolated_agents_config.yaml",
        "adapters: {storage_backend: {type: local, config: {base_pth: /x}}}",
    );
    for args in [vec!["config", "check"], vec!["ps"], vec!["run", "--", "true"]] {
        let code = if args[0] == "run" { 125 } else { 1 };
        let ran = place.agents(&args).code(code);
        for words in [
            "isolated_agents_config.yaml",
            "base_pth",
            "did you mean adapters.storage_backend.config.base_path?",
        ] {
            assert!(ran.error().contains(words), "{words}: {}", ran.stderr);
        }
    }
    assert!(!place.state().exists());
}

#[test]
fn deprecated_shapes_warn_and_load() {
    let place = Place::new();
    let config = place.file("old.yaml", "storage_adapter: memory\n");
    let ran = place.agents(&["config", "check", "--config", &config]).code(0);
    assert!(
        ran.stderr.contains("warning:") && ran.stderr.contains("adapters.storage_backend.type"),
        "{}",
        ran.stderr
    );
    let quiet = place.agents(&["config", "check", "--config", &config, "-q"]).code(0);
    assert_eq!(quiet.stderr, "");
    let json = place
        .agents(&["config", "check", "--config", &config, "--json"])
        .code(0)
        .json();
    assert_eq!(json["valid"], true);
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn config_show_says_where_each_value_comes_from() {
    let place = Place::new();
    let config = place.file(
        "c.yaml",
        "adapters: {storage_backend: {type: local, config: {base_path: /a}}}",
    );
    let mut command = place.command(&["config", "show", "--json", "--config", &config]);
    command.env("ISOLATED_AGENTS_POLICY_DEFAULT_MAX_MEMORY_MB", "64");
    let shown = Ran::new(&[], command.output().unwrap()).code(0).json();
    let source = |key: &str| {
        let all = shown.as_array().unwrap();
        let setting = all
            .iter()
            .find(|setting| setting["key"] == key)
            .unwrap_or_else(|| panic!("{key}: {shown}"));
        (setting["value"].clone(), setting["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(
        source("adapters.audit_logger.type"),
        (json!("file"), "default".to_owned())
    );
    assert_eq!(
        source("adapters.storage_backend.config.base_path"),
        (json!("/a"), format!("file {config}"))
    );
    let (value, from) = source("adapters.policy_validator.config.max_memory_mb");
    assert_eq!(value, 64);
    assert!(from.ends_with("ISOLATED_AGENTS_POLICY_DEFAULT_MAX_MEMORY_MB"), "{from}");
    assert_eq!(source("state_dir").0, json!(place.state()));
}

#[test]
fn config_init_writes_what_config_check_accepts_and_replaces_nothing() {
    let place = Place::new();
    place.agents(&["config", "init"]).code(0);
    let ran = place.agents(&["config", "check"]).code(0);
    assert!(
        ran.stderr.contains("isolated_agents_config.yaml is valid"),
        "{}",
        ran.stderr
    );
    assert!(place.agents(&["config", "init"]).code(1).error().contains("--force"));
    place.agents(&["config", "init", "--force"]).code(0);
}

#[test]
fn completions_know_the_commands() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.agents(&["completions", shell]).code(0).stdout;
        assert!(script.contains("artifacts") && script.contains("env-file"), "{shell}");
        assert!(!script.contains("supervise"), "{shell}");
    }
}

#[test]
fn an_unknown_session_is_named() {
    let place = Place::new();
    for args in [
        vec!["inspect", "nope"],
        vec!["logs", "nope"],
        vec!["stats", "nope"],
        vec!["stop", "nope"],
        vec!["exec", "nope", "--", "true"],
        vec!["cp", "nope:/x", "."],
    ] {
        let ran = place.agents(&args).code(1);
        assert!(ran.error().contains("\"nope\""), "{}", ran.stderr);
    }
    assert!(place.agents(&["cp", "a", "b"]).code(2).error().contains("SESSION:PATH"));
}

#[test]
fn a_reader_who_leaves_ends_it_quietly() {
    let place = Place::new();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let mut command = place.command(&["completions", "bash"]);
    let output = command.stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn colour_is_for_terminals_only() {
    let place = Place::new();
    let ran = place.agents(&["run", "--config", "/none", "--", "true"]).code(125);
    assert!(!ran.stderr.contains('\x1b'), "{}", ran.stderr);
}

/// Real runs on the embedded runtime.
mod real {
    use super::*;

    #[track_caller]
    fn run(place: &Place, args: &[&str]) -> Ran {
        let args = [&["run"], args].concat();
        place.agents(&args)
    }

    fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(child: &Child, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    }

    /// Nothing of ours is left in this state folder.
    #[track_caller]
    fn assert_clean(place: &Place) {
        let ran = place.agents(&["gc", "--json"]).code(0);
        assert_eq!(ran.json(), json!({"ended_sessions": [], "removed": [], "problems": []}));
    }

    #[test]
    fn output_passes_through_and_the_rest_is_on_standard_error() {
        let place = Place::new();
        let ran = run(
            &place,
            &[
                "--",
                "sh",
                "-c",
                "printf 'a\\nb'; echo oops >&2; echo x > /output/x.txt",
            ],
        )
        .code(0);
        assert_eq!(ran.stdout, "a\nb");
        assert!(ran.stderr.starts_with("oops\n"), "{}", ran.stderr);
        let uri = ran
            .stderr
            .split_whitespace()
            .find(|word| word.starts_with("file://"))
            .unwrap();
        assert_eq!(fs::read_to_string(uri.trim_start_matches("file://")).unwrap(), "x\n");
        assert!(
            ran.stderr.contains(place.state().join("audit").to_str().unwrap()),
            "{}",
            ran.stderr
        );
        let quiet = run(&place, &["-q", "--", "echo", "hi"]).code(0);
        assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("hi\n", ""));
        assert_clean(&place);
    }

    #[test]
    fn json_is_one_object_and_nothing_else() {
        let place = Place::new();
        let script = "echo out; echo err >&2; mkdir -p /output/d; echo x > /output/d/x; echo '{\"n\": 1}' > /output/result.json; ln -s /etc/passwd /output/link; exit 3";
        let ran = run(&place, &["--json", "--name", "me", "--", "sh", "-c", script]).code(3);
        let object = ran.json();
        assert_keys(&object);
        assert_eq!(object["agent_id"], "me");
        assert_eq!(object["status"], "failed");
        assert_eq!(object["exit_code"], 3);
        assert_eq!(object["ending"], json!({"kind": "exited", "code": 3}));
        assert_eq!(object["output"], json!({"n": 1}));
        assert_eq!(
            (&object["stdout"], &object["stderr"]),
            (&json!("out\n"), &json!("err\n"))
        );
        let details = object["artifact_details"].as_array().unwrap();
        let found = details.iter().find(|detail| detail["name"] == "d/x").unwrap();
        assert_eq!((&found["size"], &found["version"]), (&json!(2), &json!(1)));
        assert_eq!(found["uri"], object["artifacts"]["d/x"]);
        assert_eq!(object["refused_artifacts"][0]["name"], "link");
        assert!(object["timings_ms"]["total"].as_f64().unwrap() > 0.0);
        assert!(object["usage"]["cpu_seconds"].is_number(), "{}", object["usage"]);
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let place = Place::new();
        let table: [(&[&str], i32); 10] = [
            (&["--", "true"], 0),
            (&["--", "sh", "-c", "exit 255"], 255),
            (&["--", "sh", "-c", "kill -TERM $$"], 143),
            (
                &["--memory", "32", "--", "sh", "-c", "head -c 200m /dev/zero | tail"],
                137,
            ),
            (&["--timeout", "1", "--", "sleep", "60"], 124),
            (&["--", "no-such-command"], 127),
            (&["--", "/etc/passwd"], 126),
            (&["--image", "./no-such-folder", "--", "true"], 125),
            (&["--workspace", "/no/such/folder", "--", "true"], 125),
            (&["--allow", "example.com:443", "--", "true"], 125),
        ];
        for (args, code) in table {
            let begun = Instant::now();
            let ran = run(&place, args).code(code);
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", ran.args);
            if (125..=127).contains(&code) {
                ran.error();
            }
        }
        let ran = run(
            &place,
            &[
                "--json",
                "--memory",
                "32",
                "--",
                "sh",
                "-c",
                "head -c 200m /dev/zero | tail",
            ],
        )
        .code(137);
        assert_eq!(ran.json()["ending"]["kind"], "out_of_memory");
        assert_clean(&place);
    }

    #[test]
    fn the_command_is_never_split_or_parsed() {
        let place = Place::new();
        let words = ["--json", "a b", "$HOME", "", "--", "*", "\u{fc}'\""];
        let args = [&["-q", "--", "printf", "[%s]"], words.as_slice()].concat();
        let ran = run(&place, &args).code(0);
        assert_eq!(ran.stdout, words.map(|word| format!("[{word}]")).concat());
    }

    #[test]
    fn the_workspace_is_the_callers_and_output_is_also_put_where_asked() {
        let place = Place::new();
        fs::create_dir(place.work().join("ws")).unwrap();
        fs::write(place.work().join("ws/in"), "in").unwrap();
        let script = "cat in; echo made > made; mkdir /output/sub; echo art > /output/sub/f";
        run(
            &place,
            &["-q", "--workspace", "ws", "--output", "out", "--", "sh", "-c", script],
        )
        .code(0);
        assert_eq!(fs::read_to_string(place.work().join("ws/made")).unwrap(), "made\n");
        assert_eq!(fs::read_to_string(place.work().join("out/sub/f")).unwrap(), "art\n");
        let own = |path: &Path| std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
        assert_eq!(own(&place.work().join("ws/made")), rustix::process::getuid().as_raw());
    }

    #[test]
    fn environment_and_secrets_reach_the_agent() {
        let place = Place::new();
        let file = place.file("env", "FROM_FILE=f\nBOTH=file\n");
        let secret = place.file("secret", "from file");
        let args = [
            "run",
            "-q",
            "--env-file",
            &file,
            "-e",
            "BOTH=flag",
            "--env",
            "HERE",
            "--env",
            "ABSENT",
            "--secret",
            "a=env:TOKEN",
            "--secret",
            &format!("b=file:{secret}"),
            "--",
            "sh",
            "-c",
            "echo $FROM_FILE $BOTH $HERE ${ABSENT-none} $ISOLATED_AGENTS_AGENT_ID ${TOKEN-hidden}; cat /run/secrets/a /run/secrets/b",
        ];
        let output = place
            .command(&args)
            .env("HERE", "h")
            .env("TOKEN", "s3cret")
            .output()
            .unwrap();
        let ran = Ran::new(&args, output);
        assert_eq!(ran.stdout, "f flag h none sh hidden\ns3cretfrom file", "{}", ran.stderr);
        let id = place.agents(&["ps", "-a", "--json"]).code(0).json()[0]["session_id"]
            .as_str()
            .unwrap()
            .to_owned();
        for args in [
            vec!["audit", "query", "--session", &id, "--json"],
            vec!["inspect", &id],
            vec!["logs", &id],
        ] {
            let text = place.agents(&args).code(0).stdout;
            assert!(
                !text.contains("s3cret") && !text.contains("from file"),
                "a secret is in {args:?}: {text}"
            );
        }
    }

    #[test]
    fn standard_input_comes_from_a_file_or_ours_or_is_empty() {
        let place = Place::new();
        let file = place.file("in", "from file");
        assert_eq!(
            run(&place, &["-q", "--stdin", &file, "--", "cat"]).code(0).stdout,
            "from file"
        );
        assert_eq!(run(&place, &["-q", "--", "cat"]).code(0).stdout, "");
        let mut command = place.command(&["run", "-q", "-i", "--", "wc", "-c"]);
        let big = place.work().join("big");
        fs::write(&big, vec![b'x'; 3 << 20]).unwrap();
        let output = command.stdin(fs::File::open(big).unwrap()).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), (3 << 20).to_string());
    }

    #[test]
    fn limits_of_flags_override_the_policys_file() {
        let place = Place::new();
        let policy = place.file("p.yaml", "memory_mb: 64\npids_limit: 7\n");
        let id = |ran: &Ran| ran.json()["session_id"].as_str().unwrap().to_owned();
        let ran = run(
            &place,
            &["--json", "--policy", &policy, "--memory", "128", "--", "true"],
        )
        .code(0);
        let trail = place
            .agents(&[
                "audit",
                "query",
                "--session",
                &id(&ran),
                "--type",
                "policy_validated",
                "--json",
            ])
            .code(0)
            .json();
        let policy = &trail["events"][0]["payload"]["policy"];
        assert_eq!((&policy["memory_mb"], &policy["pids_limit"]), (&json!(128), &json!(7)));
    }

    #[test]
    fn a_closed_standard_output_cancels_the_agent_quietly() {
        let place = Place::new();
        let mut child = place
            .command(&["run", "-q", "--", "yes"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 100]).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(141));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_clean(&place);
    }

    #[test]
    fn a_reader_who_does_not_read_does_not_keep_the_deadline_from_passing() {
        let place = Place::new();
        let begun = Instant::now();
        let mut child = place
            .command(&["run", "-q", "--timeout", "1", "--", "yes"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The pipe stays open and full.
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(124), "{status:?} {:?}", status.signal());
        assert!(begun.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn a_signal_cancels_and_partial_artifacts_are_collected() {
        for kind in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
            let place = Place::new();
            let script = "trap '' INT TERM; echo partial > /output/p; echo ready; while :; do sleep 1; done";
            let mut child = place
                .command(&["run", "-q", "--output", "out", "--", "sh", "-c", script])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
            signal(&child, kind);
            let output = child.wait_with_output().unwrap();
            assert_eq!(
                output.status.code(),
                Some(130),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert_eq!(fs::read_to_string(place.work().join("out/p")).unwrap(), "partial\n");
            assert_clean(&place);
        }
    }

    #[test]
    fn a_detached_session_is_listed_entered_copied_and_stopped() {
        let place = Place::new();
        let script = "echo begun; echo err >&2; while :; do sleep 1; done";
        let begun = Instant::now();
        let id = place
            .agents(&["run", "-d", "--name", "bg", "--", "sh", "-c", script])
            .code(0)
            .stdout;
        assert!(begun.elapsed() < Duration::from_secs(10));
        let id = id.trim_end();
        // The ownership record is there as soon as the id is printed.
        let listed = place.agents(&["ps", "--json"]).code(0).json();
        assert_eq!(
            (&listed[0]["session_id"], &listed[0]["status"]),
            (&json!(id), &json!("running"))
        );
        wait_until("the agent's output", || place.agents(&["logs", id]).stdout == "begun\n");

        let ran = place.agents(&["exec", id, "--", "sh", "-c", "echo in; exit 4"]).code(4);
        assert_eq!(ran.stdout, "in\n");
        place.agents(&["exec", id, "--", "no-such-command"]).code(127);
        place
            .agents(&["exec", id, "--timeout", "1", "--", "sleep", "60"])
            .code(124);
        place
            .agents(&["exec", id, "--", "sh", "-c", "mkdir /output/r; echo res > /output/r/x"])
            .code(0);

        place.file("up", "up");
        place.agents(&["cp", "up", &format!("{id}:/workspace/")]).code(0);
        assert_eq!(
            place.agents(&["exec", id, "--", "cat", "/workspace/up"]).code(0).stdout,
            "up"
        );
        place.agents(&["cp", &format!("{id}:/output/r"), "down"]).code(0);
        assert_eq!(fs::read_to_string(place.work().join("down/r/x")).unwrap(), "res\n");

        let stats = place.agents(&["stats", "--json", id]).code(0).json();
        assert!(stats["memory_mb"].as_f64().unwrap() > 0.0, "{stats}");
        assert_eq!(stats["memory_limit_mb"], 512.0);

        assert_eq!(place.agents(&["stop", &id[..20]]).code(0).stdout.trim_end(), id);
        let found = place.agents(&["inspect", "--json", id]).code(0).json();
        assert_eq!(found["status"], "terminated");
        assert_eq!(found["result"]["ending"]["kind"], "cancelled");
        assert_eq!(found["result"]["artifacts"].as_object().unwrap().len(), 1);
        let ended = place.agents(&["exec", id, "--", "true"]).code(1);
        assert!(ended.error().contains(id), "{}", ended.stderr);
        assert_clean(&place);
    }

    #[test]
    fn a_detached_run_that_cannot_begin_says_so_here() {
        let place = Place::new();
        let ran = place
            .agents(&["run", "-d", "--policy", "/no/such.yaml", "--", "true"])
            .code(125);
        assert!(ran.error().contains("/no/such.yaml"));
        assert_eq!(ran.stdout, "");
        let ran = place
            .agents(&["run", "-d", "--json", "--policy", "/no/such.yaml", "--", "true"])
            .code(125);
        assert_keys(&ran.json());
        let ran = place.agents(&["run", "-d", "--json", "--", "true"]).code(0);
        let id = ran.json()["session_id"].as_str().unwrap().to_owned();
        wait_until("the end", || {
            place.agents(&["inspect", "--json", &id]).code(0).json()["status"] == "completed"
        });
    }

    #[test]
    fn logs_follow_to_the_end() {
        let place = Place::new();
        let id = place
            .agents(&[
                "run",
                "-d",
                "--",
                "sh",
                "-c",
                "echo one; sleep 1; echo two; echo err >&2",
            ])
            .code(0)
            .stdout;
        let ran = place.agents(&["logs", "-f", id.trim_end()]).code(0);
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("one\ntwo\n", "err\n"));
    }

    #[test]
    fn artifacts_are_listed_read_added_and_removed() {
        let place = Place::new();
        let ran = run(
            &place,
            &["--json", "--", "sh", "-c", "mkdir /output/d; echo one > /output/d/f"],
        )
        .code(0);
        let id = ran.json()["session_id"].as_str().unwrap().to_owned();
        place.file("f", "two\n");
        place.agents(&["artifacts", "put", &id, "f", "--name", "d/f"]).code(0);
        let listed = place.agents(&["artifacts", "ls", "--json", &id]).code(0).json();
        let versions: Vec<_> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|artifact| artifact["version"].clone())
            .collect();
        assert_eq!(versions, [1, 2]);
        assert_eq!(
            place
                .agents(&["artifacts", "get", &id, "d/f", "-o", "-"])
                .code(0)
                .stdout,
            "two\n"
        );
        place
            .agents(&["artifacts", "get", &id, "d/f", "--version", "1", "-o", "first"])
            .code(0);
        assert_eq!(fs::read_to_string(place.work().join("first")).unwrap(), "one\n");
        let ran = place.agents(&["artifacts", "get", &id, "nope"]).code(1);
        assert!(ran.error().contains("nope"));
        assert_eq!(
            fs::read_dir(place.work()).unwrap().count(),
            2,
            "a failed get leaves a file"
        );
        assert!(
            place
                .agents(&["artifacts", "get", &id, "../x"])
                .code(1)
                .error()
                .contains("'..'")
        );
        place.agents(&["artifacts", "rm", &id, "d/f"]).code(0);
        assert_eq!(
            place.agents(&["artifacts", "ls", "--json", &id]).code(0).json(),
            json!([])
        );
        let events = ["artifact_retrieved", "artifact_deleted"];
        let args = [
            "audit",
            "query",
            "--json",
            "--session",
            &id,
            "--type",
            events[0],
            "--type",
            events[1],
        ];
        let trail = place.agents(&args).code(0).json();
        let types: Vec<_> = trail["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["event_type"].clone())
            .collect();
        assert_eq!(types, [events[0], events[0], events[1], events[1]]);
    }

    #[test]
    fn output_that_is_not_accepted_is_an_error_even_when_quiet() {
        let place = Place::new();
        let schema = place.file("schema.yaml", "structured_output: {type: object, required: [a]}\n");
        let most = place.file("most.yaml", "max_output_bytes: 10\n");
        for (policy, script) in [
            (&schema, "echo '{}' > /output/result.json"),
            (&most, "head -c 100 /dev/zero > /output/x"),
        ] {
            let ran = run(&place, &["-q", "--policy", policy, "--", "sh", "-c", script]).code(125);
            assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
            ran.error();
        }
        // The agent's own failure is told by its code.
        let ran = run(&place, &["-q", "--", "sh", "-c", "exit 125"]).code(125);
        assert_eq!(ran.stderr, "");
    }

    #[test]
    fn the_audit_trail_is_read_by_session_and_from_its_end() {
        let place = Place::new();
        let first = run(&place, &["--json", "--", "true"]).code(0).json();
        let second = run(&place, &["--json", "--", "true"]).code(0).json();
        let id = first["session_id"].as_str().unwrap();
        let trail = place
            .agents(&["audit", "query", "--json", "--session", id])
            .code(0)
            .json();
        let events = trail["events"].as_array().unwrap();
        assert_eq!(events[0]["event_type"], "session_created");
        assert!(events.iter().all(|event| event["session_id"] == id));
        let ran = place.agents(&["audit", "tail", "-n", "1", "--json"]).code(0);
        assert_eq!(ran.json()["session_id"], second["session_id"]);
        assert_eq!(ran.json()["event_type"], "session_closed");
        assert_eq!(
            place
                .agents(&["audit", "tail", "-n", "3"])
                .code(0)
                .stdout
                .lines()
                .count(),
            3
        );
    }

    /// Runs it on a terminal of 30 rows and 90 columns, types, and gives what appeared there.
    fn on_terminal(place: &Place, args: &[&str], typed: &[u8], no_color: bool) -> (Option<i32>, String) {
        use rustix::{pty, termios};
        let flags = pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY;
        let master = pty::openpt(flags).unwrap();
        pty::grantpt(&master).unwrap();
        pty::unlockpt(&master).unwrap();
        let name = pty::ptsname(&master, Vec::new()).unwrap();
        let open = || {
            fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(name.to_str().unwrap())
                .unwrap()
        };
        let size = termios::Winsize {
            ws_row: 30,
            ws_col: 90,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = open();
        termios::tcsetwinsize(&terminal, size).unwrap();
        let before = format!("{:?}", termios::tcgetattr(&terminal).unwrap());
        let mut command = place.command(args);
        if no_color {
            command.env("NO_COLOR", "1");
        }
        command.env("TERM", "xterm").stdin(open()).stdout(open()).stderr(open());
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut master = fs::File::from(master);
        let mut reader = master.try_clone().unwrap();
        let seen = std::thread::spawn(move || {
            let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
            // The terminal's end is an error, EIO.
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..read]);
            }
            String::from_utf8_lossy(&seen).into_owned()
        });
        if !typed.is_empty() {
            // What is typed before the agent has its terminal would be echoed by ours.
            std::thread::sleep(Duration::from_millis(1500));
            std::io::Write::write_all(&mut master, typed).unwrap();
        }
        let status = child.wait().unwrap();
        let after = format!("{:?}", termios::tcgetattr(&terminal).unwrap());
        assert_eq!(before, after, "the terminal is not as it was");
        drop(terminal);
        (status.code(), seen.join().unwrap())
    }

    #[test]
    fn a_terminal_shows_phases_and_colour_unless_told_otherwise() {
        let place = Place::new();
        let (code, seen) = on_terminal(&place, &["run", "--", "echo", "hi"], b"", false);
        assert_eq!(code, Some(0), "{seen}");
        for words in ["validate", "provision", "run", "collect", "destroy", "hi", "\x1b["] {
            assert!(seen.contains(words), "{words}: {seen}");
        }
        let (_, seen) = on_terminal(&place, &["run", "--", "echo", "hi"], b"", true);
        assert!(seen.contains("provision") && !seen.contains('\x1b'), "{seen}");
        let (_, seen) = on_terminal(&place, &["run", "--no-color", "--", "echo", "hi"], b"", false);
        assert!(seen.contains("provision") && !seen.contains('\x1b'), "{seen}");
        let (_, seen) = on_terminal(&place, &["ps", "-a"], b"", true);
        assert!(seen.lines().all(|line| line.trim_end().chars().count() <= 90), "{seen}");
        assert!(seen.contains("echo hi"), "{seen}");
    }

    #[test]
    fn an_interactive_agent_has_the_terminal_and_gives_it_back() {
        let place = Place::new();
        let script = "stty size; tty >/dev/null && echo on-a-terminal; read line; echo got $line; exit 5";
        let (code, seen) = on_terminal(&place, &["run", "-it", "--", "sh", "-c", script], b"typed\r", true);
        assert_eq!(code, Some(5), "{seen}");
        for words in ["30 90", "on-a-terminal", "got typed"] {
            assert!(seen.contains(words), "{words}: {seen}");
        }
        // Ctrl-C is a key of the agent's.
        let script = "trap 'echo trapped; exit 6' INT; echo ready; while :; do sleep 0.1; done";
        let (code, seen) = on_terminal(&place, &["run", "-it", "--", "sh", "-c", script], b"\x03", true);
        assert_eq!(code, Some(6), "{seen}");
        assert!(seen.contains("trapped"), "{seen}");
    }

    #[test]
    fn doctor_says_what_works() {
        let place = Place::new();
        let ran = place.agents(&["doctor", "--json"]).code(0);
        let object = ran.json();
        assert_eq!(object["usable"], true);
        for name in [
            "host",
            "container_runtime native",
            "storage_backend local",
            "audit_logger file",
            "policy_validator default",
        ] {
            let findings = object["findings"].as_array().unwrap();
            assert!(
                findings
                    .iter()
                    .any(|finding| finding["name"].as_str().unwrap().starts_with(name)),
                "{name}"
            );
        }
        place.agents(&["doctor"]).code(0);
        let blocked = place.file("file", "");
        let config = place.file(
            "c.yaml",
            &format!("adapters: {{storage_backend: {{type: local, config: {{base_path: {blocked}/below}}}}}}"),
        );
        let ran = place.agents(&["doctor", "--config", &config]);
        assert_eq!(ran.code, Some(1), "{} {}", ran.stdout, ran.stderr);
    }
}
