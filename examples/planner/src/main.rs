//! An agent that is told what there is, what is wanted and which tools there are. It plans, calls the tools, tries again
//! what may work later, plans anew without a tool that does not work, and keeps a trace of everything.
//!
//! `planner TASK [OUTPUT]`: relative names of the task are looked up beside it.
#![forbid(unsafe_code)]

mod plan;
mod task;
mod trace;
mod work;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{task::Task, trace::Trace, work::Work};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(task) = arguments.next() else {
        eprintln!("usage: planner TASK [OUTPUT]");
        return ExitCode::from(64);
    };
    let output = arguments.next().unwrap_or_else(|| "/output".into());
    match run(&task, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("planner: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path, output: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let task = Task::parse(&text).map_err(|fault| format!("{}: {fault}", path.display()))?;
    let mut trace = Trace::create(&output.join("trace.jsonl"))?;
    let sources = path.parent().unwrap_or(Path::new("."));
    let folder = std::env::temp_dir().join("planner");
    let mut work = Work::begin(&task, sources, folder)?;
    let done = work.achieve(&mut trace);
    let summary = work.summary(done.is_ok());
    std::fs::write(output.join("result.json"), summary).map_err(|error| format!("cannot write the result: {error}"))?;
    done?;
    work.deliver(output)
}
