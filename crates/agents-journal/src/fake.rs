//! A file system that forgets what was not synced, tears what was half written, and fails at any call.
//!
//! It is as mean as POSIX allows, and in places meaner: at a crash, any part of the unsynced sectors and any of the unsynced
//! names may be on the disk. A sync that fails leaves the pages clean, as Linux does, so that the next one succeeds without
//! having written them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use crate::disk::{Access, Disk, DiskFile};

const SECTOR: usize = 512;

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails with this error, after any part of its effect.
    Error(i32),
    /// The machine stops in it: it fails, and every call after it, until [`FakeDisk::crash`].
    Stop,
}

pub(crate) const EIO: i32 = 5;
pub(crate) const ENOSPC: i32 = 28;

#[derive(Clone, Debug)]
pub(crate) struct FakeDisk(Arc<Mutex<World>>);

#[derive(Debug)]
struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    /// What happened to names since they were durable.
    changes: Vec<Change>,
    locks: BTreeSet<usize>,
    calls: u64,
    faults: BTreeMap<u64, Fault>,
    /// Every how many calls one fails, more or less; 0 for never.
    one_in: u64,
    stopped: bool,
    random: Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    File(usize),
}

#[derive(Clone, Debug)]
enum Change {
    Link(PathBuf, Node),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, Node),
}

#[derive(Debug, Default)]
struct Inode {
    cache: Vec<u8>,
    disk: Vec<u8>,
    dirty: Vec<Range<usize>>,
    resized: bool,
    /// Whether cache and disk may differ.
    differs: bool,
}

/// A linear congruential generator, after Knuth's MMIX.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    fn size(&mut self, limit: usize) -> usize {
        self.below(limit as u64 + 1) as usize
    }
}

