//! Files out of the container, as a tar stream.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use agents_guest::protocol::FromGuest;
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat},
    io::Errno,
};

use super::{
    failure::{Context, Fault},
    first_state,
    frames::{DataWriter, say},
    setup, tree,
};

/// The deepest folder that is read.
const MAX_DEPTH: usize = 256;

pub(super) fn read(path: &str, quiesce: bool) -> Result<(), Fault> {
    setup::prepare(setup::limits_of_first())?;
    let stopped = quiesce.then(tree::stop).transpose()?;
    // With the main process everything else has ended.
    let steady = quiesce || first_state() == Some(agents_guest::protocol::State::Exited);
    let written = write_archive(path, steady);
    drop(stopped);
    written?;
    say(&FromGuest::Done)
}

/// The path as `Data`. What is steady does not change meanwhile.
pub(super) fn write_archive(path: &str, steady: bool) -> Result<(), Fault> {
    let top = Path::new(path);
    let name = PathBuf::from(top.file_name().unwrap_or(OsStr::new(".")));
    let stat = rustix::fs::stat(top).context(format_args!("cannot read {path}"))?;
    // After the first thing that can fail, since a builder ends its archive when it is dropped.
    let mut archive = tar::Builder::new(DataWriter::while_the_host_listens());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let walked = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => open(rustix::fs::CWD, top, flags | OFlags::DIRECTORY)
            .map_err(io::Error::from)
            .and_then(|(folder, _restore)| {
                add(&mut archive, &name, &stat, io::empty())?;
                walk(&mut archive, folder, &name, steady, 0)
            }),
        FileType::RegularFile => {
            open(rustix::fs::CWD, top, flags)
                .map_err(io::Error::from)
                .and_then(|(file, restore)| {
                    drop(restore);
                    let stat = rustix::fs::fstat(&file)?;
                    add(&mut archive, &name, &stat, Exact::new(File::from(file), &stat))
                })
        }
        _ => add(&mut archive, &name, &stat, io::empty()),
    };
    walked
        .and_then(|()| archive.into_inner()?.flush())
        .context(format_args!("cannot read {path}"))
}

/// Gives a file back the mode that it had.
struct Restore {
    path: String,
    mode: Mode,
    _held: OwnedFd,
}

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = rustix::fs::chmod(&self.path, self.mode);
    }
}

/// Opens a file or a folder, also one that its own mode hides from its owner, since it is part of the output all the same.
/// Its mode is another then until the second value is dropped: a folder is entered as long as it is read.
fn open(
    folder: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    flags: OFlags,
) -> Result<(OwnedFd, Option<Restore>), Errno> {
    let may_enter = |fd: &OwnedFd| {
        let entered = statat(fd, ".", AtFlags::empty());
        !flags.contains(OFlags::DIRECTORY) || entered.is_ok()
    };
    match openat(folder.as_fd(), name, flags, Mode::empty()) {
        Ok(fd) if may_enter(&fd) => return Ok((fd, None)),
        Ok(_) | Err(Errno::ACCESS) => {}
        Err(error) => return Err(error),
    }
    // By way of a descriptor, so that nobody puts a link into the file's place meanwhile.
    let follow = flags & OFlags::NOFOLLOW;
    let held = openat(
        folder.as_fd(),
        name,
        OFlags::PATH | OFlags::CLOEXEC | follow,
        Mode::empty(),
    )?;
    let restore = Restore {
        path: format!("/proc/self/fd/{}", held.as_raw_fd()),
        mode: Mode::from_raw_mode(rustix::fs::fstat(&held)?.st_mode),
        _held: held,
    };
    rustix::fs::chmod(&restore.path, restore.mode | Mode::RUSR | Mode::XUSR)?;
    let fd = rustix::fs::open(&restore.path, flags.difference(OFlags::NOFOLLOW), Mode::empty())?;
    Ok((fd, Some(restore)))
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
        let path = name.join(OsStr::from_bytes(raw.to_bytes()));
        // Whatever goes away while it is being read was not there.
        let Ok(stat) = statat(&folder, raw, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => folders.push((raw.to_owned(), path, stat)),
            FileType::RegularFile => {
                let Ok((file, restore)) = open(&folder, raw, flags) else {
                    continue;
                };
                drop(restore);
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
                archive.append_link(&mut header, &path, OsStr::from_bytes(link.to_bytes()))?;
            }
            _ => add(archive, &path, &stat, io::empty())?,
        }
    }
    drop(entries);
    for (raw, path, stat) in folders {
        add(archive, &path, &stat, io::empty())?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok((inner, _restore)) = open(&folder, raw.as_c_str(), flags) {
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
