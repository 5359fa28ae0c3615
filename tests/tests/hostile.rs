//! Agents that leave what harms whoever collects it, end to end: nothing outside of the store and the output folder is
//! touched, the good artifact is kept, and what was refused is on record.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use agents_testkit::hostile::{HostileOutput, hostile_outputs};
use agents_tests::{Caller, Outcome, Place, assert_object, run, trial};
use serde_json::json;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for caller in Caller::ALL {
        for case in hostile_outputs() {
            let name = format!("{}::{}", caller.name(), case.name.replace([' ', ','], "_"));
            trials.push(trial(name, move || collect(caller, &case)));
        }
    }
    run(false, trials)
}

fn collect(caller: Caller, case: &HostileOutput) -> Outcome {
    let place = Place::new(caller)?;
    place.file("bystander", "untouched");
    let ran = place
        .run(&[
            "--json",
            "--output",
            "out",
            "--timeout",
            "60",
            "--",
            "sh",
            "-c",
            &case.script,
        ])
        .code(0);
    let object = ran.json();
    assert_object(&object);
    assert_eq!(object["ending"], json!({"kind": "exited", "code": 0}), "{object}");
    assert_eq!(object["status"], "completed", "{}", object["error"]);

    // What must be stored is, with its content, in the store and in the output folder alike.
    let stored = object["artifacts"].as_object().expect("artifacts");
    let content_of = |name: &str| -> Option<Vec<u8>> {
        let session = object["session_id"].as_str().unwrap_or_default();
        stored.get(name)?;
        // A name may begin like a flag.
        let args = ["artifacts", "get", "-o", "-", session, "--", name];
        let content = place.agents(&args).code(0).stdout;
        let exported = fs::read(place.work().join("out").join(name));
        assert_eq!(
            exported.ok().as_ref(),
            Some(&content),
            "{name} differs in the output folder"
        );
        Some(content)
    };
    for (name, content) in &case.stored {
        let name = std::str::from_utf8(name).expect("what is stored has a good name");
        assert_eq!(
            content_of(name).as_ref(),
            Some(content),
            "{}: {}",
            brief(name),
            brief(&object["refused_artifacts"])
        );
    }
    for (name, beginning) in &case.either {
        if let Some(content) = std::str::from_utf8(name).ok().and_then(content_of) {
            assert!(
                content.starts_with(beginning),
                "{name:?} holds {:?}",
                String::from_utf8_lossy(&content)
            );
        }
    }
    if !case.many {
        let known = case.stored.iter().chain(&case.either).map(|(name, _)| name.clone());
        let known: Vec<_> = known.filter_map(|name| String::from_utf8(name).ok()).collect();
        let other: Vec<_> = stored.keys().filter(|name| !known.contains(name)).collect();
        assert!(other.is_empty(), "stored as well: {other:?}");
    }

    // What must be refused is named, with a reason, and counted in the audit trail.
    let refused = object["refused_artifacts"].as_array().expect("refusals");
    for name in &case.refused {
        let shown = shown(name);
        // A refused folder stands for everything in it.
        let covers = |refused: &str| shown == refused || shown.starts_with(&format!("{refused}/"));
        let found = refused
            .iter()
            .find(|refusal| covers(refusal["name"].as_str().unwrap_or_default()));
        assert!(
            found.is_some_and(|refusal| refusal["reason"] != ""),
            "{} is not among the refused: {}",
            brief(&shown),
            brief(&object["refused_artifacts"])
        );
    }
    if case.many {
        assert!(
            !refused.is_empty() && refused.len() <= 1001,
            "{} refusals",
            refused.len()
        );
        assert!(stored.len() <= 10_000, "{} artifacts", stored.len());
    }
    let events = place.events();
    let closed = events
        .iter()
        .find(|event| event["event_type"] == "session_closed")
        .expect("the closing event");
    assert_eq!(closed["payload"]["refused_artifacts"], json!(refused.len()));
    assert_eq!(closed["payload"]["artifacts"], json!(stored.len()));

    only_plain_files(&place.work().join("out"));
    only_plain_files(&place.state().join("storage"));
    let mut names: Vec<_> = entries(&place.work());
    names.sort();
    assert_eq!(names, [place.work().join("bystander"), place.work().join("out")]);
    assert_eq!(
        fs::read_to_string(place.work().join("bystander")).expect("a file"),
        "untouched"
    );
    place.assert_clean();
    Ok(())
}

/// The beginning of what may be very long.
fn brief(value: impl std::fmt::Display) -> String {
    value.to_string().chars().take(1000).collect()
}

/// A name as records show it: percent-encoded where it is not UTF-8 or holds control characters.
fn shown(name: &[u8]) -> String {
    let encode = |bytes: &[u8]| bytes.iter().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let text = std::str::from_utf8(name);
    if text.is_ok_and(|text| !text.contains(char::is_control)) {
        return String::from_utf8_lossy(name).into_owned();
    }
    let mut shown = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c.is_control() || c == '%' {
                true => shown.push_str(&encode(c.to_string().as_bytes())),
                false => shown.push(c),
            }
        }
        shown.push_str(&encode(chunk.invalid()));
    }
    shown
}

/// Neither links, nor devices, nor pipes, nor set-user-ID bits.
fn only_plain_files(folder: &Path) {
    for path in entries(folder) {
        let metadata = path.symlink_metadata().expect("an entry");
        assert!(
            metadata.is_file() || metadata.is_dir(),
            "{} is neither file nor folder",
            path.display()
        );
        let mode = std::os::unix::fs::MetadataExt::mode(&metadata);
        assert_eq!(mode & 0o6000, 0, "{} has mode {mode:o}", path.display());
        if metadata.is_dir() {
            only_plain_files(&path);
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("an entry").path()).collect()
}