impl FakeDisk {
    pub(crate) fn new(seed: u64) -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Node::Folder)]);
        Self(Arc::new(Mutex::new(World {
            inodes: Vec::new(),
            names: root.clone(),
            durable: root,
            changes: Vec::new(),
            locks: BTreeSet::new(),
            calls: 0,
            faults: BTreeMap::new(),
            one_in: 0,
            stopped: false,
            random: Random(seed),
        })))
    }

    /// Lets a call fail, counted from now on.
    pub(crate) fn fail(&self, call: u64, fault: Fault) {
        let mut world = self.world();
        let call = world.calls + call;
        world.faults.insert(call, fault);
    }

    /// Lets one in so many calls fail; 0 for none any more.
    pub(crate) fn fail_one_in(&self, calls: u64) {
        let mut world = self.world();
        world.one_in = calls;
        world.faults.clear();
    }

    pub(crate) fn calls(&self) -> u64 {
        self.world().calls
    }

    pub(crate) fn stopped(&self) -> bool {
        self.world().stopped
    }

    /// The machine starts again after it lost power. Who still has files open must not use them.
    pub(crate) fn crash(&self) {
        let mut world = self.world();
        let world = &mut *world;
        let mut names = world.durable.clone();
        for change in std::mem::take(&mut world.changes) {
            if world.random.coin() {
                apply(&mut names, change);
            }
        }
        // What is in a folder that is gone is gone.
        let all = names.clone();
        names.retain(|path, _| path.ancestors().all(|above| all.contains_key(above)));
        for inode in world.inodes.iter_mut().filter(|inode| inode.differs) {
            inode.write_back(&mut world.random);
            inode.cache.clone_from(&inode.disk);
            inode.differs = false;
        }
        world.durable = names.clone();
        world.names = names;
        world.locks.clear();
        world.stopped = false;
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// Counts a call and says whether it fails.
    fn enter(&self) -> (MutexGuard<'_, World>, io::Result<()>) {
        let mut world = self.world();
        world.calls += 1;
        let call = world.calls;
        if world.stopped {
            return (world, Err(io::Error::from_raw_os_error(EIO)));
        }
        let mut fault = world.faults.remove(&call);
        let one_in = world.one_in;
        if one_in > 0 && world.random.below(one_in) == 0 {
            let errors = [Fault::Error(EIO), Fault::Error(ENOSPC), Fault::Stop];
            fault = Some(errors[world.random.size(2)]);
        }
        let outcome = match fault {
            None => Ok(()),
            Some(Fault::Error(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Fault::Stop) => {
                world.stopped = true;
                Err(io::Error::from_raw_os_error(EIO))
            }
        };
        (world, outcome)
    }
}

impl World {
    fn change(&mut self, change: Change) {
        apply(&mut self.names, change.clone());
        self.changes.push(change);
    }

    /// As `change`; when the call fails, it may have happened all the same.
    fn try_change(&mut self, outcome: io::Result<()>, change: Change) -> io::Result<()> {
        if outcome.is_ok() || self.random.coin() {
            self.change(change);
        }
        outcome
    }

    fn parent_exists(&self, path: &Path) -> io::Result<()> {
        match path.parent().and_then(|parent| self.names.get(parent)) {
            Some(Node::Folder) => Ok(()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, change: Change) {
    match change {
        Change::Link(path, node) => {
            names.insert(path, node);
        }
        Change::Unlink(path) => {
            names.remove(&path);
        }
        Change::Rename(from, to, node) => {
            names.remove(&from);
            names.insert(to, node);
        }
    }
}

impl Change {
    fn is_in(&self, folder: &Path) -> bool {
        let (Self::Link(path, _) | Self::Unlink(path) | Self::Rename(path, ..)) = self;
        path.parent() == Some(folder)
    }
}

impl Inode {
    /// Writes any part of what is dirty.
    fn write_back(&mut self, random: &mut Random) {
        let (old, new) = (self.disk.len(), self.cache.len());
        let changed = self.resized || !self.dirty.is_empty();
        if changed && old != new && random.coin() {
            let length = match random.below(3) {
                0 => new.min(old) + random.size(new.abs_diff(old)),
                _ => new,
            };
            self.disk.resize(length, 0);
        }
        for range in std::mem::take(&mut self.dirty) {
            let mut start = range.start;
            while start < range.end {
                let end = ((start / SECTOR + 1) * SECTOR).min(range.end);
                if random.coin() {
                    copy(&mut self.disk, &self.cache, start..end);
                }
                start = end;
            }
        }
        self.resized = false;
    }

    fn sync(&mut self) {
        self.disk.resize(self.cache.len(), 0);
        for range in std::mem::take(&mut self.dirty) {
            copy(&mut self.disk, &self.cache, range);
        }
        self.resized = false;
    }
}

fn copy(to: &mut [u8], from: &[u8], range: Range<usize>) {
    let end = range.end.min(to.len()).min(from.len());
    if range.start < end {
        to[range.start..end].copy_from_slice(&from[range.start..end]);
    }
}

impl Disk for FakeDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let (mut world, outcome) = self.enter();
        world.parent_exists(path)?;
        let there = match world.names.get(path) {
            Some(Node::File(inode)) => Some(*inode),
            Some(Node::Folder) => return Err(io::ErrorKind::IsADirectory.into()),
            None => None,
        };
        let inode = match (access, there) {
            (Access::Read | Access::Append | Access::Lock, Some(inode)) => {
                outcome?;
                inode
            }
            (Access::Read | Access::Append, None) => {
                outcome?;
                return Err(io::ErrorKind::NotFound.into());
            }
            (Access::Fresh | Access::Lock, _) => {
                if there.is_some() {
                    world.change(Change::Unlink(path.to_owned()));
                }
                world.inodes.push(Inode::default());
                let inode = world.inodes.len() - 1;
                world.try_change(outcome, Change::Link(path.to_owned(), Node::File(inode)))?;
                inode
            }
        };
        Ok(Box::new(FakeFile {
            disk: self.clone(),
            inode,
            locked: Mutex::new(false),
        }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let (world, outcome) = self.enter();
        outcome?;
        let inside = world.names.keys().filter(|path| path.parent() == Some(folder));
        Ok(inside
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn create_dir(&self, folder: &Path) -> io::Result<()> {
        let (mut world, outcome) = self.enter();
        world.parent_exists(folder)?;
        if world.names.contains_key(folder) {
            return outcome;
        }
        world.try_change(outcome, Change::Link(folder.to_owned(), Node::Folder))
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.world().names.get(path) == Some(&Node::Folder)
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        let (mut world, outcome) = self.enter();
        let world = &mut *world;
        let mut kept = Vec::new();
        for change in std::mem::take(&mut world.changes) {
            if !change.is_in(folder) {
                kept.push(change);
            } else if outcome.is_ok() || world.random.coin() {
                apply(&mut world.durable, change);
            } else {
                kept.push(change);
            }
        }
        world.changes = kept;
        outcome
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut world, outcome) = self.enter();
        let node = *world.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        world.try_change(outcome, Change::Rename(from.to_owned(), to.to_owned(), node))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (mut world, outcome) = self.enter();
        if !world.names.contains_key(path) {
            outcome?;
            return Err(io::ErrorKind::NotFound.into());
        }
        world.try_change(outcome, Change::Unlink(path.to_owned()))
    }
}

#[derive(Debug)]
struct FakeFile {
    disk: FakeDisk,
    inode: usize,
    locked: Mutex<bool>,
}

impl DiskFile for FakeFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (world, outcome) = self.disk.enter();
        outcome?;
        let cache = &world.inodes[self.inode].cache;
        let rest = cache.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let (mut world, outcome) = self.disk.enter();
        let count = match outcome {
            Ok(()) => bytes.len(),
            Err(_) => world.random.size(bytes.len()),
        };
        let inode = &mut world.inodes[self.inode];
        let start = inode.cache.len();
        inode.cache.extend_from_slice(&bytes[..count]);
        inode.dirty.push(start..start + count);
        inode.differs = true;
        outcome
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let (mut world, outcome) = self.disk.enter();
        outcome?;
        let inode = &mut world.inodes[self.inode];
        inode.cache.resize(length as usize, 0);
        inode.resized = true;
        inode.differs = true;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let (mut world, outcome) = self.disk.enter();
        let world = &mut *world;
        let inode = &mut world.inodes[self.inode];
        match &outcome {
            Ok(()) => inode.sync(),
            Err(_) => inode.write_back(&mut world.random),
        }
        outcome
    }

    fn length(&self) -> io::Result<u64> {
        let (world, outcome) = self.disk.enter();
        outcome?;
        Ok(world.inodes[self.inode].cache.len() as u64)
    }

    fn try_lock(&self) -> io::Result<bool> {
        let (mut world, outcome) = self.disk.enter();
        outcome?;
        let free = world.locks.insert(self.inode);
        *self.locked.lock().unwrap() = free;
        Ok(free)
    }
}

impl Drop for FakeFile {
    fn drop(&mut self) {
        if *self.locked.lock().unwrap() {
            self.disk.world().locks.remove(&self.inode);
        }
    }
}
