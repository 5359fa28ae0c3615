//! From a plan to the body of a create call: pure but for looking at the host's paths.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use agents_core::{Error, MountSource, ProvisionRequest, Result, User};
use agents_guest::{MASKED_PATHS, Plan, PlannedMount, PlannedSource, READONLY_PATHS};
use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig,
    Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};

use crate::{
    facts::Facts,
    inspect::Image,
    program::{self, Access},
};

/// The label with a value of its own for each creation, by which one that was lost sight of is found.
pub(crate) const LABEL_CREATION: &str = "isolated-agents.creation";

/// Lets the agent be the owner of the folders that it may write to, since docker maps no users in mounts.
///
/// # Errors
///
/// `Unsupported` when that is not possible, `NotFound` when a folder is missing.
pub(crate) fn choose_user(request: &mut ProvisionRequest) -> Result<()> {
    let mut owner: Option<(User, &Path)> = None;
    for mount in &request.mounts {
        let MountSource::Bind { path } = &mount.source else {
            continue;
        };
        let metadata = fs::metadata(path).map_err(|error| {
            Error::io(
                format!("mount {}: cannot use {}", mount.destination, path.display()),
                error,
            )
        })?;
        let kind = metadata.file_type();
        if kind.is_socket() || kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            return Err(Error::invalid(format!(
                "mount {}: {} is a socket or a device; mount files and folders alone",
                mount.destination,
                path.display()
            )));
        }
        if mount.read_only {
            continue;
        }
        let user = User {
            uid: metadata.uid(),
            gid: metadata.gid(),
        };
        let refused = |why: String| {
            Err(Error::unsupported(format!(
                "mount {}: {why}; docker maps no users in mounts, so that an agent must be the owner of what it writes to",
                mount.destination
            )))
        };
        if user.uid == 0 {
            return refused(format!("{} belongs to root", path.display()));
        }
        if let Some(asked) = request.security.user
            && asked.uid != user.uid
        {
            return refused(format!(
                "{} belongs to {}, and container_user is {}",
                path.display(),
                user.uid,
                asked.uid
            ));
        }
        match owner {
            Some((other, at)) if other.uid != user.uid => {
                return refused(format!(
                    "{} and {} belong to different users",
                    path.display(),
                    at.display()
                ));
            }
            Some(_) => {}
            None => owner = Some((user, path)),
        }
    }
    if let Some((user, _)) = owner
        && request.security.user.is_none()
    {
        request.security.user = Some(user);
    }
    Ok(())
}

/// Where gVisor mounts writable file systems of its own accord, a `/tmp` and cgroups that are its kernel's own, unless there
/// is something else.
const GVISORS_OWN: [&str; 2] = ["/tmp", "/sys/fs/cgroup"];

/// The options of an empty place that nobody can write to.
const CLOSED: &str = "ro,nosuid,nodev,noexec,size=4096";

/// What a plan does not say.
pub(crate) struct Setting<'a> {
    pub(crate) image: &'a Image,
    pub(crate) facts: &'a Facts,
    /// The engine's name for the runtime; its default otherwise.
    pub(crate) runtime: Option<&'a str>,
    /// Whether the runtime is gVisor.
    pub(crate) gvisor: bool,
    /// The limit on processes, which the plan leaves to the program in gVisor.
    pub(crate) pids: Option<u64>,
    /// The file of hosts on the engine's host. Without it docker makes the network namespace, and a file of hosts.
    pub(crate) hosts: Option<&'a str>,
    /// Whether there is a main process.
    pub(crate) main: bool,
    /// The value of [`LABEL_CREATION`].
    pub(crate) creation: &'a str,
}

