//! Files out of a container and into it, as tar streams, by a process that sees what the agent sees.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use agents_core::ErrorKind;
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat},
    thread::CapabilitySet,
};

use super::{Container, init};
use crate::{
    cgroup::Group,
    spec::{Context, Failure, Reply},
    sys::{CloneFlags, exit_now, fork},
    wire,
};

/// The deepest folder that is read.
const MAX_DEPTH: usize = 256;

/// Whether a container's processes may write while files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Live {
    /// They have ended.
    Ended,
    /// They are stopped meanwhile.
    ToBeStopped,
    /// They go on.
    Running,
}

/// Writes an archive to the descriptor that came with the request.
pub(super) fn copy_from(container: &Container, client: &UnixStream, path: &str, live: Live, fds: Vec<OwnedFd>) {
    let steady = live != Live::Running;
    // A file of the agent's that its own mode hides from it is part of its output all the same.
    let copy = |fds| {
        inside(container, CapabilitySet::DAC_READ_SEARCH, fds, |target| {
            write_archive(path, target, steady)
        })
    };
    let copied = match container
        .spec
        .identity
        .group
        .as_ref()
        .filter(|_| live == Live::ToBeStopped)
    {
        Some(group) => stopped(group, || copy(fds)),
        None => copy(fds),
    };
    answer(client, copied);
}

/// Unpacks the archive from the descriptor that came with the request, with the agent's own rights.
pub(super) fn copy_to(container: &Container, client: &UnixStream, path: &str, fds: Vec<OwnedFd>) {
    answer(
        client,
        inside(container, CapabilitySet::empty(), fds, |source| unpack(path, source)),
    );
}

fn answer(client: &UnixStream, done: Result<(), Failure>) {
    let reply = match done {
        Ok(()) => Reply::Done,
        Err(failure) => Reply::Failed(failure),
    };
    let _ = wire::send(client, &reply, &[]);
}

/// Becomes a process that has the container's files and the agent's user, and does a job.
fn inside(
    container: &Container,
    capabilities: CapabilitySet,
    fds: Vec<OwnedFd>,
    job: impl FnOnce(OwnedFd) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let fd = fds
        .into_iter()
        .next()
        .ok_or_else(|| Failure::new(ErrorKind::Unexpected, "no descriptor came along"))?;
    container.namespaces.enter_files()?;
    init::drop_privileges(&container.spec, &container.filters, capabilities)?;
    job(fd)
}

/// Does a job in a child while the container's processes are stopped. It takes a process that has kept the host's rights
/// to let them go on.
fn stopped(group: &Group, job: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let attempt = || -> Result<(), Failure> {
        group.freeze(true).context("cannot stop the container's processes")?;
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
        let Some(child) = fork(CloneFlags::NONE).context("cannot start a copying process")? else {
            drop(ours);
            answer(&theirs, job());
            exit_now(0);
        };
        drop(theirs);
        let heard = wire::receive::<Reply>(&ours);
        let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
        match heard {
            Ok(Some((Reply::Done, _))) => Ok(()),
            Ok(Some((Reply::Failed(failure), _))) => Err(failure),
            _ => Err(Failure::new(ErrorKind::Unavailable, "the copying process went away")),
        }
    };
    let done = attempt();
    group
        .freeze(false)
        .context("cannot let the container's processes go on")?;
    done
}

fn write_archive(path: &str, target: OwnedFd, steady: bool) -> Result<(), Failure> {
    let top = Path::new(path);
    let name = PathBuf::from(top.file_name().unwrap_or(std::ffi::OsStr::new(".")));
    let stat = rustix::fs::stat(top).context(format_args!("cannot read {path}"))?;
    // After the first thing that can fail, since a builder ends its archive when it is dropped.
    let mut archive = tar::Builder::new(BufWriter::with_capacity(128 << 10, File::from(target)));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let walked = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => openat(rustix::fs::CWD, top, flags | OFlags::DIRECTORY, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|folder| {
                add(&mut archive, &name, &stat, io::empty())?;
                walk(&mut archive, folder, &name, steady, 0)
            }),
        FileType::RegularFile => openat(rustix::fs::CWD, top, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| {
                let stat = rustix::fs::fstat(&file)?;
                add(&mut archive, &name, &stat, Exact::new(File::from(file), &stat))
            }),
        _ => add(&mut archive, &name, &stat, io::empty()),
    };
    walked
        .and_then(|()| archive.into_inner()?.flush())
        .context(format_args!("cannot read {path}"))
}

