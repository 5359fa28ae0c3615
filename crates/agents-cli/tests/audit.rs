//! `agents audit verify`, `checkpoint` and `export`, with the real binary.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// A state folder and a working directory of its own.
struct Place(tempfile::TempDir);

impl Place {
    /// With the trail of two sessions: one that ran, and one that was refused.
    fn with_trail() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.work()).unwrap();
        place.agents(&["run", "-q", "--", "true"], 0);
        place.agents(&["run", "-q", "--image", "/nowhere", "--", "true"], 125);
        place
    }

    fn work(&self) -> PathBuf {
        self.0.path().join("work")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agents"));
        command
            .args(args)
            .current_dir(self.work())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.0.path().join("home"))
            .env("ISOLATED_AGENTS_STATE_DIR", self.0.path().join("state"))
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn agents(&self, args: &[&str], code: i32) -> (String, String) {
        texts(args, code, self.command(args).output().unwrap())
    }

    #[track_caller]
    fn json(&self, args: &[&str], code: i32) -> Value {
        let (stdout, _) = self.agents(&[args, &["--json"]].concat(), code);
        assert_eq!(stdout.lines().count(), 1, "not one line: {stdout}");
        serde_json::from_str(&stdout).unwrap()
    }

    /// The file of the trail.
    fn trail(&self) -> PathBuf {
        let folder = fs::read_dir(self.0.path().join("state/audit")).unwrap();
        let mut files = folder.map(|entry| entry.unwrap().path());
        files
            .find(|path| path.extension().is_some_and(|end| end == "jsonl"))
            .unwrap()
    }
}

#[track_caller]
fn texts(args: &[&str], code: i32, output: Output) -> (String, String) {
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "agents {args:?}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn rewrite(path: &Path, lines: &[String]) {
    fs::write(path, lines.join("\n") + "\n").unwrap();
}

#[test]
fn a_trail_that_nobody_touched_is_intact() {
    let place = Place::with_trail();
    let events = lines(&place.trail()).len();
    let found = place.json(&["audit", "verify"], 0);
    assert_eq!(
        (&found["intact"], &found["events"], &found["fault"]),
        (&true.into(), &events.into(), &Value::Null)
    );
    assert_eq!(found["unproven"], events, "there is no key");
    let (stdout, stderr) = place.agents(&["audit", "verify"], 0);
    assert!(
        stdout.starts_with(&format!("intact: {events} events of 1 writer")),
        "{stdout}"
    );
    assert!(
        stderr.contains("set chain_key") && stderr.contains("--checkpoint"),
        "{stderr}"
    );
    // A copy somewhere else, as a folder and as a file.
    let copy = place.work().join("copy");
    fs::create_dir(&copy).unwrap();
    let file = copy.join(place.trail().file_name().unwrap());
    fs::copy(place.trail(), &file).unwrap();
    for path in [&copy, &file] {
        let found = place.json(&["audit", "verify", path.to_str().unwrap()], 0);
        assert_eq!(found["events"], events);
    }
    let session = place.json(&["ps", "-a"], 0)[0]["session_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let of_session = place.json(&["audit", "verify", "--session", &session], 0);
    assert_eq!(of_session["intact"], true);
    assert!(of_session["events"].as_u64().unwrap() < events as u64);
    let (_, stderr) = place.agents(&["audit", "verify", "--session", "nobody"], 1);
    assert!(stderr.contains("no event of this session"), "{stderr}");
}

#[test]
fn each_tampering_is_found_and_named() {
    let place = Place::with_trail();
    let trail = place.trail();
    let good = lines(&trail);
    assert!(good.len() > 6);
    type Change = fn(&mut Vec<String>);
    let changes: [(&str, Change); 5] = [
        ("edited", |lines| {
            lines[2] = lines[2].replacen("\"severity\":\"", "\"severity\":\"warning\",\"x\":\"", 1)
        }),
        ("edited", |lines| {
            lines[1] = lines[1].replace("policy_validated", "policy_violation")
        }),
        ("missing_record", |lines| drop(lines.remove(2))),
        ("missing_record", |lines| lines.swap(2, 3)),
        ("out_of_order", |lines| lines.insert(3, lines[2].clone())),
    ];
    for (n, (kind, change)) in changes.into_iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        if bad == good {
            // This event is at another place of the trail.
            bad[1] = bad[1].replacen("\"payload\":{", "\"payload\":{\"added\":1,", 1);
        }
        rewrite(&trail, &bad);
        let found = place.json(&["audit", "verify"], 1);
        assert_eq!(found["intact"], false, "change {n}");
        let (stdout, stderr) = place.agents(&["audit", "verify"], 1);
        assert!(
            stderr.contains("error: the trail is not as it was written:"),
            "change {n}: {stderr}"
        );
        assert!(!stdout.contains("intact"), "{stdout}");
        if n > 1 {
            assert_eq!(found["fault"]["kind"], kind, "change {n}: {found}");
        }
        assert!(found["fault"]["sequence"].is_u64(), "the bad record is named: {found}");
    }
    rewrite(&trail, &good);
    place.agents(&["audit", "verify"], 0);
}

