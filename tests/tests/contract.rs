//! The contract of the command line, kept for root and for an ordinary user: exit codes, the JSON object, artifacts,
//! environment, secrets, input, limits, ownership, and sessions in the background.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use agents_tests::{Caller, Outcome, Place, Ran, assert_object, for_callers, run, trial, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let trials = [
        for_callers("exit_codes", exit_codes),
        for_callers(
            "the_object_has_the_same_keys_however_it_ends",
            the_object_has_the_same_keys_however_it_ends,
        ),
        for_callers("out_of_memory_is_137_and_says_so", out_of_memory_is_137_and_says_so),
        for_callers("other_limits_are_named", other_limits_are_named),
        for_callers(
            "artifacts_have_folders_versions_and_hashes",
            artifacts_have_folders_versions_and_hashes,
        ),
        for_callers(
            "more_output_than_allowed_is_refused",
            more_output_than_allowed_is_refused,
        ),
        for_callers(
            "a_result_that_the_schema_refuses_fails_the_run",
            a_result_that_the_schema_refuses_fails_the_run,
        ),
        for_callers(
            "a_failed_agent_is_tried_again_in_a_fresh_container",
            a_failed_agent_is_tried_again,
        ),
        for_callers("environment_comes_from_flags_files_and_the_host", environment),
        for_callers("secrets_are_files_and_nowhere_else", secrets_are_files_and_nowhere_else),
        for_callers("standard_input", standard_input),
        for_callers("output_is_bytes", output_is_bytes),
        for_callers("the_workspace_stays_the_callers", the_workspace_stays_the_callers),
        for_callers("mounts_are_read_only_unless_asked", mounts_are_read_only_unless_asked),
        for_callers(
            "the_defaults_are_those_of_the_contract",
            the_defaults_are_those_of_the_contract,
        ),
        for_callers("the_sandbox_is_closed", the_sandbox_is_closed),
        for_callers(
            "ctrl_c_is_130_and_keeps_what_was_made",
            ctrl_c_is_130_and_keeps_what_was_made,
        ),
        for_callers("a_session_in_the_background", a_session_in_the_background),
        for_callers("logs_follow_to_the_end", logs_follow_to_the_end),
        for_callers("stop_collects_and_gc_finds_nothing", stop_collects_and_gc_finds_nothing),
        for_callers("a_run_is_on_record_in_order", a_run_is_on_record_in_order),
    ];
    let mut trials: Vec<_> = trials.into_iter().flatten().collect();
    trials.push(trial(
        "the_configuration_of_the_readme",
        the_configuration_of_the_readme,
    ));
    run(false, trials)
}

/// What the README shows is what there is.
fn the_configuration_of_the_readme() -> Outcome {
    let readme = include_str!("../../README.md");
    assert_eq!(readme.matches("```sh\n").count(), 2, "the README has two commands");
    let (_, rest) = readme.split_once("```yaml\n").expect("a configuration");
    let (config, _) = rest.split_once("```").expect("its end");
    let place = Place::new(Caller::User)?;
    let file = place.file("isolated_agents_config.yaml", config);
    place.agents(&["config", "check", "--config", &file]).code(0);
    let shown = place.agents(&["config", "show", "--config", &file]).code(0).text();
    assert!(
        shown.contains("/srv/artifacts") && shown.contains("/var/log/agents"),
        "{shown}"
    );
    Ok(())
}

fn exit_codes(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    place.file("not-executable", "#!/bin/sh\n");
    let work = place.work();
    let script = work.join("not-executable");
    let mount = format!("{}:/data", work.display());
    assert!(script.is_file());
    let table: [(&[&str], i32); 13] = [
        (&["--", "true"], 0),
        (&["--", "false"], 1),
        (&["--", "sh", "-c", "exit 124"], 124),
        (&["--", "sh", "-c", "exit 255"], 255),
        (&["--", "sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["--", "sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["--timeout", "0.5", "--", "sleep", "60"], 124),
        (
            &[
                "--timeout",
                "500ms",
                "--",
                "sh",
                "-c",
                "trap '' TERM INT; sleep 60 & wait",
            ],
            124,
        ),
        (&["--image", "./none", "--", "true"], 125),
        (&["--mount", &mount, "--", "/data/not-executable"], 126),
        (&["--", "/etc"], 126),
        (&["--", "no-such-command"], 127),
        (&["--no-such-flag", "--", "true"], 2),
    ];
    for (args, code) in table {
        let begun = Instant::now();
        let ran = place.run(args).code(code);
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{args:?} took {:?}",
            begun.elapsed()
        );
        if [2, 126, 127].contains(&code) || args[0] == "--image" {
            ran.error();
        }
    }
    // Without a command there is nothing to run.
    place.run(&[]).code(2).error();
    place.assert_clean();
    Ok(())
}

