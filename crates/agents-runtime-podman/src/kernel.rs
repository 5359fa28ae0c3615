//! What this host's kernel says about a container of a local engine: the truth that the engine's own words are compared with.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fs::inotify,
};

/// The cgroup of a container, where it can be read.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// The folder of each controller that is of interest; the same one on cgroup v2.
    memory: PathBuf,
    cpu: PathBuf,
    usage: PathBuf,
    pids: PathBuf,
    v2: bool,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counted {
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) memory_peak_bytes: Option<u64>,
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) pids: Option<u64>,
}

/// What is limited. Without a limit it is the largest number, and none where it could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limited {
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) cpu_cores: Option<f64>,
    pub(crate) pids: Option<u64>,
}

impl Group {
    /// The cgroup of the container with this path and this first process, when it is there.
    pub(crate) fn of(path: &str, pid: Option<u64>) -> Option<Self> {
        let cgroups = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
        Self::below(
            Path::new("/sys/fs/cgroup"),
            innermost(path, &cgroups.unwrap_or_default()),
        )
    }

    fn below(root: &Path, path: &str) -> Option<Self> {
        // The path comes from the engine, and stays below the root.
        let path = path.strip_prefix('/')?;
        if path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return None;
        }
        let v2 = root.join("cgroup.controllers").exists();
        let folder = |controller: &str| {
            let folder = if v2 {
                root.join(path)
            } else {
                root.join(controller).join(path)
            };
            folder.is_dir().then_some(folder)
        };
        Some(Self {
            memory: folder("memory")?,
            cpu: folder("cpu")?,
            usage: folder("cpuacct")?,
            pids: folder("pids")?,
            v2,
        })
    }

    /// How many processes the kernel has ended for want of memory.
    pub(crate) fn memory_kills(&self) -> Option<u64> {
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        field(&read(&self.memory, file)?, "oom_kill")
    }

    /// What becomes readable when memory runs out here, and when the cgroup goes.
    ///
    /// The kernel's own notices: an eventfd on `memory.oom_control` (cgroup v1), or a watch of `memory.events`.
    pub(crate) fn memory_notices(&self) -> io::Result<OwnedFd> {
        if self.v2 {
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            inotify::add_watch(&watch, self.memory.join("memory.events"), inotify::WatchFlags::MODIFY)?;
            return Ok(watch);
        }
        let notices = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = fs::File::open(self.memory.join("memory.oom_control"))?;
        let order = format!("{} {}", notices.as_raw_fd(), control.as_raw_fd());
        fs::write(self.memory.join("cgroup.event_control"), order)?;
        Ok(notices)
    }

    /// How many notices there are in what was read: an eventfd gives its count.
    pub(crate) fn notices_in(&self, read: &[u8]) -> u64 {
        match <[u8; 8]>::try_from(read) {
            Ok(count) if !self.v2 => u64::from_ne_bytes(count),
            _ => 1,
        }
    }

    /// Whether so many notices say that memory ran out, and not that the cgroup went or came near its limit.
    ///
    /// On cgroup v1 the notice comes before the kernel has chosen what to end, so the count may not show it yet; and one
    /// of those of a cgroup that is gone says that it went.
    pub(crate) fn is_told_of(&self, kills_before: u64, notices: u64) -> bool {
        match self.memory_kills() {
            Some(now) => !self.v2 || now > kills_before,
            None => !self.v2 && notices > 1,
        }
    }

    pub(crate) fn counted(&self) -> Counted {
        let number = |folder: &Path, file: &str| read(folder, file)?.trim().parse::<u64>().ok();
        if self.v2 {
            let usage = read(&self.usage, "cpu.stat").and_then(|text| field(&text, "usage_usec"));
            return Counted {
                memory_bytes: number(&self.memory, "memory.current"),
                memory_peak_bytes: number(&self.memory, "memory.peak"),
                cpu_seconds: usage.map(|microseconds| microseconds as f64 / 1e6),
                pids: number(&self.pids, "pids.current"),
            };
        }
        Counted {
            memory_bytes: number(&self.memory, "memory.usage_in_bytes"),
            memory_peak_bytes: number(&self.memory, "memory.max_usage_in_bytes"),
            cpu_seconds: number(&self.usage, "cpuacct.usage").map(|nanoseconds| nanoseconds as f64 / 1e9),
            pids: number(&self.pids, "pids.current"),
        }
    }

    pub(crate) fn limited(&self) -> Limited {
        let number = |folder: &Path, file: &str| match read(folder, file)?.trim() {
            "max" => Some(u64::MAX),
            value => value.parse::<u64>().ok(),
        };
        let cores = |quota: &str, period: &str| -> Option<f64> {
            let period: f64 = period.trim().parse().ok().filter(|period| *period > 0.0)?;
            match quota.trim() {
                "max" | "-1" => Some(f64::INFINITY),
                quota => Some(quota.parse::<f64>().ok()? / period),
            }
        };
        let cpu_cores = if self.v2 {
            read(&self.cpu, "cpu.max")
                .and_then(|text| text.split_once(' ').and_then(|(quota, period)| cores(quota, period)))
        } else {
            read(&self.cpu, "cpu.cfs_quota_us")
                .zip(read(&self.cpu, "cpu.cfs_period_us"))
                .and_then(|(quota, period)| cores(&quota, &period))
        };
        Limited {
            memory_bytes: number(
                &self.memory,
                if self.v2 { "memory.max" } else { "memory.limit_in_bytes" },
            ),
            cpu_cores,
            pids: number(&self.pids, "pids.max"),
        }
    }
}

