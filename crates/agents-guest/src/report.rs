//! What the program has read about its own container.

use std::{collections::BTreeMap, fs};

use agents_core::{EffectiveMount, EffectiveState};

/// What the program read inside, before anything of the agent's ran. Every field may be missing, and none passes for "as
/// requested" then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    fields: BTreeMap<String, String>,
}

/// The kinds of namespaces that are compared.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// What the host's first namespaces are called everywhere, from the kernel's `proc_ns.h`: a container with one of these has
/// the host's, whichever host that is.
const INITIAL: [&str; 5] = [
    "ipc:[4026531839]",
    "uts:[4026531838]",
    "user:[4026531837]",
    "pid:[4026531836]",
    "cgroup:[4026531835]",
];

impl Report {
    pub(crate) fn new(fields: Vec<(String, String)>) -> Self {
        Self {
            fields: fields.into_iter().collect(),
        }
    }

    /// A field by its name.
    fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.trim().parse().ok()
    }

    /// A field of `/proc/self/status`, proc_pid_status(5).
    fn status(&self, key: &str) -> Option<&str> {
        let lines = self.get("status")?.lines();
        lines
            .filter_map(|line| line.split_once(':'))
            .find_map(|(name, value)| (name == key).then(|| value.trim()))
    }

    /// All that can be told from inside. What the engine or the host's kernel knows better, such as limits where the
    /// container sees no cgroups, is for the adapter to set; [`Plan::effective`](crate::Plan::effective) adds the writable
    /// space.
    ///
    /// Namespaces are compared with those of the calling process and with what every host's first ones are called.
    pub fn effective(&self) -> EffectiveState {
        let mut state = EffectiveState::unread();
        state.capabilities = self.capabilities();
        state.no_new_privileges = self.status("NoNewPrivs").map(|value| value == "1");
        // 2 is SECCOMP_MODE_FILTER.
        state.seccomp_filter = self.status("Seccomp").map(|value| value == "2");
        state.uid = self.first_id("Uid");
        state.gid = self.first_id("Gid");
        state.mounts = self.get("mountinfo").map(mounts);
        state.read_only_rootfs = self.number::<u8>("root_read_only").map(|value| value == 1);
        if self.is_gvisor() {
            // What gVisor shows as a cgroup is its own and limits nothing; this limit it holds.
            state.pids = self.number("nproc");
        } else {
            state.memory_bytes = self.get("memory_max").and_then(limit);
            state.cpu_cores = self.get("cpu_max").and_then(cores);
            state.pids = self.get("pids_max").and_then(limit);
        }
        state.nofile = self.number("nofile");
        state.network_interfaces = self.get("net_dev").map(interfaces);
        state.private_namespaces = self.private_namespaces(&own_namespaces());
        state
    }

    /// The union of the five sets.
    fn capabilities(&self) -> Option<Vec<String>> {
        let mut sets = 0u64;
        for key in ["CapInh", "CapPrm", "CapEff", "CapBnd"] {
            sets |= u64::from_str_radix(self.status(key)?, 16).ok()?;
        }
        // gVisor does not name the ambient set, which never has more than the permitted and the inheritable one,
        // capabilities(7).
        if let Some(ambient) = self.status("CapAmb") {
            sets |= u64::from_str_radix(ambient, 16).ok()?;
        }
        let names = (0..64u8).filter(|number| sets & (1 << number) != 0);
        Some(names.map(agents_core::policy::capability_name).collect())
    }

    fn first_id(&self, key: &str) -> Option<u32> {
        self.status(key)?.split_whitespace().next()?.parse().ok()
    }

    /// The supplementary groups beyond the primary one.
    pub fn further_groups(&self) -> Option<Vec<u32>> {
        let primary = self.first_id("Gid");
        let groups = self.status("Groups")?.split_whitespace();
        let groups: Result<Vec<u32>, _> = groups.map(str::parse).collect();
        Some(
            groups
                .ok()?
                .into_iter()
                .filter(|group| Some(*group) != primary)
                .collect(),
        )
    }

    /// The kernel's own words about itself, `/proc/version`.
    pub fn kernel(&self) -> Option<&str> {
        self.get("kernel").map(str::trim_end)
    }

    /// Whether the kernel is gVisor's, which answers some questions differently.
    pub fn is_gvisor(&self) -> bool {
        self.get("gvisor") == Some("1")
    }

    /// The size and the free space of the file system at a mount point, in bytes.
    pub fn space(&self, destination: &str) -> Option<(u64, u64)> {
        let (size, free) = self.get(&format!("space {destination}"))?.split_once(' ')?;
        Some((size.parse().ok()?, free.parse().ok()?))
    }

    /// Whether the agent may write to a memory-backed mount point, by its owner and mode.
    pub fn may_write(&self, destination: &str) -> Option<bool> {
        self.number::<u8>(&format!("writable {destination}"))
            .map(|value| value == 1)
    }

    /// The type of the file system at a mount point.
    pub fn file_system(&self, destination: &str) -> Option<String> {
        let lines = self.get("mountinfo")?.lines();
        let of_line = |line: &str| {
            let (left, right) = line.split_once(" - ")?;
            let target = left.split(' ').nth(4)?;
            (unescape(target) == destination).then(|| right.split(' ').next().map(str::to_owned))?
        };
        lines.rev().find_map(of_line)
    }

    /// A namespace's name inside, such as `net:[4026532008]`.
    pub fn namespace(&self, kind: &str) -> Option<&str> {
        self.get(&format!("ns {kind}"))
    }

    /// The kinds of namespaces that are neither among the given ones, by kind and name, nor a host's first.
    pub fn private_namespaces(&self, others: &BTreeMap<String, String>) -> Option<Vec<String>> {
        let mut private = Vec::new();
        let mut any = false;
        for kind in NAMESPACES {
            let Some(name) = self.namespace(kind) else { continue };
            any = true;
            let shared = others.get(kind).is_some_and(|other| other == name) || INITIAL.contains(&name);
            // Namespaces of a kernel of its own are its own, whatever they are called.
            if !shared || self.is_gvisor() {
                private.push(kind.to_owned());
            }
        }
        any.then_some(private)
    }
}

