//! `agents artifacts` with the real binary, between folders and real servers.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

/// A state folder, a home and a working directory of its own.
struct Place {
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("work")).unwrap();
        Self {
            folder,
            variables: Vec::new(),
        }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn storage(&self) -> PathBuf {
        self.folder.path().join("state/storage")
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.work().join(name);
        fs::write(&path, content).unwrap();
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
            .env("ISOLATED_AGENTS_STATE_DIR", self.folder.path().join("state"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs `agents artifacts` with these words, which must end with the code.
    #[track_caller]
    fn artifacts(&self, code: i32, args: &[&str]) -> Ran {
        let args: Vec<_> = ["artifacts"].iter().chain(args).copied().collect();
        let output = self.command(&args).output().unwrap();
        let ran = Ran {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert_eq!(output.status.code(), Some(code), "agents {args:?}\n{ran:?}");
        ran
    }

    /// As [`artifacts`](Self::artifacts) with `--json`, and succeeds.
    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let args: Vec<_> = ["--json"].iter().chain(args).copied().collect();
        self.artifacts(0, &args).json()
    }

    /// The events of these types, as pairs of type and artifact.
    fn events(&self, types: &[&str]) -> Vec<(String, String)> {
        let mut args = vec!["audit", "query", "--json"];
        args.extend(types.iter().flat_map(|name| ["--type", name]));
        let output = self.command(&args).output().unwrap();
        let page: Value = serde_json::from_slice(&output.stdout).unwrap();
        let events = page["events"].as_array().unwrap_or_else(|| panic!("{page}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events
            .iter()
            .map(|event| (text(&event["event_type"]), text(&event["payload"]["name"])))
            .collect()
    }
}

#[derive(Debug)]
struct Ran {
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The only line on standard error that begins with `error:`.
    #[track_caller]
    fn error(&self) -> &str {
        let errors: Vec<_> = self.stderr.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(errors.len(), 1, "{self:?}");
        errors[0]
    }

    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "not one line: {self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// Three versions of two artifacts in the session `s1`, and one artifact in `s2`.
fn fill(place: &Place) {
    for content in ["a,b\n1,2\n", "a,b\n3,4\n"] {
        let file = place.file("table.csv", content);
        place.artifacts(
            0,
            &[
                "put",
                "s1",
                &file,
                "--content-type",
                "text/csv",
                "--metadata",
                "owner=tests",
            ],
        );
    }
    let big: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let big = place.file("big.bin", big);
    place.artifacts(0, &["put", "s1", &big, "--name", "data/big.bin"]);
    place.artifacts(0, &["put", "s2", &big]);
}

/// What identifies the artifacts of a list, wherever they are.
fn contents(list: &Value) -> Vec<Value> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|artifact| {
            json!([
                artifact["session_id"],
                artifact["name"],
                artifact["version"],
                artifact["size"],
                artifact["sha256"],
                artifact["content_type"],
                artifact["metadata"],
            ])
        })
        .collect()
}

fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn a_listing_without_a_session_names_the_sessions() {
    let place = Place::new();
    fill(&place);
    let sessions = place.json(&["ls"]);
    assert_eq!(
        sessions,
        json!([
            {"session_id": "s1", "artifacts": 3, "bytes": 1_200_016},
            {"session_id": "s2", "artifacts": 1, "bytes": 1_200_000},
        ])
    );
    let table = place.artifacts(0, &["ls"]).stdout;
    assert!(table.lines().nth(1).unwrap().starts_with("s1"), "{table}");
}

#[test]
fn media_type_and_metadata_are_kept() {
    let place = Place::new();
    fill(&place);
    let list = place.json(&["ls", "s1"]);
    let table = &list.as_array().unwrap()[1];
    assert_eq!(table["content_type"], "text/csv");
    assert_eq!(table["metadata"], json!({"owner": "tests"}));
    let error = place.artifacts(1, &["put", "s1", "big.bin", "--metadata", "Owner=x"]);
    assert!(error.error().contains("Owner"), "{error:?}");
    place.artifacts(2, &["put", "s1", "big.bin", "--metadata", "owner"]);
}

#[test]
fn a_copy_keeps_versions_and_is_continued() {
    let place = Place::new();
    fill(&place);
    let other = place.file(
        "other.yaml",
        format!(
            "adapters:\n  storage_backend:\n    type: local\n    config:\n      base_path: {}\n",
            place.work().join("other").display()
        ),
    );
    let report = place.json(&["copy", "s1", "--to", &other]);
    assert_eq!((&report["skipped"], &report["bytes"]), (&json!(0), &json!(1_200_016)));
    assert_eq!(report["copied"].as_array().unwrap().len(), 3);
    let there = Place::new().with(
        "ISOLATED_AGENTS_STORAGE_LOCAL_BASE_PATH",
        place.work().join("other").to_str().unwrap(),
    );
    assert_eq!(
        contents(&there.json(&["ls", "s1"])),
        contents(&place.json(&["ls", "s1"]))
    );
    assert_eq!(place.events(&["artifact_stored"]).len(), 4 + 3);

    // What is gone at the end is what an interrupted copy would not have done yet.
    fs::remove_dir_all(place.work().join("other/s1/data~1big.bin")).unwrap();
    let report = place.json(&["copy", "s1", "s2", "--to", &other, "--verify", "--parallel", "2"]);
    assert_eq!(report["skipped"], 2);
    let copied: Vec<_> = report["copied"]
        .as_array()
        .unwrap()
        .iter()
        .map(|artifact| artifact["name"].as_str().unwrap())
        .collect();
    assert_eq!(copied, ["data/big.bin", "big.bin"]);
    let said = place.artifacts(0, &["copy", "s1", "s2", "--to", &other]);
    assert_eq!(said.stderr, "copied 0 artifacts, 0 B; 4 were there already\n");
    assert_eq!(said.stdout, "");
    assert_eq!(place.artifacts(0, &["-q", "copy", "s1", "--to", &other]).stderr, "");
}

#[test]
fn a_copy_never_mixes_with_something_else() {
    let place = Place::new();
    fill(&place);
    let url = format!("file://{}", place.work().join("other").display());
    let there = Place::new().with(
        "ISOLATED_AGENTS_STORAGE_LOCAL_BASE_PATH",
        place.work().join("other").to_str().unwrap(),
    );
    place.artifacts(0, &["copy", "s1", "--to", &url]);
    // As after something was deleted here: a nightly backup goes on.
    let file = place.file("surplus", "x");
    there.artifacts(0, &["put", "s1", &file]);
    assert_eq!(place.json(&["copy", "s1", "--to", &url])["skipped"], 3);
    // But one number cannot mean two contents.
    let (here, other) = (place.file("here", "1"), place.file("other-file", "2"));
    place.artifacts(0, &["put", "s1", &here, "--name", "same"]);
    there.artifacts(0, &["put", "s1", &other, "--name", "same"]);
    let refused = place.artifacts(1, &["copy", "s1", "--to", &url]);
    assert!(refused.error().contains("something else"), "{refused:?}");

    let same = format!("file://{}", place.storage().display());
    let refused = place.artifacts(1, &["copy", "s1", "--to", &same]);
    assert!(refused.error().contains("name another"), "{refused:?}");
}

#[test]
fn a_place_that_is_none_is_named_with_what_to_do() {
    let place = Place::new();
    fill(&place);
    for (to, code, word) in [
        ("ftp://host/x", 1, "s3://"),
        ("s3://", 1, "bucket"),
        ("s3://user:secret@bucket/x", 1, "configuration file"),
        ("nowhere.yaml", 1, "nowhere.yaml"),
    ] {
        let ran = place.artifacts(code, &["copy", "s1", "--to", to]);
        assert!(ran.error().contains(word), "{ran:?}");
        assert!(!ran.stderr.contains("secret") || !to.contains("@"), "{ran:?}");
    }
    place.artifacts(2, &["copy", "s1"]);
    place.artifacts(2, &["copy", "--to", "local"]);
    place.artifacts(2, &["copy", "s1", "--to", "local", "--parallel", "0"]);
}

#[test]
fn verification_finds_what_was_damaged() {
    let place = Place::new();
    fill(&place);
    assert_eq!(
        place.json(&["verify"]),
        json!({"verified": 4, "bytes": 2_400_016, "damaged": []})
    );
    assert_eq!(
        place.artifacts(0, &["verify", "s1"]).stderr,
        "3 artifacts whole, 1.1 MiB\n"
    );

    let file = only_file(&place.storage().join("s1/data~1big.bin/1"));
    let mut content = fs::read(&file).unwrap();
    content[600_000] ^= 1;
    fs::write(&file, content).unwrap();
    let ran = place.artifacts(1, &["--json", "verify"]);
    let report = ran.json();
    assert_eq!(report["verified"], 3);
    assert_eq!(report["damaged"][0]["artifact"]["name"], "data/big.bin");
    assert_eq!(report["damaged"][0]["error_kind"], "data_invalid");
    assert!(ran.error().contains("1 artifact "), "{ran:?}");
    let ran = place.artifacts(1, &["verify", "s1"]);
    assert!(
        ran.stdout.starts_with("file://") && ran.stdout.contains("big.bin"),
        "{ran:?}"
    );
    place.artifacts(0, &["verify", "s2"]);
}

#[test]
fn a_backup_is_restored_whole() {
    let place = Place::new();
    fill(&place);
    let lists = [place.json(&["ls", "s1"]), place.json(&["ls", "s2"])];
    let url = format!("file://{}", place.work().join("backup").display());
    let report = place.json(&["backup", "--to", &url]);
    assert_eq!(report["copied"].as_array().unwrap().len(), 4);
    fs::remove_dir_all(place.storage()).unwrap();
    assert_eq!(place.json(&["ls"]), json!([]));
    let said = place.artifacts(0, &["restore", "--from", &url]);
    assert_eq!(said.stderr, "copied and read back 4 artifacts, 2.3 MiB\n");
    for (session, list) in ["s1", "s2"].iter().zip(lists) {
        assert_eq!(contents(&place.json(&["ls", session])), contents(&list));
    }
    assert_eq!(place.json(&["backup", "--to", &url])["skipped"], 4);
}

#[test]
fn pruning_deletes_what_is_old_and_says_so_before() {
    let place = Place::new();
    fill(&place);
    let nothing = place.artifacts(0, &["prune", "--older-than", "30d"]);
    assert_eq!(nothing.stderr, "0 artifacts deleted, 0 B; 4 stay\n");
    let far = "2999-01-01";
    let would = place.json(&["prune", "--older-than", far, "--dry-run"]);
    assert_eq!(would["removed"].as_array().unwrap().len(), 4);
    assert_eq!(place.events(&["artifact_deleted"]), []);
    assert_eq!(place.json(&["ls"]).as_array().unwrap().len(), 2);
    let done = place.artifacts(0, &["prune", "--older-than", far]);
    assert_eq!(done.stdout.lines().count(), 4, "{done:?}");
    assert!(done.stdout.contains("s1 table.csv version 2"), "{done:?}");
    assert_eq!(place.json(&["ls"]), json!([]));
    assert_eq!(place.events(&["artifact_deleted"]).len(), 4);
    place.artifacts(2, &["prune"]);
    place.artifacts(2, &["prune", "--older-than", "soon"]);
}

#[test]
fn a_backend_that_cannot_sign_says_so() {
    let place = Place::new();
    fill(&place);
    for args in [
        vec!["url", "s1", "table.csv"],
        vec!["url", "s1", "new", "--put", &"a".repeat(64)],
    ] {
        let ran = place.artifacts(1, &args);
        assert!(ran.error().contains("URLs"), "{ran:?}");
    }
    assert_eq!(place.events(&["artifact_retrieved"]), []);
    place.artifacts(2, &["url", "s1", "table.csv", "--put", "abc"]);
    place.artifacts(2, &["url", "s1", "table.csv", "--expires", "0"]);
    place.artifacts(2, &["url", "s1", "table.csv", "--content-type", "text/csv"]);
}

/// A variable that `cargo xtask services env` gives.
fn server(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `cargo xtask services up versitygw`, then `eval \"$(cargo xtask services env)\"`"
        )
    })
}

