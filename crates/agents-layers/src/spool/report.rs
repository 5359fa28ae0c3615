//! How a spool is doing, from within and from without.

use std::{
    fs,
    path::{Path, PathBuf},
};

use agents_core::Result;
use agents_journal::{backlog, writers};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    CURSOR,
    files::{FAILING, SINK, blocking, file_error, read_json},
    lost,
};

/// How the spool of this process is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SpoolStatus {
    /// How many events wait for delivery.
    pub events: u64,
    /// What the spool takes on disk, those events too that were delivered and not yet removed.
    pub bytes: u64,
    /// The time of the oldest event that waits; none also while it is not known yet.
    pub oldest: Option<Timestamp>,
    /// How many events were delivered, those that a dead process left included.
    pub delivered: u64,
    /// How many attempts failed and were made again.
    pub retried: u64,
    /// How many events the sink will never take; they are in `lost.jsonl`.
    pub lost: u64,
    /// How many events were refused since the spool was full.
    pub refused: u64,
    /// That the sink does not take events now.
    pub failing: Option<Failing>,
}

/// That a sink does not take events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failing {
    /// Since when.
    pub since: Timestamp,
    /// How many attempts failed.
    pub attempts: u64,
    /// What it said the last time.
    pub error: String,
}

impl Failing {
    /// One more attempt has failed.
    pub(super) fn again(before: Option<&Self>, error: &agents_core::Error) -> Self {
        Self {
            since: before.map_or_else(Timestamp::now, |before| before.since),
            attempts: before.map_or(0, |before| before.attempts) + 1,
            error: error.report(),
        }
    }
}

/// Which sink a spool is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SinkName {
    #[serde(rename = "type")]
    pub(super) sink_type: String,
    pub(super) location: String,
}

/// What a folder holds, whoever writes there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SpoolReport {
    /// The folder.
    pub folder: PathBuf,
    /// The type of the sink.
    pub sink: String,
    /// Where the trail of the sink is.
    pub location: String,
    /// The writers: at most one of each process that lives, and those that dead ones left.
    pub writers: Vec<SpoolWriter>,
}

/// What a process has in a spool, or left there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SpoolWriter {
    /// Its folder within that of the spool.
    pub name: String,
    /// Whether the process lives.
    pub live: bool,
    /// How many events wait.
    pub events: u64,
    /// What it takes on disk, those events too that were delivered and not yet removed.
    pub bytes: u64,
    /// The time of the oldest event that waits.
    pub oldest: Option<Timestamp>,
    /// How many events are in `lost.jsonl`.
    pub lost: u64,
    /// That the sink did not take events the last time.
    pub failing: Option<Failing>,
}

impl SpoolReport {
    /// How many events wait.
    pub fn events(&self) -> u64 {
        self.writers.iter().map(|writer| writer.events).sum()
    }

    /// How many wait that dead processes left.
    pub fn left(&self) -> u64 {
        let dead = self.writers.iter().filter(|writer| !writer.live);
        dead.map(|writer| writer.events).sum()
    }

    /// What is taken on disk.
    pub fn bytes(&self) -> u64 {
        self.writers.iter().map(|writer| writer.bytes).sum()
    }

    /// How many events the sink refused for good.
    pub fn lost(&self) -> u64 {
        self.writers.iter().map(|writer| writer.lost).sum()
    }

    /// The time of the oldest event that waits.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.writers.iter().filter_map(|writer| writer.oldest).min()
    }

    /// That the sink did not take events the last time, as the last to try says.
    pub fn failing(&self) -> Option<&Failing> {
        let waiting = self.writers.iter().filter(|writer| writer.events > 0);
        waiting
            .filter_map(|writer| writer.failing.as_ref())
            .max_by_key(|failing| failing.since)
    }
}

/// Looks at a spool without touching it. None when the folder is not there, or is no spool.
///
/// # Errors
///
/// Those of the disk, and `DataInvalid` for what cannot be read.
pub async fn inspect(folder: impl Into<PathBuf>) -> Result<Option<SpoolReport>> {
    let folder = folder.into();
    let path = folder.join(SINK);
    let Some(name) = blocking(move || read_json::<SinkName>(&path)).await? else {
        return Ok(None);
    };
    let mut report = SpoolReport {
        sink: name.sink_type,
        location: name.location,
        writers: Vec::new(),
        folder,
    };
    for writer in writers(&report.folder).await? {
        let waiting = backlog(&writer.folder, CURSOR).await?;
        let folder = writer.folder;
        let (lost, failing) = blocking(move || Ok((lost::count(&folder)?, read_json(&folder.join(FAILING))?))).await?;
        report.writers.push(SpoolWriter {
            name: writer.name,
            live: writer.live,
            events: waiting.records,
            bytes: waiting.bytes,
            oldest: waiting.oldest.and_then(|record| Some(record.event().ok()?.timestamp)),
            lost,
            failing,
        });
    }
    Ok(Some(report))
}

/// Looks at every spool below a folder, in the order of their names.
///
/// # Errors
///
/// As [`inspect`].
pub async fn inspect_all(folder: &Path) -> Result<Vec<SpoolReport>> {
    let path = folder.to_owned();
    let folders = blocking(move || {
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| file_error("look into", &path, error))?,
        };
        let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        folders.retain(|folder| folder.is_dir());
        folders.sort();
        Ok(folders)
    })
    .await?;
    let mut reports = Vec::new();
    for folder in folders {
        reports.extend(inspect(folder).await?);
    }
    Ok(reports)
}
