//! Control groups, version 1 and 2: where ours can be made, its limits, its counters and its end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// The parent folders of a container's own groups on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hierarchy {
    /// One folder a controller, which may coincide.
    V1 {
        memory: PathBuf,
        cpu: PathBuf,
        cpuacct: PathBuf,
        pids: PathBuf,
        freezer: PathBuf,
    },
    /// The unified hierarchy.
    V2 { parent: PathBuf },
}

/// Why no group can be made, and what would make it work.
#[derive(Clone, Debug)]
pub(crate) struct NoCgroup {
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

impl Hierarchy {
    /// Looks for a place where this process may make groups with the controllers for memory, CPU and processes.
    pub(crate) fn detect() -> Result<Self, NoCgroup> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::detect_in(&mounts, &own)
    }

    fn detect_in(mountinfo: &str, own: &str) -> Result<Self, NoCgroup> {
        let mounts: Vec<CgroupMount> = mountinfo.lines().filter_map(CgroupMount::parse).collect();
        let v1 = |controller: &str| -> Option<PathBuf> {
            let mount = mounts
                .iter()
                .find(|mount| mount.v1_controllers.iter().any(|known| known == controller))?;
            let path = own.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                parts
                    .next()?
                    .split(',')
                    .any(|known| known == controller)
                    .then(|| parts.next())?
            })?;
            Some(mount.folder_of(path))
        };
        if let (Some(memory), Some(cpu), Some(cpuacct), Some(pids), Some(freezer)) =
            (v1("memory"), v1("cpu"), v1("cpuacct"), v1("pids"), v1("freezer"))
        {
            for folder in [&memory, &cpu, &cpuacct, &pids, &freezer] {
                if !writable(folder) {
                    return Err(NoCgroup {
                        reason: format!(
                            "this host has cgroup v1, and this user may not write to {}",
                            folder.display()
                        ),
                        remedy: "run as root, or use a host with cgroup v2 and a delegated subtree".to_owned(),
                    });
                }
            }
            return Ok(Self::V1 {
                memory,
                cpu,
                cpuacct,
                pids,
                freezer,
            });
        }
        let Some(mount) = mounts.iter().find(|mount| mount.v2) else {
            return Err(NoCgroup {
                reason: "no cgroup hierarchy with memory, cpu and pids is mounted".to_owned(),
                remedy: "mount the cgroup file system".to_owned(),
            });
        };
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        v2_parent(&mount.target, &mount.folder_of(path))
    }

    /// The group of a container.
    pub(crate) fn group(&self, id: &str) -> Group {
        let name = format!("isolated-agents-{id}");
        match self {
            Self::V1 {
                memory,
                cpu,
                cpuacct,
                pids,
                freezer,
            } => Group::V1 {
                memory: memory.join(&name),
                cpu: cpu.join(&name),
                cpuacct: cpuacct.join(&name),
                pids: pids.join(&name),
                freezer: freezer.join(&name),
            },
            Self::V2 { parent } => Group::V2 {
                folder: parent.join(&name),
            },
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::V1 { memory, .. } => format!("cgroup v1, below {}", memory.display()),
            Self::V2 { parent } => format!("cgroup v2, below {}", parent.display()),
        }
    }
}

struct CgroupMount {
    root: String,
    target: PathBuf,
    v2: bool,
    v1_controllers: Vec<String>,
}

impl CgroupMount {
    /// A line of `/proc/PID/mountinfo`, see proc_pid_mountinfo(5).
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, target) = (left.next()?.to_owned(), PathBuf::from(left.next()?));
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1)?;
        let v2 = kind == "cgroup2";
        if !v2 && kind != "cgroup" {
            return None;
        }
        let v1_controllers = if v2 {
            Vec::new()
        } else {
            options.split(',').map(str::to_owned).collect()
        };
        Some(Self {
            root,
            target,
            v2,
            v1_controllers,
        })
    }

    /// Where the group with a path of `/proc/self/cgroup` lies. In a container the mount may show only a part of the
    /// hierarchy, or the path may lie outside of it: the mount's own root is used then.
    fn folder_of(&self, path: &str) -> PathBuf {
        let inside = path
            .strip_prefix(self.root.trim_end_matches('/'))
            .unwrap_or("")
            .trim_start_matches('/');
        let folder = self.target.join(inside);
        if folder.is_dir() { folder } else { self.target.clone() }
    }
}