/// Where a container's process is, given its `/proc/PID/cgroup`, when that is below the path that the engine names. There
/// crun sets the limits where systemd made the cgroup above, which has those of any service.
fn innermost<'a>(path: &'a str, cgroups: &'a str) -> &'a str {
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    own.filter(|own| own.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
        .unwrap_or(path)
}

fn read(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok()
}

/// The number after a key at the beginning of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// The name of a process, which the guest program tells its state by.
pub(crate) fn comm(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok()
}

/// What a process and its descendants have used, for hosts where no cgroup counts it.
pub(crate) fn of_tree(pid: u32) -> Counted {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(process) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(process)
        {
            all.push(process);
        }
    }
    let mut counted = Counted::default();
    let (mut memory, mut ticks, mut threads) = (0, 0, 0);
    let mut wanted = vec![pid];
    while let Some(next) = wanted.pop() {
        if let Some(process) = all.iter().find(|process| process.pid == next) {
            memory += process.resident_pages * rustix::param::page_size() as u64;
            ticks += process.ticks;
            threads += process.threads;
        }
        wanted.extend(
            all.iter()
                .filter(|process| process.parent == next)
                .map(|process| process.pid),
        );
    }
    if threads > 0 {
        counted.memory_bytes = Some(memory);
        counted.cpu_seconds = Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
        counted.pids = Some(threads);
    }
    counted
}

struct OneProcess {
    pid: u32,
    parent: u32,
    ticks: u64,
    threads: u64,
    resident_pages: u64,
}

/// Fields of `/proc/PID/stat`, proc_pid_stat(5): with what children have used that were waited for.
fn process(pid: u32) -> Option<OneProcess> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold blanks and brackets.
    let fields: Vec<_> = text.rsplit_once(") ")?.1.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(OneProcess {
        pid,
        parent: u32::try_from(number(1)?).ok()?,
        ticks: (11..=14).map(number).sum::<Option<u64>>()?,
        threads: number(17)?,
        resident_pages: number(21)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    #[test]
    fn both_versions_of_cgroups_are_read() {
        let one = tempfile::tempdir().unwrap();
        write(
            one.path(),
            &[
                ("memory/p/c/memory.limit_in_bytes", "67108864\n"),
                ("memory/p/c/memory.usage_in_bytes", "4096\n"),
                (
                    "memory/p/c/memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                ),
                ("cpu/p/c/cpu.cfs_quota_us", "50000\n"),
                ("cpu/p/c/cpu.cfs_period_us", "100000\n"),
                ("cpuacct/p/c/cpuacct.usage", "1500000000\n"),
                ("pids/p/c/pids.max", "max\n"),
            ],
        );
        let group = Group::below(one.path(), "/p/c").unwrap();
        assert_eq!(group.memory_kills(), Some(2));
        assert!(group.is_told_of(2, 1), "the kernel tells before it counts");
        assert_eq!(group.notices_in(&3_u64.to_ne_bytes()), 3);
        let limits = group.limited();
        assert_eq!(
            (limits.memory_bytes, limits.cpu_cores, limits.pids),
            (Some(64 << 20), Some(0.5), Some(u64::MAX))
        );
        assert_eq!(group.counted().cpu_seconds, Some(1.5));
        fs::remove_dir_all(one.path().join("memory")).unwrap();
        assert!(!group.is_told_of(2, 1), "it went");
        assert!(group.is_told_of(2, 2), "it went, and memory had run out");

        let two = tempfile::tempdir().unwrap();
        write(
            two.path(),
            &[
                ("cgroup.controllers", "memory"),
                ("p/memory.max", "max\n"),
                ("p/memory.events", "low 0\noom 3\noom_kill 1\noom_group_kill 0\n"),
                ("p/cpu.max", "max 100000\n"),
                ("p/cpu.stat", "usage_usec 2500000\n"),
                ("p/pids.max", "32\n"),
            ],
        );
        let group = Group::below(two.path(), "/p").unwrap();
        assert_eq!(group.memory_kills(), Some(1));
        assert!(
            group.is_told_of(0, 1) && !group.is_told_of(1, 9),
            "the limit was come near to"
        );
        assert_eq!(group.notices_in(&[0; 16]), 1);
        assert_eq!(
            group.limited(),
            Limited {
                memory_bytes: Some(u64::MAX),
                cpu_cores: Some(f64::INFINITY),
                pids: Some(32),
            }
        );
        assert_eq!(group.counted().cpu_seconds, Some(2.5));
    }

    #[test]
    fn limits_are_read_where_the_process_is() {
        let scope = "/machine.slice/libpod-1.scope";
        let inside = "/machine.slice/libpod-1.scope/container";
        assert_eq!(innermost(scope, &format!("0::{inside}\n")), inside);
        for elsewhere in [
            "",
            "0::/\n",
            "0::/machine.slice/libpod-1.scopes/x\n",
            "5:pids:/a\n0::/b\n",
        ] {
            assert_eq!(innermost(scope, elsewhere), scope);
        }
    }

    #[test]
    fn a_path_of_the_engines_stays_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        for bad in ["", "/", "p", "/../etc", "/p/../..", "/missing"] {
            assert!(Group::below(root.path(), bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_tree_counts_at_least_itself() {
        let counted = of_tree(std::process::id());
        assert!(counted.pids >= Some(1) && counted.memory_bytes > Some(100_000));
        assert_eq!(of_tree(u32::MAX), Counted::default());
    }
}
