//! What the text of every source must and must not contain.

use std::path::Path;

use super::rust::{code_only, lines_with_word};

/// The one crate that talks to the kernel in ways that no safe wrapper offers, and the one module where it may.
const UNSAFE_CRATE: &str = "agents-runtime-native";
const UNSAFE_MODULE: &str = "crates/agents-runtime-native/src/sys";

/// Endings of the files that we write. Data of examples and tests may look as it likes.
const OURS: &[&str] = &["rs", "toml", "md", "sh", "py", "yml", "yaml", "json"];

/// Checks the root of a library or a binary.
pub(super) fn check_root(root: &Path, member: &str, source: &Path, text: &str) -> Vec<String> {
    let file = source.strip_prefix(root).unwrap_or(source).display();
    let forbids = code_only(text).contains("#![forbid(unsafe_code)]");
    if forbids || member == UNSAFE_CRATE {
        return Vec::new();
    }
    vec![format!("{file}: `#![forbid(unsafe_code)]` is missing")]
}

/// Checks one file of the repository, named relative to its root.
pub(super) fn check_file(file: &str, bytes: &[u8]) -> Vec<String> {
    let Some((_, ending)) = file.rsplit_once('.') else {
        return Vec::new();
    };
    if !OURS.contains(&ending) {
        return Vec::new();
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return vec![format!("{file}: is not UTF-8")];
    };
    let mut findings = trailing_space(file, text);
    if ending == "rs" {
        findings.extend(machine_paths(file, text));
        let code = code_only(text);
        findings.extend(unfinished(file, &code));
        if file.starts_with("xtask/src/") || (file.starts_with("crates/") && file.contains("/src/")) {
            findings.extend(module_docs(file, text));
        }
        if file.starts_with(&format!("crates/{UNSAFE_CRATE}/src/")) {
            findings.extend(unsafe_code(file, text, &code));
        }
    }
    findings
}

fn trailing_space(file: &str, text: &str) -> Vec<String> {
    text.split('\n')
        .enumerate()
        .filter(|(_, line)| line.ends_with([' ', '\t', '\r']))
        .map(|(number, _)| format!("{file}:{}: white space at the end of the line", number + 1))
        .collect()
}

/// Paths of the machine that something was written on.
fn machine_paths(file: &str, text: &str) -> Vec<String> {
    // Put together here, so that this file does not contain what it looks for.
    let paths = ["work", "farm", "root"].map(|name| format!("/{name}/"));
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for path in &paths {
            let absolute = line.match_indices(path.as_str()).any(|(at, _)| {
                // With a folder in front it is a relative path, and tells nothing.
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.})".contains(c))
            });
            if absolute {
                findings.push(format!("{file}:{}: a path of one machine: {path}", number + 1));
            }
        }
    }
    findings
}

fn unfinished(file: &str, code: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in code.lines().enumerate() {
        for pattern in ["todo!(", "unimplemented!(", "#[ignore"] {
            if line.contains(pattern) {
                findings.push(format!("{file}:{}: `{pattern}` is not allowed", number + 1));
            }
        }
    }
    findings
}

fn module_docs(file: &str, text: &str) -> Vec<String> {
    let first = text.trim_start();
    if first.starts_with("//!") || first.starts_with("#![doc") {
        return Vec::new();
    }
    vec![format!("{file}: starts without a `//!` comment")]
}

/// `unsafe` only in the module for it, and each with the reason why it is sound.
fn unsafe_code(file: &str, text: &str, code: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let in_module = file == format!("{UNSAFE_MODULE}.rs") || file.starts_with(&format!("{UNSAFE_MODULE}/"));
    lines_with_word(code, "unsafe")
        .into_iter()
        .filter_map(|number| {
            if !in_module {
                Some(format!("{file}:{}: `unsafe` outside of {UNSAFE_MODULE}", number + 1))
            } else if !justified(&lines, number) {
                Some(format!(
                    "{file}:{}: `unsafe` without a `// SAFETY:` comment above",
                    number + 1
                ))
            } else {
                None
            }
        })
        .collect()
}