fn writable(folder: &Path) -> bool {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
        && rustix::fs::access(folder.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok()
}

/// The nearest group from our own upwards that hands the controllers to its children, or can be made to.
fn v2_parent(mount: &Path, own: &Path) -> Result<Hierarchy, NoCgroup> {
    let words = |folder: &Path, file: &str| -> Vec<String> {
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let all_in = |have: &[String]| CONTROLLERS.iter().all(|wanted| have.iter().any(|name| name == wanted));
    let mut reason = format!("no cgroup at or above {} may be written to", own.display());
    for folder in own.ancestors().take_while(|folder| folder.starts_with(mount)) {
        if !writable(folder) {
            continue;
        }
        if all_in(&words(folder, "cgroup.subtree_control")) {
            return Ok(Hierarchy::V2 {
                parent: folder.to_owned(),
            });
        }
        if !all_in(&words(folder, "cgroup.controllers")) {
            reason = format!(
                "the cgroup {} has only the controllers {:?}",
                folder.display(),
                words(folder, "cgroup.controllers").join(" ")
            );
            continue;
        }
        // A group with processes of its own cannot hand controllers on (cgroup-v2, "No Internal Process Constraint"); only
        // the root is exempt.
        let enable = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
        match fs::write(folder.join("cgroup.subtree_control"), enable) {
            Ok(()) => {
                return Ok(Hierarchy::V2 {
                    parent: folder.to_owned(),
                });
            }
            Err(error) => {
                reason = format!(
                    "the cgroup {} cannot hand its controllers on: {error}",
                    folder.display()
                );
            }
        }
    }
    Err(NoCgroup {
        reason,
        remedy: "delegate a subtree with cpu, memory and pids, for example with \
                 `systemd-run --user --scope -p Delegate=yes`"
            .to_owned(),
    })
}

/// The groups of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Group {
    V1 {
        memory: PathBuf,
        cpu: PathBuf,
        cpuacct: PathBuf,
        pids: PathBuf,
        freezer: PathBuf,
    },
    V2 {
        folder: PathBuf,
    },
}

/// Limits; an absent one is not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) cpu_cores: Option<f64>,
    pub(crate) pids: Option<u64>,
}

/// What a group has counted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) memory_peak_bytes: Option<u64>,
    pub(crate) pids: Option<u64>,
    /// How many processes the kernel has killed for want of memory.
    pub(crate) oom_kills: u64,
    /// How often a process was refused.
    pub(crate) pids_refused: u64,
}

/// The length of a CPU period, in microseconds.
const PERIOD: u64 = 100_000;

impl Group {
    fn folders(&self) -> Vec<&Path> {
        match self {
            Self::V1 {
                memory,
                cpu,
                cpuacct,
                pids,
                freezer,
            } => {
                let mut folders: Vec<&Path> = Vec::new();
                for folder in [memory, cpu, cpuacct, pids, freezer] {
                    if !folders.contains(&folder.as_path()) {
                        folders.push(folder);
                    }
                }
                folders
            }
            Self::V2 { folder } => vec![folder],
        }
    }