fn the_object_has_the_same_keys_however_it_ends(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let table: [(&[&str], &str, &str, Value); 8] = [
        (&["--", "true"], "completed", "exited", json!(0)),
        (&["--", "sh", "-c", "exit 3"], "failed", "exited", json!(3)),
        (&["--", "sh", "-c", "kill -SEGV $$"], "failed", "signalled", json!(139)),
        (
            &["--timeout", "0.3", "--", "sleep", "60"],
            "failed",
            "deadline",
            json!(null),
        ),
        (&["--", "no-such-command"], "failed", "not_started", json!(127)),
        (&["--", "/etc"], "failed", "not_started", json!(126)),
        (
            &["--workspace", "/no/such", "--", "true"],
            "refused",
            "not_started",
            json!(null),
        ),
        (
            &["--policy", "/no/such.yaml", "--", "true"],
            "refused",
            "not_started",
            json!(null),
        ),
    ];
    for (args, status, kind, code) in table {
        let ran = place.run(&[&["--json"], args].concat());
        let object = ran.json();
        assert_object(&object);
        let got = (&object["status"], &object["ending"]["kind"], &object["exit_code"]);
        assert_eq!(got, (&json!(status), &json!(kind), &code), "{args:?}: {object}");
        if object["session_id"].is_string() {
            assert!(
                Path::new(text(&object["audit"])).starts_with(place.state().join("audit")),
                "{args:?}"
            );
            assert!(Path::new(text(&object["audit"])).is_file(), "{args:?}");
            let shown = place.agents(&["inspect", "--json", object["session_id"].as_str().unwrap_or_default()]);
            assert_eq!(shown.code(0).json()["result"], object, "{args:?}");
        }
        // Whatever went wrong in the SDK is in the object and, once, on standard error.
        if !object["error_kind"].is_null() {
            assert!(
                ran.error().contains(object["error"].as_str().unwrap_or("?")),
                "{args:?}: {}",
                ran.stderr
            );
        }
    }
    place.assert_clean();
    Ok(())
}

fn out_of_memory_is_137_and_says_so(caller: Caller) -> Outcome {
    caller.require_limits()?;
    let place = Place::new(caller)?;
    // `tail` of endless zeros without a line end keeps everything.
    let script = "echo begun > /output/partial; head -c 300m /dev/zero | tail";
    let ran = place
        .run(&["--json", "--memory", "48", "--", "sh", "-c", script])
        .code(137);
    let object = ran.json();
    assert_eq!(
        (&object["ending"]["kind"], &object["exit_code"]),
        (&json!("out_of_memory"), &json!(137))
    );
    assert_eq!(object["status"], "failed");
    assert!(object["artifacts"]["partial"].is_string(), "{object}");
    let peak = object["usage"]["memory_peak_bytes"].as_u64().unwrap_or_default();
    assert!((16 << 20..=48 << 20).contains(&peak), "{peak}");
    let session = object["session_id"].as_str().unwrap_or_default();
    let violation = place
        .events()
        .into_iter()
        .find(|event| event["session_id"] == session && event["event_type"] == "resource_limit_exceeded");
    assert_eq!(
        violation.map(|event| event["payload"]["violation_type"].clone()),
        Some(json!("oom_kill"))
    );
    // An agent that merely exits with 137 has not run out of memory.
    let object = place.run(&["--json", "--", "sh", "-c", "exit 137"]).code(137).json();
    assert_eq!(object["ending"], json!({"kind": "exited", "code": 137}));
    place.assert_clean();
    Ok(())
}