#[test]
fn a_checkpoint_that_was_kept_elsewhere_finds_a_cut_tail() {
    let place = Place::with_trail();
    let kept = place.work().join("kept.json");
    let kept = kept.to_str().unwrap();
    place.agents(&["audit", "checkpoint", "--out", kept], 0);
    place.agents(&["run", "-q", "--", "true"], 0);
    let (point, _) = place.agents(&["audit", "checkpoint"], 0);
    let mut both = fs::read_to_string(kept).unwrap();
    both.push_str(&point);
    fs::write(kept, both).unwrap();
    let found = place.json(&["audit", "verify", "--checkpoint", kept], 0);
    assert_eq!(found["unproven"], 0, "the checkpoint vouches for all");
    // What cannot be found without it.
    let trail = place.trail();
    let good = lines(&trail);
    rewrite(&trail, &good[..good.len() - 1]);
    place.agents(&["audit", "verify"], 0);
    let found = place.json(&["audit", "verify", "--checkpoint", kept], 1);
    assert_eq!(found["fault"]["kind"], "cut_tail", "{found}");
    // What is no checkpoint is told as such.
    fs::write(kept, "{}").unwrap();
    let (_, stderr) = place.agents(&["audit", "verify", "--checkpoint", kept], 1);
    assert!(stderr.contains("something else than checkpoints"), "{stderr}");
}

#[test]
fn a_sealed_trail_is_proven_by_its_key_alone() {
    let place = Place(tempfile::tempdir().unwrap());
    fs::create_dir(place.work()).unwrap();
    let key = place.0.path().join("key");
    fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    let reference = format!("file:{}", key.display());
    let sealed = |args: &[&str], code: i32| {
        let mut command = place.command(args);
        command.env("ISOLATED_AGENTS_AUDIT_FILE_CHAIN_KEY", &reference);
        texts(args, code, command.output().unwrap())
    };
    sealed(&["run", "-q", "--", "true"], 0);
    let (stdout, _) = sealed(&["audit", "verify", "--json"], 0);
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(found["unproven"], 0);
    // Without the configuration: the key by name, and none.
    place.agents(&["audit", "verify", "--key", &reference], 0);
    place.agents(&["audit", "verify"], 1);
    let other = place.0.path().join("other");
    fs::write(&other, "another key of 16 bytes").unwrap();
    let other = format!("file:{}", other.display());
    place.agents(&["audit", "verify", "--key", &other], 1);
}

#[test]
fn the_trail_is_exported_whole_in_each_form() {
    let place = Place::with_trail();
    let records = lines(&place.trail());
    let export = |args: &[&str]| -> Vec<Value> {
        let (stdout, _) = place.agents(&[&["audit", "export"], args].concat(), 0);
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let plain = export(&[]);
    let expected: Vec<Value> = records.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(plain, expected);
    let ocsf = export(&["--format", "ocsf"]);
    assert_eq!(ocsf.len(), records.len());
    assert!(ocsf.iter().all(|event| event["metadata"]["version"] == "1.6.0"));
    let events = export(&["--format", "cloudevents"]);
    assert!(
        events
            .iter()
            .zip(&expected)
            .all(|(event, record)| event["data"] == *record)
    );
    let session = expected[0]["session_id"].as_str().unwrap();
    let own = export(&["--session", session]);
    assert!(!own.is_empty() && own.len() < records.len());
    assert!(own.iter().all(|event| event["session_id"] == session));
    assert_eq!(export(&["--until", "2020-01-01"]), Vec::<Value>::new());
    assert_eq!(export(&["--since", "1h"]).len(), records.len());
    assert!(
        export(&["--type", "session_closed"])
            .iter()
            .all(|event| event["event_type"] == "session_closed")
    );

    let file = place.work().join("out.jsonl");
    let told = place.json(&["audit", "export", "-o", file.to_str().unwrap()], 0);
    assert_eq!(told["events"], records.len());
    assert_eq!(lines(&file).len(), records.len());
    let left: Vec<_> = fs::read_dir(place.work())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["out.jsonl"], "nothing else is left");
    place.agents(&["audit", "export", "-o", "/nowhere/out.jsonl"], 1);
}

#[test]
fn the_trace_of_whoever_called_is_on_record() {
    let place = Place(tempfile::tempdir().unwrap());
    fs::create_dir(place.work()).unwrap();
    let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let run = |traceparent: &str| {
        let mut command = place.command(&["run", "-q", "--", "true"]);
        command.env("TRACEPARENT", traceparent);
        texts(&["run"], 0, command.output().unwrap());
    };
    run(&format!("00-{trace}-{span}-01"));
    let traced = lines(&place.trail());
    for line in &traced {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&event["payload"]["trace_id"], &event["payload"]["span_id"]),
            (&trace.into(), &span.into())
        );
    }
    run("not a trace");
    assert!(
        lines(&place.trail())[traced.len()..]
            .iter()
            .all(|line| !line.contains("trace_id"))
    );
    place.agents(&["audit", "verify"], 0);
}

#[test]
fn tail_and_query_know_every_condition() {
    let place = Place::with_trail();
    let session = place.json(&["ps", "-a"], 0)[0]["session_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let count = |args: &[&str]| {
        place
            .agents(&[&["audit", "tail", "-n", "1000", "--json"], args].concat(), 0)
            .0
            .lines()
            .count()
    };
    let all = count(&[]);
    assert_eq!(all, lines(&place.trail()).len());
    for (condition, value) in [
        ("--session", session.as_str()),
        ("--type", "session_closed"),
        ("--severity", "warning"),
        ("--agent", "nobody"),
        ("--user", "nobody"),
    ] {
        let found = count(&[condition, value]);
        let queried = place.json(&["audit", "query", "--limit", "1000", condition, value], 0);
        assert_eq!(found, queried["events"].as_array().unwrap().len(), "{condition}");
        assert!(
            found < all && (found > 0 || value == "nobody"),
            "{condition}: {found} of {all}"
        );
    }
    assert_eq!(count(&["--agent", "true"]), all);
    let page = place.json(&["audit", "query", "--limit", "3"], 0);
    let rest = place.json(
        &[
            "audit",
            "query",
            "--limit",
            "1000",
            "--cursor",
            page["next"].as_str().unwrap(),
        ],
        0,
    );
    assert_eq!(rest["events"].as_array().unwrap().len(), all - 3);
}
