//! Unpacking a layer that may be hostile.
//!
//! Every name is resolved by the kernel inside the layer's folder (`openat2` with `RESOLVE_IN_ROOT`), as if the folder were the root,
//! so that a link leads to the same place as it will in the container and never out of the folder.

use std::{
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use agents_core::error::{Error, ErrorKind, Result};
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::{
    options::Limits,
    tarball::{Entry, Kind, Streamed, TarReader, read_error, shown},
};

/// Marks a folder that hides what lower layers have in it; overlayfs must be mounted with `userxattr`.
pub(crate) const OPAQUE: &str = "user.overlay.opaque";

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Beyond this, modification times of folders are not restored, to bound memory.
const MAX_FOLDER_NAMES: usize = 32 << 20;
const MAX_WARNINGS: usize = 100;
const MAX_ID: u64 = 65535;

/// What an unpacked layer cost and what it lacks.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) warnings: Vec<String>,
}

/// Unpacks a tar stream into an empty folder. `trash` is another folder of the same file system, for what is replaced.
///
/// `keep_owner` needs the powers of root; without it all belongs to the caller and can be deleted by the caller.
pub(crate) fn unpack(
    tar: impl Read,
    folder: &Path,
    trash: &Path,
    keep_owner: bool,
    limits: &Limits,
) -> Result<Unpacked> {
    let open = |path: &Path| {
        rustix::fs::openat(CWD, path, FOLDER, Mode::empty())
            .map_err(|error| Error::io("cannot open the folder of a layer", error.into()))
    };
    let mut unpacker = Unpacker {
        root: Rc::new(open(folder)?),
        trash: open(trash)?,
        trashed: 0,
        keep_owner,
        limits: *limits,
        parent: None,
        folders: Vec::new(),
        folder_names: 0,
        skipped: 0,
        buf: vec![0; 128 << 10],
        done: Unpacked::default(),
    };
    let mut reader = TarReader::new(Streamed(tar));
    while let Some(entry) = reader.next_entry()? {
        unpacker.entry(&entry, &mut reader)?;
    }
    unpacker.finish();
    // The digests cover what follows the end of the archive, too.
    io::copy(&mut reader.into_inner(), &mut io::sink()).map_err(read_error)?;
    Ok(unpacker.done)
}

