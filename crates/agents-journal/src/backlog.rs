//! What a cursor still has before it, as seen from outside.

use std::path::PathBuf;

use agents_core::{ErrorKind, Result};

use crate::{
    folder::{Folder, segment_of},
    journal::off_runtime,
    reader::{Reader, Record},
};

/// What a writer's folder holds for one of its cursors. Who looks need not be the writer, which may be alive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backlog {
    /// How many records the cursor has not acknowledged.
    pub records: u64,
    /// The first of them.
    pub oldest: Option<Record>,
    /// The size of all segments, those parts too that were acknowledged.
    pub bytes: u64,
}

/// What the folder of a writer holds for the cursor of this name; everything when there is no such cursor.
///
/// # Errors
///
/// Those of the disk, and `DataInvalid` when what is there cannot be read.
pub async fn backlog(folder: impl Into<PathBuf>, cursor: &str) -> Result<Backlog> {
    let (folder, cursor) = (Folder::of(folder), cursor.to_owned());
    // A living writer removes segments while this looks.
    let mut tries = 3;
    loop {
        match look(&folder, &cursor).await {
            Err(error) if error.kind() == ErrorKind::NotFound && tries > 1 => tries -= 1,
            outcome => return outcome,
        }
    }
}

async fn look(folder: &Folder, cursor: &str) -> Result<Backlog> {
    let (at, name) = (folder.clone(), cursor.to_owned());
    let (position, segments, bytes) = off_runtime("journal-read", move || {
        let mut bytes = 0;
        for segment in at.names()?.iter().filter(|name| segment_of(name).is_some()) {
            bytes += at.length(segment)?;
        }
        Ok((at.position(&name)?, at.segments()?, bytes))
    })
    .await?;
    let (Some(first), Some(last)) = (segments.first().copied(), segments.last().copied()) else {
        return Ok(Backlog {
            records: 0,
            oldest: None,
            bytes,
        });
    };
    let acknowledged = position.unwrap_or(first - 1).max(first - 1);
    let mut end = last - 1;
    let mut reader = Reader::of_folder(&folder.path, last);
    loop {
        let records = reader.read(1024, 1 << 20).await?;
        let Some(record) = records.last() else { break };
        end = record.sequence;
    }
    let records = end.saturating_sub(acknowledged);
    let oldest = match records {
        0 => None,
        _ => Reader::of_folder(&folder.path, acknowledged + 1)
            .read(1, 1)
            .await?
            .pop(),
    };
    Ok(Backlog { records, oldest, bytes })
}
