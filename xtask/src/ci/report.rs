//! The closing lines of a run: steps, suites, what failed, what was skipped and why, and the count.

use std::fmt;
use std::time::Duration;

use super::results::Suite;
use crate::error::Result;

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    steps: Vec<Step>,
    suites: Vec<Suite>,
}

#[derive(Debug)]
struct Step {
    name: String,
    took: Duration,
    /// The failure, and whether it counts beside those of the suites that the step ran.
    failure: Option<String>,
}

impl Report {
    pub(super) fn step(&mut self, name: &str, took: Duration, outcome: Result<()>) {
        let failure = outcome.err().map(|error| error.to_string());
        match &failure {
            None => println!("── {name}: done in {:.1} s", took.as_secs_f64()),
            Some(failure) => println!("── {name}: FAILED: {failure}"),
        }
        self.steps.push(Step {
            name: name.to_owned(),
            took,
            failure,
        });
    }

    pub(super) fn suites(&mut self, suites: Vec<Suite>) {
        self.suites.extend(suites);
    }

    /// Failed tests, and steps that failed on their own account.
    pub(super) fn failed(&self) -> u64 {
        let steps = self.steps.iter().filter(|step| step.failure.is_some());
        let tests: u64 = self.suites.iter().map(Suite::failures).sum();
        tests + steps.count() as u64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "suite{:49} passed  failed skipped", "")?;
        let (shown, empty): (Vec<_>, Vec<_>) = self
            .suites
            .iter()
            .partition(|suite| suite.passed + suite.failures() + suite.ignored > 0);
        for suite in shown {
            writeln!(
                f,
                "{:<54} {:>6} {:>7} {:>7}{}",
                suite.name,
                suite.passed,
                suite.failed,
                suite.ignored,
                if suite.finished { "" } else { "  DIED" }
            )?;
        }
        if !empty.is_empty() {
            writeln!(f, "and {} suites without a test", empty.len())?;
        }
        writeln!(f, "\nstep{:50} seconds", "")?;
        for step in &self.steps {
            let outcome = if step.failure.is_some() { "FAILED" } else { "ok" };
            writeln!(f, "{:<54} {:>7.1} {outcome}", step.name, step.took.as_secs_f64())?;
        }
        if self.failed() > 0 {
            writeln!(f, "\nfailed:")?;
            for step in &self.steps {
                if let Some(failure) = &step.failure {
                    writeln!(f, "  step {}: {failure}", step.name)?;
                }
            }
            for suite in &self.suites {
                for test in &suite.broken {
                    writeln!(f, "  {}: {test}", suite.name)?;
                }
                if !suite.finished {
                    writeln!(f, "  {}: ended without a result", suite.name)?;
                }
            }
        }
        let skipped: u64 = self.suites.iter().map(|suite| suite.ignored).sum();
        if skipped > 0 {
            writeln!(f, "\nskipped:")?;
            for suite in &self.suites {
                for (test, reason) in &suite.skipped {
                    writeln!(f, "  {}: {test}: {reason}", suite.name)?;
                }
            }
        }
        let passed: u64 = self.suites.iter().map(|suite| suite.passed).sum();
        writeln!(f, "\n{passed} passed, {} failed, {skipped} skipped", self.failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::fail;

    #[test]
    fn the_last_line_counts_and_names_come_before_it() {
        let mut report = Report::default();
        report.step("fmt", Duration::from_secs(1), Ok(()));
        report.step("clippy", Duration::from_secs(2), fail("3 warnings"));
        let mut suite = Suite::new("a lib");
        suite.line("test one ... FAILED");
        suite.line("test two ... ignored, needs a printer");
        suite.line("test result: FAILED. 5 passed; 1 failed; 1 ignored; 0 measured");
        report.suites(vec![suite, Suite::new("b lib")]);
        let text = report.to_string();
        assert!(text.ends_with("\n5 passed, 3 failed, 1 skipped\n"), "{text}");
        for expected in [
            "step clippy: 3 warnings",
            "a lib: one",
            "b lib: ended without a result",
            "a lib: two: needs a printer",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn nothing_failed_is_nothing_failed() {
        let mut report = Report::default();
        report.suites(vec![Suite::single("examples/x".to_owned(), Ok(()))]);
        assert_eq!(report.failed(), 0);
        assert!(report.to_string().ends_with("1 passed, 0 failed, 0 skipped\n"));
    }
}
