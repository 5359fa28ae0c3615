//! What is in force inside.

use std::fs;

use agents_guest::protocol::FromGuest;
use rustix::{
    fs::{Access, StatVfsMountFlags, access, statvfs},
    process::{Resource, getrlimit},
};

use super::counters::memory_mounts;

/// The version of every kernel of gVisor, which is a constant of its source (pkg/sentry/syscalls/linux/linux64.go).
const GVISOR: &str = "#1 SMP Sun Jan 10 15:06:54 PST 2016";

pub(super) fn report() -> FromGuest {
    let mut fields = Vec::new();
    let mut add = |name: &str, value: Option<String>| fields.extend(value.map(|value| (name.to_owned(), value)));
    add("status", file("/proc/self/status"));
    let mountinfo = file("/proc/self/mountinfo");
    add("net_dev", file("/proc/self/net/dev"));
    add("kernel", file("/proc/version"));
    let uname = rustix::system::uname();
    let gvisor = uname.version().to_bytes() == GVISOR.as_bytes();
    add("gvisor", Some(u8::from(gvisor).to_string()));
    let root = statvfs("/").ok();
    add(
        "root_read_only",
        root.map(|root| u8::from(root.f_flag.contains(StatVfsMountFlags::RDONLY)).to_string()),
    );
    add(
        "nofile",
        getrlimit(Resource::Nofile).maximum.map(|most| most.to_string()),
    );
    add("nproc", getrlimit(Resource::Nproc).maximum.map(|most| most.to_string()));
    add(
        "memory_max",
        cgroup("memory.max").or_else(|| cgroup("memory/memory.limit_in_bytes")),
    );
    add("pids_max", cgroup("pids.max").or_else(|| cgroup("pids/pids.max")));
    let quota_and_period = || {
        Some(format!(
            "{} {}",
            cgroup("cpu/cpu.cfs_quota_us")?,
            cgroup("cpu/cpu.cfs_period_us")?
        ))
    };
    add("cpu_max", cgroup("cpu.max").or_else(quota_and_period));
    for (path, _) in memory_mounts(mountinfo.as_deref().unwrap_or_default()) {
        if let Ok(stat) = statvfs(path.as_str()) {
            let (size, free) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
            add(&format!("space {path}"), Some(format!("{size} {free}")));
            let writable = access(path.as_str(), Access::WRITE_OK).is_ok();
            add(&format!("writable {path}"), Some(u8::from(writable).to_string()));
        }
    }
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let link = fs::read_link(format!("/proc/self/ns/{kind}")).ok();
        add(
            &format!("ns {kind}"),
            link.map(|link| link.to_string_lossy().into_owned()),
        );
    }
    add("mountinfo", mountinfo);
    FromGuest::Report(fields)
}

fn file(path: &str) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
}

fn cgroup(name: &str) -> Option<String> {
    Some(file(&format!("/sys/fs/cgroup/{name}"))?.trim().to_owned())
}
