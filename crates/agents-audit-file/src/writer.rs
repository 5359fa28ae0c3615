//! The far end of the log: what is on disk, and how it gets there.
//!
//! Appending follows these rules, so that several processes can share a file:
//!
//! - A group is written under an exclusive lock (`flock`), by one `write`, at the end of the file.
//! - A file that does not end in a line feed has the torn record of a writer that died. A line feed is written first, so
//!   that the torn record is alone on its line, where readers skip it.
//! - A write that fails is cut off again before the lock is released, so that a record is either whole or not there.
//! - After the lock is held, the file must still be the one of its path and of this day. Otherwise it was moved away or
//!   removed, and records would be acknowledged into a file that nobody reads.
//! - All who share a trail continue one chain. Who finds the file longer than it left it reads the last link from it; a new
//!   day goes on from the file before.
//! - When a file cannot be forced to disk, what the kernel still shows of it need not be there. The next writer puts a
//!   copy in its place, under the lock, before anything is acknowledged after it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use agents_core::{Error, ErrorKind, Result};
use agents_journal::{Chain, ChainKey, Checkpoint, CheckpointKind, Sink};
use jiff::{Timestamp, ToSpan, civil::Date};

use crate::{
    config::SyncMode,
    error::file_error,
    line::Line,
    retention::retain,
    tail::{WRITER, last_link},
    target::{LogFile, Target, day_of},
};

/// The largest buffer that is kept from one group to the next.
const KEPT_BUFFER: usize = 1 << 20;

/// The time, which tests replace.
pub(crate) type Clock = fn() -> Timestamp;

/// How the log is written.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) create_dirs: bool,
    pub(crate) sync: SyncMode,
    pub(crate) key: ChainKey,
    pub(crate) keep_days: Option<u16>,
    pub(crate) clock: Clock,
}

/// What went wrong with a group, for each of those who wait for it.
#[derive(Debug)]
struct Failure {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Failure {
    fn of(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { what, path, source }
    }

    fn error(&self) -> Error {
        file_error(self.what, &self.path, &self.source)
    }
}

/// The log, open for writing.
#[derive(Debug)]
pub(crate) struct Log {
    options: Options,
    /// None at the start and after every error.
    open: Option<Open>,
    /// The day of the last file.
    day: Option<Date>,
    /// The day on which old files were removed the last time.
    retained: Option<Date>,
    /// The end of the chain, as far as it was seen.
    chain: Option<Chain>,
    /// A sync has failed, so that what can be read need not be on disk.
    doubtful: bool,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    log: LogFile,
    file: File,
    unsynced: bool,
    /// The length at which the chain ends.
    seen: Option<u64>,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error()
    }
}

impl Sink for Log {
    /// None for everything before to be forced to disk.
    type Payload = Vec<Line>;
    type Receipt = ();

    fn size(lines: &Vec<Line>) -> usize {
        lines.iter().map(Line::size).sum()
    }

    fn commit(&mut self, batches: Vec<Vec<Line>>) -> Vec<Result<()>> {
        let lines: Vec<_> = batches.iter().flatten().collect();
        let outcome = match &self.options.target {
            Target::Stderr => self.print(&lines),
            _ => self.append(&lines),
        };
        batches
            .iter()
            .map(|_| outcome.as_ref().map_err(Failure::error).copied())
            .collect()
    }
}