struct Unpacker {
    root: Rc<OwnedFd>,
    trash: OwnedFd,
    trashed: u64,
    keep_owner: bool,
    limits: Limits,
    /// The last parent folder, for entries mostly come folder by folder.
    parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    folders: Vec<(Vec<u8>, (i64, u32))>,
    folder_names: usize,
    skipped: usize,
    buf: Vec<u8>,
    done: Unpacked,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &Entry, reader: &mut TarReader<Streamed<R>>) -> Result<()> {
        self.count()?;
        let names = self.names(&entry.path)?;
        let fail = |error: Errno| failed(&entry.path, error);
        let Some((name, parents)) = names.split_last() else {
            // The entry for the root itself.
            if entry.kind != Kind::Folder {
                return Err(refused(&entry.path, "its name is that of the root"));
            }
            let root = Rc::clone(&self.root);
            self.set_metadata(&root, entry)?;
            self.remember(Vec::new(), entry.mtime);
            return Ok(());
        };
        let (opaque, whiteout) = match name.strip_prefix(b".wh.") {
            _ if parents.iter().any(|parent| parent.starts_with(b".wh..wh.")) => return Ok(()),
            Some(b".wh..opq") => (true, None),
            // Bookkeeping of aufs.
            Some(rest) if rest.starts_with(b".wh.") => return Ok(()),
            Some(b"" | b"." | b"..") => return Err(refused(&entry.path, "it hides no name")),
            Some(rest) => (false, Some(rest)),
            None => (false, None),
        };
        if let Kind::Special(kind) = entry.kind {
            self.warn(format!("{} is a {kind} and was left out", shown(&entry.path)));
            return Ok(());
        }
        let parent = self.parent(parents, &entry.path)?;
        if opaque {
            return set_opaque(&parent, &entry.path);
        }
        if let Some(hidden) = whiteout {
            return self.whiteout(&parent, hidden, &entry.path);
        }
        match entry.kind {
            Kind::Folder => {
                let folder = self.folder(&parent, name, &entry.path)?;
                self.set_metadata(&folder, entry)?;
                self.remember(names.join(&b'/'), entry.mtime);
            }
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let create = || rustix::fs::openat(&parent, *name, flags, Mode::RUSR | Mode::WUSR);
                let file = self.replacing(&parent, name, create).map_err(fail)?;
                self.write_data(&file, entry, reader)?;
                self.set_metadata(&file, entry)?;
                set_times(&file, entry.mtime);
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(refused(&entry.path, "it links to an empty name"));
                }
                let create = || rustix::fs::symlinkat(entry.link.as_slice(), &parent, *name);
                self.replacing(&parent, name, create).map_err(fail)?;
                if self.keep_owner {
                    let (uid, gid) = owner(entry)?;
                    rustix::fs::chownat(&parent, *name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(fail)?;
                }
                let times = timestamps(entry.mtime);
                let _ = rustix::fs::utimensat(&parent, *name, &times, AtFlags::SYMLINK_NOFOLLOW);
            }
            Kind::HardLink => self.hard_link(&parent, name, entry)?,
            Kind::Special(_) => {}
        }
        Ok(())
    }

    fn count(&mut self) -> Result<()> {
        self.done.entries += 1;
        if self.done.entries > self.limits.max_entries {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "the layer has more than {} entries, the limit for one",
                    self.limits.max_entries
                ),
            ));
        }
        Ok(())
    }

    /// Splits a name into its components, which are relative to the root whatever they say.
    fn names<'a>(&self, path: &'a [u8]) -> Result<Vec<&'a [u8]>> {
        if path.len() > self.limits.max_path {
            return Err(refused(
                path,
                &format!("its name is longer than {} bytes", self.limits.max_path),
            ));
        }
        let mut names = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return Err(refused(path, "its name leads out with ..")),
                _ if name.len() > 255 => return Err(refused(path, "a part of its name is longer than 255 bytes")),
                _ => names.push(name),
            }
        }
        Ok(names)
    }

    /// Opens a folder of the layer, making what is missing.
    fn parent(&mut self, names: &[&[u8]], of: &[u8]) -> Result<Rc<OwnedFd>> {
        if names.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        let path = names.join(&b'/');
        if let Some((cached, folder)) = &self.parent
            && *cached == path
        {
            return Ok(Rc::clone(folder));
        }
        let folder = match self.open_in_root(&path) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_folders(names, of)?,
            Err(error) => return Err(failed(of, error)),
        };
        let folder = Rc::new(folder);
        self.parent = Some((path, Rc::clone(&folder)));
        Ok(folder)
    }

    fn make_folders(&mut self, names: &[&[u8]], of: &[u8]) -> Result<OwnedFd> {
        let mut at = Rc::clone(&self.root);
        for (i, name) in names.iter().enumerate() {
            let next = match rustix::fs::openat(&*at, *name, FOLDER, Mode::empty()) {
                Ok(next) => next,
                // Not a folder: a link is followed in the root.
                Err(Errno::NOTDIR | Errno::LOOP) if kind_of(&at, name) == Ok(FileType::Symlink) => {
                    match self.open_in_root(&names[..=i].join(&b'/')) {
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                            return Err(refused(
                                of,
                                &format!("it lies behind {}, a link that leads nowhere", shown(name)),
                            ));
                        }
                        other => other.map_err(|error| failed(of, error))?,
                    }
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    self.count()?;
                    self.folder(&at, name, of)?
                }
                Err(error) => return Err(failed(of, error)),
            };
            at = Rc::new(next);
        }
        Rc::try_unwrap(at)
            .or_else(|at| at.try_clone())
            .map_err(|error| Error::io("cannot open a folder of the layer", error))
    }

    /// Makes or keeps a folder with the mode 0755.
    fn folder(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<OwnedFd> {
        let fail = |error: Errno| failed(path, error);
        let made = loop {
            match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
                Ok(()) => break true,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(fail(error)),
            }
            match kind_of(parent, name).map_err(fail)? {
                FileType::Directory => break false,
                FileType::CharacterDevice => {
                    // A whiteout of the same layer: the folder replaces the lower one as a whole.
                    self.remove(parent, name).map_err(fail)?;
                    let folder = self.folder(parent, name, path)?;
                    set_opaque(&folder, path)?;
                    return Ok(folder);
                }
                _ => self.remove(parent, name).map_err(fail)?,
            }
        };
        let folder = rustix::fs::openat(parent, name, FOLDER, Mode::empty()).map_err(fail)?;
        if made {
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(0o755)).map_err(fail)?;
        }
        Ok(folder)
    }

    fn whiteout(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        match rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(0, 0)) {
            Ok(()) => Ok(()),
            // A whiteout hides lower layers only; what this layer itself has in its place stays.
            Err(Errno::EXIST) => match rustix::fs::openat(parent, name, FOLDER, Mode::empty()) {
                Ok(folder) => set_opaque(&folder, path),
                Err(_) => Ok(()),
            },
            Err(error @ (Errno::PERM | Errno::OPNOTSUPP)) => Err(Error::unsupported(
                "the file system of the image store takes no whiteouts; Linux 5.8 and a local file system are needed (XDG_DATA_HOME decides where the store is)",
            )
            .with_source(io::Error::from(error))),
            Err(error) => Err(failed(path, error)),
        }
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
        let missing = || {
            refused(
                &entry.path,
                &format!(
                    "it is a hard link to {}, which is no earlier file of the layer",
                    shown(&entry.link)
                ),
            )
        };
        let fail = |error: Errno| failed(&entry.path, error);
        let target = self.names(&entry.link).map_err(|_| missing())?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(missing());
        };
        let target_parent = if target_parents.is_empty() {
            Rc::clone(&self.root)
        } else {
            Rc::new(self.open_in_root(&target_parents.join(&b'/')).map_err(|_| missing())?)
        };
        let stat = stat_of(&target_parent, target_name).map_err(|_| missing())?;
        if !matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::RegularFile | FileType::Symlink
        ) {
            return Err(missing());
        }
        if let Ok(present) = stat_of(parent, name)
            && (present.st_dev, present.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        let create = || rustix::fs::linkat(&*target_parent, *target_name, parent, name, AtFlags::empty());
        self.replacing(parent, name, create).map_err(fail)
    }

    /// Creates something, removing first what is in its place.
    fn replacing<T>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        create: impl Fn() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match create() {
            Err(Errno::EXIST) => {
                self.remove(parent, name)?;
                create()
            }
            other => other,
        }
    }

    fn remove(&mut self, parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        // The folder that was opened last may lie in or behind what goes.
        self.parent = None;
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                self.trashed += 1;
                rustix::fs::renameat(parent, name, &self.trash, self.trashed.to_string())
            }
            other => other,
        }
    }

    fn write_data<R: Read>(
        &mut self,
        file: &OwnedFd,
        entry: &Entry,
        reader: &mut TarReader<Streamed<R>>,
    ) -> Result<()> {
        let fail = |error: Errno| failed(&entry.path, error);
        let mut offset = 0;
        let mut hole = false;
        loop {
            let mut filled = 0;
            while filled < self.buf.len() {
                match reader.read_data(&mut self.buf[filled..])? {
                    0 => break,
                    n => filled += n,
                }
            }
            if filled == 0 {
                break;
            }
            let chunk = &self.buf[..filled];
            // Zeros become holes, so that a bomb of zeros fills no disk.
            hole = filled == self.buf.len() && chunk.iter().all(|byte| *byte == 0);
            let mut written = if hole { filled } else { 0 };
            while written < filled {
                match rustix::io::pwrite(file, &chunk[written..], offset + written as u64) {
                    Ok(n) => written += n,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(fail(error)),
                }
            }
            offset += filled as u64;
        }
        if hole {
            rustix::fs::ftruncate(file, offset).map_err(fail)?;
        }
        self.done.bytes += offset;
        Ok(())
    }

    fn set_metadata(&mut self, file: &OwnedFd, entry: &Entry) -> Result<()> {
        let fail = |error: Errno| failed(&entry.path, error);
        // Set-user-ID and set-group-ID bits go: a program with them must not lie on the host, and agents run with no_new_privs.
        let sticky = if entry.kind == Kind::Folder { 0o1000 } else { 0 };
        let mut mode = entry.mode & (0o777 | sticky);
        if self.keep_owner {
            let (uid, gid) = owner(entry)?;
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(fail)?;
        } else {
            let execute = entry.kind == Kind::Folder || mode & 0o111 != 0;
            mode |= if execute { 0o700 } else { 0o600 };
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(fail)
    }

    fn remember(&mut self, path: Vec<u8>, mtime: (i64, u32)) {
        self.folder_names += path.len() + size_of::<(Vec<u8>, (i64, u32))>();
        if self.folder_names <= MAX_FOLDER_NAMES {
            self.folders.push((path, mtime));
        }
    }

    fn warn(&mut self, warning: String) {
        if self.done.warnings.len() < MAX_WARNINGS {
            self.done.warnings.push(warning);
        } else {
            self.skipped += 1;
        }
    }

    /// Restores the times of folders, which making their entries has changed.
    fn finish(&mut self) {
        for (path, mtime) in std::mem::take(&mut self.folders) {
            if path.is_empty() {
                set_times(&self.root, mtime);
            } else if let Ok(folder) = self.open_in_root(&path) {
                set_times(&folder, mtime);
            }
        }
        if self.skipped > 0 {
            self.done
                .warnings
                .push(format!("{} more entries were left out", self.skipped));
        }
    }

    fn open_in_root(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&*self.root, path, flags, Mode::empty(), resolve) {
                // A rename anywhere on the system at the same moment.
                Err(Errno::AGAIN | Errno::INTR) if tries < 1000 => tries += 1,
                other => return other,
            }
        }
    }
}

