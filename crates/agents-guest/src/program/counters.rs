//! What the kernel has counted for the container, where the container can see it.

use std::{fs, path::Path};

use rustix::fs::statvfs;

/// Counters of the container's cgroup; `None` where they cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    out_of_memory: Option<u64>,
    pids_refused: Option<u64>,
}

impl Counters {
    pub(super) fn read() -> Self {
        Self::read_in(Path::new("/sys/fs/cgroup"))
    }

    /// The unified hierarchy first, and then the one with a folder for each controller.
    fn read_in(root: &Path) -> Self {
        let keyed = |files: [&str; 2], key: &str| files.iter().find_map(|file| keyed(&root.join(file), key));
        Self {
            out_of_memory: keyed(["memory.events", "memory/memory.oom_control"], "oom_kill"),
            pids_refused: keyed(["pids.events", "pids/pids.events"], "max"),
        }
    }

    /// Whether something was killed for want of memory since then.
    pub(super) fn out_of_memory_since(self, before: Self) -> Option<bool> {
        Some(self.out_of_memory? > before.out_of_memory?)
    }

    /// Whether refused processes are counted at all.
    pub(super) fn counts_processes(self) -> bool {
        self.pids_refused.is_some()
    }

    /// Whether a process was refused since then.
    pub(super) fn pids_refused_since(self, before: Self) -> Option<bool> {
        Some(self.pids_refused? > before.pids_refused?)
    }
}

fn keyed(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

/// The mount points of memory-backed file systems, as they are written in `mountinfo`.
pub(super) fn memory_mounts(mountinfo: &str) -> Vec<(String, bool)> {
    let of_line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(4);
        let (target, options) = (left.next()?, left.next()?);
        let writable = options.split(',').next() == Some("rw");
        right.starts_with("tmpfs ").then(|| (unescape(target), writable))
    };
    mountinfo.lines().filter_map(of_line).collect()
}

/// Only blanks matter here: a path with other escapes cannot be opened, and is left out.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
}

/// Whether a place that the agent can write to is full. The engine's own places are not the agent's.
pub(super) fn disk_is_full() -> bool {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_the_engine = |path: &str| {
        ["/dev", "/proc", "/sys", "/run"]
            .iter()
            .any(|folder| Path::new(path).starts_with(folder))
    };
    memory_mounts(&mountinfo)
        .iter()
        .filter(|(path, writable)| *writable && !of_the_engine(path))
        .filter_map(|(path, _)| statvfs(path.as_str()).ok())
        .any(|stat| is_full(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// A file system may refuse a whole write that needs more than what is left, and writes are up to 2 MiB long.
fn is_full(size: u64, free: u64) -> bool {
    size > free && free <= (2 << 20).min(size / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hierarchies_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Counters::read_in(folder.path()), Counters::default());
        fs::create_dir(folder.path().join("memory")).unwrap();
        fs::write(
            folder.path().join("memory/memory.oom_control"),
            "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        )
        .unwrap();
        let before = Counters::read_in(folder.path());
        assert_eq!(before.out_of_memory, Some(3));
        fs::write(folder.path().join("memory.events"), "low 0\noom 9\noom_kill 4\n").unwrap();
        let after = Counters::read_in(folder.path());
        assert_eq!(after.out_of_memory_since(before), Some(true));
        assert_eq!(after.out_of_memory_since(after), Some(false));
        assert_eq!(after.pids_refused_since(before), None);
    }

    #[test]
    fn full_is_told_from_used() {
        assert!(is_full(16 << 20, 0));
        assert!(is_full(16 << 20, 2 << 20));
        assert!(!is_full(16 << 20, 3 << 20));
        assert!(is_full(4096, 0) && !is_full(4096, 4096) && !is_full(0, 0));
    }

    #[test]
    fn memory_mounts_are_found() {
        let text = "1 0 0:1 / /a\\040b rw,nosuid - tmpfs tmpfs rw\n2 0 0:2 / /c ro - tmpfs none rw\n3 0 0:3 / / rw - overlay overlay rw\n";
        assert_eq!(
            memory_mounts(text),
            [("/a b".to_owned(), true), ("/c".to_owned(), false)]
        );
    }
}