fn other_limits_are_named(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let table = [
        (
            vec!["--disk", "16"],
            "head -c 64m /dev/zero > /output/big || exit 7",
            "disk_limit",
            "disk",
        ),
        (
            vec!["--pids", "8"],
            "i=0; while [ $i -lt 64 ]; do sleep 5 & i=$((i+1)); done; exit 7",
            "pids_limit",
            "pids",
        ),
    ];
    for (args, script, kind, violation) in table {
        let object = place.run_json(&args, script);
        assert_object(&object);
        assert_eq!(object["ending"]["kind"], kind, "{object}");
        assert_eq!(object["status"], "failed");
        let found = place.events().into_iter().any(|event| {
            event["session_id"] == object["session_id"] && event["payload"]["violation_type"] == violation
        });
        assert!(found, "{violation} is not on record");
    }
    place.assert_clean();
    Ok(())
}

fn artifacts_have_folders_versions_and_hashes(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let script = "mkdir -p /output/a/b/c; printf deep > /output/a/b/c/file.txt; printf top > /output/top; \
                  : > '/output/empty file'; printf 'ü' > /output/ü; mkdir /output/nothing-in-it";
    let object = place.run_json(&["--output", "out"], script);
    assert_object(&object);
    let names: Vec<_> = object["artifacts"]
        .as_object()
        .map(|uris| uris.keys().cloned().collect())
        .unwrap_or_default();
    assert_eq!(names, ["a/b/c/file.txt", "empty file", "top", "ü"], "{object}");
    for detail in object["artifact_details"].as_array().into_iter().flatten() {
        let (name, uri) = (text(&detail["name"]), text(&detail["uri"]));
        let stored = fs::read(decoded(uri)).unwrap_or_else(|error| panic!("{uri}: {error}"));
        let exported = fs::read(place.work().join("out").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(stored, exported, "{name}");
        assert_eq!(
            (&detail["size"], &detail["version"]),
            (&json!(stored.len()), &json!(1)),
            "{name}"
        );
        let sum = Command::new("sha256sum").arg(decoded(uri)).output().expect("sha256sum");
        assert!(
            String::from_utf8_lossy(&sum.stdout).starts_with(text(&detail["sha256"])),
            "{name}"
        );
    }
    let owner = place
        .work()
        .join("out/a/b/c/file.txt")
        .metadata()
        .expect("the export")
        .uid();
    assert_eq!(owner, caller.uid());
    // Artifacts of an earlier run in the same folder are replaced, and what else is there stays.
    fs::write(place.work().join("out/mine"), "mine").expect("a file");
    place.run_json(&["--output", "out"], "printf other > /output/top");
    let read = |name: &str| fs::read_to_string(place.work().join("out").join(name)).expect("a file");
    assert_eq!((read("top").as_str(), read("mine").as_str()), ("other", "mine"));
    let listed = place
        .agents(&["artifacts", "ls", "--json", text(&object["session_id"])])
        .code(0)
        .json();
    assert_eq!(listed.as_array().map(Vec::len), Some(4));
    place.assert_clean();
    Ok(())
}

fn more_output_than_allowed_is_refused(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let policy = place.file("p.json", r#"{"max_output_bytes": 1000}"#);
    let script = "printf small > /output/a; head -c 2000 /dev/zero > /output/b";
    let ran = place
        .run(&["--json", "--policy", &policy, "--", "sh", "-c", script])
        .code(125);
    let object = ran.json();
    assert_eq!(
        (&object["status"], &object["ending"]["kind"]),
        (&json!("failed"), &json!("output_limit"))
    );
    assert_eq!(object["refused_artifacts"][0]["name"], "b", "{object}");
    assert!(
        place
            .event_types(text(&object["session_id"]))
            .contains(&"output_size_exceeded".to_owned())
    );
    place.assert_clean();
    Ok(())
}

fn a_result_that_the_schema_refuses_fails_the_run(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let schema = "structured_output:\n  type: object\n  required: [count]\n  properties: {count: {type: integer}}\n";
    let policy = place.file("p.yaml", schema);
    let go = |script: &str| place.run(&["--json", "--policy", &policy, "--", "sh", "-c", script]);
    let object = go("echo '{\"count\": 1}' > /output/result.json").code(0).json();
    assert_eq!(
        (&object["status"], &object["output"]),
        (&json!("completed"), &json!({"count": 1}))
    );
    for script in [
        "echo '{\"count\": \"x\"}' > /output/result.json",
        "echo nonsense > /output/result.json",
        "true",
    ] {
        let object = go(script).code(125).json();
        assert_eq!(
            (&object["status"], &object["output"]),
            (&json!("failed"), &json!(null)),
            "{script}"
        );
        assert_eq!(
            (&object["exit_code"], &object["error_kind"]),
            (&json!(0), &json!(null)),
            "{script}"
        );
        assert!(text(&object["error"]).contains("result.json"), "{object}");
    }
    place.assert_clean();
    Ok(())
}

fn a_failed_agent_is_tried_again(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let policy = place.file("p.yaml", "retry_count: 2\nretry_delay_seconds: 0.01\n");
    place.folder("ws");
    // The workspace is the caller's and stays; everything else is fresh each time.
    let script = "n=$(cat count 2>/dev/null || echo 0); n=$((n+1)); echo $n > count; \
                  [ ! -e /tmp/mark ] && [ ! -e /output/old ] || exit 99; : > /tmp/mark; : > /output/old; \
                  echo attempt $n; [ $n -lt 3 ] && exit 5; rm /output/old; echo $n > /output/n";
    let object = place.run_json(&["--policy", &policy, "--workspace", "ws"], script);
    assert_eq!(object["status"], "completed", "{object}");
    assert_eq!(object["stdout"], "attempt 3\n");
    assert_eq!(object["artifacts"].as_object().map(|uris| uris.len()), Some(1));
    let types = place.event_types(text(&object["session_id"]));
    let count = |wanted: &str| types.iter().filter(|found| *found == wanted).count();
    let counts = [
        "agent_retry",
        "container_created",
        "container_destroyed",
        "agent_failed",
        "agent_completed",
    ]
    .map(count);
    assert_eq!(counts, [2, 3, 3, 2, 1], "{types:?}");
    place.assert_clean();
    Ok(())
}

fn environment(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let file = place.file("env", "# comment\nFILE=from file\nBOTH=file\nHERE\n");
    let args = [
        "--json",
        "--name",
        "me",
        "--env-file",
        &file,
        "-e",
        "BOTH=flag",
        "--env",
        "EQ=a=b",
        "--env",
        "ABSENT",
    ];
    let script = "echo \"$FILE|$BOTH|$EQ|$HERE|${ABSENT-unset}|${LEAK-unset}|$ISOLATED_AGENTS_AGENT_ID|$HOME|$PWD\"; \
                  echo $ISOLATED_AGENTS_SESSION_ID";
    let args = place.run_args(&[&args[..], &["--", "sh", "-c", script]].concat());
    let mut command = place.command(&args);
    let ran = Ran::of(command.env("HERE", "h").env("LEAK", "l")).code(0);
    let object = ran.json();
    let expected = format!(
        "from file|flag|a=b|h|unset|unset|me|/workspace|/workspace\n{}\n",
        text(&object["session_id"])
    );
    assert_eq!(object["stdout"], expected);
    for bad in [["--env", "=x"], ["--env-file", "/no/such"]] {
        let ran = place.run(&[&bad[..], &["--", "true"]].concat());
        assert!([Some(2), Some(125)].contains(&ran.code), "{bad:?}: {:?}", ran.code);
        ran.error();
    }
    place.assert_clean();
    Ok(())
}

fn secrets_are_files_and_nowhere_else(caller: Caller) -> Outcome {
    const SECRET: &str = "tr0ub4dor&3-correct-horse";
    let place = Place::new(caller)?;
    let file = place.file("secret", SECRET);
    // It shows the secret on purpose, and leaves it in no artifact.
    let script = "cat /run/secrets/a; stat -c '%a %u' /run/secrets/a; ls -A /run/secrets; env; cat /proc/*/cmdline | tr '\\0' ' '; \
                  cat /proc/*/environ; grep secrets /proc/mounts; echo x > /run/secrets/a; echo done > /output/done; exit 0";
    let reference = format!("b=file:{file}");
    let args = place.run_args(&[
        "--json",
        "--secret",
        "a=env:TOKEN",
        "--secret",
        &reference,
        "--",
        "sh",
        "-c",
        script,
    ]);
    let ran = Ran::of(place.command(&args).env("TOKEN", SECRET)).code(0);
    let object = ran.json();
    let stdout = text(&object["stdout"]);
    assert!(stdout.starts_with("[redacted]400 1000\na\nb\n"), "{stdout}");
    let session = text(&object["session_id"]);
    for shown in [
        ran.text(),
        ran.stderr,
        place.agents(&["inspect", "--json", session]).text(),
        place.agents(&["ps", "-a", "--json"]).text(),
        place.agents(&["logs", session]).text(),
        place.agents(&["audit", "query", "--json"]).text(),
    ] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
    let found = Command::new("grep")
        .args(["-rlF", SECRET])
        .arg(place.state())
        .output()
        .expect("grep");
    assert_eq!(
        String::from_utf8_lossy(&found.stdout),
        "",
        "the state folder holds the secret"
    );
    // A literal secret is refused, and is not repeated.
    let ran = place.run(&["--secret", &format!("a={SECRET}"), "--", "true"]).code(2);
    assert!(!ran.stderr.contains(SECRET), "{}", ran.stderr);
    let ran = place.run(&["--secret", "a=env:NOT_SET_HERE", "--", "true"]).code(125);
    assert!(ran.error().contains("NOT_SET_HERE"));
    place.assert_clean();
    Ok(())
}

fn standard_input(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let file = place.file("in", "from a file");
    let ran = place.run(&["-q", "--stdin", &file, "--", "cat"]).code(0);
    assert_eq!(ran.text(), "from a file");
    assert_eq!(place.run(&["-q", "--", "cat"]).code(0).text(), "");
    let big = place.file("big", vec![b'x'; 5 << 20]);
    let args = place.run_args(&["-q", "-i", "--", "wc", "-c"]);
    let ran = Ran::of(place.command(&args).stdin(fs::File::open(&big).expect("a file"))).code(0);
    assert_eq!(ran.text().trim(), (5 << 20).to_string());
    // An agent that does not read its input is no error.
    let ran = place.run(&["-q", "--stdin", &big, "--", "true"]).code(0);
    assert_eq!(ran.stderr, "");
    place.run(&["--stdin", "/no/such", "--", "cat"]).code(125).error();
    place.assert_clean();
    Ok(())
}

fn output_is_bytes(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let ran = place
        .run(&["-q", "--", "sh", "-c", r"printf 'a\000\377\nno end'; printf '\376' >&2"])
        .code(0);
    assert_eq!(ran.stdout, b"a\0\xff\nno end");
    let object = place.run_json(&[], "head -c 1m /dev/zero | tr '\\0' x; echo end");
    assert_eq!(
        (&object["stdout_truncated"], &object["stderr_truncated"]),
        (&json!(true), &json!(false))
    );
    let shown = text(&object["stdout"]);
    assert!(
        shown.starts_with("xxx") && shown.ends_with("xend\n") && shown.len() < 128 << 10,
        "{}",
        shown.len()
    );
    place.assert_clean();
    Ok(())
}

fn the_workspace_stays_the_callers(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    place.folder("ws");
    let input = place.file("ws/in", "in");
    fs::set_permissions(&input, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("permissions");
    let script = "id -u; cat in; echo changed >> in; mkdir -p d/e; echo made > d/e/f; chmod 640 d/e/f; ln -s /etc/passwd link; \
                  rm -f gone; pwd; touch /workspace/x";
    place.file("ws/gone", "");
    let ran = place
        .run(&["-q", "--workspace", "ws", "--", "sh", "-c", script])
        .code(0);
    assert_eq!(ran.text(), "1000\nin/workspace\n");
    let workspace = place.work().join("ws");
    for name in ["in", "d", "d/e", "d/e/f", "link", "x"] {
        let metadata = workspace
            .join(name)
            .symlink_metadata()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((metadata.uid(), metadata.gid()), (caller.uid(), gid(caller)), "{name}");
    }
    assert_eq!(
        workspace.join("d/e/f").metadata().expect("a file").mode() & 0o7777,
        0o640
    );
    assert_eq!(fs::read_to_string(&input).expect("a file"), "inchanged\n");
    assert!(!workspace.join("gone").exists());
    // Without a workspace there is an empty one that can be written to.
    let ran = place
        .run(&["-q", "--", "sh", "-c", "ls -A | wc -l; echo x > x; cat x"])
        .code(0);
    assert_eq!(ran.text(), "0\nx\n");
    place.assert_clean();
    Ok(())
}

fn gid(caller: Caller) -> u32 {
    match caller {
        Caller::Root => 0,
        Caller::User if rustix::process::geteuid().is_root() => caller.uid(),
        Caller::User => rustix::process::getegid().as_raw(),
    }
}

fn mounts_are_read_only_unless_asked(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let (data, drop) = (place.folder("data"), place.folder("drop"));
    place.file("data/f", "content");
    let read_only = format!("{data}:/data");
    let writable = format!("{drop}:/drop:rw");
    let script = "cat /data/f; echo x > /data/f 2>/dev/null || echo refused; echo out > /drop/made";
    let args = [
        "-q", "--mount", &read_only, "--mount", &writable, "--", "sh", "-c", script,
    ];
    assert_eq!(place.run(&args).code(0).text(), "contentrefused\n");
    let made = place.work().join("drop/made");
    assert_eq!(fs::read_to_string(&made).expect("a file"), "out\n");
    assert_eq!(made.metadata().expect("a file").uid(), caller.uid());
    let ran = place.run(&["--mount", "/no/such:/x", "--", "true"]).code(125);
    assert!(ran.error().contains("/no/such"));
    place.run(&["--mount", "nonsense", "--", "true"]).code(2).error();
    place.assert_clean();
    Ok(())
}

fn the_defaults_are_those_of_the_contract(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let object = place.run_json(&[], "true");
    let events = place.events();
    let policy = events
        .iter()
        .find(|event| event["event_type"] == "policy_validated")
        .map(|event| event["payload"]["policy"].clone())
        .unwrap_or_default();
    if caller.has_limits()? {
        // As a number: the form that the log's hashes are over writes 1.0 as 1.
        assert_eq!(
            (policy["memory_mb"].as_u64(), policy["cpu_cores"].as_f64()),
            (Some(512), Some(1.0))
        );
    }
    let expected = json!({
        "pids_limit": 256, "read_only_rootfs": true, "cap_drop": ["ALL"], "cap_add": [], "tmpfs_size_mb": 512,
        "output_path_in_container": "/output", "retry_count": 0, "timeout_seconds": null, "max_output_bytes": null,
    });
    for (field, value) in expected.as_object().into_iter().flatten() {
        assert_eq!(&policy[field], value, "{field}");
    }
    assert_eq!(policy["network"]["disabled"], true);
    assert_eq!(object["status"], "completed");
    let file = place.file("p.yaml", "memory_mb: 64\npids_limit: 7\n");
    let ran = place.agents(&["policy", "check", "--json", &file]).code(0);
    assert!(ran.json().is_object());
    Ok(())
}

fn the_sandbox_is_closed(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let script = "grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' '  '; echo; \
                  tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' \\n'; echo; \
                  (: > /x) 2>/dev/null || echo root is read-only; \
                  (: > /etc/x) 2>/dev/null || echo etc is read-only; \
                  id -u; ls /home /root | grep -v : ; ls -d /proc/[0-9]* | wc -l; unshare -r true 2>/dev/null || echo no namespaces";
    let ran = place.run(&["-q", "--", "sh", "-c", script]).code(0);
    let text = ran.text();
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    let zero = "0000000000000000";
    let status = format!("CapPrm: {zero} CapEff: {zero} CapBnd: {zero} NoNewPrivs: 1 Seccomp: 2 ");
    assert_eq!(lines[0], status);
    assert_eq!(
        lines[1..5],
        ["lo", "root is read-only", "etc is read-only", "1000"],
        "{text}"
    );
    let processes: usize = lines[5].parse().unwrap_or_else(|_| panic!("{text}"));
    assert!(processes <= 6, "{text}");
    assert_eq!(lines[6..], ["no namespaces"], "{text}");
    Ok(())
}

fn ctrl_c_is_130_and_keeps_what_was_made(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let script =
            "trap '' INT TERM HUP; sleep 1000 & echo partial > /output/p; echo ready; while :; do sleep 1; done";
        let mut child = place.start(&["--json", "--output", "out"], script);
        // With --json nothing is passed on, so the artifact's sign is the session's log.
        wait_until("the agent", || {
            let sessions = place.sessions();
            let running = sessions
                .iter()
                .find(|id| !place.state().join("sessions").join(id).join("session.json").exists());
            running.is_some_and(|id| place.agents(&["logs", id]).text() == "ready\n")
        });
        kill_process(Pid::from_child(&child), signal).expect("a signal");
        let stdout = child.stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("the object");
        let ran = Ran::wait(child, "run").code(130);
        let object: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}\n{}", ran.stderr));
        assert_object(&object);
        assert_eq!(
            (&object["ending"]["kind"], &object["exit_code"]),
            (&json!("cancelled"), &json!(null))
        );
        assert_eq!(
            fs::read_to_string(place.work().join("out/p")).expect("the artifact"),
            "partial\n"
        );
        place.assert_clean();
    }
    Ok(())
}

fn a_session_in_the_background(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    place.folder("ws");
    let script = "echo begun; echo err >&2; while [ ! -e stop ]; do sleep 0.1; done; echo ended; exit 6";
    let begun = Instant::now();
    let args = ["-d", "--name", "bg", "--workspace", "ws", "--", "sh", "-c", script];
    let ran = place.run(&args).code(0);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "detaching took {:?}",
        begun.elapsed()
    );
    let printed = ran.text();
    let id = printed.trim_end();
    assert_eq!(place.sessions(), [id]);

    let listed = place.agents(&["ps", "--json"]).code(0).json();
    let expected = json!({"session_id": id, "agent_id": "bg", "status": "running", "image": "host", "ended_at": null, "error": null, "sub_sessions": []});
    for (key, value) in expected.as_object().into_iter().flatten() {
        assert_eq!(&listed[0][key], value, "{key}");
    }
    wait_until("the output", || place.agents(&["logs", id]).text() == "begun\n");
    assert_eq!(place.agents(&["logs", id]).stderr, "err\n");

    let exec = |args: &[&str]| place.agents(&[&["exec", id], args].concat());
    assert_eq!(
        exec(&["--", "sh", "-c", "id -u; cat /proc/1/comm >/dev/null; exit 4"])
            .code(4)
            .text(),
        "1000\n"
    );
    assert_eq!(
        exec(&["-e", "K=V", "-w", "/tmp", "--", "sh", "-c", "echo $K $PWD"])
            .code(0)
            .text(),
        "V /tmp\n"
    );
    exec(&["--", "no-such-command"]).code(127).error();
    exec(&["--", "/etc"]).code(126).error();
    exec(&["--timeout", "0.5", "--", "sleep", "60"]).code(124);
    exec(&[
        "--",
        "sh",
        "-c",
        "mkdir /output/r; echo res > /output/r/x; ln -s /etc/passwd /output/r/link",
    ])
    .code(0);

    place.file("up", "up");
    place.agents(&["cp", "up", &format!("{id}:/workspace/")]).code(0);
    let uploaded = place.work().join("ws/up").metadata().expect("the upload");
    assert_eq!(uploaded.uid(), caller.uid());
    // The link is left out, which the exit code says.
    let ran = place.agents(&["cp", &format!("{id}:/output/r"), "down"]).code(1);
    assert!(ran.stderr.contains("link"), "{}", ran.stderr);
    assert_eq!(
        fs::read_to_string(place.work().join("down/r/x")).expect("the download"),
        "res\n"
    );
    assert!(!place.work().join("down/r/link").exists());

    let stats = place.agents(&["stats", "--json", id]).code(0).json();
    for key in [
        "cpu_percent",
        "memory_mb",
        "memory_limit_mb",
        "network_rx_bytes",
        "network_tx_bytes",
    ] {
        assert!(stats[key].is_number(), "{key}: {stats}");
    }
    if caller.has_limits()? {
        assert!(stats["memory_mb"].as_f64().is_some_and(|used| used > 0.0), "{stats}");
        assert_eq!(stats["memory_limit_mb"], 512.0);
    }
    let shown = place.agents(&["inspect", "--json", &id[..24]]).code(0).json();
    assert_eq!((&shown["status"], &shown["result"]), (&json!("running"), &json!(null)));
    assert!(shown["container"].is_object(), "{shown}");

    place.file("ws/stop", "");
    wait_until("the end", || {
        place.agents(&["inspect", "--json", id]).json()["status"] == "failed"
    });
    let shown = place.agents(&["inspect", "--json", id]).code(0).json();
    assert_object(&shown["result"]);
    assert_eq!(shown["result"]["exit_code"], 6);
    assert_eq!(place.agents(&["logs", id]).text(), "begun\nended\n");
    assert_eq!(place.agents(&["ps", "--json"]).json(), json!([]));
    assert_eq!(place.agents(&["ps", "-a", "--json"]).json()[0]["status"], "failed");
    for args in [
        &["exec", id, "--", "true"][..],
        &["stats", id],
        &["cp", &format!("{id}:/output"), "d2"],
    ] {
        assert!(place.agents(args).code(1).error().contains(id), "{args:?}");
    }
    place.assert_clean();
    Ok(())
}

