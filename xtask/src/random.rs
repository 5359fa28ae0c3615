//! Random names and passwords, and a hash that stays the same between releases.

use std::fs::File;
use std::io::Read;

use crate::error::{Context, Result};

/// `bytes` random bytes as hexadecimal text.
pub(crate) fn hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut buffer))
        .context(|| "cannot read /dev/urandom".to_owned())?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A short name for a recipe (64-bit FNV-1a): std's hasher may change with the compiler and would empty caches.
pub(crate) fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_published_one() {
        assert_eq!(digest(""), "cbf29ce484222325");
        assert_eq!(digest("a"), "af63dc4c8601ec8c");
    }

    #[test]
    fn random_text_has_the_asked_length() {
        assert_eq!(hex(8).unwrap().len(), 16);
    }
}
