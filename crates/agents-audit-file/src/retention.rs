//! Removes old days, and says so.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use agents_core::{AuditEvent, ChainLink};
use agents_journal::{Chain, ChainKey, Checkpoint, CheckpointKind};
use jiff::{ToSpan, civil::Date};

use crate::target::{LogFile, Target};

/// The statements of what was removed: JSON, one checkpoint for each writer.
fn cut_file(folder: &Path) -> PathBuf {
    folder.join("cut.json")
}

/// What was removed of a trail.
pub(crate) fn read_cuts(target: &Target) -> io::Result<Vec<Checkpoint>> {
    let Target::Folder(folder) = target else {
        return Ok(Vec::new());
    };
    match fs::read(cut_file(folder)) {
        Ok(json) => Ok(serde_json::from_slice(&json)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Removes the files of days that are longer ago. The caller holds the lock of today's file.
pub(crate) fn retain(target: &Target, today: Date, keep_days: u16, key: &ChainKey) -> io::Result<()> {
    let oldest = today.saturating_sub(i64::from(keep_days).days());
    let mut files = target.files()?;
    files.retain(|file| file.day.is_some_and(|day| day < oldest));
    if files.is_empty() {
        return Ok(());
    }
    let mut cuts: BTreeMap<_, _> = read_cuts(target)?
        .into_iter()
        .map(|cut| (cut.writer.clone(), cut))
        .collect();
    for link in last_links(&files)?.into_values() {
        // One whose hash is no hash belongs to no chain.
        if let Ok(chain) = Chain::resume(key.clone(), &link) {
            cuts.insert(link.writer, chain.checkpoint(CheckpointKind::Cut));
        }
    }
    let cuts: Vec<_> = cuts.into_values().collect();
    let path = cut_file(target.folder());
    let fresh = path.with_extension("tmp");
    // What a crash left behind, or nothing.
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(&serde_json::to_vec_pretty(&cuts)?)?;
    file.sync_all()?;
    fs::rename(&fresh, &path)?;
    File::open(target.folder())?.sync_all()?;
    for file in files {
        fs::remove_file(file.path)?;
    }
    Ok(())
}

/// The last link of each writer.
fn last_links(files: &[LogFile]) -> io::Result<BTreeMap<String, ChainLink>> {
    let mut links: BTreeMap<String, ChainLink> = BTreeMap::new();
    for file in files {
        for line in BufReader::new(File::open(&file.path)?).split(b'\n') {
            let event = serde_json::from_slice::<AuditEvent>(&line?).ok();
            if let Some(link) = event.and_then(|event| event.chain)
                && links.get(&link.writer).is_none_or(|last| last.sequence < link.sequence)
            {
                links.insert(link.writer.clone(), link);
            }
        }
    }
    Ok(links)
}
