//! Reads the trail back, line by line.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take},
    os::unix::fs::FileExt,
    path::Path,
};

use agents_core::{AuditEvent, AuditPage, AuditQuery, Error, Result};
use agents_journal::{Checkpoint, EventVerification, EventVerifier, Keys, Reading};
use jiff::{Timestamp, ToSpan};

use crate::{
    cursor::Cursor,
    error::file_error,
    retention::read_cuts,
    target::{LogFile, Target, day_of},
};

/// The longest line, and so the largest record.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// How far before a cursor the reader looks for events that were delivered again after it.
const REPEAT_WINDOW: u64 = 1 << 16;

/// A page of the events that match, each once. Ends early when nobody wants it any more.
pub(crate) fn page(target: &Target, query: &AuditQuery, wanted: impl Fn() -> bool) -> Result<AuditPage> {
    if query.limit == 0 {
        return Err(Error::invalid("limit is 0; ask for at least one event"));
    }
    let cursor = match &query.cursor {
        Some(text) => Some(Cursor::parse(text, target)?),
        None => None,
    };
    let needles = needles(query);
    let mut page = AuditPage::default();
    let mut seen = HashSet::new();
    let mut line = Vec::new();
    for log in files(target, query, cursor)? {
        let start = cursor.filter(|cursor| cursor.day == log.day);
        let start = start.map_or(0, |cursor| cursor.offset);
        let Some(mut lines) = Lines::open(&log, start)? else {
            continue;
        };
        let mut skipped = 0_u64;
        loop {
            if !wanted() {
                return Ok(page);
            }
            let offset = lines.offset;
            let read = lines.next(&mut line);
            match read.map_err(|error| file_error("read", &log.path, &error))? {
                Line::End => break,
                Line::Whole if !needles.iter().all(|needle| contains(&line, needle)) => continue,
                Line::Whole => {}
                Line::TooLong => {
                    skipped += 1;
                    continue;
                }
            }
            let Ok(event) = serde_json::from_slice::<AuditEvent>(&line) else {
                skipped += 1;
                continue;
            };
            if !query.matches(&event) || !seen.insert(event.event_id.clone()) || offset < start {
                continue;
            }
            if page.events.len() == query.limit {
                page.next = Some(Cursor { day: log.day, offset }.to_string());
                warn_of(skipped, &log);
                return Ok(page);
            }
            page.events.push(event);
        }
        warn_of(skipped, &log);
    }
    Ok(page)
}

/// Behind the last whole record.
pub(crate) fn end(target: &Target, now: Timestamp) -> Result<String> {
    let last = files(target, &AuditQuery::new(), None)?.pop();
    let log = last.unwrap_or_else(|| target.daily(day_of(now)));
    let offset = match snapshot(&log)? {
        Some((file, length)) => line_start(&file, length).map_err(|error| file_error("read", &log.path, &error))?,
        None => 0,
    };
    Ok(Cursor { day: log.day, offset }.to_string())
}

/// Verifies the chain of everything that is there.
pub(crate) fn verify(target: &Target, keys: Keys, mut known: Vec<Checkpoint>) -> Result<EventVerification> {
    let cuts = read_cuts(target).map_err(|error| file_error("read what was removed of", target.path(), &error))?;
    known.extend(cuts);
    let mut verifier = EventVerifier::new(keys, Reading::Ordered, known);
    let mut line = Vec::new();
    for log in files(target, &AuditQuery::new(), None)? {
        let Some(mut lines) = Lines::open(&log, 0)? else {
            continue;
        };
        loop {
            let read = lines.next(&mut line);
            match read.map_err(|error| file_error("read", &log.path, &error))? {
                Line::End => break,
                Line::TooLong => verifier.push_unreadable(),
                Line::Whole => match serde_json::from_slice(&line) {
                    Ok(event) => verifier.push(&event),
                    Err(_) => verifier.push_unreadable(),
                },
            }
        }
    }
    Ok(verifier.finish())
}

fn warn_of(skipped: u64, log: &LogFile) {
    if skipped > 0 {
        tracing::warn!(file = %log.path.display(), skipped, "lines of the audit file are no events and were skipped");
    }
}

