//! From a request to a specification: looks at the host, and changes nothing.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use agents_core::{Error, ErrorKind, MountSource, Process, ProvisionRequest, Result, User, capability};
use agents_image::Resolved;

use crate::{
    cgroup::Limits,
    host::Host,
    spec::{ContainerSpec, IdMap, Identity, MainStreams, MountSpec, ProcessId, ProcessSpec, RANGE, Root, Source},
};

/// The user of an image that names none, or root.
const DEFAULT_USER: User = User { uid: 1000, gid: 1000 };

/// The first number of the ranges that containers take as root: above what systemd-nspawn takes, and below the numbers
/// that some programs take for negative (systemd, "Users, Groups, UIDs and GIDs on systemd Systems").
const FIRST_BASE: u32 = 1_879_048_192;

/// How many ranges there are up to 2³¹.
const BASES: u32 = (1 << 28) / RANGE;

/// Makes the specification.
pub(crate) fn specification(
    request: &ProvisionRequest,
    image: &Resolved,
    host: &Host,
    store: &Path,
) -> Result<ContainerSpec> {
    let is_host = image.layers.as_slice() == [PathBuf::from("/")];
    if is_host && !request.security.read_only_rootfs {
        return Err(Error::unsupported(
            "read_only_rootfs: the host's files are always read-only; leave it true, or use another image",
        ));
    }
    let group = host
        .hierarchy
        .as_ref()
        .ok()
        .map(|hierarchy| hierarchy.group(request.name.as_str()));
    let user = match request.security.user {
        Some(user) => user,
        None => image_user(image)?,
    };
    let ids = if host.root {
        // Two containers may fall into the same range, which weakens nothing but the accounting between the two.
        IdMap::Range {
            base: FIRST_BASE + (hash(request.name.as_str()) % BASES) * RANGE,
        }
    } else {
        IdMap::Caller {
            uid: host.uid,
            gid: host.gid,
        }
    };
    let seccomp_profile = match &request.security.seccomp_profile {
        None => None,
        Some(path) => Some(
            fs::read_to_string(path)
                .map_err(|error| Error::io(format!("seccomp_profile: cannot read {}", path.display()), error))?,
        ),
    };
    let mut capabilities = Vec::new();
    for name in &request.security.capabilities {
        let (number, _) = capability(name).ok_or_else(|| Error::invalid(format!("cap_add: {name:?} is unknown")))?;
        capabilities.push(number);
    }
    Ok(ContainerSpec {
        identity: Identity {
            id: request.name.as_str().to_owned(),
            session_id: request.session_id.as_str().to_owned(),
            image: request.image.clone(),
            labels: request.labels.clone(),
            created_at: jiff::Timestamp::now().to_string(),
            folder: store.join(request.name.as_str()),
            group,
            owner: ProcessId::own(),
            main: request.process.as_ref().map(|process| MainStreams {
                stdin: process.stdin,
                tty: process.tty.is_some(),
            }),
            sandboxed: request.security.runtime_class.is_some(),
            working_dir: request.working_dir.clone(),
        },
        ids,
        uid: user.uid,
        gid: user.gid,
        root: if is_host {
            Root::Host
        } else {
            Root::Layers(image.layers.clone())
        },
        read_only_root: request.security.read_only_rootfs,
        mounts: mounts(request, host)?,
        limits: Limits {
            memory_bytes: request.resources.memory_bytes.map(whole_pages),
            cpu_cores: request.resources.cpu_cores,
            pids: request.resources.pids,
        },
        nofile: request.resources.nofile,
        disk_bytes: request.resources.disk_bytes.map(whole_pages),
        capabilities,
        seccomp_profile,
        secrets: request
            .secrets
            .iter()
            .map(|secret| (secret.name.clone(), secret.value.expose().to_vec()))
            .collect(),
        env: environment(request, image),
        working_dir: request.working_dir.clone(),
        process: request.process.as_ref().map(process),
    })
}

/// The kernel counts in pages, and a limit must never be above what was asked for.
fn whole_pages(bytes: u64) -> u64 {
    (bytes / 4096).max(1) * 4096
}

/// FNV-1a, which needs to be neither secret nor strong here.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

pub(crate) fn process(process: &Process) -> ProcessSpec {
    ProcessSpec {
        command: process.command.clone(),
        env: process.env.clone(),
        working_dir: process.working_dir.clone(),
        stdin: process.stdin,
        tty: process.tty,
    }
}

fn environment(request: &ProvisionRequest, image: &Resolved) -> Vec<(String, String)> {
    let of_image = image.config.env.iter().filter_map(|entry| entry.split_once('='));
    let of_image = of_image.map(|(name, value)| (name.to_owned(), value.to_owned()));
    of_image.chain(request.env.iter().cloned()).collect()
}

