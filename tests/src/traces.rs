//! What a run could leave on the machine.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

/// The names in a folder; none when it is not there.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => panic!("cannot read {}: {error}", folder.display()),
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// What is left of a state folder's sessions beside their records.
pub(crate) fn left_behind(state: &Path, sessions: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    for folder in ["active", "native", "storage/.tmp"] {
        // `.templates` holds empty file systems that the next container copies.
        let names = names(&state.join(folder))
            .into_iter()
            .filter(|name| name != ".templates");
        left.extend(names.map(|name| format!("{folder}/{name}")));
    }
    left.extend(
        cgroups(sessions)
            .into_iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    let inside = |line: &str| line.contains(&*state.to_string_lossy());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("cannot read the mounts");
    left.extend(
        mounts
            .lines()
            .filter(|line| inside(line))
            .map(|line| format!("mount {line}")),
    );
    for device in names(Path::new("/sys/block")) {
        let backing = fs::read_to_string(format!("/sys/block/{device}/loop/backing_file")).unwrap_or_default();
        if inside(&backing) {
            left.push(format!("{device} over {}", backing.trim_end()));
        }
    }
    left
}

/// The cgroups of these sessions.
fn cgroups(sessions: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = pending.pop() {
        // Groups of others come and go meanwhile.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = name.strip_prefix("isolated-agents-");
            if ours.is_some_and(|rest| sessions.iter().any(|session| rest.starts_with(session.as_str()))) {
                found.push(entry.path());
            } else {
                pending.push(entry.path());
            }
        }
    }
    found
}

/// Every process that can be seen: its number, and its first argument.
pub fn processes() -> Vec<(u32, OsString)> {
    let numbers = names(Path::new("/proc"))
        .into_iter()
        .filter_map(|name| name.parse().ok());
    let command = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let first = line.split(|byte| *byte == 0).next()?.to_vec();
        Some((pid, std::os::unix::ffi::OsStringExt::from_vec(first)))
    };
    numbers.filter_map(command).collect()
}

/// Its user. Not the owner of its folder in `/proc`, which is root when it may not be dumped.
fn owner(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The network namespaces of all processes that can be looked at.
pub fn network_namespaces() -> BTreeSet<PathBuf> {
    let links = processes().into_iter().map(|(pid, _)| format!("/proc/{pid}/ns/net"));
    links.filter_map(|link| fs::read_link(link).ok()).collect()
}

/// Asserts that no helper, no agent and no network namespace is left. As root this sees the test program's own processes
/// alone; otherwise it looks for helpers of the same user.
#[track_caller]
pub fn assert_nothing_of_ours_runs() {
    let user = rustix::process::geteuid().as_raw();
    let is_root = user == 0;
    let own = std::process::id();
    let mut left = Vec::new();
    for _ in 0..100 {
        left = processes();
        left.retain(|(pid, command)| match is_root {
            // The first process of the namespace started us, and a program without arguments has been ended already.
            true => *pid != 1 && *pid != own && !command.is_empty(),
            false => command == "isolated-agents-helper" && owner(*pid) == Some(user),
        });
        if left.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(left.is_empty(), "still running: {left:?}");
    if is_root {
        let namespaces = network_namespaces();
        assert_eq!(namespaces.len(), 1, "{namespaces:?}");
    }
}
