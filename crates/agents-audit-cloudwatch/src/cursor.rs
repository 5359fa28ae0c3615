//! Where a page ended, as text.

use std::fmt;

use agents_core::{Error, Result};

/// What a cursor starts with, so that one of another sink is seen as such.
const PREFIX: &str = "cw";

/// An event by what pages are sorted by: its place in the trail and its id.
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
        let mut parts = text.splitn(3, ':');
        let cursor = match (parts.next(), parts.next(), parts.next()) {
            (Some(PREFIX), Some(place), Some(id)) => place.parse().ok().map(|place| Self {
                place,
                id: id.to_owned(),
            }),
            _ => None,
        };
        match cursor {
            Some(cursor) if cursor.place >= 0 && !cursor.id.is_empty() && cursor.to_string() == text => Ok(cursor),
            _ => Err(Error::invalid(format!(
                "{text:?} is not a cursor of this audit trail; pass on what a page gave as {PREFIX}:NUMBER:EVENT_ID, or none"
            ))),
        }
    }

    /// The millisecond of the place, which is the log event's time.
    pub(crate) fn millisecond(&self) -> i64 {
        self.place / 1_000_000
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}:{}:{}", self.place, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_and_others_are_refused() {
        for text in ["cw:0:a", "cw:9223372036854775807:018f4fb5-5d3c-7000", "cw:7:a:b"] {
            assert_eq!(Cursor::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            ":",
            "7:a",
            "cw:7",
            "cw:7:",
            "cw:-1:a",
            "cw:+1:a",
            "cw:07:a",
            "seq:5",
            "cw:9223372036854775808:a",
        ] {
            assert!(Cursor::parse(text).is_err(), "{text:?}");
        }
    }
}