/// The body.
pub(crate) fn body(plan: &Plan, setting: &Setting<'_>) -> Result<ContainerCreateBody> {
    let mut mounts = vec![program::mount(Access::of_kernel(setting.gvisor))];
    let mut tmpfs = std::collections::HashMap::new();
    for mount in &plan.mounts {
        match (&mount.source, mount.tmpfs_options()) {
            (PlannedSource::Bind { path }, _) => mounts.push(bind(mount, path, setting)?),
            (_, Some(options)) => {
                let mut options = options.join(",");
                // Older versions of runc give the place the mode of the image's folder, so that only its owner can write.
                if let Some(user) = plan.user {
                    options.push_str(&format!(",uid={},gid={}", user.uid, user.gid));
                }
                tmpfs.insert(mount.destination.clone(), options);
            }
            _ => {
                return Err(Error::unsupported(format!(
                    "mount {}: docker has no such mount",
                    mount.destination
                )));
            }
        }
    }
    if let Some(hosts) = setting.hosts.filter(|_| !covered(plan, "/etc/hosts")) {
        mounts.push(Mount {
            target: Some("/etc/hosts".to_owned()),
            source: Some(hosts.to_owned()),
            typ: Some(MountType::BIND),
            read_only: Some(true),
            ..Mount::default()
        });
    }
    // An image's own volumes would be writable space without a limit, and docker makes no read-only ones.
    let volumes = setting.image.config.volumes.keys().map(String::as_str);
    let gvisors = GVISORS_OWN.iter().copied().filter(|_| setting.gvisor);
    for place in volumes.chain(gvisors).filter(|place| !covered(plan, place)) {
        tmpfs.insert(place.to_owned(), CLOSED.to_owned());
    }
    let security = [
        "no-new-privileges".to_owned(),
        format!("seccomp={}", plan.seccomp_profile),
    ];
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let memory = plan.memory_bytes.map(signed);
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let ulimit = |name: &str, value: u64| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(signed(value)),
        hard: Some(signed(value)),
    };
    let mut ulimits = vec![ulimit("core", 0)];
    // The guest program sets these limits itself, but in gVisor that of a further process does not hear of them.
    if setting.gvisor {
        ulimits.extend(plan.nofile.map(|most| ulimit("nofile", most)));
        ulimits.extend(setting.pids.map(|most| ulimit("nproc", most)));
    }
    let host_config = HostConfig {
        memory,
        memory_swap: memory.filter(|_| setting.facts.swap_limit),
        // Without accounts of swap, what counts against the limit is not swapped at all.
        memory_swappiness: memory
            .filter(|_| !setting.facts.swap_limit && setting.facts.cgroup_v1)
            .map(|_| 0),
        cpu_period: plan.cpu.map(|cpu| signed(cpu.period_us)),
        cpu_quota: plan.cpu.map(|cpu| signed(cpu.quota_us)),
        pids_limit: plan.pids.map(signed),
        ulimits: Some(ulimits),
        network_mode: Some("none".to_owned()),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(plan.capabilities.clone()),
        privileged: Some(false),
        readonly_rootfs: Some(plan.read_only_rootfs),
        security_opt: Some(security.to_vec()),
        masked_paths: Some(paths(MASKED_PATHS)),
        // The tree of cgroup v1 is on a file system of its own, which runc leaves writable.
        readonly_paths: Some([paths(READONLY_PATHS), paths(&["/sys/fs/cgroup"])].concat()),
        mounts: Some(mounts),
        tmpfs: Some(tmpfs),
        runtime: setting.runtime.map(str::to_owned),
        device_requests: plan.gpus.as_deref().map(gpus).transpose()?.map(|request| vec![request]),
        // What the guest program says is for whoever is attached, and would fill the engine's disk.
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        init: Some(false),
        auto_remove: Some(false),
        ..HostConfig::default()
    };
    let mut labels: std::collections::HashMap<_, _> = plan.labels.clone().into_iter().collect();
    labels.insert(LABEL_CREATION.to_owned(), setting.creation.to_owned());
    Ok(ContainerCreateBody {
        image: Some(setting.image.id.clone()),
        hostname: Some(plan.hostname.clone()),
        user: plan.user_text(),
        // An entrypoint leaves the image's own command out too.
        entrypoint: Some(plan.command.clone()),
        cmd: Some(Vec::new()),
        env: Some(plan.env_entries()),
        working_dir: Some(plan.working_dir.clone()),
        labels: Some(labels),
        open_stdin: Some(true),
        // When whoever started the main process is gone, the guest program hears of it by the end of its input.
        stdin_once: Some(setting.main),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(false),
        // The OCI runtime makes a namespace with nothing but loopback then, and docker none.
        network_disabled: setting.hosts.map(|_| true),
        // The engine would run the image's own check in the container.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        }),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    })
}

fn covered(plan: &Plan, place: &str) -> bool {
    let place = place.trim_end_matches('/');
    plan.mounts.iter().any(|mount| mount.destination == place)
}

fn bind(mount: &PlannedMount, path: &Path, setting: &Setting<'_>) -> Result<Mount> {
    let source = path
        .to_str()
        .ok_or_else(|| Error::invalid(format!("mount {}: the path {path:?} is not UTF-8", mount.destination)))?;
    let mut options = MountBindOptions {
        propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
        ..MountBindOptions::default()
    };
    if mount.read_only {
        // What is mounted below would stay writable: engines since 25 with runc or crun can make it read-only or fail, and
        // others can only leave it out.
        let able = |runtime: &str| {
            ["runc", "crun", "io.containerd.runc."]
                .iter()
                .any(|known| runtime.starts_with(known))
        };
        if setting.facts.api >= 44 && !setting.gvisor && setting.runtime.is_none_or(able) {
            options.read_only_force_recursive = Some(true);
        } else {
            options.non_recursive = Some(true);
        }
    }
    Ok(Mount {
        target: Some(mount.destination.clone()),
        source: Some(source.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(mount.read_only),
        bind_options: Some(options),
        ..Mount::default()
    })
}

/// Reads what `docker run --gpus` takes: `all`, a number, or fields such as `device=0,1` and `capabilities=utility`.
fn gpus(text: &str) -> Result<DeviceRequest> {
    let fault = |what: &str| {
        Error::invalid(format!(
            "gpus: {text:?} {what}; write all, a number, or \"device=0,1\" as for `docker run --gpus`"
        ))
    };
    let mut request = DeviceRequest::default();
    let mut capabilities = vec!["gpu".to_owned()];
    let mut devices: Vec<String> = Vec::new();
    let mut key = "";
    for word in text.trim_matches('"').split(',') {
        let value = match word.split_once('=') {
            Some((name, value)) => {
                key = name;
                value
            }
            None if key.is_empty() && word == "all" => {
                request.count = Some(-1);
                continue;
            }
            None if key.is_empty() => {
                let count = word.parse::<u32>().map_err(|_| fault("is neither all nor a number"))?;
                request.count = Some(i64::from(count));
                continue;
            }
            None => word,
        };
        if value.is_empty() || value.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(fault("has an empty or odd value"));
        }
        match key {
            "device" => devices.push(value.to_owned()),
            "count" if value == "all" => request.count = Some(-1),
            "count" => request.count = Some(i64::from(value.parse::<u32>().map_err(|_| fault("has an odd count"))?)),
            "driver" => request.driver = Some(value.to_owned()),
            "capabilities" => capabilities.push(value.to_owned()),
            _ => return Err(fault("has an unknown field")),
        }
    }
    if !devices.is_empty() {
        if request.count.is_some() {
            return Err(fault("has both a count and devices"));
        }
        request.device_ids = Some(devices);
    } else if request.count.is_none() {
        request.count = Some(1);
    }
    request.capabilities = Some(vec![capabilities]);
    Ok(request)
}
