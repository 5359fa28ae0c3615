//! A container's folder: who asked for it, what it is, where its helper listens, and how all of it is removed.
//!
//! `<state>/native/<id>/` holds `container.json` (before anything else exists), `running.json` (once it runs) and
//! `ctl.sock`. The folder is made under a temporary name that says who makes it, and renamed, so that what a crash leaves
//! behind can always be told from what is being made.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::spec::{Identity, ProcessId};

const IDENTITY: &str = "container.json";
const RUNNING: &str = "running.json";
const SOCKET: &str = "ctl.sock";

/// The folder of empty file systems that writable spaces are copied from.
pub(crate) const TEMPLATES: &str = ".templates";

/// The processes of a container.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) helper: ProcessId,
    /// The container's first process, once it is ready.
    pub(crate) first: Option<ProcessId>,
}

/// Makes a container's folder.
///
/// # Errors
///
/// `AlreadyExists` when there is one of this name.
pub(crate) fn create(identity: &Identity) -> io::Result<()> {
    let folder = &identity.folder;
    let store = folder.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(store)?;
    let ProcessId { pid, started } = identity.owner;
    let temporary = store.join(format!(".new-{pid}-{started}-{}", identity.id));
    fs::DirBuilder::new().mode(0o700).create(&temporary)?;
    let made = write_json(&temporary.join(IDENTITY), identity).and_then(|()| {
        // Replacing an empty folder would be allowed, and a container's folder is never empty.
        fs::rename(&temporary, folder)
    });
    if let Err(error) = made {
        let _ = fs::remove_dir_all(&temporary);
        let taken = matches!(
            error.kind(),
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
        );
        return Err(if taken {
            io::ErrorKind::AlreadyExists.into()
        } else {
            error
        });
    }
    Ok(())
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    serde_json::to_writer(&mut file, value).map_err(io::Error::other)
}

/// Notes which processes a container has, from its helper: before anything is made, and when it runs.
pub(crate) fn write_running(folder: &Path, first: Option<Pid>) -> io::Result<()> {
    let first = match first {
        Some(pid) => Some(ProcessId::of(pid.as_raw_nonzero().get().unsigned_abs()).ok_or(io::ErrorKind::NotFound)?),
        None => None,
    };
    let temporary = folder.join(".running");
    write_json(
        &temporary,
        &Running {
            helper: ProcessId::own(),
            first,
        },
    )?;
    fs::rename(temporary, folder.join(RUNNING))
}

/// What a container is. What it says decides what is killed and removed, so that nobody else may say it.
pub(crate) fn identity(folder: &Path) -> io::Result<Identity> {
    let mut identity: Identity = serde_json::from_slice(&read(&folder.join(IDENTITY))?).map_err(io::Error::other)?;
    folder.clone_into(&mut identity.folder);
    Ok(identity)
}

/// The content of a file that belongs to the user that this process runs as.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    if !is_ours(&file.metadata()?) {
        let message = format!("{} belongs to another user", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let mut content = Vec::new();
    io::Read::read_to_end(&mut file, &mut content)?;
    Ok(content)
}

/// Whether a file belongs to the user that this process runs as.
pub(crate) fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw()
}

/// The processes of a container, when they were started.
pub(crate) fn running(folder: &Path) -> Option<Running> {
    serde_json::from_slice(&read(&folder.join(RUNNING)).ok()?).ok()
}

/// The path of a container's socket. Goes through an open folder, since a socket's own path may have only 107 bytes.
fn socket_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

/// Listens for requests.
pub(crate) fn listen(folder: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(socket_path(&File::open(folder)?))
}

/// Connects to a container's helper.
pub(crate) fn connect(folder: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(socket_path(&File::open(folder)?))
}

/// Every container's folder in a store.
pub(crate) fn folders(store: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(store) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            folders.push(entry.path());
        }
    }
    folders.sort();
    Ok(folders)
}