fn logs_follow_to_the_end(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let script = "for i in 1 2 3; do echo line $i; sleep 0.3; done; echo err >&2";
    let id = place.run(&["-d", "--", "sh", "-c", script]).code(0).text();
    let mut command = place.command(&["logs", "-f", id.trim_end()]);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("agents");
    // The first line is there long before the last.
    let begun = Instant::now();
    let mut first = [0; 7];
    child
        .stdout
        .as_mut()
        .expect("a pipe")
        .read_exact(&mut first)
        .expect("the first line");
    assert_eq!(&first, b"line 1\n");
    let ran = Ran::wait(child, "logs -f").code(0);
    assert_eq!(
        (ran.text().as_str(), ran.stderr.as_str()),
        ("line 2\nline 3\n", "err\n")
    );
    assert!(begun.elapsed() > Duration::from_millis(300), "{:?}", begun.elapsed());
    place.assert_clean();
    Ok(())
}

fn stop_collects_and_gc_finds_nothing(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let script = "trap '' INT TERM; echo kept > /output/kept; echo ready; while :; do sleep 1; done";
    let id = place.run(&["-d", "--", "sh", "-c", script]).code(0).text();
    let id = id.trim_end();
    wait_until("the agent", || place.agents(&["logs", id]).text() == "ready\n");
    // A living owner's session is not touched.
    let report = place.agents(&["gc", "--json"]).code(0).json();
    assert_eq!(report, json!({"ended_sessions": [], "removed": [], "problems": []}));
    assert_eq!(place.agents(&["stop", id]).code(0).text().trim_end(), id);
    let result = &place.agents(&["inspect", "--json", id]).code(0).json();
    assert_eq!(
        (&result["status"], &result["result"]["ending"]["kind"]),
        (&json!("terminated"), &json!("cancelled"))
    );
    let got = place.agents(&["artifacts", "get", id, "kept", "-o", "-"]).code(0);
    assert_eq!(got.text(), "kept\n");
    // Once more is no error.
    place.agents(&["stop", id]).code(0);
    assert!(place.agents(&["stop", "nobody"]).code(1).error().contains("nobody"));
    place.assert_clean();
    Ok(())
}

