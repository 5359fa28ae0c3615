//! The processes of the container, and ending or stopping them.

use std::{
    collections::HashMap,
    fs, thread,
    time::{Duration, Instant},
};

use agents_guest::protocol::FailureKind;
use rustix::process::{Pid, Signal, kill_process};

use super::{
    failure::{Fault, fault},
    first_state,
};

/// How long the processes may take to stop.
const STOPPING: Duration = Duration::from_secs(2);

/// One process of `/proc/PID/stat`, proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    state: char,
}

impl Process {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold anything, so fields are counted from its end: 3 is the first after it.
        let (left, right) = text.rsplit_once(')')?;
        let mut fields = right.split_whitespace();
        Some(Self {
            pid: left.split_once(' ')?.0.parse().ok()?,
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
        })
    }

    fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }

    fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't') || !self.is_alive()
    }

    fn send(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// How many processes and threads there are in the container, with what has ended and was not taken off yet.
pub(super) fn threads() -> u64 {
    let threads = |process: &Process| {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid));
        tasks.map_or(1, |tasks| tasks.count() as u64)
    };
    all().iter().map(threads).sum()
}

fn all() -> Vec<Process> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .filter_map(|entry| Process::parse(&fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect()
}

fn own() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// What belongs to the agent, as the container's first process sees it: everything but itself and the processes that the
/// engine has brought in, which are ours. Those have no parent in the container, and nobody inside can lose theirs.
fn is_agents(process: &Process) -> bool {
    process.pid != 1 && process.pid != own() && process.parent != 0
}

/// What this process has to answer for: as the first process for everything of the agent's, and otherwise for its
/// descendants. Whatever loses its parent becomes a child of ours, since we are a subreaper.
fn ours() -> Vec<Process> {
    let all = all();
    let own = own();
    if own == 1 {
        return all.into_iter().filter(is_agents).collect();
    }
    let parents: HashMap<i32, i32> = all.iter().map(|process| (process.pid, process.parent)).collect();
    let is_below = |process: &Process| {
        let mut at = process.parent;
        // A chain of parents is never longer than there are processes.
        for _ in 0..parents.len() {
            match parents.get(&at) {
                _ if at == own => return true,
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        false
    };
    all.iter().copied().filter(is_below).collect()
}

/// Kills whatever this process has to answer for and is still there; says whether anything was. Repeated until nothing is,
/// since what is killed may have made another just before.
pub(super) fn kill() -> bool {
    let mut any = false;
    for process in ours().iter().filter(|process| process.is_alive()) {
        process.send(Signal::KILL);
        any = true;
    }
    any
}

/// Processes that are stopped, until this is dropped.
#[derive(Debug)]
pub(super) struct Stopped(Vec<Process>);

impl Drop for Stopped {
    fn drop(&mut self) {
        for process in &self.0 {
            process.send(Signal::CONT);
        }
    }
}

/// Stops all processes of the agent's.
pub(super) fn stop() -> Result<Stopped, Fault> {
    if first_state().is_none() {
        return Err(fault(
            FailureKind::Conflict,
            "there is no container here whose processes could be stopped",
        ));
    }
    let mut stopped = Stopped(Vec::new());
    let until = Instant::now() + STOPPING;
    let mut steady = 0;
    // Who was forked in the middle of one look is seen in the next, and what is stopped forks no more.
    while steady < 2 {
        if Instant::now() > until {
            return Err(fault(FailureKind::Unavailable, "the container's processes do not stop"));
        }
        steady += 1;
        for process in all().into_iter().filter(is_agents) {
            if !process.is_stopped() {
                steady = 0;
                process.send(Signal::STOP);
                if stopped.0.iter().all(|known| known.pid != process.pid) {
                    stopped.0.push(process);
                }
            }
        }
        if steady == 0 {
            thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pretend() {
        let text = "7 (a) S 1 (x) T 3 7 7 0 -1 0";
        let expected = Process {
            pid: 7,
            parent: 3,
            state: 'T',
        };
        assert_eq!(Process::parse(text), Some(expected));
    }

    #[test]
    fn only_descendants_are_ours() {
        let mut child = std::process::Command::new("sleep").arg("10").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let seen = ours();
        assert!(seen.iter().any(|process| process.pid == pid));
        assert!(seen.iter().all(|process| process.pid != 1 && process.pid != own()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn nothing_is_stopped_where_the_first_process_is_not_ours() {
        assert!(stop().is_err());
    }
}
