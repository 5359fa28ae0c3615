//! Where a page ended, as text.

use agents_core::{Error, Result};

/// What a cursor starts with, so that one of another sink is seen as such.
const PREFIX: &str = "seq:";

/// The cursor behind the event with this sequence number.
pub(crate) fn format(seq: i64) -> String {
    format!("{PREFIX}{seq}")
}

/// The sequence number behind which a page begins.
///
/// # Errors
///
/// `ConfigInvalid` for a text that is not a cursor of such a trail.
pub(crate) fn parse(text: &str) -> Result<i64> {
    let seq = text.strip_prefix(PREFIX).and_then(|digits| digits.parse::<i64>().ok());
    match seq {
        Some(seq) if seq >= 0 && format(seq) == text => Ok(seq),
        _ => Err(Error::invalid(format!(
            "{text:?} is not a cursor of this audit trail; pass on what a page gave as {PREFIX}NUMBER, or none"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_and_others_are_refused() {
        for seq in [0, 7, i64::MAX] {
            assert_eq!(parse(&format(seq)).unwrap(), seq);
        }
        for text in [
            "",
            "7",
            "seq:",
            "seq:-1",
            "seq:+1",
            "seq:07",
            "seq:1 ",
            "seq:9223372036854775808",
            "file:1",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
