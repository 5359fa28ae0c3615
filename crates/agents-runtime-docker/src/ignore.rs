//! `.containerignore` and `.dockerignore`: what of a folder is not sent to a builder, with Docker's rules.

use std::{fs, io, path::Path};

use agents_core::{Error, Result};

/// The rules of a folder.
#[derive(Debug, Default)]
pub(crate) struct Ignored {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// The pattern's parts.
    parts: Vec<Vec<char>>,
    /// `!`: what matches is sent after all.
    exception: bool,
}

impl Ignored {
    /// The rules of the folder; none when it has neither file.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        for name in [".containerignore", ".dockerignore"] {
            match fs::read_to_string(folder.join(name)) {
                Ok(text) => return Ok(Self::parse(&text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(Error::io(format!("cannot read {}", folder.join(name).display()), error));
                }
            }
        }
        Ok(Self::default())
    }

    fn parse(text: &str) -> Self {
        let rule = |line: &str| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let (exception, pattern) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            let mut parts: Vec<Vec<char>> = Vec::new();
            for part in pattern.split('/') {
                match part {
                    "" | "." => {}
                    ".." => {
                        parts.pop();
                    }
                    part => parts.push(part.chars().collect()),
                }
            }
            (!parts.is_empty()).then_some(Rule { parts, exception })
        };
        Self {
            rules: text.trim_start_matches('\u{feff}').lines().filter_map(rule).collect(),
        }
    }

    /// Whether something is left out whose folder is.
    pub(crate) fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|rule| rule.exception)
    }

    /// Whether a path, relative to the folder, is left out: the last rule that matches it or a folder above it decides.
    pub(crate) fn leaves_out(&self, path: &str) -> bool {
        let names: Vec<Vec<char>> = path.split('/').map(|part| part.chars().collect()).collect();
        let matches = |rule: &Rule| (1..=names.len()).any(|length| path_matches(&rule.parts, &names[..length]));
        let last = self.rules.iter().rev().find(|rule| matches(rule));
        last.is_some_and(|rule| !rule.exception)
    }
}

fn path_matches(pattern: &[Vec<char>], names: &[Vec<char>]) -> bool {
    match pattern.split_first() {
        None => names.is_empty(),
        Some((part, rest)) if part == &['*', '*'] => (0..=names.len()).any(|skip| path_matches(rest, &names[skip..])),
        Some((part, rest)) => names
            .split_first()
            .is_some_and(|(name, others)| name_matches(part, name) && path_matches(rest, others)),
    }
}

/// `*`, `?`, `[a-z]`, `[^a-z]` and `\`, as in Go's filepath.Match.
fn name_matches(pattern: &[char], name: &[char]) -> bool {
    match pattern {
        [] => name.is_empty(),
        ['*', rest @ ..] => (0..=name.len()).any(|skip| name_matches(rest, &name[skip..])),
        ['?', rest @ ..] => matches!(name, [_, others @ ..] if name_matches(rest, others)),
        ['[', rest @ ..] => {
            let Some(end) = rest.iter().skip(1).position(|c| *c == ']').map(|at| at + 1) else {
                return false;
            };
            let (negated, class) = match &rest[..end] {
                ['^', class @ ..] => (true, class),
                class => (false, class),
            };
            matches!(name, [c, others @ ..] if in_class(class, *c) != negated && name_matches(&rest[end + 1..], others))
        }
        ['\\', literal, rest @ ..] | [literal, rest @ ..] => {
            matches!(name, [c, others @ ..] if c == literal && name_matches(rest, others))
        }
    }
}

fn in_class(mut class: &[char], c: char) -> bool {
    while let Some((first, rest)) = class.split_first() {
        if let ['-', last, rest @ ..] = rest {
            if (*first..=*last).contains(&c) {
                return true;
            }
            class = rest;
        } else {
            if *first == c {
                return true;
            }
            class = rest;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_dockers() {
        let ignored = Ignored::parse(
            "# comment\n\n*/temp*\n*/*/temp*\ntemp?\n*.md\n!README*.md\nREADME-secret.md\n/lead\nx/**/y\n[a-c]1\n",
        );
        for (path, left_out) in [
            ("somedir/temporary.txt", true),
            ("somedir/temp/deep/er", true),
            ("somedir/sub/temporary.txt", true),
            ("tempa", true),
            ("temp", false),
            ("notes.md", true),
            ("README.md", false),
            ("README-secret.md", true),
            ("sub/notes.md", false),
            ("lead", true),
            ("x/y", true),
            ("x/1/2/y", true),
            ("x/1/2/z", false),
            ("b1", true),
            ("d1", false),
        ] {
            assert_eq!(ignored.leaves_out(path), left_out, "{path}");
        }
        assert!(ignored.has_exceptions());
    }
}
