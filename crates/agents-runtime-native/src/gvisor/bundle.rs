//! The OCI bundle of a sandbox: `config.json` of the OCI runtime specification 1.2.

use std::path::Path;

use agents_core::{Result, User};
use agents_guest::{MASKED_PATHS, PROGRAM_DIR, Plan, PlannedSource, READONLY_PATHS};
use serde_json::{Value, json};

use super::rootfs::Rootfs;
use crate::seccomp;

/// What a container is besides its plan.
pub(super) struct Parts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) user: User,
    pub(super) rootfs: &'a Rootfs,
    /// The folder with the guest program.
    pub(super) program: &'a Path,
}

/// The `process` object that runs the guest program with some arguments; `runsc exec` takes it as a file.
pub(super) fn process(plan: &Plan, user: User, arguments: &[String]) -> Value {
    let kept = &plan.capabilities;
    json!({
        "terminal": false,
        "user": {"uid": user.uid, "gid": user.gid},
        "args": arguments,
        "env": plan.env_entries(),
        "cwd": "/",
        "capabilities": {
            "bounding": kept, "effective": kept, "permitted": kept, "inheritable": kept, "ambient": kept,
        },
        "noNewPrivileges": true,
    })
}

/// The whole configuration.
///
/// # Errors
///
/// `ConfigInvalid` for a seccomp profile that is none.
pub(super) fn config(parts: &Parts<'_>) -> Result<Value> {
    let plan = parts.plan;
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    let bind = |source: &Path, destination: &str| {
        json!({
            "destination": destination, "type": "bind", "source": source,
            "options": ["rbind", "ro", "nosuid", "nodev"],
        })
    };
    mounts.extend(
        parts
            .rootfs
            .binds
            .iter()
            .map(|(source, destination)| bind(source, destination)),
    );
    mounts.push(bind(parts.program, PROGRAM_DIR));
    // Without one of its own, gVisor gives a container an unlimited writable /tmp.
    if !plan.mounts.iter().any(|mount| mount.destination == "/tmp") {
        mounts.push(json!({
            "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
            "options": ["ro", "nosuid", "nodev", "size=4096", "mode=555"],
        }));
    }
    for mount in &plan.mounts {
        mounts.push(match &mount.source {
            PlannedSource::Bind { path } => bind(
                &std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()),
                &mount.destination,
            ),
            _ => json!({
                "destination": mount.destination, "type": "tmpfs", "source": "tmpfs",
                "options": mount.tmpfs_options().unwrap_or_default(),
            }),
        });
    }
    Ok(json!({
        "ociVersion": "1.2.0",
        "process": process(plan, parts.user, &plan.command),
        "root": {"path": parts.rootfs.folder, "readonly": true},
        "hostname": plan.hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
            ],
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
            "seccomp": seccomp::oci_profile(&plan.seccomp_profile, &plan.capabilities)?,
        },
    }))
}
