//! Our programs for the machine, built statically: it has no C library.

use std::path::PathBuf;

use serde_json::Value;

use crate::ci::results::Suite;
use crate::error::{Error, Result};
use crate::metadata::Metadata;
use crate::{paths, sh};

const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Something to put on the disk.
#[derive(Debug)]
pub(super) struct Program {
    /// Where it was built.
    pub(super) file: PathBuf,
    /// Where it goes, below `/vmtest`.
    pub(super) place: String,
}

/// Builds the CLI and the conformance suite; what the workspace does not have is a skipped test.
pub(super) fn build(metadata: &Metadata) -> Result<(Vec<Program>, Vec<Suite>)> {
    let mut programs = Vec::new();
    let mut skipped = Vec::new();
    let wanted = [
        ("agents-cli", "bin", "agents", "agents"),
        ("agents-runtime-native", "test", "conformance", "suites/conformance"),
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
        programs.push(Program {
            file: executable(metadata, package, kind, target)?,
            place: place.to_owned(),
        });
    }
    Ok((programs, skipped))
}

fn executable(metadata: &Metadata, package: &str, kind: &str, target: &str) -> Result<PathBuf> {
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
    let messages = sh::printed(&mut command)?;
    find(&messages, kind, target).ok_or_else(|| {
        Error::new(format!(
            "cargo built no executable for the {kind} target `{target}` of {package}"
        ))
    })
}

fn find(messages: &str, kind: &str, target: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == target && message["target"]["kind"][0] == kind)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"conformance"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"conformance"},"executable":"/t/conformance-1"}
"#;
        assert_eq!(
            find(messages, "test", "conformance"),
            Some(PathBuf::from("/t/conformance-1"))
        );
        assert_eq!(find(messages, "bin", "agents"), None);
    }

    #[test]
    fn what_does_not_exist_yet_is_skipped_with_the_reason() {
        let (programs, skipped) = build(&Metadata::default()).unwrap();
        assert!(programs.is_empty());
        assert_eq!(skipped.len(), 2);
        assert!(skipped[1].skipped[0].1.contains("agents-runtime-native"));
    }
}
