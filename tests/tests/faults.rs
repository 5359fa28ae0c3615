//! Bad input and a bad day: each ends in one clear error that names the thing and says what to do, with the exit code of the
//! contract, and leaves nothing behind.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, ExitCode},
};

use agents_tests::{
    Caller, Outcome, Place, Skip, assert_nothing_of_ours_runs, assert_object, for_callers, require_root, run, trial,
    wait_until,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let both = [
        for_callers("bad_input_is_one_clear_error", bad_input_is_one_clear_error),
        for_callers("what_cannot_be_enforced_is_refused", what_cannot_be_enforced_is_refused),
        for_callers("a_misspelt_configuration", a_misspelt_configuration),
        for_callers(
            "a_dead_owner_is_cleaned_up_by_the_next_run",
            a_dead_owner_is_cleaned_up_by_the_next_run,
        ),
    ];
    let mut trials: Vec<_> = both.into_iter().flatten().collect();
    trials.push(trial(
        "user::limits_without_a_cgroup_are_refused",
        limits_without_a_cgroup_are_refused,
    ));
    trials.push(trial("user::what_the_user_may_not_read", what_the_user_may_not_read));
    trials.push(trial("root::a_full_disk", a_full_disk));
    trials.push(trial("root::a_disk_that_fills_up", a_disk_that_fills_up));
    trials.push(trial(
        "root::an_audit_log_that_cannot_be_written",
        an_audit_log_that_cannot_be_written,
    ));
    run(true, trials)
}

/// Runs `agents` and expects one error with all of these words, in its object too, and nothing left behind.
#[track_caller]
fn refused(place: &Place, args: &[&str], code: i32, words: &[&str]) -> Value {
    let ran = place.run(args);
    let shown = format!("{args:?}: {} {}", ran.text(), ran.stderr);
    assert_eq!(ran.code, Some(code), "{shown}");
    let error = ran.error().to_owned();
    for word in words {
        assert!(error.contains(word), "no {word:?} in {shown}");
    }
    let begins_well = error.strip_prefix("error: ").and_then(|text| text.chars().next());
    assert!(
        begins_well.is_some_and(|c| !c.is_uppercase()) && !error.ends_with('.'),
        "{shown}"
    );
    let ran = place.run(&[&["--json"], args].concat());
    assert_eq!(ran.code, Some(code), "with --json {shown}");
    let object = ran.json();
    assert_object(&object);
    assert!(!object["error"].is_null() || code == 126 || code == 127, "{object}");
    assert_nothing_of_ours_runs();
    place.assert_clean();
    object
}

