//! Which processes there are below one of ours.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// The direct children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// Kills a process and everything below it.
///
/// A process group would do it in one call, but then `Ctrl-C` in a terminal would no longer reach the group.
pub(crate) fn kill_tree(pid: u32) {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    // Stopped first, so that it starts nothing more while its children are ended.
    let _ = kill_process(raw, Signal::STOP);
    for child in children(pid) {
        kill_tree(child);
    }
    let _ = kill_process(raw, Signal::KILL);
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn grandchildren_are_seen_and_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "sh -c 'sleep 60; :' & echo started; wait"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let below = children(child.id());
        assert_eq!(below.len(), 1);
        kill_tree(child.id());
        assert!(!child.wait().unwrap().success());
        for _ in 0..100 {
            let status = format!("/proc/{}/status", below[0]);
            let gone = fs::read_to_string(&status).map_or(true, |text| text.contains("Z (zombie)"));
            if gone || !Path::new(&status).exists() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("the grandchild lives");
    }
}
