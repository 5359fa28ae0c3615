//! The adapter.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread,
};

use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    Result,
};
use agents_journal::{ChainKey, Checkpoint, EventVerification, GroupCommit, Keys};
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::{
    FileAuditConfig, SyncMode,
    error::{closed, file_error, stopped},
    line::Line,
    reader,
    target::Target,
    writer::{Clock, Log, Options, create_dirs},
};

/// The audit trail as JSON Lines: `YYYY-MM-DD.jsonl` in a folder, or one file.
///
/// Nothing is created before the first event. Any number of processes, and of values of this type, may share a trail.
#[derive(Debug)]
pub struct FileAudit {
    options: Options,
    group: GroupCommit<Log>,
}

impl FileAudit {
    /// Takes a configuration that has a `log_path`, a `log_file` or `stderr`, and no `chain_key`: the chain is a plain one. A
    /// relative path starts at the current folder of now.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key.
    pub fn new(config: FileAuditConfig) -> Result<Self> {
        Self::with_key(config, ChainKey::none())
    }

    /// As [`Self::new`], with what the hash chain is sealed with. Everybody who writes to the trail should have the same key.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key.
    pub fn with_key(config: FileAuditConfig, key: ChainKey) -> Result<Self> {
        Self::with_clock(config, key, Timestamp::now)
    }

    fn with_clock(config: FileAuditConfig, key: ChainKey, clock: Clock) -> Result<Self> {
        config.check()?;
        if config.chain_key.is_some() {
            return Err(Error::invalid(
                "chain_key is a reference, which only the factory resolves; resolve it and use FileAudit::with_key",
            ));
        }
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map_err(|error| Error::io("cannot tell the current folder; write an absolute path", error))
        };
        let target = match (&config.log_path, &config.log_file) {
            _ if config.stderr => Target::Stderr,
            (Some(folder), _) => Target::Folder(absolute(folder)?),
            (None, Some(file)) => Target::File(absolute(file)?),
            (None, None) => {
                return Err(Error::invalid(
                    "neither log_path nor log_file nor stderr is set; set one of them",
                ));
            }
        };
        let options = Options {
            target,
            create_dirs: config.create_dirs,
            sync: config.sync,
            key,
            keep_days: config.keep_days,
            clock,
        };
        Ok(Self {
            group: GroupCommit::new("audit-file", Log::new(options.clone())),
            options,
        })
    }

    /// Verifies the hash chain of the whole trail.
    ///
    /// `known` are checkpoints that were kept elsewhere: they find a tail that was cut off, and where there is no key, a
    /// chain that was computed anew. Lines from before there was a chain are counted.
    ///
    /// # Errors
    ///
    /// When the files cannot be read; `Unsupported` for standard error. What is wrong with the trail is a value.
    pub async fn verify(&self, keys: &Keys, known: &[Checkpoint]) -> Result<EventVerification> {
        self.needs_files()?;
        let target = self.options.target.clone();
        let (keys, known) = (keys.clone(), known.to_vec());
        off_runtime(move |_| reader::verify(&target, keys, known)).await
    }

    /// Forces everything to disk, and proves how far the chain goes. Keep it elsewhere.
    ///
    /// # Errors
    ///
    /// `NotFound` when nothing is on record; those of the disk; `Conflict` after `shutdown`.
    pub async fn checkpoint(&self) -> Result<Checkpoint> {
        self.group.call(Log::checkpoint).await.map_err(of_log)
    }

    fn needs_files(&self) -> Result<()> {
        match self.options.target {
            Target::Stderr => Err(Error::unsupported(
                "standard error cannot be read back; set log_path to write files",
            )),
            _ => Ok(()),
        }
    }

    /// The cursor behind the last record, from which a query finds what is appended later.
    ///
    /// # Errors
    ///
    /// When the files cannot be read.
    pub async fn end_cursor(&self) -> Result<String> {
        self.needs_files()?;
        let target = self.options.target.clone();
        let clock = self.options.clock;
        off_runtime(move |_| reader::end(&target, clock())).await
    }
}