/// The namespaces of the calling process, by kind.
pub fn own_namespaces() -> BTreeMap<String, String> {
    let name = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).ok();
    NAMESPACES
        .into_iter()
        .filter_map(|kind| Some((kind.to_owned(), name(kind)?.to_str()?.to_owned())))
        .collect()
}

/// A number, or `max`, which is read as the largest one: that there is no limit was read too, and must not pass for a file
/// that could not be.
fn limit(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// `cpu.max` or what stands for it on cgroup v1: a quota and a period. No quota is `max` or below 0.
fn cores(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let period: f64 = period.parse().ok().filter(|period| *period > 0.0)?;
    match quota {
        "max" => Some(f64::INFINITY),
        quota => {
            let quota: f64 = quota.parse().ok()?;
            Some(if quota > 0.0 { quota / period } else { f64::INFINITY })
        }
    }
}

/// Two lines of titles, then `name: counters`, proc_pid_net(5).
fn interfaces(text: &str) -> Vec<String> {
    let lines = text.lines().skip(2);
    lines
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
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
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(fields: &[(&str, &str)]) -> Report {
        Report::new(
            fields
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn nothing_read_is_nothing_in_force() {
        let state = Report::default().effective();
        assert_eq!(state, EffectiveState::unread());
    }

    #[test]
    fn the_status_is_read() {
        let status = "Name:\tguest\nUid:\t1000\t1000\t1000\t1000\nGid:\t1001\t1001\t1001\t1001\nGroups:\t1001 27\n\
                      CapInh:\t0000000000000000\nCapPrm:\t0\nCapEff:\t0\nCapBnd:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        let report = report(&[
            ("status", status),
            ("nofile", "64"),
            ("cpu_max", "50000 100000\n"),
            ("pids_max", "max"),
        ]);
        let state = report.effective();
        assert_eq!(state.capabilities, Some(vec!["CAP_NET_BIND_SERVICE".to_owned()]));
        assert_eq!(
            (state.no_new_privileges, state.seccomp_filter),
            (Some(true), Some(true))
        );
        assert_eq!((state.uid, state.gid), (Some(1000), Some(1001)));
        assert_eq!(
            (state.nofile, state.pids, state.cpu_cores),
            (Some(64), Some(u64::MAX), Some(0.5))
        );
        assert_eq!(report.further_groups(), Some(vec![27]));
        let sandboxed = Report::new(vec![
            ("memory_max".into(), "4096".into()),
            ("gvisor".into(), "1".into()),
        ]);
        assert_eq!(sandboxed.effective().memory_bytes, None);
    }

    #[test]
    fn the_topmost_mount_counts_and_escapes_are_read() {
        let text = "1 0 0:1 / /a rw - tmpfs tmpfs rw\n2 1 0:2 / /a ro - tmpfs tmpfs rw\n3 1 0:3 / /b\\040c rw - ext4 /dev/x ro\n";
        let report = report(&[("mountinfo", text)]);
        let mounts = report.effective().mounts.unwrap();
        assert_eq!(mounts.len(), 2);
        assert!(mounts[0].read_only && mounts[0].destination == "/a");
        assert!(mounts[1].read_only && mounts[1].destination == "/b c");
        assert_eq!(report.file_system("/b c").as_deref(), Some("ext4"));
    }

    #[test]
    fn shared_namespaces_are_not_private() {
        let fields = [
            ("ns pid", "pid:[4026531836]"),
            ("ns net", "net:[7]"),
            ("ns mnt", "mnt:[8]"),
        ];
        let others = BTreeMap::from([("net".to_owned(), "net:[7]".to_owned())]);
        assert_eq!(
            report(&fields).private_namespaces(&others),
            Some(vec!["mnt".to_owned()])
        );
        let sandboxed = report(&[fields[0], fields[1], fields[2], ("gvisor", "1")]);
        assert_eq!(sandboxed.private_namespaces(&others).map(|all| all.len()), Some(3));
        assert_eq!(report(&[]).private_namespaces(&others), None);
    }

    #[test]
    fn no_limit_is_told_from_what_cannot_be_read() {
        for text in ["max 100000", "-1 100000"] {
            assert_eq!(cores(text), Some(f64::INFINITY), "{text}");
        }
        for text in ["", "x y", "100000 0", "max"] {
            assert_eq!(cores(text), None, "{text}");
        }
        assert_eq!(
            (limit("max\n"), limit("7\n"), limit("")),
            (Some(u64::MAX), Some(7), None)
        );
    }
}
