//! What a container uses where there are no cgroups to count it: its processes, added up.

use std::{collections::HashMap, fs};

use rustix::process::Pid;

use crate::cgroup::Usage;

/// One process of `/proc/PID/stat`, proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// Of the process and of those that it has waited for, in clock ticks.
    cpu_ticks: u64,
    threads: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold anything, so fields are counted from its end: 3 is the first after it.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            cpu_ticks: field(14)? + field(15)? + field(16)? + field(17)?,
            threads: field(20)?,
            resident_pages: field(24)?,
        })
    }
}

/// All threads that `/proc` shows.
pub(super) fn threads() -> u64 {
    read_all().values().map(|stat| stat.threads).sum()
}

fn read_all() -> HashMap<i32, Stat> {
    let mut stats = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let stat = fs::read_to_string(entry.path().join("stat"))
            .ok()
            .as_deref()
            .and_then(Stat::parse);
        if let (Some(pid), Some(stat)) = (pid, stat) {
            stats.insert(pid, stat);
        }
    }
    stats
}

/// Adds up the processes below the given ones, themselves included, and those that this process has waited for.
pub(super) fn usage(roots: &[Pid]) -> Usage {
    let stats = read_all();
    let roots: Vec<i32> = roots.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
    let belongs = |pid: i32| {
        let mut at = pid;
        // A chain of parents is never longer than there are processes.
        for _ in 0..stats.len() {
            if roots.contains(&at) {
                return true;
            }
            match stats.get(&at) {
                Some(stat) => at = stat.parent,
                None => return false,
            }
        }
        false
    };
    let (mut ticks, mut threads, mut pages) = (0, 0, 0);
    for (_, stat) in stats.iter().filter(|(pid, _)| belongs(**pid)) {
        ticks += stat.cpu_ticks;
        pages += stat.resident_pages;
        threads += stat.threads;
    }
    let own = fs::read_to_string("/proc/self/stat")
        .ok()
        .as_deref()
        .and_then(waited_for);
    Usage {
        // A tick is a hundredth of a second in this interface on every Linux, whatever the kernel's own.
        cpu_seconds: Some((ticks + own.unwrap_or(0)) as f64 / 100.0),
        memory_bytes: Some(pages * rustix::param::page_size() as u64),
        memory_peak_bytes: None,
        pids: Some(threads),
        oom_kills: 0,
        pids_refused: 0,
    }
}

/// The CPU time of the processes that a process has waited for, in clock ticks.
fn waited_for(text: &str) -> Option<u64> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(13)?.parse::<u64>().ok()? + fields.get(14)?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_end_of_the_name() {
        let text = "7 (a) b) S 3 7 7 0 -1 0 0 0 0 0 10 20 30 40 20 0 5 0 99 1000 6 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(
            stat,
            Stat {
                parent: 3,
                cpu_ticks: 100,
                threads: 5,
                resident_pages: 6
            }
        );
        assert_eq!(waited_for(text), Some(70));
    }

    #[test]
    fn our_own_process_is_found() {
        let usage = usage(&[rustix::process::getpid()]);
        assert!(usage.memory_bytes.unwrap() > 0 && usage.pids.unwrap() >= 1);
    }
}
