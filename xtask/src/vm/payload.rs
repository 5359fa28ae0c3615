//! Our programs for the machine, built statically: it has no C library.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::ci::results::Suite;
use crate::error::{Result, fail};
use crate::metadata::Metadata;
use crate::{paths, sh};

const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Something to put on the disk.
#[derive(Debug)]
pub(super) struct Program {
    /// Where it was built. It goes to the same path on the disk too: a test names the binaries of its package by it.
    pub(super) file: PathBuf,
    /// Where it goes, below `/vmtest`.
    pub(super) place: String,
}

/// Builds the CLI and the suite of a package; what the workspace does not have is a skipped test.
pub(super) fn build(metadata: &Metadata, (package, suite): (&str, &str)) -> Result<(Vec<Program>, Vec<Suite>)> {
    let mut programs = Vec::new();
    let mut skipped = Vec::new();
    let in_suites = format!("suites/{suite}");
    let wanted = [
        ("agents-cli", "bin", "agents", "agents"),
        (package, "test", suite, &in_suites),
    ];
    for (package, kind, target, place) in wanted {
        let exists = metadata
            .members
            .iter()
            .any(|member| member.name == package && member.target(kind, target).is_some());
        if !exists {
            skipped.push(Suite::skipped(
                format!("vm {target}"),
                format!("{package} has no {kind} target `{target}`"),
            ));
            continue;
        }
        println!("building {package} {kind} {target} statically");
        let messages = build_one(metadata, package, kind, target)?;
        let Some(file) = find(&messages, kind, target) else {
            return fail(format!(
                "cargo built no executable for the {kind} target `{target}` of {package}"
            ));
        };
        programs.push(Program {
            file,
            place: place.to_owned(),
        });
        if kind == "test" {
            programs.extend(binaries(&messages));
        }
    }
    Ok((programs, skipped))
}

/// The program that the conformance suite compiles to look around in a container: the machine has no compiler.
pub(super) fn probe(root: &Path, folder: &Path) -> Result<Vec<Program>> {
    let source = root.join("crates/agents-testkit/src/probe.c");
    if !source.is_file() {
        return Ok(Vec::new());
    }
    let program = folder.join("probe");
    sh::run(
        Command::new(sh::need("cc")?)
            .args(["-static", "-O1", "-o"])
            .args([&program, &source]),
    )?;
    let at = |file, place: &str| Program {
        file,
        place: place.to_owned(),
    };
    Ok(vec![at(program, "probe"), at(source, "probe.c")])
}

/// Builds one target; returns cargo's messages.
fn build_one(metadata: &Metadata, package: &str, kind: &str, target: &str) -> Result<String> {
    let mut command = sh::cargo();
    match kind {
        "test" => command.args(["test", "--no-run", "--test", target]),
        _ => command.args(["build", "--bin", target]),
    };
    command
        .args(["--package", package, "--target", PLATFORM])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(&metadata.root)
        // Other flags than the usual build has, so another folder: sharing one would build all anew each time.
        .env("CARGO_TARGET_DIR", paths::cache()?.join("target-static"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // The emulated machine is slow, and the disk is filled with what is built.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_STRIP", "symbols");
    sh::printed(&mut command)
}

/// The binaries of its own package that cargo builds for an integration test.
fn binaries(messages: &str) -> Vec<Program> {
    artifacts(messages)
        .filter(|message| message["target"]["kind"][0] == "bin")
        .filter_map(|message| {
            Some(Program {
                file: message["executable"].as_str()?.into(),
                place: message["target"]["name"].as_str()?.to_owned(),
            })
        })
        .collect()
}

fn find(messages: &str, kind: &str, target: &str) -> Option<PathBuf> {
    artifacts(messages)
        .filter(|message| message["target"]["name"] == target && message["target"]["kind"][0] == kind)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

fn artifacts(messages: &str) -> impl Iterator<Item = Value> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"conformance"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"helper"},"executable":"/t/helper"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"conformance"},"executable":"/t/conformance-1"}
"#;
        assert_eq!(
            find(messages, "test", "conformance"),
            Some(PathBuf::from("/t/conformance-1"))
        );
        assert_eq!(find(messages, "bin", "agents"), None);
        let helpers = binaries(messages);
        assert_eq!(helpers.len(), 1);
        assert_eq!(helpers[0].place, "helper");
    }

    #[test]
    fn what_does_not_exist_yet_is_skipped_with_the_reason() {
        let (programs, skipped) = build(&Metadata::default(), ("agents-x", "conformance")).unwrap();
        assert!(programs.is_empty());
        assert_eq!(skipped.len(), 2);
        assert!(skipped[1].skipped[0].1.contains("agents-x"));
    }
}
