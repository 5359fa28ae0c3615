//! `cargo xtask tidy`: rules that the compiler does not know.
//!
//! A rule is a function from what it looks at to a list of findings, so that each has a test with a sample that
//! violates it.

mod arrows;
mod manifests;
mod packages;
mod rust;
mod sources;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::args::Args;
use crate::error::{Context, Result};
use crate::{metadata, sh};

pub(crate) const HELP: &str = "\
Check the rules that the compiler does not know: which of our crates may depend on which, packages that may
not be pulled in, manifests, `unsafe`, and the text of the sources. Every finding is printed.

Usage: cargo xtask tidy
";

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    args.finish()?;
    let findings = check()?;
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    if findings.is_empty() {
        println!("tidy: all rules hold");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tidy: {} findings", findings.len());
    Ok(ExitCode::FAILURE)
}

/// All findings in the workspace.
pub(crate) fn check() -> Result<Vec<String>> {
    let metadata = metadata::load()?;
    let root = &metadata.root;
    let mut findings = arrows::check(&metadata.members);
    findings.extend(packages::check_all(&metadata.packages));
    for member in &metadata.members {
        let manifest = read(&member.manifest)?;
        findings.extend(manifests::check(root, member, &manifest));
        if member.name == "agents-core" {
            findings.extend(packages::check_core(&tree(root, &member.name)?));
        }
        for target in &member.targets {
            if matches!(target.kind.as_str(), "lib" | "bin") && target.source.starts_with(root) {
                // Named in the manifest and not there: cargo says so better than we could.
                let Ok(text) = fs::read_to_string(&target.source) else {
                    continue;
                };
                findings.extend(sources::check_root(root, &member.name, &target.source, &text));
            }
        }
    }
    for file in tracked(root)? {
        // A file that was deleted and not yet committed is still listed.
        let Ok(bytes) = fs::read(root.join(&file)) else {
            continue;
        };
        findings.extend(sources::check_file(&file, &bytes));
    }
    Ok(findings)
}

/// The normal and build dependencies of one crate with all its features, one `name version features` a line.
fn tree(root: &Path, package: &str) -> Result<String> {
    sh::output(sh::cargo().current_dir(root).args([
        "tree",
        "--package",
        package,
        "--all-features",
        "--edges=normal,build",
        "--prefix=none",
        "--no-dedupe",
        "--format={p}|{f}",
    ]))
}

/// The files that git knows, and those that it would add: a rule should bite before the commit.
fn tracked(root: &Path) -> Result<Vec<String>> {
    let listed = sh::output(Command::new("git").current_dir(root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut files: Vec<_> = listed
        .split('\0')
        .filter(|file| !file.is_empty())
        .map(str::to_owned)
        .collect();
    files.sort_unstable();
    files.dedup();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))
}