/// A place whose storage is S3, below a prefix that nobody else has.
fn in_s3() -> (Place, String) {
    let place = Place::new();
    let prefix = format!("cli/{}", place.folder.path().file_name().unwrap().to_str().unwrap());
    let place = with_s3(place)
        .with("ISOLATED_AGENTS_STORAGE_BACKEND", "s3")
        .with(
            "ISOLATED_AGENTS_STORAGE_S3_BUCKET",
            server("AGENTS_TEST_VERSITYGW_BUCKET"),
        )
        .with("ISOLATED_AGENTS_STORAGE_S3_PREFIX", prefix.as_str());
    (place, prefix)
}

/// What reaches the server, whichever bucket.
fn with_s3(place: Place) -> Place {
    place
        .with("ISOLATED_AGENTS_STORAGE_S3_ENDPOINT", server("AGENTS_TEST_VERSITYGW"))
        .with("ISOLATED_AGENTS_STORAGE_S3_ACCESS_KEY_ID", "env:S3_KEY")
        .with("ISOLATED_AGENTS_STORAGE_S3_SECRET_ACCESS_KEY", "env:S3_SECRET")
        .with("S3_KEY", server("AGENTS_TEST_VERSITYGW_KEY"))
        .with("S3_SECRET", server("AGENTS_TEST_VERSITYGW_SECRET"))
}