/// The files that may hold what is asked for.
///
/// A file has the events that were *written* on its day, which is never before they happened, but may be later. So the
/// days before `start_time` are left out, save one for clocks that differ, and those after `end_time` are not.
fn files(target: &Target, query: &AuditQuery, cursor: Option<Cursor>) -> Result<Vec<LogFile>> {
    let mut files = target
        .files()
        .map_err(|error| file_error("look for", target.path(), &error))?;
    if let Some(cursor) = cursor
        && cursor.offset > 0
        && !files.iter().any(|file| file.day == cursor.day)
    {
        return Err(Error::invalid(format!(
            "the file of the cursor {cursor} is gone; start without a cursor"
        )));
    }
    let earliest = query.start_time.map(|start| day_of(start).saturating_sub(1.day()));
    let from = cursor.and_then(|cursor| cursor.day).max(earliest);
    files.retain(|file| file.day.is_none() || file.day >= from);
    Ok(files)
}

/// Texts that a line must hold to match, which is faster to see than to parse. An identifier has no character that JSON
/// escapes.
fn needles(query: &AuditQuery) -> Vec<&str> {
    let session = query.session_id.as_ref().map(AsRef::as_ref);
    let agent = query.agent_id.as_ref().map(AsRef::as_ref);
    session.into_iter().chain(agent).collect()
}

/// A line that is not UTF-8 counts as one that matches, so that it is counted as no event.
fn contains(line: &[u8], needle: &str) -> bool {
    str::from_utf8(line).map_or(true, |line| line.contains(needle))
}

/// The whole lines of a file up to where it ended at first.
struct Lines {
    reader: BufReader<Take<File>>,
    offset: u64,
}

enum Line {
    Whole,
    TooLong,
    End,
}

impl Lines {
    /// Opens a file so that the lines from `start` on are read, and some before.
    fn open(log: &LogFile, start: u64) -> Result<Option<Self>> {
        let Some((mut file, length)) = snapshot(log)? else {
            return Ok(None);
        };
        let fail = |error: io::Error| file_error("read", &log.path, &error);
        if start > length || line_start(&file, start).map_err(fail)? != start {
            return Err(Error::invalid(format!(
                "no record starts at byte {start} of {}; pass on the cursor of a page, or none",
                log.path.display()
            )));
        }
        let offset = line_start(&file, start.saturating_sub(REPEAT_WINDOW)).map_err(fail)?;
        file.seek(SeekFrom::Start(offset)).map_err(fail)?;
        Ok(Some(Self {
            reader: BufReader::with_capacity(1 << 16, file.take(length - offset)),
            offset,
        }))
    }

    /// Reads the next line, without its end. An unfinished one, which somebody is writing or could not finish, is the end.
    fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Line> {
        line.clear();
        let mut length = (&mut self.reader).take(MAX_LINE as u64).read_until(b'\n', line)?;
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        if !whole && length < MAX_LINE {
            return Ok(Line::End);
        }
        if !whole {
            length += self.reader.skip_until(b'\n')?;
        }
        self.offset += length as u64;
        Ok(if whole { Line::Whole } else { Line::TooLong })
    }
}

/// The file and its length between two groups of records; none when it does not exist (any more).
fn snapshot(log: &LogFile) -> Result<Option<(File, u64)>> {
    match try_snapshot(&log.path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error("read", &log.path, &error)),
    }
}

fn try_snapshot(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    while let Err(error) = file.lock_shared() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let length = file.metadata()?.len();
    file.unlock()?;
    Ok((file, length))
}

/// Where the line that `offset` is in starts.
fn line_start(file: &File, offset: u64) -> io::Result<u64> {
    let mut chunk = [0; 4096];
    let mut end = offset;
    while end > 0 {
        let start = end.saturating_sub(chunk.len() as u64);
        // At most the length of the chunk, which fits.
        let part = &mut chunk[..usize::try_from(end - start).unwrap_or_default()];
        file.read_exact_at(part, start)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