impl Log {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            options,
            open: None,
            day: None,
            retained: None,
            chain: None,
            doubtful: false,
            buffer: Vec::new(),
        }
    }

    /// Forces everything to disk.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if let Some(mut open) = self.open.take() {
            self.sync(&mut open)?;
            self.open = Some(open);
        }
        if self.doubtful {
            let open = self.lock()?;
            self.release(open)?;
        }
        Ok(())
    }

    /// Forces everything to disk and proves how far the chain goes.
    pub(crate) fn checkpoint(&mut self) -> Result<Checkpoint> {
        if !matches!(self.options.target, Target::Stderr) {
            let open = self.lock()?;
            self.release(open)?;
            self.flush()?;
        }
        let chain = self.chain.as_ref().filter(|chain| chain.sequence() > 0);
        let chain = chain.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "nothing is on record yet; make a checkpoint after an event",
            )
        })?;
        Ok(chain.checkpoint(CheckpointKind::Point))
    }

    /// Puts the lines into the buffer, and says where the chain ends with them.
    fn encode(&mut self, lines: &[&Line]) -> Chain {
        let mut chain = match &self.chain {
            Some(chain) => chain.clone(),
            None => {
                let id = uuid::Uuid::now_v7();
                Chain::new(self.options.key.clone(), format!("{WRITER}{id}"))
            }
        };
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BUFFER);
        for line in lines {
            line.push(&mut chain, &mut self.buffer);
        }
        chain
    }

    fn print(&mut self, lines: &[&Line]) -> Result<(), Failure> {
        let chain = self.encode(lines);
        io::stderr()
            .lock()
            .write_all(&self.buffer)
            .map_err(Failure::of("write to", self.options.target.path()))?;
        self.chain = Some(chain);
        Ok(())
    }

    fn append(&mut self, lines: &[&Line]) -> Result<(), Failure> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut open = self.lock()?;
        let chain = self.encode(lines);
        let written = append(&open.file, &self.buffer);
        let unlocked = open.file.unlock();
        let length = written.map_err(Failure::of("write to", &open.log.path))?;
        self.chain = Some(chain);
        unlocked.map_err(Failure::of("unlock", &open.log.path))?;
        open.seen = Some(length);
        open.unsynced = true;
        if self.options.sync == SyncMode::EveryCommit {
            self.sync(&mut open)?;
        }
        self.open = Some(open);
        Ok(())
    }

    fn release(&mut self, open: Open) -> Result<(), Failure> {
        open.file.unlock().map_err(Failure::of("unlock", &open.log.path))?;
        self.open = Some(open);
        Ok(())
    }

    fn sync(&mut self, open: &mut Open) -> Result<(), Failure> {
        if open.unsynced {
            let synced = open.file.sync_data();
            self.doubtful |= synced.is_err();
            synced.map_err(Failure::of("force to disk", &open.log.path))?;
            open.unsynced = false;
        }
        Ok(())
    }

    /// The file of this day, locked, with the end of the chain known.
    fn lock(&mut self) -> Result<Open, Failure> {
        // Once for a new day, once for a file that was moved away; more often only when somebody does that all the time.
        for _ in 0..16 {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => {
                    self.find_day()?;
                    self.open_file(self.current())?
                }
            };
            self.day = open.log.day;
            lock(&open.file).map_err(Failure::of("lock", &open.log.path))?;
            // Also of a file that is left: nobody writes to it any more.
            self.find_chain(&mut open)?;
            if open.log != self.current() || !is_at(&open.file, &open.log.path) {
                self.sync(&mut open)?;
                continue;
            }
            if self.doubtful {
                rewrite(&open).map_err(Failure::of("rewrite", &open.log.path))?;
                self.doubtful = false;
                continue;
            }
            self.retain(&open);
            return Ok(open);
        }
        let moved = io::Error::other("somebody moves it away again and again");
        Err(Failure::of("keep hold of", &self.current().path)(moved))
    }

    /// Once a day. What cannot be removed today is tomorrow, and no event is refused for it.
    fn retain(&mut self, open: &Open) {
        let (Some(day), Some(keep)) = (open.log.day, self.options.keep_days) else {
            return;
        };
        if self.retained.replace(day) != Some(day)
            && let Err(error) = retain(&self.options.target, day, keep, &self.options.key)
        {
            let folder = self.options.target.path().display();
            tracing::warn!(%folder, %error, "old files of the audit log could not be removed");
        }
    }

    fn current(&self) -> LogFile {
        self.options.target.current((self.options.clock)(), self.day)
    }

    /// Never goes back to an earlier file when the clock was set back, save for one whose day is far off.
    fn find_day(&mut self) -> Result<(), Failure> {
        if self.day.is_none() {
            let target = &self.options.target;
            let files = target.files().map_err(Failure::of("look for", target.path()))?;
            let tomorrow = day_of((self.options.clock)()).saturating_add(1.day());
            self.day = files
                .into_iter()
                .filter_map(|file| file.day)
                .filter(|day| *day <= tomorrow)
                .max();
        }
        Ok(())
    }

    /// Takes up the chain where the file, or the one before it, ends.
    fn find_chain(&mut self, open: &mut Open) -> Result<(), Failure> {
        let fail = |error| Failure::of("read", &open.log.path)(error);
        let length = open.file.metadata().map_err(fail)?.len();
        if self.chain.is_some() && open.seen == Some(length) {
            return Ok(());
        }
        let mut last = last_link(&open.file, length).map_err(fail)?;
        if last.is_none() {
            let before = self.options.target.files().map_err(fail)?.into_iter();
            for log in before.filter(|log| log.day < open.log.day).rev() {
                last = last_link_of(&log.path).map_err(Failure::of("read", &log.path))?;
                if last.is_some() {
                    break;
                }
            }
        }
        open.seen = Some(length);
        let Some(last) = last else {
            return Ok(());
        };
        let known = self.chain.as_ref();
        if !known.is_some_and(|known| known.writer() == last.writer && known.sequence() > last.sequence) {
            let resumed =
                Chain::resume(self.options.key.clone(), &last).map_err(|error| fail(io::Error::other(error)))?;
            self.chain = Some(resumed);
        }
        Ok(())
    }

    fn open_file(&self, log: LogFile) -> Result<Open, Failure> {
        let folder = self.options.target.folder();
        let durable = self.options.sync == SyncMode::EveryCommit;
        if self.options.create_dirs {
            create_dirs(folder, durable).map_err(Failure::of("create the folder of", &log.path))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log.path)
            .map_err(Failure::of("open", &log.path))?;
        if durable {
            // Not only by the process that creates the file: another may come in between, and acknowledge events of a
            // file whose name is not on disk yet.
            sync_folder(folder).map_err(Failure::of("force to disk the folder of", &log.path))?;
        }
        Ok(Open {
            log,
            file,
            unsynced: false,
            seen: None,
        })
    }
}