    /// Makes the groups and sets the limits.
    pub(crate) fn create(&self, limits: &Limits) -> io::Result<()> {
        for folder in self.folders() {
            match fs::create_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(|error| named(error, folder))?,
            }
        }
        let quota = limits.cpu_cores.map(quota);
        match self {
            Self::V1 { memory, cpu, pids, .. } => {
                if let Some(bytes) = limits.memory_bytes {
                    put(memory, "memory.limit_in_bytes", bytes)?;
                    // Absent where the kernel does not account for swap.
                    if memory.join("memory.memsw.limit_in_bytes").exists() {
                        put(memory, "memory.memsw.limit_in_bytes", bytes)?;
                    }
                }
                if let Some(quota) = quota {
                    put(cpu, "cpu.cfs_period_us", PERIOD)?;
                    put(cpu, "cpu.cfs_quota_us", quota)?;
                }
                if let Some(most) = limits.pids {
                    put(pids, "pids.max", most)?;
                }
            }
            Self::V2 { folder } => {
                if let Some(bytes) = limits.memory_bytes {
                    put(folder, "memory.max", bytes)?;
                    if folder.join("memory.swap.max").exists() {
                        put(folder, "memory.swap.max", 0)?;
                    }
                    put(folder, "memory.oom.group", 1)?;
                }
                if let Some(quota) = quota {
                    put(folder, "cpu.max", format!("{quota} {PERIOD}"))?;
                }
                if let Some(most) = limits.pids {
                    put(folder, "pids.max", most)?;
                }
            }
        }
        Ok(())
    }

    /// Moves a process in.
    pub(crate) fn add(&self, pid: u32) -> io::Result<()> {
        self.folders()
            .into_iter()
            .try_for_each(|folder| put(folder, "cgroup.procs", pid))
    }

    /// Reads the limits back from the kernel.
    pub(crate) fn limits(&self) -> Limits {
        match self {
            Self::V1 { memory, cpu, pids, .. } => Limits {
                memory_bytes: number(memory, "memory.limit_in_bytes"),
                cpu_cores: number(cpu, "cpu.cfs_quota_us")
                    .zip(number(cpu, "cpu.cfs_period_us"))
                    .map(|(quota, period)| quota as f64 / period as f64),
                pids: number(pids, "pids.max"),
            },
            Self::V2 { folder } => Limits {
                memory_bytes: number(folder, "memory.max"),
                cpu_cores: fs::read_to_string(folder.join("cpu.max")).ok().and_then(|text| {
                    let (quota, period) = text.trim().split_once(' ')?;
                    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
                }),
                pids: number(folder, "pids.max"),
            },
        }
    }

    /// Reads the counters.
    pub(crate) fn usage(&self) -> Usage {
        match self {
            Self::V1 {
                memory, cpuacct, pids, ..
            } => Usage {
                cpu_seconds: number(cpuacct, "cpuacct.usage").map(|nanoseconds| nanoseconds as f64 / 1e9),
                memory_bytes: number(memory, "memory.usage_in_bytes"),
                memory_peak_bytes: number(memory, "memory.max_usage_in_bytes"),
                pids: number(pids, "pids.current"),
                oom_kills: keyed(memory, "memory.oom_control", "oom_kill"),
                pids_refused: keyed(pids, "pids.events", "max"),
            },
            Self::V2 { folder } => Usage {
                cpu_seconds: Some(keyed(folder, "cpu.stat", "usage_usec") as f64 / 1e6),
                memory_bytes: number(folder, "memory.current"),
                memory_peak_bytes: number(folder, "memory.peak"),
                pids: number(folder, "pids.current"),
                oom_kills: keyed(folder, "memory.events", "oom_kill"),
                pids_refused: keyed(folder, "pids.events", "max"),
            },
        }
    }

    /// Stops or resumes every process.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        match self {
            Self::V1 { freezer, .. } => put(freezer, "freezer.state", if frozen { "FROZEN" } else { "THAWED" })?,
            Self::V2 { folder } => put(folder, "cgroup.freeze", u8::from(frozen))?,
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while frozen && !self.is_frozen() {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn is_frozen(&self) -> bool {
        match self {
            Self::V1 { freezer, .. } => {
                fs::read_to_string(freezer.join("freezer.state")).is_ok_and(|state| state.trim() == "FROZEN")
            }
            Self::V2 { folder } => keyed(folder, "cgroup.events", "frozen") == 1,
        }
    }

    /// Kills every process in the groups.
    pub(crate) fn kill(&self) {
        // A frozen process of version 1 is not ended by a signal before it is thawed.
        let _ = self.freeze(false);
        if let Self::V2 { folder } = self
            && put(folder, "cgroup.kill", 1).is_ok()
        {
            return;
        }
        for folder in self.folders() {
            for pid in self.pids(folder) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }

    fn pids(&self, folder: &Path) -> Vec<i32> {
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills what is left and removes the groups. Succeeds when they are gone already.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut killed = false;
        for folder in self.folders() {
            loop {
                match fs::remove_dir(folder) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if Instant::now() > deadline => return Err(named(error, folder)),
                    Err(_) => {
                        // Busy: either processes are left, or the last one has not been taken off yet.
                        if !killed {
                            self.kill();
                            killed = true;
                        }
                        thread::sleep(Duration::from_micros(200));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether any of the groups is there.
    pub(crate) fn exists(&self) -> bool {
        self.folders().iter().any(|folder| folder.exists())
    }
}

fn quota(cores: f64) -> u64 {
    // 1 ms is the least quota that the kernel takes (sched-bwc).
    ((cores * PERIOD as f64).floor() as u64).max(1000)
}

fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn put(folder: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    let path = folder.join(file);
    // `fs::write` would ask to create and truncate the file, which these file systems refuse or ignore.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.to_string().as_bytes()))
        .map_err(|error| named(error, &path))
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}

fn keyed(folder: &Path, file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_parsed() {
        let line = "33 32 0:28 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory";
        let mount = CgroupMount::parse(line).unwrap();
        assert!(!mount.v2);
        assert!(mount.v1_controllers.contains(&"memory".to_owned()));
        let line = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        assert!(CgroupMount::parse(line).unwrap().v2);
        assert!(CgroupMount::parse("1 0 8:1 / / rw - ext4 /dev/sda rw").is_none());
    }

    #[test]
    fn a_quota_is_never_above_what_was_asked() {
        assert_eq!(quota(1.0), 100_000);
        assert_eq!(quota(0.5), 50_000);
        assert_eq!(quota(0.0001), 1000);
        assert_eq!(quota(1.999_999), 199_999);
    }

    #[test]
    fn nothing_mounted_is_said() {
        assert!(Hierarchy::detect_in("", "").is_err());
    }
}
