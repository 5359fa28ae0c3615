//! Keeping secrets out of what is captured.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use serde_json::Value;

/// What stands in a secret's place.
const REDACTED: &[u8] = b"[redacted]";
/// Shorter values would hide half of every text.
const SHORTEST: usize = 4;

/// The values that must not be shown.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    patterns: Arc<[Vec<u8>]>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} values)", self.patterns.len())
    }
}

impl Redactor {
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut patterns: Vec<Vec<u8>> = values
            .into_iter()
            .map(|value| value.trim_ascii().to_vec())
            .filter(|value| value.len() >= SHORTEST)
            .collect();
        // The longest first, so that a secret that holds another one goes as a whole.
        patterns.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        patterns.dedup();
        Self {
            patterns: patterns.into(),
        }
    }

    pub(crate) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.patterns.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut stream = self.stream();
        let mut redacted = stream.push(Bytes::copy_from_slice(text.as_bytes())).to_vec();
        redacted.extend_from_slice(&stream.finish());
        Cow::Owned(String::from_utf8_lossy(&redacted).into_owned())
    }

    pub(crate) fn value(&self, value: Value) -> Value {
        if self.patterns.is_empty() {
            return value;
        }
        match value {
            Value::String(text) => Value::String(self.text(&text).into_owned()),
            Value::Array(items) => items.into_iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => {
                let redact = |(key, value): (String, Value)| (self.text(&key).into_owned(), self.value(value));
                fields.into_iter().map(redact).collect()
            }
            other => other,
        }
    }

    pub(crate) fn stream(&self) -> RedactedStream {
        RedactedStream {
            patterns: Arc::clone(&self.patterns),
            held: Vec::new(),
        }
    }
}

/// Redacts a stream, also where a secret is cut in pieces.
#[derive(Debug)]
pub(crate) struct RedactedStream {
    patterns: Arc<[Vec<u8>]>,
    /// The end of what came so far, when a secret may begin there.
    held: Vec<u8>,
}

impl RedactedStream {
    pub(crate) fn push(&mut self, bytes: Bytes) -> Bytes {
        if self.patterns.is_empty() {
            return bytes;
        }
        self.held.extend_from_slice(&bytes);
        self.scan(false)
    }

    pub(crate) fn finish(&mut self) -> Bytes {
        self.scan(true)
    }

    fn scan(&mut self, last: bool) -> Bytes {
        let all = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(all.len());
        let mut at = 0;
        'bytes: while at < all.len() {
            let rest = &all[at..];
            for pattern in self.patterns.iter() {
                if rest.starts_with(pattern) {
                    out.extend_from_slice(REDACTED);
                    at += pattern.len();
                    continue 'bytes;
                }
                if !last && pattern.starts_with(rest) {
                    self.held = rest.to_vec();
                    break 'bytes;
                }
            }
            out.push(all[at]);
            at += 1;
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(redactor: &Redactor, chunks: &[&[u8]]) -> Vec<u8> {
        let mut stream = redactor.stream();
        let mut out: Vec<u8> = chunks
            .iter()
            .flat_map(|chunk| stream.push(Bytes::copy_from_slice(chunk)))
            .collect();
        out.extend_from_slice(&stream.finish());
        out
    }

    #[test]
    fn a_secret_in_pieces_is_found_and_a_false_start_is_kept() {
        let redactor = Redactor::new([b"s3cret\n".as_slice(), b"s3cret-long", b"abc"]);
        assert_eq!(run(&redactor, &[b"x s3", b"cr", b"et y"]), b"x [redacted] y");
        assert_eq!(run(&redactor, &[b"x s3", b"cr"]), b"x s3cr");
        assert_eq!(run(&redactor, &[b"s3cret-lon", b"g"]), b"[redacted]");
        assert_eq!(run(&redactor, &[b"s3cret-lon", b"e"]), b"[redacted]-lone");
        assert_eq!(run(&redactor, &[b"s3c", b"ret"]), b"[redacted]");
        assert_eq!(run(&redactor, &[b"abc"]), b"abc", "too short to hide");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "[ab ]{0,60}", cut in 0usize..60) {
            let redactor = Redactor::new([b"abab".as_slice(), b"aabba"]);
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let whole = run(&redactor, &[bytes]);
            prop_assert_eq!(&run(&redactor, &[&bytes[..cut], &bytes[cut..]]), &whole);
            prop_assert!(!whole.windows(4).any(|window| window == b"abab"));
        }
    }
}
