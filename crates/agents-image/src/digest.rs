//! SHA-256 digests as OCI writes them.

use std::{fmt, io::Read};

use agents_core::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A validated `sha256:<64 hex digits>`, so that it can be a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(invalid(text));
        };
        if algorithm != "sha256" {
            return Err(Error::unsupported(format!(
                "digest {} is not sha256, the only algorithm that is supported",
                text.escape_debug()
            )));
        }
        Self::from_hex(hex).ok_or_else(|| invalid(text))
    }

    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let valid = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| Self(hex.to_owned()))
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    pub(crate) fn finish(hasher: Sha256) -> Self {
        let mut hex = String::with_capacity(64);
        for byte in hasher.finalize() {
            for nibble in [byte >> 4, byte & 15] {
                hex.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        Self(hex)
    }

    pub(crate) fn hex(&self) -> &str {
        &self.0
    }
}

fn invalid(text: &str) -> Error {
    Error::new(
        ErrorKind::DataInvalid,
        format!(
            "{} is not a digest; it must be sha256: and 64 hexadecimal digits",
            text.escape_debug()
        ),
    )
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// The hash of what has been read so far.
#[derive(Default)]
pub(crate) struct HashState(Sha256);

impl HashState {
    pub(crate) fn finish(self) -> Digest {
        Digest::finish(self.0)
    }
}

/// Hashes what is read through it into a state that outlives it.
pub(crate) struct HashingReader<'a, R> {
    inner: R,
    state: &'a mut HashState,
}

impl<'a, R: Read> HashingReader<'a, R> {
    pub(crate) fn new(inner: R, state: &'a mut HashState) -> Self {
        Self { inner, state }
    }
}

impl<R: Read> Read for HashingReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.state.0.update(&buf[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_sha256_parses() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(Digest::parse(empty).unwrap(), Digest::of(b""));
        for bad in [
            "",
            "sha256:",
            "sha256:../../x",
            "md5:00",
            &empty.to_uppercase(),
            &empty[..70],
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }
}
