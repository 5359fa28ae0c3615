//! The mounts of a container.

use std::path::PathBuf;

use agents_core::{Error, MountSource, ProvisionRequest, Result};

use super::whole_pages;
use crate::{PROGRAM_DIR, Report, SECRETS_DIR};

/// The smallest memory-backed file system that is made.
const SECRETS_BYTES: u64 = 1 << 20;

/// A mount to make.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedMount {
    /// The absolute path in the container.
    pub destination: String,
    /// What is mounted.
    pub source: PlannedSource,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlannedSource {
    /// A folder or a file of the caller's host. Whether it exists is the adapter's to find out, since only an engine on the
    /// same host sees it.
    Bind {
        /// An absolute path.
        path: PathBuf,
    },
    /// A memory-backed file system.
    Tmpfs {
        /// Its size, in whole pages; without one the memory limit alone bounds it.
        size_bytes: Option<u64>,
        /// Whether it is writable space, all of which `disk_bytes` bounds: each place gets an equal share.
        scratch: bool,
        /// Whether programs in it can be executed.
        executable: bool,
    },
}

impl PlannedSource {
    /// Whether this is writable space.
    pub fn is_scratch(&self) -> bool {
        matches!(self, Self::Tmpfs { scratch: true, .. })
    }
}

impl PlannedMount {
    /// The mount options of a memory-backed mount, as mount(8) and the engines write them. Its folder can be written to by
    /// everybody with the sticky bit, since the user of an image that has only a name is not known here; there is no other
    /// user in the container.
    ///
    /// runc gives such a mount the mode that the folder has in the image when there is one. So add `uid=` and `gid=` of the
    /// plan's user wherever the engine takes them. [`Plan::check`](crate::Plan::check) finds a place that the agent cannot
    /// write to.
    pub fn tmpfs_options(&self) -> Option<Vec<String>> {
        let PlannedSource::Tmpfs {
            size_bytes, executable, ..
        } = &self.source
        else {
            return None;
        };
        let mut options: Vec<String> = ["nosuid", "nodev", "mode=1777"].map(str::to_owned).to_vec();
        options.push(if *executable { "exec" } else { "noexec" }.to_owned());
        options.push(if self.read_only { "ro" } else { "rw" }.to_owned());
        options.extend(size_bytes.map(|size| format!("size={size}")));
        Some(options)
    }

    /// How the mount in force differs, beyond whether it is read-only.
    pub(super) fn difference(&self, report: &Report) -> Option<String> {
        let PlannedSource::Tmpfs { size_bytes, .. } = &self.source else {
            return None;
        };
        let destination = &self.destination;
        match report.file_system(destination) {
            Some(kind) if kind == "tmpfs" => {}
            Some(kind) => return Some(format!("{destination} is a {kind}, not memory")),
            None => return Some(format!("{destination} is no mount")),
        }
        if !self.read_only && report.may_write(destination) != Some(true) {
            return Some(format!(
                "the agent may not write to {destination}; the image has this folder with an owner and a mode that the engine kept"
            ));
        }
        let asked = (*size_bytes)?;
        match report.space(destination) {
            Some((size, _)) if size <= asked => None,
            Some((size, _)) => Some(format!("{destination} has {size} bytes instead of {asked}")),
            None => Some(format!("the size of {destination} cannot be read")),
        }
    }
}

/// Plans the mounts of a request, with that of its secrets.
pub(super) fn plan(request: &ProvisionRequest) -> Result<Vec<PlannedMount>> {
    let scratch = request
        .mounts
        .iter()
        .filter(|mount| mount.source == MountSource::Scratch);
    let places = scratch.count() as u64;
    let share = match request.resources.disk_bytes {
        // Rounded down, so that all of them together are never above what was asked for.
        Some(bytes) if places > 0 => Some(whole_pages(bytes / places)),
        _ => None,
    };
    let mut mounts = Vec::new();
    for mount in &request.mounts {
        check_place(&mount.destination)?;
        let tmpfs = |size_bytes: Option<u64>, scratch| PlannedSource::Tmpfs {
            size_bytes,
            scratch,
            executable: true,
        };
        let source = match &mount.source {
            MountSource::Bind { path } => PlannedSource::Bind { path: path.clone() },
            MountSource::Tmpfs { size_bytes } => tmpfs(Some(whole_pages(*size_bytes)), false),
            MountSource::Scratch if mount.read_only => {
                return Err(Error::invalid(format!(
                    "mount {}: writable space cannot be read-only",
                    mount.destination
                )));
            }
            MountSource::Scratch => tmpfs(share, true),
        };
        mounts.push(PlannedMount {
            destination: mount.destination.clone(),
            source,
            read_only: mount.read_only,
        });
    }
    if !request.secrets.is_empty() {
        let held: u64 = request
            .secrets
            .iter()
            .map(|secret| secret.value.expose().len().next_multiple_of(4096) as u64)
            .sum();
        mounts.push(PlannedMount {
            destination: SECRETS_DIR.to_owned(),
            source: PlannedSource::Tmpfs {
                size_bytes: Some(whole_pages(SECRETS_BYTES + held)),
                scratch: false,
                executable: false,
            },
            read_only: false,
        });
    }
    mounts.sort_by_key(|mount| mount.destination.matches('/').count());
    Ok(mounts)
}

fn check_place(destination: &str) -> Result<()> {
    let below = |folder: &str| {
        destination
            .strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let taken = ["/dev", "/proc", "/sys", PROGRAM_DIR, SECRETS_DIR]
        .iter()
        .any(|folder| below(folder));
    if taken || destination == "/run" {
        return Err(Error::invalid(format!(
            "mount {destination}: this place is the runtime's own; choose another"
        )));
    }
    Ok(())
}