/// Adds everything in an open folder, without following a link anywhere.
fn walk<W: Write>(
    archive: &mut tar::Builder<W>,
    folder: OwnedFd,
    name: &Path,
    steady: bool,
    depth: usize,
) -> io::Result<()> {
    if depth >= MAX_DEPTH {
        return Ok(());
    }
    let mut entries = Dir::read_from(&folder)?;
    // Files come before folders, so that a folder with too much in it hides nothing that lies beside it.
    let mut folders = Vec::new();
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let raw = entry.file_name();
        if matches!(raw.to_bytes(), b"." | b"..") {
            continue;
        }
        let path = name.join(std::ffi::OsStr::from_bytes(raw.to_bytes()));
        // Whatever goes away while it is being read was not there.
        let Ok(stat) = statat(&folder, raw, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => folders.push((raw.to_owned(), path, stat)),
            FileType::RegularFile => {
                let Ok(file) = openat(&folder, raw, flags, Mode::empty()) else {
                    continue;
                };
                let stat = rustix::fs::fstat(&file)?;
                // Holes are written as such, so that a file that is nothing but a large hole costs nothing. One that changes
                // meanwhile would break the archive, so that it is read as a whole then.
                if steady && is_sparse(&stat) {
                    archive.append_file(&path, &mut File::from(file))?;
                } else if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                    add(archive, &path, &stat, Exact::new(File::from(file), &stat))?;
                }
            }
            FileType::Symlink => {
                let Ok(link) = readlinkat(&folder, raw, Vec::new()) else {
                    continue;
                };
                let mut header = header_of(&stat);
                archive.append_link(&mut header, &path, std::ffi::OsStr::from_bytes(link.to_bytes()))?;
            }
            _ => add(archive, &path, &stat, io::empty())?,
        }
    }
    drop(entries);
    for (raw, path, stat) in folders {
        add(archive, &path, &stat, io::empty())?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(inner) = openat(&folder, raw, flags, Mode::empty()) {
            walk(archive, inner, &path, steady, depth + 1)?;
        }
    }
    Ok(())
}

fn is_sparse(stat: &Stat) -> bool {
    // Blocks are counted in 512 bytes, stat(2).
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size / 512 > stat.st_blocks + 8
}

fn add<W: Write>(archive: &mut tar::Builder<W>, path: &Path, stat: &Stat, content: impl Read) -> io::Result<()> {
    archive.append_data(&mut header_of(stat), path, content)
}

fn header_of(stat: &Stat) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let (kind, size) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => (tar::EntryType::Directory, 0),
        FileType::Symlink => (tar::EntryType::Symlink, 0),
        FileType::Fifo => (tar::EntryType::Fifo, 0),
        FileType::CharacterDevice => (tar::EntryType::Char, 0),
        FileType::BlockDevice => (tar::EntryType::Block, 0),
        // There is no type for a socket; it has no content either, and a FIFO is refused likewise.
        FileType::Socket => (tar::EntryType::Fifo, 0),
        _ => (tar::EntryType::Regular, u64::try_from(stat.st_size).unwrap_or(0)),
    };
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

/// Exactly as many bytes as the header says: what has grown is cut, what has shrunk is filled with zeros.
struct Exact {
    file: File,
    left: u64,
    ended: bool,
}

impl Exact {
    fn new(file: File, stat: &Stat) -> Self {
        Self {
            file,
            left: u64::try_from(stat.st_size).unwrap_or(0),
            ended: false,
        }
    }
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut read = 0;
        if !self.ended && most > 0 {
            read = self.file.read(&mut buffer[..most])?;
            self.ended = read == 0;
        }
        if self.ended {
            buffer[..most].fill(0);
            read = most;
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn unpack(path: &str, source: OwnedFd) -> Result<(), Failure> {
    rustix::process::chdir(path).context(format_args!("cannot enter {path}"))?;
    let mut archive = tar::Archive::new(File::from(source));
    archive.set_preserve_permissions(true);
    // The filter refuses these to every process with the agent's rights.
    archive.set_mask(0o6000);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    archive.unpack(".").map_err(|error| {
        // The crate wraps the cause in its own text.
        let cause = std::error::Error::source(&error)
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        Failure::new(
            agents_core::Error::io("", io::Error::from(error.kind())).kind(),
            format!("cannot unpack into {path}: {error}{cause}"),
        )
    })
}
