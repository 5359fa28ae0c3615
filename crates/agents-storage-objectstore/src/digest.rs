//! SHA-256 while bytes pass by, and ranges.

use std::ops::Range;

use agents_core::{Error, ErrorKind, Result};
use ring::digest::{Context, SHA256};

/// Counts and hashes what passes by.
pub(crate) struct Hasher {
    context: Context,
    size: u64,
}

impl Hasher {
    pub(crate) fn new() -> Self {
        Self {
            context: Context::new(&SHA256),
            size: 0,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.size += bytes.len() as u64;
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn finish(self) -> String {
        let digest = self.context.finish();
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The range to read of an artifact of this size.
pub(crate) fn check_range(range: Option<Range<u64>>, size: u64) -> Result<Range<u64>> {
    let range = range.unwrap_or(0..size);
    if range.start > range.end || range.end > size {
        return Err(Error::invalid(format!(
            "the range {}..{} is not within the artifact's {size} bytes",
            range.start, range.end
        )));
    }
    Ok(range)
}

/// Compares what was sent with what was announced.
pub(crate) fn check_announced(announced: Option<u64>, size: u64) -> Result<()> {
    match announced {
        Some(announced) if announced != size => Err(Error::new(
            ErrorKind::DataInvalid,
            format!("the content has {size} bytes and {announced} were announced"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_one_of_fips_180() {
        let mut hasher = Hasher::new();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.size(), 3);
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hasher.finish(), expected);
    }

    #[test]
    fn ranges_end_with_the_artifact() {
        assert_eq!(check_range(None, 7).unwrap(), 0..7);
        assert_eq!(check_range(Some(7..7), 7).unwrap(), 7..7);
        for bad in [0..8, 8..8, Range { start: 3, end: 2 }] {
            let error = check_range(Some(bad), 7).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        }
    }
}