fn a_run_is_on_record_in_order(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let object = place.run_json(&[], "echo x > /output/x");
    let session = text(&object["session_id"]);
    let expected = [
        "session_created",
        "policy_validated",
        "container_created",
        "agent_launched",
        "container_started",
        "agent_started",
        "container_stopped",
        "agent_completed",
        "artifact_stored",
        "container_destroyed",
        "session_closed",
    ];
    assert_eq!(place.event_types(session), expected);
    let events = place.events();
    let keys = [
        "event_id",
        "event_type",
        "timestamp",
        "session_id",
        "agent_id",
        "user_id",
        "payload",
        "severity",
        "tags",
    ];
    for event in &events {
        let mut found: Vec<_> = event
            .as_object()
            .map(|event| event.keys().collect())
            .unwrap_or_default();
        found.retain(|key| keys.contains(&key.as_str()));
        assert_eq!(found.len(), keys.len(), "{event}");
    }
    // Each operation was intended before, and has one outcome.
    let of = |event_type: &str| -> Vec<_> {
        let of_session = events.iter().filter(|event| event["session_id"] == session);
        let chosen = of_session.filter(|event| event["event_type"] == event_type);
        chosen
            .map(|event| event["payload"]["operation_id"].as_str().unwrap_or_default())
            .collect()
    };
    let mut ended = of("operation_ended");
    let mut intended = of("operation_intended");
    assert!(intended.len() >= 6, "{events:?}");
    intended.sort_unstable();
    ended.sort_unstable();
    assert_eq!(intended, ended);
    // What is in force was read back and compared.
    let created = events.iter().find(|event| event["event_type"] == "container_created");
    let effective = created
        .and_then(|event| event["payload"]["effective"].as_array())
        .map_or(0, Vec::len);
    assert!(effective > 5, "{created:?}");
    place.assert_clean();
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// The path of a `file://` URI.
fn decoded(uri: &str) -> std::path::PathBuf {
    let path = uri.strip_prefix("file://").unwrap_or_else(|| panic!("no file: {uri}"));
    let mut bytes = Vec::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.expect("two digits")));
                u8::from_str_radix(&String::from_iter(digits), 16).expect("two digits")
            }
            other => other,
        });
    }
    Path::new(std::ffi::OsStr::new(std::str::from_utf8(&bytes).expect("a path"))).to_owned()
}
