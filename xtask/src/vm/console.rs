//! Reads what the machine prints on its serial console.
//!
//! `vmtest: USER/NAME ok | FAIL why | skip why` is one check; `vmtest: begin USER/SUITE` and `vmtest: end
//! USER/SUITE STATUS` enclose the output of a test harness; `vmtest: finished` is the last line.

use crate::ci::results::Suite;

/// What was understood so far.
#[derive(Debug, Default)]
pub(super) struct Console {
    /// The machine whose console it is.
    machine: &'static str,
    checks: Suite,
    suites: Vec<Suite>,
    /// True between the `begin` and the `end` of a harness.
    inside: bool,
    finished: bool,
}

/// The line without escape sequences: the firmware's would clear the screen of whoever watches.
pub(super) fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // `ESC [ … letter`, or `ESC` and one character.
            if chars.next() == Some('[') {
                chars.find(char::is_ascii_alphabetic);
            }
        } else if !c.is_control() || c == '\t' {
            text.push(c);
        }
    }
    text
}

impl Console {
    pub(super) fn of(machine: &'static str) -> Self {
        Self {
            machine,
            ..Self::default()
        }
    }

    pub(super) fn line(&mut self, line: &str) {
        // The firmware and the kernel may have left something before it on the line.
        let said = line.find("vmtest: ").map(|at| &line[at + 8..]);
        match said.map(|said| said.trim().split_once(' ').unwrap_or((said.trim(), ""))) {
            None if self.inside => {
                if let Some(suite) = self.suites.last_mut() {
                    suite.line(line);
                }
            }
            None => {}
            Some(("finished", _)) => self.finished = true,
            Some(("note", _)) => {}
            Some(("begin", name)) => {
                self.suites.push(Suite::new(format!("vm {} {name}", self.machine)));
                self.inside = true;
            }
            Some(("end", rest)) => {
                self.inside = false;
                self.end(rest);
            }
            Some((name, outcome)) => self.check(name, outcome),
        }
    }

    /// All suites; `problem` is what went wrong with the machine itself.
    pub(super) fn finish(mut self, problem: Option<String>) -> Vec<Suite> {
        self.checks.name = format!("vm {} checks", self.machine);
        self.checks.finished = true;
        if self.checks.passed == 0 && problem.is_none() {
            self.fail("the machine ran no check");
        }
        if let Some(problem) = problem {
            self.fail(&problem);
        } else if !self.finished {
            self.fail("the machine ended without its closing line");
        }
        let mut suites = vec![self.checks];
        suites.extend(self.suites);
        suites
    }

    fn check(&mut self, name: &str, outcome: &str) {
        let (verdict, why) = outcome.split_once(' ').unwrap_or((outcome, ""));
        match verdict {
            "ok" => self.checks.passed += 1,
            "skip" => {
                self.checks.ignored += 1;
                self.checks.skipped.push((name.to_owned(), why.to_owned()));
            }
            _ => self.fail(&format!("{name}: {why}")),
        }
    }

    fn end(&mut self, rest: &str) {
        let status = rest.rsplit(' ').next().unwrap_or_default();
        if let Some(suite) = self.suites.last_mut()
            && status != "0"
            && suite.failed == 0
        {
            suite.failed = 1;
            suite.broken.push(format!("ended with status {status}"));
            suite.finished = true;
        }
    }

    fn fail(&mut self, what: &str) {
        self.checks.failed += 1;
        self.checks.broken.push(what.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, problem: Option<&str>) -> Vec<Suite> {
        let mut console = Console::of("small");
        text.lines().for_each(|line| console.line(line));
        console.finish(problem.map(str::to_owned))
    }

    #[test]
    fn checks_and_suites_are_counted() {
        let suites = read(
            "\x1bcSeaBIOS vmtest: root/cgroup-v2 ok
vmtest: note kernel 6.1
vmtest: root/oom FAIL no oom_kill
vmtest: user/kvm skip none here
vmtest: begin root/conformance
test limits::memory ... ok
test limits::disk   ... ignored (no quota)
test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out
vmtest: end root/conformance 0
vmtest: begin user/conformance
running 2 tests
vmtest: end user/conformance 139
vmtest: finished",
            None,
        );
        assert_eq!((suites[0].passed, suites[0].failed, suites[0].ignored), (1, 1, 1));
        assert_eq!(suites[0].broken, ["root/oom: no oom_kill"]);
        assert_eq!(suites[0].name, "vm small checks");
        assert_eq!(suites[1].name, "vm small root/conformance");
        assert_eq!((suites[1].passed, suites[1].ignored), (1, 1));
        assert_eq!(suites[2].broken, ["ended with status 139"]);
        assert_eq!(suites[2].failures(), 1);
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(plain("\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r"), "SeaBIOS");
        assert_eq!(plain("a\tb"), "a\tb");
    }

    #[test]
    fn a_machine_that_stops_early_is_a_failure() {
        assert_eq!(read("vmtest: root/cgroup-v2 ok", None)[0].failed, 1);
        assert_eq!(read("", None)[0].failed, 2);
        assert_eq!(read("vmtest: finished", Some("killed"))[0].broken, ["killed"]);
    }
}
