//! Processes that outlive us, told apart by pid and start time so that a reused pid is never signalled.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Context, Result, fail};

/// When the process started, in clock ticks since boot; `None` when it is gone or a zombie.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<u64> {
    // The name, in parentheses, may itself contain spaces and parentheses.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    // `starttime` is field 22 of proc(5); the state that was just taken is field 3.
    fields.nth(18)?.parse().ok()
}

/// Ends exactly this process: asks with `signal` first, kills after ten seconds.
pub(super) fn stop(pid: u32, started: u64, signal: Signal) -> Result<()> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return fail(format!("{pid} is no process id"));
    };
    // The descriptor pins the process, so that the check and the signal mean the same one.
    let Ok(handle) = pidfd_open(raw, PidfdFlags::empty()) else {
        return Ok(());
    };
    for (signal, patience) in [(signal, 10), (Signal::KILL, 5)] {
        if start_time(pid) != Some(started) {
            return Ok(());
        }
        pidfd_send_signal(&handle, signal).context(|| format!("cannot signal process {pid}"))?;
        let deadline = Instant::now() + Duration::from_secs(patience);
        while Instant::now() < deadline {
            if start_time(pid) != Some(started) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    fail(format!("process {pid} survived SIGKILL"))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn names_with_parentheses_and_zombies() {
        let tail = "1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9";
        assert_eq!(parse_stat(&format!("7 (a) b) S {tail}")), Some(4242));
        assert_eq!(parse_stat(&format!("7 (a) Z {tail}")), None);
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn only_the_process_with_that_start_time_is_ended() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let started = start_time(child.id()).unwrap();
        stop(child.id(), started + 1, Signal::TERM).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        stop(child.id(), started, Signal::TERM).unwrap();
        assert!(!child.wait().unwrap().success());
        stop(child.id(), started, Signal::TERM).unwrap();
    }
}