fn stat_of(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<Stat> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn kind_of(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<FileType> {
    stat_of(parent, name).map(|stat| FileType::from_raw_mode(stat.st_mode))
}

fn owner(entry: &Entry) -> Result<(Uid, Gid)> {
    if entry.uid > MAX_ID || entry.gid > MAX_ID {
        return Err(refused(
            &entry.path,
            &format!(
                "it belongs to {}:{}, and only ids up to {MAX_ID} exist in a container",
                entry.uid, entry.gid
            ),
        ));
    }
    Ok((Uid::from_raw(entry.uid as u32), Gid::from_raw(entry.gid as u32)))
}

fn set_opaque(folder: &OwnedFd, path: &[u8]) -> Result<()> {
    rustix::fs::fsetxattr(folder, OPAQUE, b"y", XattrFlags::empty()).map_err(|error| match error {
        Errno::OPNOTSUPP => Error::unsupported(
            "the file system of the image store has no user attributes; put the store on a local file system (XDG_DATA_HOME decides where it is)",
        )
        .with_source(io::Error::from(error)),
        error => failed(path, error),
    })
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Times are a convenience: a file system that cannot hold them is no reason to fail.
fn set_times(file: impl AsFd, mtime: (i64, u32)) {
    let _ = rustix::fs::futimens(file, &timestamps(mtime));
}

fn refused(path: &[u8], why: &str) -> Error {
    Error::new(
        ErrorKind::DataInvalid,
        format!("entry {} is refused: {why}", shown(path)),
    )
}

fn failed(path: &[u8], error: Errno) -> Error {
    let name = shown(path);
    match error {
        Errno::NOSYS => Error::unsupported("the kernel has no openat2; Linux 5.8 or later is needed"),
        // What a hostile or damaged layer leads to.
        Errno::LOOP | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::XDEV | Errno::ISDIR => {
            Error::new(ErrorKind::DataInvalid, format!("entry {name} cannot be unpacked"))
                .with_source(io::Error::from(error))
        }
        Errno::NOSPC | Errno::DQUOT => Error::io(
            format!("no room to unpack {name}; make room on the disk of the image store"),
            error.into(),
        ),
        _ => Error::io(format!("cannot unpack {name}"), error.into()),
    }
}