/// The last link of a file that others may be writing to.
fn last_link_of(path: &Path) -> io::Result<Option<agents_core::ChainLink>> {
    let file = File::open(path)?;
    lock(&file)?;
    let link = last_link(&file, file.metadata()?.len());
    file.unlock()?;
    link
}

/// Puts a copy in the place of a locked file. Everybody notices that theirs is not the one of the path any more.
fn rewrite(open: &Open) -> io::Result<()> {
    if !open.file.metadata()?.is_file() {
        return Ok(());
    }
    let path = &open.log.path;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".rewrite-{}", std::process::id()));
    let fresh = path.with_file_name(name);
    // What a crash left behind, or nothing.
    let _ = fs::remove_file(&fresh);
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    let copied = File::open(path)
        .and_then(|mut from| io::copy(&mut from, &mut to))
        .and_then(|_| to.sync_all())
        .and_then(|()| fs::rename(&fresh, path));
    if copied.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    copied?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Appends to a locked file, all or nothing, and says how long it is then.
fn append(mut file: &File, lines: &[u8]) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let written = if ends_torn(file, length)? {
        file.write_all(b"\n").and_then(|()| file.write_all(lines))
    } else {
        file.write_all(lines)
    };
    if written.is_err() {
        // When this fails too, the next writer finds the torn record and isolates it.
        let _ = file.set_len(length);
    }
    written?;
    Ok(file.metadata()?.len())
}

fn ends_torn(file: &File, length: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last != [b'\n'])
}

/// Waits for the exclusive lock. A signal handler may interrupt `flock`.
fn lock(file: &File) -> io::Result<()> {
    loop {
        match file.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Whether the path still leads to the file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Creates a folder and those above it, each readable by this user alone.
pub(crate) fn create_dirs(folder: &Path, durable: bool) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(folder);
    if parent != folder {
        create_dirs(parent, durable)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        // Another process was faster.
        Err(_) if folder.is_dir() => {}
        outcome => outcome?,
    }
    if durable { sync_folder(parent) } else { Ok(()) }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
