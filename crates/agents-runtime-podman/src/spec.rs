//! From the plan to libpod's `SpecGenerator`. What an engine does not know of it it ignores, so that whatever matters is
//! read back afterwards.

use std::path::Path;

use agents_core::{Error, ErrorKind, Result};
use agents_guest::{MASKED_PATHS, PROGRAM_DIR, Plan, PlannedMount, PlannedSource};
use serde_json::{Map, Value, json};

use crate::engine::Engine;

/// Where the engine finds what is ours.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The mount that brings the guest program.
    pub(crate) program: ProgramMount,
    /// The seccomp profile, a path on the engine's host.
    pub(crate) seccomp_profile: String,
}

/// How the guest program comes into the container.
#[derive(Debug)]
pub(crate) enum ProgramMount {
    /// A folder of the engine's host.
    Folder(String),
    /// A volume of the engine.
    Volume(String),
}

/// Makes the specification. `image` is the image's identifier.
pub(crate) fn specification(
    plan: &Plan,
    image: &str,
    engine: &Engine,
    delivery: &Delivery,
    relabel: bool,
) -> Result<Value> {
    let mut mounts = Vec::new();
    let gvisor = engine.is_gvisor(plan.runtime_class.as_deref());
    if gvisor {
        mounts.extend(of_gvisor(plan));
    }
    for mount in &plan.mounts {
        mounts.push(self::mount(mount, relabel && engine.selinux)?);
    }
    let mut spec = json!({
        "name": plan.name,
        "hostname": plan.hostname,
        "image": image,
        // An empty list, unlike none, also overrides the image's own.
        "entrypoint": [],
        "command": plan.command,
        "stdin": true,
        "terminal": false,
        "env": plan.env.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect::<Map<_, _>>(),
        "env_host": false,
        "httpproxy": false,
        "labels": plan.labels,
        "work_dir": plan.working_dir,
        "cap_drop": ["ALL"],
        "cap_add": plan.capabilities,
        "no_new_privileges": true,
        "privileged": false,
        "read_only_filesystem": plan.read_only_rootfs,
        "read_write_tmpfs": false,
        "seccomp_policy": "default",
        "seccomp_profile_path": delivery.seccomp_profile,
        "mask": MASKED_PATHS,
        "netns": { "nsmode": "none" },
        "pidns": { "nsmode": "private" },
        "ipcns": { "nsmode": "private" },
        "utsns": { "nsmode": "private" },
        "cgroupns": { "nsmode": "private" },
        // Neither files about the host's names and resolvers, nor anonymous volumes, which nothing would bound.
        "use_image_hosts": true,
        "use_image_resolve_conf": true,
        "image_volume_mode": "ignore",
        // Nothing of what is printed is kept by the engine, and nothing runs inside but what is asked for.
        "log_configuration": { "driver": "none" },
        "healthconfig": { "Test": ["NONE"] },
        "systemd": "false",
        "init": false,
        "sdnotifyMode": "ignore",
        "restart_policy": "no",
        "remove": false,
        "stop_timeout": 0,
    });
    let mut set = |key: &str, value: Value| {
        if let Some(fields) = spec.as_object_mut() {
            fields.insert(key.to_owned(), value);
        }
    };
    if let Some(user) = plan.user_text() {
        set("user", user.into());
    }
    if gvisor {
        // Without it gVisor leaves the profile aside; everybody may switch it on, and nobody off.
        set("annotations", json!({ "dev.gvisor.flag.oci-seccomp": "true" }));
    }
    if let Some(most) = plan.nofile.filter(|_| gvisor) {
        // The guest program sets it itself, and cannot tell further processes of it under gVisor, where nobody may read
        // another's limits. Elsewhere an engine that is told one limit tries to raise the others.
        set("r_limits", json!([{ "type": "NOFILE", "soft": most, "hard": most }]));
    }
    if let Some(limits) = limits(plan) {
        set("resource_limits", limits);
    }
    if let Some(class) = &plan.runtime_class {
        set("oci_runtime", Engine::runtime_of(class).into());
    }
    if let Some(namespace) = user_namespace(plan, engine)? {
        set("userns", namespace);
    }
    match &delivery.program {
        ProgramMount::Folder(folder) => {
            let mut options = vec!["ro", "bind", "rprivate", "nosuid", "nodev"];
            // The folder is ours and holds nothing but the program.
            options.extend(engine.selinux.then_some("z"));
            mounts.insert(
                0,
                json!({ "type": "bind", "source": folder, "destination": PROGRAM_DIR, "options": options }),
            );
        }
        ProgramMount::Volume(name) => set(
            "volumes",
            json!([{ "Name": name, "Dest": PROGRAM_DIR, "Options": ["ro", "nosuid", "nodev", "nocopy"] }]),
        ),
    }
    set("mounts", mounts.into());
    Ok(spec)
}