fn bad_input_is_one_clear_error(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    place.folder("ws");
    place.file("file", "text");
    let broken = place.file("broken.yaml", "memory_mb: [\n");
    let wrong = place.file("wrong.yaml", "retry_count: -5\npids_limt: 2\ntimeout_seconds: soon\n");
    let image = place.folder("image");
    let invalid = "registry.invalid:5000/none:1";
    let table: Vec<(Vec<&str>, i32, Vec<&str>)> = vec![
        (vec!["--image", "./none", "--", "true"], 125, vec!["./none"]),
        (vec!["--image", "./file", "--", "true"], 125, vec!["file"]),
        (vec!["--image", "No Image", "--", "true"], 125, vec!["No Image"]),
        (
            vec!["--image", invalid, "--pull", "never", "--", "true"],
            125,
            vec![invalid],
        ),
        (vec!["--image", invalid, "--", "true"], 125, vec!["registry.invalid"]),
        (vec!["--image", &image, "--", "true"], 127, vec!["true"]),
        (vec!["--workspace", "none", "--", "true"], 125, vec!["none"]),
        (vec!["--workspace", "file", "--", "true"], 125, vec!["file", "folder"]),
        (vec!["--workspace", "/", "--", "true"], 125, vec!["root"]),
        (vec!["--mount", "none:/data", "--", "true"], 125, vec!["none"]),
        (vec!["--mount", "ws:/proc/x", "--", "true"], 125, vec!["/proc/x"]),
        (vec!["--stdin", "none", "--", "true"], 125, vec!["none"]),
        (vec!["--env-file", "none", "--", "true"], 125, vec!["none"]),
        (vec!["--secret", "k=file:/no/such", "--", "true"], 125, vec!["/no/such"]),
        (vec!["--policy", "none", "--", "true"], 125, vec!["none"]),
        (vec!["--policy", &broken, "--", "true"], 125, vec!["broken.yaml"]),
        (
            vec!["--policy", &wrong, "--", "true"],
            125,
            vec!["retry_count", "pids_limit", "timeout_seconds"],
        ),
        (vec!["--", "no-such-command"], 127, vec!["no-such-command"]),
        (vec!["--", "./none"], 127, vec!["none"]),
        (vec!["--", "/etc/hostname"], 126, vec!["/etc/hostname"]),
        (vec!["--output", "file", "--", "true"], 125, vec!["file"]),
        (vec!["--runtime", "podmn", "--", "true"], 2, vec![]),
        (vec!["--storage", "locl", "--", "true"], 125, vec!["locl", "local"]),
        (vec!["--agent", "nobody", "--", "true"], 125, vec!["nobody"]),
        (vec!["--memory", "much", "--", "true"], 2, vec!["much"]),
        (vec!["--memry", "1", "--", "true"], 2, vec!["--memory"]),
        (vec!["--env", "=x", "--", "true"], 2, vec![]),
        (vec!["true"], 2, vec!["--"]),
    ];
    for (args, code, words) in table {
        if args.contains(&"--memory") && !caller.has_limits()? {
            continue;
        }
        refused(&place, &args, code, &words);
    }
    assert!(
        fs::read_dir(place.work().join("ws"))
            .expect("a folder")
            .next()
            .is_none()
    );
    Ok(())
}

fn what_cannot_be_enforced_is_refused(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let table = [
        (
            "network: {disabled: false, allowed_endpoints: ['example.com:443']}",
            "allowed_endpoints",
        ),
        ("network: {disabled: false, ingress_ports: [8080]}", "ingress_ports"),
        ("gpus: all", "gpus"),
        ("runtime_class: gvisor", "runtime_class"),
        ("read_only_rootfs: false", "read_only_rootfs"),
        ("pip_packages: [requests]", "pip_packages"),
        ("allow_sub_agents: true", "allow_sub_agents"),
        ("proxy_url: 'http://localhost:3128'", "proxy_url"),
    ];
    for (text, field) in table {
        let policy = place.file("p.yaml", text);
        let object = refused(&place, &["--policy", &policy, "--", "true"], 125, &[field]);
        assert_eq!(
            (&object["status"], &object["artifacts"]),
            (&json!("refused"), &json!({})),
            "{text}"
        );
        let types = place.event_types(object["session_id"].as_str().unwrap_or_default());
        // Nothing was made before the refusal, which is on record.
        assert!(
            !types
                .iter()
                .any(|kind| kind.starts_with("container") || kind.starts_with("agent_")),
            "{text}: {types:?}"
        );
        assert_eq!(
            types.last().map(String::as_str),
            Some("session_closed"),
            "{text}: {types:?}"
        );
        assert!(types.contains(&"policy_violation".to_owned()), "{text}: {types:?}");
    }
    let policy = place.file("p.yaml", "seccomp_profile: /no/such.json\n");
    refused(
        &place,
        &["--policy", &policy, "--", "true"],
        125,
        &["seccomp_profile", "/no/such.json"],
    );
    Ok(())
}

fn limits_without_a_cgroup_are_refused() -> Outcome {
    if Caller::User.has_limits()? {
        return Err(Skip("this user has a cgroup of its own".to_owned()));
    }
    let place = Place::bare(Caller::User)?;
    let object = refused(&place, &["--", "true"], 125, &["memory_mb", "cpu_cores", "null"]);
    assert_eq!(
        (&object["status"], &object["error_kind"]),
        (&json!("refused"), &json!("unsupported"))
    );
    // Either alone is refused as well.
    let error = |args: &[&str]| place.run(args).code(125).error().to_owned();
    assert!(!error(&["--cpus", "unlimited", "--", "true"]).contains("cpu_cores"));
    assert!(!error(&["--memory", "unlimited", "--", "true"]).contains("memory_mb"));
    Ok(())
}

