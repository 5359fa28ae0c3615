//! Where a page ended, as text.

use std::fmt;

use agents_core::{Error, Result};

/// The last event of a page, by what pages are sorted by: its place in the trail and its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    pub(crate) place: i64,
    pub(crate) id: String,
}

impl Cursor {
    /// Reads a cursor.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for a text that is not a cursor of such a trail.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let cursor = text.split_once(':').and_then(|(place, id)| {
            Some(Self {
                place: place.parse().ok()?,
                id: id.to_owned(),
            })
        });
        match cursor {
            Some(cursor) if cursor.place >= 0 && !cursor.id.is_empty() && cursor.to_string() == text => Ok(cursor),
            _ => Err(Error::invalid(format!(
                "{text:?} is not a cursor of this audit trail; pass on what a page gave as NUMBER:EVENT_ID, or none"
            ))),
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.place, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_and_others_are_refused() {
        for text in ["0:a", "9223372036854775807:018f4fb5-5d3c-7000", "7:a:b"] {
            assert_eq!(Cursor::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            ":",
            "7",
            "7:",
            "-1:a",
            "+1:a",
            "07:a",
            "file:5",
            "2026-01-02:7",
            "9223372036854775808:a",
        ] {
            assert!(Cursor::parse(text).is_err(), "{text:?}");
        }
    }
}
