//! Reads what test harnesses print: libtest's own and libtest-mimic's.

use std::collections::HashMap;

use crate::error::Result;

/// What one harness, or one part of the virtual machine's run, had to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// True once the harness printed its result; one that died half-way did not.
    pub(crate) finished: bool,
    /// Names of the tests that failed.
    pub(crate) broken: Vec<String>,
    /// Names of the tests that were skipped, and why.
    pub(crate) skipped: Vec<(String, String)>,
}

impl Suite {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// A suite of one test that is not a harness.
    pub(crate) fn single(name: String, outcome: Result<()>) -> Self {
        let mut suite = Self::new(name);
        suite.finished = true;
        match outcome {
            Ok(()) => suite.passed = 1,
            Err(error) => {
                suite.failed = 1;
                suite.broken.push(error.to_string());
            }
        }
        suite
    }

    /// A suite that could not run here.
    pub(crate) fn skipped(name: impl Into<String>, reason: impl Into<String>) -> Self {
        let mut suite = Self::new(name);
        suite.finished = true;
        suite.ignored = 1;
        suite.skipped.push((suite.name.clone(), reason.into()));
        suite
    }

    /// How many failures it counts as: dying without a result is one.
    pub(crate) fn failures(&self) -> u64 {
        self.failed + u64::from(!self.finished)
    }

    /// Takes a line of the harness's output.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some((passed, failed, ignored)) = result_line(line) {
            // A merged doctest run prints more than one result.
            self.passed += passed;
            self.failed += failed;
            self.ignored += ignored;
            self.finished = true;
        } else if let Some((name, outcome)) = test_line(line) {
            match outcome {
                Outcome::Failed => self.broken.push(name),
                Outcome::Ignored(reason) => self.skipped.push((name, reason)),
                Outcome::Passed => {}
            }
        }
    }
}

/// Follows `cargo test` from suite to suite.
pub(crate) struct Parser {
    /// File name of a test executable, and the name of its suite.
    executables: HashMap<String, String>,
    suites: Vec<Suite>,
}

impl Parser {
    pub(crate) fn new(executables: HashMap<String, String>) -> Self {
        Self {
            executables,
            suites: Vec::new(),
        }
    }

    pub(crate) fn line(&mut self, line: &str) {
        if let Some(name) = self.header(line) {
            self.suites.push(Suite::new(name));
        } else if let Some(suite) = self.suites.last_mut() {
            suite.line(line);
        }
    }

    pub(crate) fn finish(self) -> Vec<Suite> {
        self.suites
    }

    /// The suite that begins with this line of cargo's.
    fn header(&self, line: &str) -> Option<String> {
        if let Some(library) = line.strip_prefix("   Doc-tests ") {
            return Some(format!("{} doc", library.trim().replace('_', "-")));
        }
        let path = line
            .strip_prefix("     Running ")?
            .strip_suffix(')')?
            .rsplit_once('(')?
            .1;
        let file = path.rsplit('/').next()?;
        self.executables.get(file).cloned()
    }
}

enum Outcome {
    Passed,
    Failed,
    Ignored(String),
}

/// `test NAME ... OUTCOME`
fn test_line(line: &str) -> Option<(String, Outcome)> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match outcome.trim() {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        other => Outcome::Ignored(reason(other.strip_prefix("ignored")?)),
    };
    Some((name.trim().to_owned(), outcome))
}

/// libtest writes `ignored, why`, libtest-mimic `ignored (why)`.
fn reason(rest: &str) -> String {
    let rest = rest.trim();
    let reason = rest
        .strip_prefix(',')
        .or_else(|| rest.strip_prefix('(')?.strip_suffix(')'))
        .unwrap_or(rest)
        .trim();
    if reason.is_empty() {
        "no reason given".to_owned()
    } else {
        reason.to_owned()
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
fn result_line(line: &str) -> Option<(u64, u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some((count("passed")?, count("failed")?, count("ignored")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_cargo_test_is_followed() {
        let output = "\
   Compiling a v0.1.0
     Running unittests src/lib.rs (target/debug/deps/a-0123)

running 3 tests
test one ... ok
test two ... FAILED
test three ... ignored, needs a printer

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/conformance.rs (/cache/target/debug/deps/conformance-4567)

running 2 tests
test exec::echo    ... ok
test limits::memory ... ignored (no cgroup v2 here)

test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s

   Doc-tests agents_core

running 2 tests
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let executables = HashMap::from([
            ("a-0123".to_owned(), "a lib".to_owned()),
            ("conformance-4567".to_owned(), "b test conformance".to_owned()),
        ]);
        let mut parser = Parser::new(executables);
        output.lines().for_each(|line| parser.line(line));
        let suites = parser.finish();
        assert_eq!(suites.len(), 3);
        assert_eq!(suites[0].name, "a lib");
        assert_eq!((suites[0].passed, suites[0].failed, suites[0].ignored), (1, 1, 1));
        assert_eq!(suites[0].broken, ["two"]);
        assert_eq!(suites[0].skipped, [("three".to_owned(), "needs a printer".to_owned())]);
        assert_eq!(suites[1].name, "b test conformance");
        assert_eq!(
            suites[1].skipped,
            [("limits::memory".to_owned(), "no cgroup v2 here".to_owned())]
        );
        assert_eq!((suites[2].name.as_str(), suites[2].passed), ("agents-core doc", 2));
        assert!(suites.iter().all(|suite| suite.finished));
    }

    #[test]
    fn a_harness_that_dies_is_a_failure() {
        let mut suite = Suite::new("x");
        suite.line("running 2 tests");
        suite.line("test one ... ok");
        assert_eq!(suite.failures(), 1);
    }

    #[test]
    fn other_lines_do_not_count() {
        let mut suite = Suite::new("x");
        for line in ["test result: soon", "test tube", "tests ... ok", "test a ... maybe"] {
            suite.line(line);
        }
        assert_eq!(suite, Suite::new("x"));
    }
}
