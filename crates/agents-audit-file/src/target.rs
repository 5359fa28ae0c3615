//! Where records go: one file a day, or one file.

use std::{
    io,
    path::{Path, PathBuf},
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};

/// Where records go.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Daily files in this folder.
    Folder(PathBuf),
    /// This file.
    File(PathBuf),
    /// Standard error, which cannot be read back.
    Stderr,
}

/// One of the files of the trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFile {
    /// The day, unless there is only one file.
    pub(crate) day: Option<Date>,
    pub(crate) path: PathBuf,
}

impl Target {
    /// The folder or the file.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::File(path) => path,
            Self::Stderr => Path::new("/dev/stderr"),
        }
    }

    /// The folder of the files.
    pub(crate) fn folder(&self) -> &Path {
        match self {
            Self::Folder(path) => path,
            Self::File(path) => path.parent().unwrap_or(path),
            Self::Stderr => self.path(),
        }
    }

    /// The file for what is written now. Never one of an earlier day than `open`, when a clock steps back, so that the
    /// records of one writer stay in their order.
    pub(crate) fn current(&self, now: Timestamp, open: Option<Date>) -> LogFile {
        match self {
            Self::Folder(_) => self.daily(day_of(now).max(open.unwrap_or(Date::MIN))),
            Self::File(_) | Self::Stderr => LogFile {
                day: None,
                path: self.path().to_owned(),
            },
        }
    }

    /// The file of a day; the one file when there are no days.
    pub(crate) fn daily(&self, day: Date) -> LogFile {
        match self {
            Self::Folder(folder) => LogFile {
                day: Some(day),
                path: folder.join(format!("{day}.jsonl")),
            },
            Self::File(_) | Self::Stderr => LogFile {
                day: None,
                path: self.path().to_owned(),
            },
        }
    }

    /// The files that exist, in their order.
    pub(crate) fn files(&self) -> io::Result<Vec<LogFile>> {
        let mut files = Vec::new();
        match self {
            Self::Folder(folder) => {
                let entries = match folder.read_dir() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
                    entries => entries?,
                };
                for entry in entries {
                    if let Some(day) = entry?.file_name().to_str().and_then(day_of_name) {
                        files.push(self.daily(day));
                    }
                }
                files.sort_unstable_by_key(|file| file.day);
            }
            Self::Stderr => {}
            Self::File(path) => {
                if path.try_exists()? {
                    files.push(LogFile {
                        day: None,
                        path: path.clone(),
                    });
                }
            }
        }
        Ok(files)
    }
}

/// The day in UTC.
pub(crate) fn day_of(time: Timestamp) -> Date {
    TimeZone::UTC.to_datetime(time).date()
}

fn day_of_name(name: &str) -> Option<Date> {
    parse_day(name.strip_suffix(".jsonl")?)
}

/// Reads `YYYY-MM-DD` and no other notation.
pub(crate) fn parse_day(text: &str) -> Option<Date> {
    let day: Date = text.parse().ok()?;
    (day.to_string() == text).then_some(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_daily_names_are_files_of_the_trail() {
        assert_eq!(day_of_name("2026-02-28.jsonl"), Some(jiff::civil::date(2026, 2, 28)));
        for name in [
            "2026-02-30.jsonl",
            "20260228.jsonl",
            "2026-02-28.json",
            "2026-02-28.jsonl.gz",
            ".jsonl",
            "x",
        ] {
            assert_eq!(day_of_name(name), None, "{name}");
        }
    }
}
