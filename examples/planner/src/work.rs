//! Carries plans out.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    plan::plan,
    task::{Task, Tool},
    trace::{Trace, Value, object},
};

/// What a tool ends with when trying again can help (`EX_TEMPFAIL` of sysexits.h).
const TRY_AGAIN: i32 = 75;
const PAUSE: Duration = Duration::from_millis(50);

/// The work on a task, in a folder of its own.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    task: &'a Task,
    folder: PathBuf,
    have: BTreeSet<String>,
    broken: BTreeSet<String>,
    calls: u64,
    retries: u64,
    plans: u64,
}

impl<'a> Work<'a> {
    /// Copies what there is into the folder, so that the sources stay as they are.
    pub(crate) fn begin(task: &'a Task, sources: &Path, folder: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        for name in &task.have {
            fs::copy(sources.join(name), folder.join(name)).map_err(|error| format!("cannot read {name}: {error}"))?;
        }
        Ok(Self {
            task,
            folder,
            have: task.have.iter().cloned().collect(),
            broken: BTreeSet::new(),
            calls: 0,
            retries: 0,
            plans: 0,
        })
    }

    /// Plans and calls tools until everything that is wanted is there, or nothing can make it.
    pub(crate) fn achieve(&mut self, trace: &mut Trace) -> Result<(), String> {
        loop {
            let steps = plan(&self.task.tools, &self.have, &self.task.want, &self.broken).map_err(|thing| {
                let broken: Vec<_> = self.broken.iter().cloned().collect();
                format!(
                    "nothing can make {thing}; tools that do not work: {}",
                    broken.join(", ")
                )
            })?;
            self.plans += 1;
            let names = steps.iter().map(|tool| tool.name.clone()).collect();
            trace.note("plan", &[("steps", Value::List(names))])?;
            let mut failed = None;
            for tool in steps {
                if let Err(fault) = self.call(tool, trace)? {
                    failed = Some((tool, fault));
                    break;
                }
            }
            let Some((tool, fault)) = failed else {
                return Ok(());
            };
            self.broken.insert(tool.name.clone());
            let members = [("tool", Value::Text(tool.name.clone())), ("reason", Value::Text(fault))];
            trace.note("give up", &members)?;
        }
    }

    /// Calls a tool, again while it says that this can help. What it makes must be there afterwards.
    fn call(&mut self, tool: &Tool, trace: &mut Trace) -> Result<Result<(), String>, String> {
        let mut attempt = 1;
        loop {
            let begin = Instant::now();
            let output = self.run(tool)?;
            self.calls += 1;
            let code = output.status.code().unwrap_or(-1);
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let took = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            let mut members = vec![
                ("tool", Value::Text(tool.name.clone())),
                ("attempt", Value::Number(u64::from(attempt))),
                ("exit", Value::Text(code.to_string())),
                ("ms", Value::Number(took)),
            ];
            if !said.is_empty() {
                members.push(("said", Value::Text(said.clone())));
            }
            trace.note("call", &members)?;
            if code == TRY_AGAIN && attempt < tool.tries {
                attempt += 1;
                self.retries += 1;
                thread::sleep(PAUSE);
                continue;
            }
            if code != 0 {
                return Ok(Err(format!("ended with {code}: {said}")));
            }
            let is_there = |name: &String| fs::metadata(self.folder.join(name)).is_ok_and(|file| file.len() > 0);
            if let Some(missing) = tool.makes.iter().find(|name| !is_there(name)) {
                return Ok(Err(format!("did not make {missing}")));
            }
            self.have.extend(tool.makes.iter().cloned());
            return Ok(Ok(()));
        }
    }

    fn run(&self, tool: &Tool) -> Result<Output, String> {
        Command::new("sh")
            .args(["-c", &tool.run])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("there is no sh: {error}"))
    }

    /// What was done, as JSON.
    pub(crate) fn summary(&self, achieved: bool) -> String {
        let members = [
            ("achieved", Value::Bool(achieved)),
            ("plans", Value::Number(self.plans)),
            ("calls", Value::Number(self.calls)),
            ("retries", Value::Number(self.retries)),
            ("broken_tools", Value::List(self.broken.iter().cloned().collect())),
            ("made", Value::List(self.have.iter().cloned().collect())),
        ];
        object(&members) + "\n"
    }

    /// Hands over what was wanted.
    pub(crate) fn deliver(&self, output: &Path) -> Result<(), String> {
        for name in &self.task.want {
            fs::copy(self.folder.join(name), output.join(name))
                .map_err(|error| format!("cannot write {name} to {}: {error}", output.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_asks_for_time_gets_it_and_one_that_fails_is_replaced() {
        let task = Task::parse(
            "have in\nwant out\n\
             tool slow\n needs in\n makes warm\n tries 3\n run if [ -e once ]; then cp in warm; else : > once; exit 75; fi\n\
             tool broken\n needs warm\n makes out\n run no-such-command\n\
             tool idle\n needs warm\n makes out\n run true\n\
             tool good\n needs warm\n makes out\n run cp warm out\n",
        )
        .unwrap();
        let place = std::env::temp_dir().join(format!("planner-test-{}", std::process::id()));
        fs::create_dir_all(place.join("output")).unwrap();
        fs::write(place.join("in"), "content").unwrap();
        let mut trace = Trace::create(&place.join("output/trace.jsonl")).unwrap();
        let mut work = Work::begin(&task, &place, place.join("work")).unwrap();
        work.achieve(&mut trace).unwrap();
        work.deliver(&place.join("output")).unwrap();
        assert_eq!(fs::read_to_string(place.join("output/out")).unwrap(), "content");
        assert_eq!((work.plans, work.retries, work.calls), (3, 1, 5));
        assert_eq!(work.broken, ["broken", "idle"].map(str::to_owned).into());
        fs::remove_dir_all(place).unwrap();
    }
}