/// Kills what is left of a container's processes, but for its helper.
pub(crate) fn kill_processes(identity: &Identity) {
    if let Some(first) = running(&identity.folder).and_then(|running| running.first)
        && first.is_alive()
    {
        kill(first);
    }
    if let Some(group) = &identity.group
        && group.exists()
    {
        group.kill();
    }
}

/// Kills what is left of a container and removes its cgroups and its folder. Succeeds when all is gone already.
pub(crate) fn remove(identity: &Identity) -> io::Result<()> {
    kill_processes(identity);
    if let Some(group) = &identity.group
        && group.exists()
    {
        group.remove()?;
    }
    match fs::remove_dir_all(&identity.folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn kill(process: ProcessId) {
    if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Kills a helper that does not answer any more.
pub(crate) fn kill_helper(running: &Running) {
    if running.helper.is_alive() {
        kill(running.helper);
    }
}

/// Removes templates of writable spaces that were never finished: `.NAME.PID` of a process that is gone.
fn reap_templates(folder: &Path) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name
            .strip_prefix('.')
            .and_then(|rest| rest.rsplit_once('.'))
            .and_then(|(_, pid)| pid.parse().ok());
        if maker.is_some_and(|pid| ProcessId::of(pid).is_none()) {
            fs::remove_file(entry.path())?;
            removed.push(format!("template {name}"));
        }
    }
    Ok(removed)
}

/// Removes what no living process stands for, and says what.
pub(crate) fn reap(store: &Path) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    let entries = match fs::read_dir(store) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(rest) = name.strip_prefix(".new-") {
            let mut parts = rest.splitn(3, '-');
            let maker = parts
                .next()
                .and_then(|pid| pid.parse().ok())
                .zip(parts.next().and_then(|at| at.parse().ok()));
            let lives = maker.is_some_and(|(pid, started)| ProcessId { pid, started }.is_alive());
            if !lives {
                fs::remove_dir_all(entry.path())?;
                removed.push(format!("folder {name}"));
            }
            continue;
        }
        if name == TEMPLATES {
            removed.extend(reap_templates(&entry.path())?);
        }
        if name.starts_with('.') {
            continue;
        }
        let Ok(identity) = identity(&entry.path()) else {
            continue;
        };
        if identity.owner.is_alive() {
            continue;
        }
        // Its helper ends with its owner and cleans up by itself; it is only helped along when it does not.
        if let Some(running) = running(&entry.path()) {
            let deadline = Instant::now() + Duration::from_secs(3);
            while running.helper.is_alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            kill_helper(&running);
        }
        remove(&identity)?;
        removed.push(format!("container {}", identity.id));
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity_in(store: &Path, id: &str, owner: ProcessId) -> Identity {
        Identity {
            id: id.to_owned(),
            session_id: id.to_owned(),
            image: "host".to_owned(),
            labels: [].into(),
            created_at: String::new(),
            folder: store.join(id),
            group: None,
            owner,
            main: None,
            sandboxed: false,
            working_dir: "/".to_owned(),
        }
    }

    #[test]
    fn a_name_is_taken_once_and_only_the_dead_are_reaped() {
        let store = tempfile::tempdir().unwrap();
        let mine = identity_in(store.path(), "mine", ProcessId::own());
        create(&mine).unwrap();
        assert_eq!(create(&mine).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let dead = ProcessId {
            pid: ProcessId::own().pid,
            started: 1,
        };
        create(&identity_in(store.path(), "dead", dead)).unwrap();
        fs::create_dir(store.path().join(".new-1-1-x")).unwrap();
        fs::create_dir(store.path().join(TEMPLATES)).unwrap();
        // No process has a number this high, proc_sys_kernel(5).
        fs::write(store.path().join(TEMPLATES).join(".1-2.ext4.4194305"), "").unwrap();
        fs::write(store.path().join(TEMPLATES).join("1-2.ext4"), "").unwrap();
        let mut removed = reap(store.path()).unwrap();
        removed.sort();
        assert_eq!(
            removed,
            ["container dead", "folder .new-1-1-x", "template .1-2.ext4.4194305"]
        );
        assert_eq!(folders(store.path()).unwrap(), [mine.folder]);
    }
}
