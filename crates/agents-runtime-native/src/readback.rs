//! What is in force, read from the kernel: by the container's first process, and from the host.

use std::{
    fs,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::Path,
};

use agents_core::{EffectiveMount, EffectiveState};
use rustix::{
    fs::{StatVfsMountFlags, statvfs},
    process::{Pid, Resource, getrlimit},
};

use crate::spec::{ContainerSpec, Source};

/// Read inside, after every privilege was given up.
pub(crate) fn inside(spec: &ContainerSpec) -> EffectiveState {
    let mut state = status("/proc/self/status");
    state.read_only_rootfs = statvfs("/")
        .ok()
        .map(|root| root.f_flag.contains(StatVfsMountFlags::RDONLY));
    state.mounts = fs::read_to_string("/proc/self/mountinfo")
        .ok()
        .map(|text| mounts(&text));
    state.network_interfaces = fs::read_to_string("/proc/self/net/dev").ok().map(|text| {
        // Two lines of titles, then `name: counters`, proc_pid_net(5).
        text.lines()
            .skip(2)
            .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
            .collect()
    });
    state.nofile = getrlimit(Resource::Nofile).maximum;
    if spec.identity.group.is_none() {
        state.pids = getrlimit(Resource::Nproc).maximum;
    }
    let scratch = spec.mounts.iter().find(|mount| mount.source == Source::Scratch);
    state.disk_bytes = match scratch {
        Some(mount) => disk(Path::new(&mount.destination)),
        // Nothing can be written to at all.
        None => Some(0),
    };
    state
}

/// The size of the file system at a path, in bytes.
fn disk(path: &Path) -> Option<u64> {
    let stat = statvfs(path).ok()?;
    Some(stat.f_blocks * stat.f_frsize)
}

/// The bytes in use of the file system at a path.
pub(crate) fn disk_used(path: &Path) -> Option<(u64, u64)> {
    let stat = statvfs(path).ok()?;
    Some((
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize,
        stat.f_bavail * stat.f_frsize,
    ))
}

/// Adds what only the host can tell, and lets the stricter reading of neither side hide the laxer one of the other.
pub(crate) fn outside(
    mut state: EffectiveState,
    spec: &ContainerSpec,
    pid: Pid,
    private_namespaces: Option<Vec<String>>,
) -> EffectiveState {
    let seen = status(&format!("/proc/{}/status", pid.as_raw_nonzero()));
    state.capabilities = match (state.capabilities.take(), seen.capabilities) {
        (Some(mut inside), Some(outside)) => {
            inside.extend(outside);
            inside.sort();
            inside.dedup();
            Some(inside)
        }
        _ => None,
    };
    state.no_new_privileges = both(state.no_new_privileges, seen.no_new_privileges);
    state.seccomp_filter = both(state.seccomp_filter, seen.seccomp_filter);
    state.private_namespaces = private_namespaces;
    if let Some(group) = &spec.identity.group {
        let limits = group.limits();
        state.memory_bytes = limits.memory_bytes;
        state.cpu_cores = limits.cpu_cores;
        state.pids = limits.pids;
    }
    state
}

fn both(inside: Option<bool>, outside: Option<bool>) -> Option<bool> {
    Some(inside? && outside?)
}

/// The fields of `/proc/PID/status`, see proc_pid_status(5).
fn status(path: &str) -> EffectiveState {
    let mut state = EffectiveState::unread();
    let Ok(text) = fs::read_to_string(path) else {
        return state;
    };
    let mut sets = 0u64;
    let mut found = 0;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match key {
            "CapInh" | "CapPrm" | "CapEff" | "CapBnd" | "CapAmb" => {
                if let Ok(bits) = u64::from_str_radix(value, 16) {
                    sets |= bits;
                    found += 1;
                }
            }
            "NoNewPrivs" => state.no_new_privileges = Some(value == "1"),
            // 2 is SECCOMP_MODE_FILTER.
            "Seccomp" => state.seccomp_filter = Some(value == "2"),
            "Uid" => state.uid = value.split_whitespace().next().and_then(|uid| uid.parse().ok()),
            "Gid" => state.gid = value.split_whitespace().next().and_then(|gid| gid.parse().ok()),
            _ => {}
        }
    }
    state.capabilities = (found == 5).then(|| names(sets));
    state
}

fn names(sets: u64) -> Vec<String> {
    (0..64u8)
        .filter(|number| sets & (1 << number) != 0)
        .map(agents_core::policy::capability_name)
        .collect()
}

/// The last mount at each place, which is the one that is seen.
fn mounts(mountinfo: &str) -> Vec<EffectiveMount> {
    let mut mounts: Vec<EffectiveMount> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut left = left.split(' ').skip(4);
        let (Some(target), Some(options)) = (left.next(), left.next()) else {
            continue;
        };
        let super_options = right.rsplit(' ').next().unwrap_or_default();
        let ro = |options: &str| options.split(',').any(|option| option == "ro");
        let destination = unescape(target);
        let read_only = ro(options) || ro(super_options);
        mounts.retain(|mount| mount.destination != destination);
        mounts.push(EffectiveMount { destination, read_only });
    }
    mounts
}

/// Blanks, tabs, new lines and backslashes are written as `\` with three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(value) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(value);
            rest = &tail[3..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    std::ffi::OsString::from_vec(bytes).to_string_lossy().into_owned()
}

/// The kinds of namespaces that are not our own: each is a file of its own on the kernel's namespace file system.
pub(crate) fn private_namespaces(namespaces: &[(&str, &OwnedFd)]) -> Option<Vec<String>> {
    let mut private = Vec::new();
    for (kind, namespace) in namespaces {
        let theirs = rustix::fs::fstat(namespace).ok()?;
        let ours = rustix::fs::stat(format!("/proc/self/ns/{kind}")).ok()?;
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino) {
            private.push((*kind).to_owned());
        }
    }
    private.sort();
    Some(private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts_and_escapes_are_read() {
        let text = "1 0 0:1 / /a rw - tmpfs tmpfs rw\n2 1 0:2 / /a ro - tmpfs tmpfs rw\n3 1 0:3 / /b\\040c rw - ext4 /dev/x ro\n";
        let mounts = mounts(text);
        assert_eq!(mounts.len(), 2);
        assert!(mounts[0].read_only && mounts[0].destination == "/a");
        assert!(mounts[1].read_only && mounts[1].destination == "/b c");
    }

    #[test]
    fn capabilities_have_names() {
        assert_eq!(names(0b1), ["CAP_CHOWN"]);
        assert_eq!(names(1 << 63), ["CAP_63"]);
    }
}