/// Is there a `SAFETY:` comment (or, for an `unsafe fn`, a `# Safety` section) above the statement at `number`?
fn justified(lines: &[&str], number: usize) -> bool {
    for line in lines[..number].iter().rev().map(|line| line.trim()) {
        if line.starts_with("//") {
            if line.contains("SAFETY:") || line.contains("# Safety") {
                return true;
            }
        } else if line.is_empty() || (line.ends_with([';', '{', '}']) && !line.starts_with("#[")) {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(file: &str, text: &str) -> usize {
        check_file(file, text.as_bytes()).len()
    }

    #[test]
    fn white_space_at_the_end_is_a_finding() {
        assert_eq!(findings("a.md", "x \ny\n"), 1);
        assert_eq!(findings("a.md", "x\r\n"), 1);
        assert_eq!(findings("a.md", "x\ny\n"), 0);
        assert_eq!(findings("real.log", "x \n"), 0);
    }

    #[test]
    fn paths_of_one_machine_are_findings() {
        for name in ["work", "farm", "root"] {
            assert_eq!(findings("tests/a.rs", &format!("let x = \"/{name}/x\";\n")), 1);
            assert_eq!(findings("tests/a.rs", &format!("let x = \"build/{name}/x\";\n")), 0);
        }
        assert_eq!(findings("tests/a.rs", "let x = \"/workspace/x\";\n"), 0);
    }

    #[test]
    fn unfinished_code_is_a_finding() {
        for text in ["todo!()", "unimplemented!()", "#[ignore]", "#[ignore = \"x\"]"] {
            assert_eq!(findings("tests/a.rs", &format!("{text}\n")), 1, "{text}");
            assert_eq!(findings("tests/a.rs", &format!("// {text}\n")), 0, "{text}");
        }
    }

    #[test]
    fn every_module_says_what_it_is_for() {
        assert_eq!(findings("crates/x/src/a.rs", "use std::fs;\n"), 1);
        assert_eq!(findings("xtask/src/a.rs", "// no\n"), 1);
        assert_eq!(findings("crates/x/src/a.rs", "//! Yes.\n"), 0);
        assert_eq!(findings("crates/x/src/a.rs", "#![doc = \"Yes.\"]\n"), 0);
        assert_eq!(findings("crates/x/tests/a.rs", "use std::fs;\n"), 0);
    }

    #[test]
    fn roots_forbid_unsafe() {
        let root = Path::new("/w");
        let source = Path::new("/w/crates/x/src/lib.rs");
        assert_eq!(check_root(root, "x", source, "//! X.\n").len(), 1);
        assert_eq!(check_root(root, "x", source, "// #![forbid(unsafe_code)]\n").len(), 1);
        assert!(check_root(root, "x", source, "#![forbid(unsafe_code)]\n").is_empty());
        assert!(check_root(root, UNSAFE_CRATE, source, "//! X.\n").is_empty());
    }

    #[test]
    fn unsafe_stays_in_its_module_and_has_a_reason() {
        let bare = "//! X.\nfn f() {\n    unsafe { g() }\n}\n";
        let reasoned = "//! X.\nfn f() {\n    // SAFETY: g has no conditions.\n    unsafe { g() }\n}\n";
        let statement =
            "//! X.\nfn f() {\n    // SAFETY: fine,\n    // really.\n    let x =\n        unsafe { g() };\n}\n";
        let next = "//! X.\nfn f() {\n    // SAFETY: fine.\n    let x = 1;\n    unsafe { g() };\n}\n";
        let function = "//! X.\n/// # Safety\n/// None.\n#[inline]\nunsafe fn f() {}\n";
        let elsewhere = format!("crates/{UNSAFE_CRATE}/src/init.rs");
        let module = format!("{UNSAFE_MODULE}.rs");
        let inner = format!("{UNSAFE_MODULE}/mount.rs");
        assert_eq!(findings(&elsewhere, reasoned), 1);
        assert_eq!(findings(&module, bare), 1);
        assert_eq!(findings(&inner, bare), 1);
        assert_eq!(findings(&module, next), 1);
        assert_eq!(findings(&module, reasoned), 0);
        assert_eq!(findings(&module, statement), 0);
        assert_eq!(findings(&inner, function), 0);
        assert_eq!(findings(&elsewhere, "//! No unsafe here.\n"), 0);
    }
}