#[async_trait]
impl AuditLogger for FileAudit {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("file", env!("CARGO_PKG_VERSION")).with_name(self.options.target.path().display().to_string())
    }

    fn capabilities(&self) -> AuditCapabilities {
        let files = !matches!(self.options.target, Target::Stderr);
        AuditCapabilities::none()
            .with_query(files)
            .with_durable(files && self.options.sync == SyncMode::EveryCommit)
    }

    async fn check_availability(&self) -> Result<Availability> {
        let options = self.options.clone();
        off_runtime(move |_| Ok(availability(&options))).await
    }

    fn location(&self) -> String {
        self.options
            .target
            .current(jiff::Timestamp::now(), None)
            .path
            .display()
            .to_string()
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        let line = Line::new(&event)?;
        self.group.commit(vec![line]).await.map_err(of_log)
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        let mut lines = Vec::with_capacity(events.len());
        let take = |event: &AuditEvent| Line::new(event).map(|line| lines.push(line));
        let mut outcomes: Vec<_> = events.iter().map(take).collect();
        if !lines.is_empty() {
            self.group.commit(lines).await.map_err(of_log)?;
        } else if let Some(Err(error)) = outcomes.pop() {
            return Err(error);
        }
        Ok(outcomes)
    }

    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        if self.group.is_closed() {
            return Err(closed());
        }
        self.needs_files()?;
        let target = self.options.target.clone();
        off_runtime(move |wanted| reader::page(&target, &query, wanted)).await
    }

    async fn flush(&self) -> Result<()> {
        self.group.call(Log::flush).await.map_err(of_log)
    }

    async fn shutdown(&self) -> Result<()> {
        self.group.close(Log::flush).await.map_err(of_log)
    }
}

/// Of the queue, only that it is closed is of interest, in the words of this sink.
fn of_log(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Conflict => closed(),
        _ => error,
    }
}

/// Does blocking work on a thread of its own, whatever the runtime. The work gets a question that turns false when the
/// caller is gone.
async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, answer) = oneshot::channel();
    thread::Builder::new()
        .name("audit-file-read".to_owned())
        .spawn(move || {
            let result = work(&|| !done.is_closed());
            // Who does not wait any more has no use for the answer.
            let _ = done.send(result);
        })
        .map_err(|error| {
            Error::io(
                "cannot start a thread that reads; allow this process more threads",
                error,
            )
        })?;
    answer.await.map_err(|_| stopped())?
}

fn availability(options: &Options) -> Availability {
    if matches!(options.target, Target::Stderr) {
        return Availability::ready().with_fact("writes to standard error");
    }
    match try_write(options) {
        Ok(fact) => Availability::ready().with_fact(fact),
        Err(error) => Availability::unavailable(error.report(), "set log_path to a folder that this user can write to"),
    }
}

/// Writes to the folder and opens the file for writing, and leaves nothing behind but the folder.
fn try_write(options: &Options) -> Result<String> {
    let log = options.target.current((options.clock)(), None);
    let fail = |what: &'static str| {
        let path = &log.path;
        move |error: io::Error| file_error(what, path, &error)
    };
    let folder = options.target.folder();
    if options.create_dirs {
        create_dirs(folder, false).map_err(fail("create the folder of"))?;
    }
    let exists = log.path.try_exists().map_err(fail("look for"))?;
    if exists {
        let opened = OpenOptions::new().read(true).append(true).open(&log.path);
        opened.map_err(fail("open"))?;
    }
    // The one file may well be in a folder that is not ours to write to.
    if !exists || log.day.is_some() {
        let probe = folder.join(format!(".audit-check-{}", std::process::id()));
        write_probe(&probe).map_err(fail("create"))?;
    }
    Ok(format!("writes to {}", log.path.display()))
}

fn write_probe(path: &Path) -> io::Result<()> {
    // What a crash left behind, or nothing.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(b"\n").and_then(|()| file.sync_data());
    fs::remove_file(path)?;
    written
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use agents_core::EventType;

    use super::*;

    static NOW: AtomicI64 = AtomicI64::new(0);

    fn now() -> Timestamp {
        Timestamp::from_second(NOW.load(Ordering::Relaxed)).unwrap()
    }

    fn at(time: &str) {
        NOW.store(time.parse::<Timestamp>().unwrap().as_second(), Ordering::Relaxed);
    }

    #[tokio::test]
    async fn a_new_day_has_a_new_file_and_no_day_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let audit = FileAudit::with_clock(FileAuditConfig::folder(folder.path()), ChainKey::none(), now).unwrap();
        let lines = |day: &str| {
            let text = fs::read_to_string(folder.path().join(format!("{day}.jsonl"))).unwrap_or_default();
            text.lines().count()
        };
        at("2026-02-28T23:59:59Z");
        assert_eq!(audit.end_cursor().await.unwrap(), "2026-02-28:0");
        let mut ids = Vec::new();
        for time in ["2026-02-28T23:59:59Z", "2026-03-01T00:00:00Z", "2026-02-28T23:59:58Z"] {
            at(time);
            // The time of the event itself does not matter.
            let event = AuditEvent::now(EventType::SystemWarning);
            ids.push(event.event_id.clone());
            audit.emit(event).await.unwrap();
        }
        assert_eq!((lines("2026-02-28"), lines("2026-03-01")), (1, 2));
        let query = AuditQuery::new().with_cursor(Some("2026-02-28:0".to_owned()));
        let page = audit.query(query).await.unwrap();
        let found: Vec<_> = page.events.into_iter().map(|event| event.event_id).collect();
        assert_eq!(found, ids);
    }
}