/// What gVisor would mount writable on its own: its own cgroups, which limit nothing, and memory without a bound at `/tmp`
/// where that is empty.
fn of_gvisor(plan: &Plan) -> impl Iterator<Item = Value> {
    let taken = |place: &str| plan.mounts.iter().any(|mount| mount.destination == place);
    let places = ["/sys/fs/cgroup", "/tmp"]
        .into_iter()
        .filter(move |place| !taken(place));
    places.map(|place| {
        let options = [
            "ro",
            "nosuid",
            "nodev",
            "noexec",
            "mode=0555",
            "size=4096",
            "notmpcopyup",
        ];
        json!({ "type": "tmpfs", "source": "tmpfs", "destination": place, "options": options })
    })
}

fn limits(plan: &Plan) -> Option<Value> {
    let mut limits = Map::new();
    if let Some(bytes) = plan.memory_bytes {
        // Swap is memory with swap, as the OCI has it: no swap at all.
        limits.insert("memory".to_owned(), json!({ "limit": bytes, "swap": bytes }));
    }
    if let Some(cpu) = plan.cpu {
        limits.insert(
            "cpu".to_owned(),
            json!({ "quota": cpu.quota_us, "period": cpu.period_us }),
        );
    }
    if let Some(pids) = plan.pids {
        limits.insert("pids".to_owned(), json!({ "limit": pids }));
    }
    (!limits.is_empty()).then_some(limits.into())
}

/// In a rootless container nobody but root is the caller, unless another user is mapped to the caller.
fn user_namespace(plan: &Plan, engine: &Engine) -> Result<Option<Value>> {
    let binds = plan
        .mounts
        .iter()
        .any(|mount| matches!(mount.source, PlannedSource::Bind { .. }));
    if !engine.rootless || !binds {
        return Ok(None);
    }
    let Some(user) = plan.user else {
        return Err(Error::unsupported(
            "container_user: the image's user has a name only, and podman must know the number to give it the caller's files; \
             set container_user to uid:gid",
        ));
    };
    if engine.at_least(4, 3) {
        return Ok(Some(json!({
            "nsmode": "keep-id",
            "value": format!("uid={},gid={}", user.uid, user.gid),
        })));
    }
    // Older ones know only the caller's own numbers.
    match engine.owner {
        Some(owner) if owner == (user.uid, user.gid) => Ok(Some(json!({ "nsmode": "keep-id" }))),
        Some((uid, gid)) => Err(Error::unsupported(format!(
            "container_user: with mounts, podman {} can only run as the caller; set container_user to {uid}:{gid}, or use podman 4.3",
            engine.version
        ))),
        None => Err(Error::unsupported(
            "mounts: it is not known who runs the engine; use podman 4.3 or later",
        )),
    }
}

fn mount(mount: &PlannedMount, relabel: bool) -> Result<Value> {
    let destination = &mount.destination;
    match &mount.source {
        PlannedSource::Bind { path } => {
            let source = utf8(path)?;
            let access = if mount.read_only { "ro" } else { "rw" };
            let mut options = vec![access, "bind", "rprivate", "nosuid", "nodev"];
            options.extend(relabel.then_some("Z"));
            Ok(json!({ "type": "bind", "source": source, "destination": destination, "options": options }))
        }
        PlannedSource::Tmpfs { .. } => {
            let mut options = mount.tmpfs_options().unwrap_or_default();
            // Nothing of the image is copied into it.
            options.push("notmpcopyup".to_owned());
            Ok(json!({ "type": "tmpfs", "source": "tmpfs", "destination": destination, "options": options }))
        }
        _ => Err(Error::unsupported(format!(
            "mount {destination}: podman does not know this kind of mount"
        ))),
    }
}