fn what_the_user_may_not_read() -> Outcome {
    let place = Place::new(Caller::User)?;
    let folder = place.folder("closed");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o0)).expect("permissions");
    refused(&place, &["--workspace", "closed", "--", "true"], 125, &["closed"]);
    refused(&place, &["--mount", "closed:/data", "--", "true"], 125, &["closed"]);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).expect("permissions");
    refused(&place, &["--workspace", "closed", "--", "true"], 125, &["closed"]);
    let file = place.file("secret", "s");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o0)).expect("permissions");
    let reference = format!("k=file:{file}");
    refused(&place, &["--secret", &reference, "--", "true"], 125, &[&file]);
    let args = place.run_args(&["--state-dir", "/proc/none", "--", "true"]);
    let ran = place.agents(&args).code(125);
    assert!(ran.error().contains("/proc/none"), "{}", ran.stderr);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("permissions");
    Ok(())
}

fn a_misspelt_configuration(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let table = [
        (
            "adapters: {storage_backnd: {type: local}}",
            vec!["storage_backnd", "storage_backend"],
        ),
        (
            "adapters: {storage_backend: {type: local, config: {base_pth: /x}}}",
            vec!["base_pth", "base_path"],
        ),
        ("adapters: {audit_logger: {type: flie}}", vec!["flie", "file"]),
        ("adaptors: {}", vec!["adaptors", "adapters"]),
        (
            "adapters: {policy_validator: {type: default, config: {max_memory_mb: much}}}",
            vec!["max_memory_mb"],
        ),
        ("default_policy: {memry_mb: 5}", vec!["memry_mb", "memory_mb"]),
    ];
    for (text, words) in table {
        let config = place.file("isolated_agents_config.yaml", text);
        let words = [words.as_slice(), &["isolated_agents_config.yaml"]].concat();
        refused(&place, &["--", "true"], 125, &words);
        fs::remove_file(config).expect("a file");
    }
    let args = place.run_args(&["--", "true"]);
    let ran = agents_tests::Ran::of(place.command(&args).env("ISOLATED_AGENTS_STORAGE_LOCAL_BASE_PTH", "/x")).code(125);
    assert!(ran.error().contains("BASE_PATH"), "{}", ran.stderr);
    place.assert_clean();
    Ok(())
}

fn a_dead_owner_is_cleaned_up_by_the_next_run(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let mut child = place.start(&["-q"], "sleep 600 & echo partial > /output/p; echo ready; sleep 600");
    wait_until("the agent", || {
        let sessions = place.sessions();
        sessions
            .first()
            .is_some_and(|id| place.agents(&["logs", id]).text() == "ready\n")
    });
    let id = place.sessions()[0].clone();
    child.kill().expect("a signal");
    child.wait().expect("a status");
    // Nobody has to ask: the container ends with its owner.
    assert_nothing_of_ours_runs();
    let shown = place.agents(&["ps", "--json"]).code(0).json();
    assert_eq!(shown[0]["status"], "lost", "{shown}");
    place.run(&["-q", "--", "true"]).code(0);
    assert_eq!(
        place.event_types(&id).last().map(String::as_str),
        Some("session_closed")
    );
    let shown = place.agents(&["inspect", "--json", &id]).code(0).json();
    assert_eq!(shown["status"], "lost");
    place.assert_clean();
    Ok(())
}