/// The status and the body of a plain download.
fn curl(url: &str) -> (String, Vec<u8>) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--write-out", "%{stderr}%{http_code}", url])
        .output()
        .unwrap();
    (String::from_utf8(output.stderr).unwrap(), output.stdout)
}

#[test]
fn sessions_go_to_s3_and_back() {
    let place = with_s3(Place::new());
    fill(&place);
    let lists = [place.json(&["ls", "s1"]), place.json(&["ls", "s2"])];
    let prefix = format!("cli/{}", place.folder.path().file_name().unwrap().to_str().unwrap());
    let url = format!("s3://{}/{prefix}", server("AGENTS_TEST_VERSITYGW_BUCKET"));
    let report = place.json(&["copy", "s1", "--to", &url, "--verify"]);
    let uri = report["copied"][0]["uri"].as_str().unwrap();
    assert!(uri.starts_with(&format!("{url}/s1/")), "{uri}");
    assert_eq!(place.json(&["backup", "--to", &url])["skipped"], 3);
    fs::remove_dir_all(place.storage()).unwrap();
    assert_eq!(
        place.json(&["restore", "--from", &url])["copied"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
    for (session, list) in ["s1", "s2"].iter().zip(lists) {
        assert_eq!(contents(&place.json(&["ls", session])), contents(&list));
    }
    let refused = place.artifacts(1, &["restore", "--from", "s3://no-such-bucket-here"]);
    assert!(refused.error().contains("no-such-bucket-here"), "{refused:?}");
}

#[test]
fn a_signed_url_needs_nothing_else_and_expires() {
    let (place, _) = in_s3();
    fill(&place);
    let url = place.artifacts(0, &["url", "s1", "table.csv", "--version", "1"]).stdout;
    assert_eq!(curl(url.trim()), ("200".to_owned(), b"a,b\n1,2\n".to_vec()));
    let signed = place.json(&["url", "s1", "table.csv", "--expires", "2s"]);
    assert_eq!(signed["artifact"]["version"], 2);
    let url = signed["url"].as_str().unwrap();
    assert_eq!(curl(url).1, b"a,b\n3,4\n");
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(curl(url).0, "403");
    let granted = place.events(&["artifact_retrieved"]);
    assert_eq!(granted.len(), 2, "{granted:?}");
    // The URL is a secret, so the trail must not hold it.
    for entry in fs::read_dir(place.folder.path().join("state/audit")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        assert!(!text.contains("X-Amz-Signature"), "{text}");
    }
}

#[test]
fn a_signed_upload_is_a_command_for_one_content() {
    let (place, _) = in_s3();
    let file = place.file("model.bin", "hello");
    let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let args = ["url", "s1", "it's new", "--put", sha256, "--content-type", "text/plain"];
    let command = place.artifacts(0, &args).stdout;
    let run = |file: &str| {
        let script = command.replacen("FILE", file, 1);
        let ran = Command::new("sh").args(["-c", &script]).output().unwrap();
        ran.status.success()
    };
    let other = place.file("other.bin", "hellO");
    assert!(!run(&other), "it takes another content");
    assert!(run(&file), "{command}");
    assert!(!run(&file), "it works twice");
    let listed = place.json(&["ls", "s1"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["sha256"], sha256);
    assert_eq!(listed[0]["content_type"], "text/plain");
    let report = place.json(&["verify"]);
    assert_eq!((&report["verified"], &report["damaged"]), (&json!(1), &json!([])));
}

/// The files in a folder and below, however they come and go.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

#[test]
fn an_interrupted_store_leaves_nothing() {
    let (remote, prefix) = in_s3();
    let bucket = PathBuf::from(server("AGENTS_TEST_VERSITYGW_FOLDER"));
    let local = Place::new();
    let folder = local.storage();
    for (place, folder) in [(remote, bucket.join(prefix)), (local, folder)] {
        let source = place.work().join("source");
        let made = Command::new("mkfifo").arg(&source).status().unwrap();
        assert!(made.success());
        let child = place
            .command(&["artifacts", "put", "s1", source.to_str().unwrap()])
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It is in the middle of the content, and waits for more.
        let mut writer = fs::OpenOptions::new().write(true).open(&source).unwrap();
        writer.write_all(&vec![7; 20 << 20]).unwrap();
        assert!(!files_below(&folder).is_empty(), "nothing was begun in {folder:?}");
        let sent = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{told}");
        assert!(told.contains("interrupted"), "{told}");
        let mut left = files_below(&folder);
        left.retain(|path| !path.ends_with(".lock"));
        assert_eq!(left, Vec::<PathBuf>::new());
        assert_eq!(place.json(&["ls", "s1"]), json!([]));
    }
}