/// JSON has no other names.
pub(crate) fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "mount {}: the path is not UTF-8, which podman's API needs; rename it",
                path.display()
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use agents_core::{ContainerId, Mount, ProvisionRequest, ResourceLimits, SecurityConfig, SessionId, User};

    use super::*;

    fn spec(request: &ProvisionRequest, image_user: &str, engine: &Engine) -> Result<Value> {
        let plan = Plan::new(request, Some(image_user))?;
        let delivery = Delivery {
            program: ProgramMount::Folder("/data/guest".to_owned()),
            seccomp_profile: "/data/profile.json".to_owned(),
        };
        specification(&plan, "abc", engine, &delivery, true)
    }

    fn request() -> ProvisionRequest {
        let session = SessionId::generate();
        ProvisionRequest::new(session, ContainerId::new("c1").unwrap(), "alpine")
    }

    #[test]
    fn nothing_is_left_to_the_image_or_the_engine() {
        let spec = spec(&request(), "", &Engine::default()).unwrap();
        for (pointer, expected) in [
            ("/entrypoint", json!([])),
            ("/cap_drop", json!(["ALL"])),
            ("/cap_add", json!([])),
            ("/no_new_privileges", json!(true)),
            ("/read_only_filesystem", json!(true)),
            ("/netns/nsmode", json!("none")),
            ("/image_volume_mode", json!("ignore")),
            ("/user", json!("1000:1000")),
            ("/mounts/0/destination", json!(PROGRAM_DIR)),
        ] {
            assert_eq!(spec.pointer(pointer), Some(&expected), "{pointer}");
        }
        assert!(spec.get("resource_limits").is_none() && spec.get("userns").is_none());
    }

    #[test]
    fn limits_and_classes_are_told_as_they_were_asked_for() {
        let limits = ResourceLimits::none()
            .with_memory_bytes(Some(64 << 20))
            .with_cpu_cores(Some(1.5))
            .with_pids(Some(9));
        let security = SecurityConfig::default().with_runtime_class(Some("gvisor".to_owned()));
        let request = request().with_resources(limits).with_security(security);
        let spec = spec(&request, "", &Engine::default()).unwrap();
        assert_eq!(
            spec["resource_limits"],
            json!({
                "memory": { "limit": 64 << 20, "swap": 64 << 20 },
                "cpu": { "quota": 150_000, "period": 100_000 },
                "pids": { "limit": 9 }
            })
        );
        assert_eq!(spec["oci_runtime"], "runsc");
        assert_eq!(spec["mounts"][1]["destination"], "/sys/fs/cgroup");
        assert_eq!(spec["mounts"][2]["options"][0], "ro");
    }

    #[test]
    fn values_stay_values() {
        let odd = "/a b:ro,Z\n--privileged";
        let request = request()
            .with_mounts([Mount::bind(odd, "/m"), Mount::tmpfs(4096, "/t")])
            .with_env([("A".to_owned(), "b=c\nd".to_owned())])
            .with_labels([("k=,".to_owned(), "v\n".to_owned())]);
        let spec = spec(&request, "", &Engine::default()).unwrap();
        assert_eq!(spec["mounts"][1]["source"], odd);
        assert_eq!(
            spec["mounts"][1]["options"],
            json!(["ro", "bind", "rprivate", "nosuid", "nodev"])
        );
        assert!(
            spec["mounts"][2]["options"]
                .as_array()
                .unwrap()
                .contains(&json!("size=4096"))
        );
        assert_eq!(spec["env"]["A"], "b=c\nd");
        assert_eq!(spec["labels"]["k=,"], "v\n");
    }

    #[test]
    fn a_rootless_container_with_mounts_is_the_callers() {
        let engine = |version: &str| Engine {
            rootless: true,
            selinux: true,
            version: version.to_owned(),
            owner: Some((1003, 1004)),
            ..Engine::default()
        };
        let mounted = request().with_mounts([Mount::bind("/m", "/m").writable()]);
        let spec_of = |request: &ProvisionRequest, version: &str| spec(request, "", &engine(version));
        let new = spec_of(&mounted, "5.2.1").unwrap();
        assert_eq!(
            new["userns"],
            json!({ "nsmode": "keep-id", "value": "uid=1000,gid=1000" })
        );
        assert_eq!(
            new["mounts"][0]["options"].as_array().unwrap().last(),
            Some(&json!("z"))
        );
        assert_eq!(
            new["mounts"][1]["options"].as_array().unwrap().last(),
            Some(&json!("Z"))
        );
        assert!(spec_of(&request(), "5.2.1").unwrap().get("userns").is_none());
        let error = spec_of(&mounted, "4.2.0").unwrap_err();
        assert!(error.message().contains("1003:1004"), "{error}");
        let own = SecurityConfig::default().with_user(Some(User { uid: 1003, gid: 1004 }));
        let old = spec_of(&mounted.clone().with_security(own), "4.2.0").unwrap();
        assert_eq!(old["userns"], json!({ "nsmode": "keep-id" }));
        let named = spec(&mounted, "node", &engine("5.0.0")).unwrap_err();
        assert!(named.message().contains("container_user"), "{named}");
    }
}
