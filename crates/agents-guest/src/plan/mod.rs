//! From a request to what an engine is to be told, in terms that every engine has.

mod mounts;
mod seccomp;

use std::collections::BTreeMap;

use agents_core::{
    ContainerId, ContainerInfo, ContainerState, EffectiveState, Error, ErrorKind, ProvisionRequest, Result, SessionId,
    User, capability,
};
use jiff::Timestamp;

pub use self::{
    mounts::{PlannedMount, PlannedSource},
    seccomp::DEFAULT_SECCOMP_PROFILE,
};
use crate::{PROGRAM_SHA256, Report, init_command};

/// The label with the session.
pub const LABEL_SESSION: &str = "isolated-agents.session";

/// The label with the image as it was asked for.
pub const LABEL_IMAGE: &str = "isolated-agents.image";

/// The label with the SHA-256 of the guest program that the container has.
pub const LABEL_GUEST: &str = "isolated-agents.guest";

/// The runtime class of sandboxes of gVisor, on every runtime.
pub const GVISOR: &str = "gvisor";

/// The user of an image that names none, or root.
const DEFAULT_USER: User = User { uid: 1000, gid: 1000 };

/// What an engine is to be told. An adapter translates it into its engine's own notation, field by field; a field that it
/// cannot translate must be one that its capabilities refuse.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// The container's name.
    pub name: String,
    /// The host's name inside.
    pub hostname: String,
    /// The image.
    pub image: String,
    /// The command of the container: the guest program.
    pub command: Vec<String>,
    /// The user. `None` leaves it to the image, whose user has a name that only the engine can look up; what is read back
    /// says whether it is root.
    pub user: Option<User>,
    /// The capabilities to keep, by name (`CAP_NET_BIND_SERVICE`); all others are dropped.
    pub capabilities: Vec<String>,
    /// Whether the root is read-only.
    pub read_only_rootfs: bool,
    /// The mounts, outer mount points before those inside of them, without the program's own at
    /// [`PROGRAM_DIR`](crate::PROGRAM_DIR), which depends on the engine.
    pub mounts: Vec<PlannedMount>,
    /// Memory in bytes, whole pages. Memory with swap is to be limited to the same.
    pub memory_bytes: Option<u64>,
    /// CPU time.
    pub cpu: Option<CpuQuota>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Open files of a process. The program sets this limit itself, so that an engine need not.
    pub nofile: Option<u64>,
    /// Environment of the container.
    pub env: Vec<(String, String)>,
    /// The working directory of the container.
    pub working_dir: String,
    /// The labels: the request's and ours.
    pub labels: BTreeMap<String, String>,
    /// The seccomp profile, as JSON.
    pub seccomp_profile: String,
    /// The runtime class.
    pub runtime_class: Option<String>,
    /// Graphics processors, in the engine's own notation.
    pub gpus: Option<String>,
    /// Ports to carry to the host's loopback interface, with [`connect_command`](crate::connect_command).
    pub ingress_ports: Vec<u16>,
}

/// CPU time: so many microseconds in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuQuota {
    /// The microseconds.
    pub quota_us: u64,
    /// The period.
    pub period_us: u64,
}

impl CpuQuota {
    /// The kernel's own period, and a quota that is never above what was asked for.
    fn of_cores(cores: f64) -> Self {
        const PERIOD: u64 = 100_000;
        // The kernel refuses less than a millisecond.
        let quota = (cores * PERIOD as f64).floor().max(1000.0);
        Self {
            quota_us: quota as u64,
            period_us: PERIOD,
        }
    }
}

impl Plan {
    /// Plans a request. `image_user` is the `User` of the image's configuration.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for a mount at a place that is the runtime's own, an unknown capability, or a seccomp profile that is
    /// none; `NotFound` for one that does not exist.
    pub fn new(request: &ProvisionRequest, image_user: Option<&str>) -> Result<Self> {
        let security = &request.security;
        for name in &security.capabilities {
            capability(name).ok_or_else(|| Error::invalid(format!("cap_add: {name:?} is unknown")))?;
        }
        let ours = [
            (LABEL_SESSION, request.session_id.as_str()),
            (LABEL_IMAGE, &request.image),
            (LABEL_GUEST, PROGRAM_SHA256),
        ];
        let ours = ours.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let resources = &request.resources;
        Ok(Self {
            name: request.name.as_str().to_owned(),
            hostname: hostname(request.name.as_str()),
            image: request.image.clone(),
            command: init_command(resources.nofile, None),
            user: match security.user {
                Some(user) => Some(user),
                None => user_of_image(image_user.unwrap_or_default()),
            },
            capabilities: security.capabilities.clone(),
            read_only_rootfs: security.read_only_rootfs,
            mounts: mounts::plan(request)?,
            memory_bytes: resources.memory_bytes.map(whole_pages),
            cpu: resources.cpu_cores.map(CpuQuota::of_cores),
            pids: resources.pids,
            nofile: resources.nofile,
            env: request.env.clone(),
            working_dir: request.working_dir.clone(),
            labels: request.labels.clone().into_iter().chain(ours).collect(),
            seccomp_profile: seccomp::profile(security.seccomp_profile.as_deref())?,
            runtime_class: security.runtime_class.clone(),
            gpus: security.gpus.clone(),
            ingress_ports: request.network.ingress_ports.clone(),
        })
    }