fn mounts(request: &ProvisionRequest, host: &Host) -> Result<Vec<MountSpec>> {
    let mut mounts = Vec::new();
    for mount in &request.mounts {
        let source = match &mount.source {
            MountSource::Tmpfs { size_bytes } => Source::Tmpfs {
                size_bytes: *size_bytes,
            },
            MountSource::Scratch => Source::Scratch,
            MountSource::Bind { path } => bind_source(path, mount.read_only, host)?,
        };
        if mount.read_only && source == Source::Scratch {
            return Err(Error::invalid(format!(
                "mount {}: writable space cannot be read-only",
                mount.destination
            )));
        }
        for taken in ["/dev", "/proc", "/sys"] {
            let inside = mount
                .destination
                .strip_prefix(taken)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            if inside || mount.destination == "/run" || mount.destination.starts_with("/run/secrets") {
                return Err(Error::invalid(format!(
                    "mount {}: this place is the runtime's own",
                    mount.destination
                )));
            }
        }
        mounts.push(MountSpec {
            source,
            destination: mount.destination.clone(),
            read_only: mount.read_only,
        });
    }
    // Outer mount points come before those inside of them.
    mounts.sort_by_key(|mount| mount.destination.matches('/').count());
    Ok(mounts)
}

fn bind_source(path: &Path, read_only: bool, host: &Host) -> Result<Source> {
    use rustix::fs::Access;

    let metadata = fs::metadata(path).map_err(|error| {
        let what = match error.kind() {
            io::ErrorKind::NotFound => "does not exist; create it first",
            io::ErrorKind::PermissionDenied => "cannot be reached by you",
            _ => "cannot be read",
        };
        Error::io(format!("mount: {} {what}", path.display()), error)
    })?;
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(Error::invalid(format!(
            "mount: {} is neither a folder nor a file; sockets and devices are not mounted",
            path.display()
        )));
    }
    let mut needed = Access::READ_OK;
    if metadata.is_dir() {
        needed |= Access::EXEC_OK;
    }
    if !read_only {
        needed |= Access::WRITE_OK;
    }
    if !host.root && rustix::fs::access(path, needed).is_err() {
        let verb = if read_only { "read" } else { "written to" };
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "mount: {} cannot be {verb} by you; change its permissions",
                path.display()
            ),
        ));
    }
    Ok(Source::Bind {
        path: fs::canonicalize(path)
            .map_err(|error| Error::io(format!("mount: {} cannot be read", path.display()), error))?,
        is_dir: metadata.is_dir(),
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// The image's user, unless that is root.
fn image_user(image: &Resolved) -> Result<User> {
    let Some(text) = image.config.user.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(DEFAULT_USER);
    };
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let unknown = |what: &str, name: &str| {
        Error::invalid(format!(
            "container_user: the image's {what} {name:?} is not in its own files; set container_user to uid:gid"
        ))
    };
    let (uid, primary) = match name.parse() {
        Ok(uid) => (
            uid,
            lookup(image, "etc/passwd", |fields| fields.get(2) == Some(&name), 3),
        ),
        Err(_) => (
            lookup(image, "etc/passwd", |fields| fields.first() == Some(&name), 2)
                .ok_or_else(|| unknown("user", name))?,
            lookup(image, "etc/passwd", |fields| fields.first() == Some(&name), 3),
        ),
    };
    let gid = match group {
        None => primary.unwrap_or(uid),
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => lookup(image, "etc/group", |fields| fields.first() == Some(&group), 2)
                .ok_or_else(|| unknown("group", group))?,
        },
    };
    if uid == 0 {
        return Ok(DEFAULT_USER);
    }
    if uid >= RANGE || gid >= RANGE {
        return Err(Error::unsupported(format!(
            "container_user: the image's user {uid}:{gid} is above 65535; set container_user to a smaller one"
        )));
    }
    Ok(User { uid, gid })
}

/// A number from a file of colon-separated fields in the topmost layer that has it. Links are not followed.
fn lookup(image: &Resolved, file: &str, wanted: impl Fn(&[&str]) -> bool, field: usize) -> Option<u32> {
    let path =
        image.layers.iter().rev().map(|layer| layer.join(file)).find(|path| {
            fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() < 1 << 20)
        })?;
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        if wanted(&fields) {
            fields.get(field)?.parse().ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_below_the_numbers_that_look_negative() {
        for name in ["a", "b", "0190", "zzzzzz"] {
            let base = FIRST_BASE + (hash(name) % BASES) * RANGE;
            assert!(
                base >= FIRST_BASE && base.checked_add(RANGE).is_some_and(|end| end <= 1 << 31),
                "{base}"
            );
        }
    }

    #[test]
    fn limits_are_rounded_down() {
        assert_eq!(whole_pages(8191), 4096);
        assert_eq!(whole_pages(1), 4096);
        assert_eq!(whole_pages(8192), 8192);
    }
}