/// A small file system that is unmounted at the end.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(path: &'a Path, size: &str) -> Self {
        fs::create_dir_all(path).expect("a mount point");
        let options = std::ffi::CString::new(format!("size={size},mode=700")).expect("options");
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).expect("a small disk");
        Self(path)
    }

    fn fill(&self) {
        let path = self.0.join("ballast");
        // Ends with an error once the disk is full.
        let _ = Command::new("dd")
            .args(["if=/dev/zero", "bs=4096", "status=none"])
            .arg(format!("of={}", path.display()))
            .stderr(std::process::Stdio::null())
            .status();
        assert!(path.is_file());
    }

    fn free(&self) {
        fs::remove_file(self.0.join("ballast")).expect("the ballast");
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

fn a_full_disk() -> Outcome {
    require_root()?;
    let place = Place::new(Caller::Root)?;
    let state = place.state();
    let disk = Disk::mount(&state, "4m");
    disk.fill();
    for args in [&["--", "true"][..], &["-d", "--", "true"], &["--json", "--", "true"]] {
        let ran = place.run(args).code(125);
        let error = ran.error();
        assert!(error.to_lowercase().contains("no space left"), "{error}");
        assert_nothing_of_ours_runs();
    }
    // What could not be written then is made up for once there is space.
    disk.free();
    place.agents(&["gc"]).code(0);
    place.run(&["-q", "--disk", "4", "--", "true"]).code(0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    assert_eq!(mounts.matches(&*state.to_string_lossy()).count(), 1, "{mounts}");
    drop(disk);
    Ok(())
}

fn a_disk_that_fills_up() -> Outcome {
    require_root()?;
    let place = Place::new(Caller::Root)?;
    let state = place.state();
    let disk = Disk::mount(&state, "6m");
    // The artifacts do not fit into the store.
    let script = "echo good > /output/a; head -c 3m /dev/urandom > /output/b; head -c 3m /dev/urandom > /output/c";
    let ran = place
        .run(&["--json", "--disk", "7", "--", "sh", "-c", script])
        .code(125);
    let object = ran.json();
    assert_object(&object);
    assert_eq!(
        (&object["status"], &object["exit_code"]),
        (&json!("failed"), &json!(0)),
        "{object}"
    );
    assert_eq!(object["error_kind"], "resource_exhausted", "{object}");
    let error = ran.error();
    assert!(error.to_lowercase().contains("no space left"), "{error}");
    // Which ones fit depends on their order; each is either stored, whole, or refused.
    let refused = object["refused_artifacts"].as_array().map_or(0, Vec::len);
    let stored = object["artifact_details"].as_array().into_iter().flatten();
    let mut count = 0;
    for detail in stored {
        let path = detail["uri"]
            .as_str()
            .and_then(|uri| uri.strip_prefix("file://"))
            .expect("a file");
        assert_eq!(
            json!(fs::metadata(path).expect("the artifact").len()),
            detail["size"],
            "{object}"
        );
        count += 1;
    }
    assert!(refused > 0 && refused + count == 3, "{object}");
    assert_nothing_of_ours_runs();
    place.agents(&["gc"]).code(0);
    assert!(
        fs::read_dir(state.join("storage/.tmp"))
            .expect("a folder")
            .next()
            .is_none()
    );
    drop(disk);
    Ok(())
}

/// No record, no action: when the trail cannot be written, nothing is run.
fn an_audit_log_that_cannot_be_written() -> Outcome {
    require_root()?;
    let place = Place::new(Caller::Root)?;
    let audit = place.root().join("audit");
    let disk = Disk::mount(&audit, "64k");
    disk.fill();
    place.folder("ws");
    let config = place.file(
        "c.yaml",
        format!(
            "adapters: {{audit_logger: {{type: file, config: {{log_path: {}}}}}}}",
            audit.display()
        ),
    );
    let args = [
        "--config",
        &config,
        "--workspace",
        "ws",
        "--",
        "touch",
        "/workspace/ran",
    ];
    let ran = place.run(&args).code(125);
    assert!(ran.error().to_lowercase().contains("no space left"), "{}", ran.stderr);
    assert!(!place.work().join("ws/ran").exists(), "the agent ran without a record");
    assert_nothing_of_ours_runs();
    disk.free();
    let ran = place.agents(&["gc", "--config", &config]).code(0);
    assert_eq!(ran.stderr, "", "{}", ran.text());
    place.run(&args).code(0);
    drop(disk);
    Ok(())
}