    /// The plan on gVisor's kernel. The program holds the limit on processes, and not the engine, since a cgroup would count
    /// that kernel's threads; what is read back is [`Report::effective`] then. And the profile is worded so that gVisor
    /// answers the same as Linux.
    #[must_use]
    pub fn on_gvisor(mut self) -> Self {
        self.command = init_command(self.nofile, self.pids.take());
        self.seccomp_profile = seccomp::for_gvisor(self.seccomp_profile);
        self
    }

    /// The environment as `NAME=VALUE`.
    pub fn env_entries(&self) -> Vec<String> {
        self.env.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// The user as engines write it.
    pub fn user_text(&self) -> Option<String> {
        self.user.map(|user| format!("{}:{}", user.uid, user.gid))
    }

    /// What is in force by the program's report: [`Report::effective`] with the writable space.
    pub fn effective(&self, report: &Report) -> EffectiveState {
        let mut state = report.effective();
        let scratch = self.mounts.iter().filter(|mount| mount.source.is_scratch());
        // A root that can be written to has no size of its own; an adapter that limits it says how much.
        state.disk_bytes = scratch
            .map(|mount| report.space(&mount.destination).map(|(size, _)| size))
            .sum::<Option<u64>>()
            .filter(|_| self.read_only_rootfs);
        state
    }

    /// Compares what [`EffectiveState::compare`] does not: the sizes and kinds of memory-backed mounts, further groups, and
    /// mounts that can be written to without having been asked for.
    ///
    /// # Errors
    ///
    /// `EnforcementMismatch` that names every difference. The adapter destroys the container then.
    pub fn check(&self, report: &Report) -> Result<()> {
        let mut different = Vec::new();
        match report.further_groups() {
            Some(groups) if groups.is_empty() => {}
            Some(groups) => different.push(format!("the processes have the further groups {groups:?}")),
            None => different.push("the groups of the processes cannot be read".to_owned()),
        }
        different.extend(self.mounts.iter().filter_map(|mount| mount.difference(report)));
        for mount in report.effective().mounts.unwrap_or_default() {
            let known = self
                .mounts
                .iter()
                .any(|planned| planned.destination == mount.destination);
            if !mount.read_only && !known && !may_be_writable(&mount.destination, self.read_only_rootfs) {
                different.push(format!("{} can be written to", mount.destination));
            }
        }
        if different.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::EnforcementMismatch,
            format!(
                "the container differs from what was requested: {}",
                different.join("; ")
            ),
        ))
    }
}

/// What engines mount writable on their own and an agent that is not root cannot use to keep anything, or not more than the
/// memory limit bounds: the places of the kernel, the devices with their terminals and shared memory, and the files about
/// the host's name.
fn may_be_writable(destination: &str, read_only_rootfs: bool) -> bool {
    let below = |folder: &str| {
        destination
            .strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    const OF_THE_ENGINE: [&str; 6] = [
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/run/.containerenv",
        "/etc/mtab",
        // Where cgroup v1 has its hierarchies mounted, each of which is read-only.
        "/sys/fs/cgroup",
    ];
    below("/proc") || below("/dev") || OF_THE_ENGINE.contains(&destination) || destination == "/" && !read_only_rootfs
}

/// Refuses the images that only the embedded runtime has, before an engine looks for one of that name in a registry.
///
/// # Errors
///
/// `Unsupported` for `host`, a folder, or a file of an image.
pub fn check_engine_image(image: &str) -> Result<()> {
    const OF_FILES: [&str; 4] = ["oci:", "oci-archive:", "docker-archive:", "archive:"];
    let is_path = image.starts_with('/') || image.starts_with("./") || image.starts_with("../");
    if image == "host" || is_path || OF_FILES.iter().any(|scheme| image.starts_with(scheme)) {
        return Err(Error::unsupported(format!(
            "image: {image:?} is an image of the embedded runtime alone; name one that the engine has or can pull, or choose \
             the runtime `native` (`--runtime native`)"
        )));
    }
    Ok(())
}

/// A container that an engine knows, from its labels; `None` for one that is not of this SDK.
pub fn container_info(
    name: &str,
    labels: &BTreeMap<String, String>,
    state: ContainerState,
    created_at: Timestamp,
) -> Option<ContainerInfo> {
    let id = ContainerId::new(name).ok()?;
    let session = SessionId::new(labels.get(LABEL_SESSION)?.as_str()).ok()?;
    let image = labels.get(LABEL_IMAGE).map(String::as_str).unwrap_or_default();
    Some(ContainerInfo::found(id, session, state, image, created_at).with_labels(labels.clone()))
}

/// The kernel counts in pages, and a limit must never be above what was asked for.
fn whole_pages(bytes: u64) -> u64 {
    (bytes / 4096).max(1) * 4096
}

/// The name of a container as a host's name, which has at most 63 letters, digits and hyphens (RFC 1123).
fn hostname(name: &str) -> String {
    let clean = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let text: String = name.chars().map(clean).take(63).collect();
    let text = text.trim_matches('-');
    if text.is_empty() {
        "agent".to_owned()
    } else {
        text.to_owned()
    }
}

/// The image's user when it has a number, and `None` when the engine has to look its name up.
fn user_of_image(text: &str) -> Option<User> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if matches!(user, "" | "root" | "0") {
        return Some(DEFAULT_USER);
    }
    let uid = user.parse().ok()?;
    let gid = match group {
        Some(group) => group.parse().ok()?,
        None => uid,
    };
    if uid == 0 || gid == 0 {
        Some(DEFAULT_USER)
    } else {
        Some(User { uid, gid })
    }
}

#[cfg(test)]
mod tests;
