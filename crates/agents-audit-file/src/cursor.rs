//! Where a page ended, as text.

use std::fmt;

use agents_core::{Error, Result};
use jiff::civil::Date;

use crate::target::{Target, parse_day};

/// The name of the file in the cursor of a trail of one file.
const SINGLE: &str = "file";

/// A byte in a file of the trail, where a record starts: `YYYY-MM-DD:offset`, or `file:offset` for a trail of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) day: Option<Date>,
    pub(crate) offset: u64,
}

impl Cursor {
    /// Reads a cursor.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for a text that is not a cursor of such a trail.
    pub(crate) fn parse(text: &str, target: &Target) -> Result<Self> {
        Self::read(text, target).ok_or_else(|| {
            let form = match target {
                Target::Folder(_) => "YYYY-MM-DD:OFFSET",
                Target::File(_) | Target::Stderr => "file:OFFSET",
            };
            Error::invalid(format!(
                "{text:?} is not a cursor of this audit log; pass on what a page gave as {form}, or none"
            ))
        })
    }

    fn read(text: &str, target: &Target) -> Option<Self> {
        let (file, digits) = text.split_once(':')?;
        let day = match target {
            Target::Folder(_) => Some(parse_day(file)?),
            Target::File(_) if file == SINGLE => None,
            Target::File(_) | Target::Stderr => return None,
        };
        let offset: u64 = digits.parse().ok()?;
        (offset.to_string() == digits).then_some(Self { day, offset })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.day {
            Some(day) => write!(f, "{day}:{}", self.offset),
            None => write!(f, "{SINGLE}:{}", self.offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_and_others_are_refused() {
        let folder = Target::Folder("/a".into());
        let file = Target::File("/a".into());
        for (text, target) in [("2026-01-02:0", &folder), ("2026-01-02:77", &folder), ("file:5", &file)] {
            assert_eq!(Cursor::parse(text, target).unwrap().to_string(), text);
        }
        let bad = [
            "",
            ":",
            "5",
            "2026-01-02",
            "2026-01-02:",
            "2026-01-02:-1",
            "2026-01-02:+1",
            "2026-01-02:07",
            "2026-1-2:0",
            "2026-01-02:1 ",
            "../x:0",
            "file:5",
            "2026-01-02:99999999999999999999",
        ];
        for text in bad {
            assert!(Cursor::parse(text, &folder).is_err(), "{text:?}");
        }
        assert!(Cursor::parse("2026-01-02:0", &file).is_err());
    }
}
