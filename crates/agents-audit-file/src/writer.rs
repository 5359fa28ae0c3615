//! The thread that writes: everything that waits shares one write and one `fdatasync`.
//!
//! Appending follows these rules, so that several processes can share a file:
//!
//! - A group is written under an exclusive lock (`flock`), by one `write`, at the end of the file.
//! - A file that does not end in a line feed has the torn record of a writer that died. A line feed is written first, so
//!   that the torn record is alone on its line, where readers skip it.
//! - A write that fails is cut off again before the lock is released, so that a record is either whole or not there.
//! - After the lock is held, the file must still be the one of its path and of this day. Otherwise it was moved away or
//!   removed, and records would be acknowledged into a file that nobody reads.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use agents_core::{Error, Result};
use jiff::{Timestamp, civil::Date};
use tokio::sync::oneshot;

use crate::{
    config::SyncMode,
    error::{closed, file_error, stopped},
    target::{LogFile, Target},
};

/// How long the thread looks for new work before it sleeps. Waking a thread costs up to a quarter of an `fdatasync`, and
/// who has just got an answer often has the next event at hand.
const LINGER: Duration = Duration::from_micros(50);

/// The largest buffer that is kept from one group to the next.
const KEPT_BUFFER: usize = 1 << 20;

/// The time, which tests replace.
pub(crate) type Clock = fn() -> Timestamp;

/// How the thread writes.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) create_dirs: bool,
    pub(crate) sync: SyncMode,
    pub(crate) clock: Clock,
}

/// The near end of the thread, which starts with the first job and ends after the last one once this is dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Arc<Queue>,
    options: Options,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: Vec<Job>,
    started: bool,
    closed: bool,
}

/// Whole lines to append. Without any, everything before is forced to disk.
#[derive(Debug)]
struct Job {
    lines: Vec<u8>,
    done: oneshot::Sender<Result<()>>,
}

impl Writer {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            queue: Arc::default(),
            options,
        }
    }

    /// Appends whole lines, and returns once they are as durable as configured.
    pub(crate) async fn append(&self, lines: Vec<u8>) -> Result<()> {
        let answer = self.submit(lines)?;
        answer.await.map_err(|_| stopped())?
    }

    /// Returns once everything before is on disk.
    pub(crate) async fn flush(&self) -> Result<()> {
        self.append(Vec::new()).await
    }

    /// Refuses further jobs, and returns once those before are done and the file is closed.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        let answer = {
            let mut state = self.queue.lock();
            if state.closed {
                return Err(closed());
            }
            state.closed = true;
            if !state.started {
                return Ok(());
            }
            state.push(Vec::new())
        };
        self.queue.ready.notify_one();
        answer.await.map_err(|_| stopped())?
    }

    /// Whether `shutdown` was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    fn submit(&self, lines: Vec<u8>) -> Result<oneshot::Receiver<Result<()>>> {
        let mut state = self.queue.lock();
        if state.closed {
            return Err(closed());
        }
        if !state.started {
            let queue = Arc::clone(&self.queue);
            let options = self.options.clone();
            thread::Builder::new()
                .name("audit-file".to_owned())
                .spawn(move || run(&CloseOnDrop(queue), options))
                .map_err(|error| Error::io("cannot start the audit thread; allow this process more threads", error))?;
            state.started = true;
        }
        let answer = state.push(lines);
        drop(state);
        self.queue.ready.notify_one();
        Ok(answer)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.ready.notify_one();
    }
}

impl State {
    fn push(&mut self, lines: Vec<u8>) -> oneshot::Receiver<Result<()>> {
        let (done, answer) = oneshot::channel();
        self.jobs.push(Job { lines, done });
        answer
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that waits; none once it is closed and empty.
    fn take(&self) -> Vec<Job> {
        let late = Instant::now() + LINGER;
        let mut state = self.lock();
        while state.jobs.is_empty() && Instant::now() < late {
            drop(state);
            thread::yield_now();
            state = self.lock();
        }
        let mut state = self
            .ready
            .wait_while(state, |state| state.jobs.is_empty() && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.jobs)
    }
}

/// Fails whatever still waits when the thread ends, also by a panic: nobody must wait for an answer that never comes.
struct CloseOnDrop(Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.jobs.clear();
    }
}

fn run(queue: &CloseOnDrop, options: Options) {
    let mut log = Log {
        options,
        open: None,
        day: None,
    };
    let mut buffer = Vec::new();
    loop {
        let jobs = queue.0.take();
        if jobs.is_empty() {
            return;
        }
        buffer.clear();
        buffer.shrink_to(KEPT_BUFFER);
        for job in &jobs {
            buffer.extend_from_slice(&job.lines);
        }
        let flush = jobs.iter().any(|job| job.lines.is_empty());
        let outcome = log.commit(&buffer, flush);
        for job in jobs {
            let answer = outcome.as_ref().map_err(Failure::error).copied();
            // Who does not wait any more has no use for the answer.
            let _ = job.done.send(answer);
        }
    }
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

/// The far end: the file that is open.
struct Log {
    options: Options,
    /// None at the start and after every error: what the kernel knows about an open file after an error, above all after
    /// a failed `fdatasync`, is unclear.
    open: Option<Open>,
    /// The day of the last file.
    day: Option<Date>,
}

struct Open {
    log: LogFile,
    file: File,
    unsynced: bool,
}

impl Open {
    fn sync(&mut self) -> Result<(), Failure> {
        if self.unsynced {
            self.file
                .sync_data()
                .map_err(Failure::of("force to disk", &self.log.path))?;
            self.unsynced = false;
        }
        Ok(())
    }
}

impl Log {
    /// Appends the lines, and forces them to disk if that is configured or asked for.
    fn commit(&mut self, lines: &[u8], flush: bool) -> Result<(), Failure> {
        let mut open = if lines.is_empty() {
            self.open.take()
        } else {
            Some(self.append(lines)?)
        };
        if (flush || self.options.sync == SyncMode::EveryCommit)
            && let Some(open) = &mut open
        {
            open.sync()?;
        }
        self.open = open;
        Ok(())
    }

    fn append(&mut self, lines: &[u8]) -> Result<Open, Failure> {
        let mut open = self.lock()?;
        let written = append(&open.file, lines);
        let unlocked = open.file.unlock();
        written.and(unlocked).map_err(Failure::of("write to", &open.log.path))?;
        open.unsynced = true;
        Ok(open)
    }

    /// The file of this day, locked.
    fn lock(&mut self) -> Result<Open, Failure> {
        // Once for a new day, once for a file that was moved away; more often only when somebody does that all the time.
        for _ in 0..16 {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.open_file(self.current())?,
            };
            self.day = open.log.day;
            lock(&open.file).map_err(Failure::of("lock", &open.log.path))?;
            if open.log == self.current() && is_at(&open.file, &open.log.path) {
                return Ok(open);
            }
            open.sync()?;
        }
        let moved = io::Error::other("somebody moves it away again and again");
        Err(Failure::of("keep hold of", &self.current().path)(moved))
    }

    fn current(&self) -> LogFile {
        self.options.target.current((self.options.clock)(), self.day)
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
        })
    }
}

/// Appends to a locked file, all or nothing.
fn append(mut file: &File, lines: &[u8]) -> io::Result<()> {
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
    written
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
