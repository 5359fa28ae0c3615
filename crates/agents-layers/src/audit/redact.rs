//! Keeping secrets out of what is kept.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use serde_json::Value;

/// What stands in a secret's place where nothing better is known.
const REDACTED: &[u8] = b"[redacted]";
/// Shorter values would hide half of every text.
const SHORTEST: usize = 4;

/// The values that must not be shown, and what is shown instead of each.
#[derive(Clone, Default)]
pub struct Redactor {
    patterns: Arc<[Pattern]>,
}

struct Pattern {
    value: Vec<u8>,
    shown: Vec<u8>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} values)", self.patterns.len())
    }
}

impl Redactor {
    /// Puts `[redacted]` in the place of these values. Space around a value is no part of it, and values of less than four
    /// bytes are left alone.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self::showing(values, |_| REDACTED.to_vec())
    }

    /// Puts what a function makes of them in the place of these values.
    pub fn showing<'a>(values: impl IntoIterator<Item = &'a [u8]>, shown: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let mut values: Vec<_> = values
            .into_iter()
            .map(<[u8]>::trim_ascii)
            .filter(|value| value.len() >= SHORTEST)
            .collect();
        // The longest first, so that a secret that holds another one goes as a whole.
        values.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        values.dedup();
        let pattern = |value: &[u8]| Pattern {
            value: value.to_vec(),
            shown: shown(value),
        };
        Self {
            patterns: values.into_iter().map(pattern).collect(),
        }
    }

    /// The text without them.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.patterns.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut stream = self.stream();
        let mut redacted = stream.push(Bytes::copy_from_slice(text.as_bytes())).to_vec();
        redacted.extend_from_slice(&stream.finish());
        Cow::Owned(String::from_utf8_lossy(&redacted).into_owned())
    }

    /// The value without them, in keys too.
    pub fn value(&self, value: Value) -> Value {
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

    /// For a stream of bytes.
    pub fn stream(&self) -> RedactedStream {
        RedactedStream {
            patterns: Arc::clone(&self.patterns),
            held: Vec::new(),
        }
    }
}

/// Redacts a stream, also where a secret is cut in pieces.
pub struct RedactedStream {
    patterns: Arc<[Pattern]>,
    /// The end of what came so far, when a secret may begin there.
    held: Vec<u8>,
}

impl std::fmt::Debug for RedactedStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedactedStream({} values)", self.patterns.len())
    }
}

impl RedactedStream {
    /// Takes more, and gives back what can be shown already.
    pub fn push(&mut self, bytes: Bytes) -> Bytes {
        if self.patterns.is_empty() {
            return bytes;
        }
        self.held.extend_from_slice(&bytes);
        self.scan(false)
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> Bytes {
        self.scan(true)
    }

    fn scan(&mut self, last: bool) -> Bytes {
        let all = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(all.len());
        let mut at = 0;
        'bytes: while at < all.len() {
            let rest = &all[at..];
            for pattern in self.patterns.iter() {
                if rest.starts_with(&pattern.value) {
                    out.extend_from_slice(&pattern.shown);
                    at += pattern.value.len();
                    continue 'bytes;
                }
                if !last && pattern.value.starts_with(rest) {
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

    #[test]
    fn pieces_make_no_difference() {
        let redactor = Redactor::new([b"abab".as_slice(), b"aabba"]);
        // Every text of `a`, `b` and space up to nine long, cut at every place.
        for length in 0..=9_u32 {
            for number in 0..3_usize.pow(length) {
                let letter = |place| b"ab "[number / 3_usize.pow(place) % 3];
                let text: Vec<u8> = (0..length).map(letter).collect();
                let whole = run(&redactor, &[&text]);
                assert!(!whole.windows(4).any(|window| window == b"abab"));
                for cut in 0..text.len() {
                    assert_eq!(
                        run(&redactor, &[&text[..cut], &text[cut..]]),
                        whole,
                        "{text:?} at {cut}"
                    );
                }
            }
        }
    }
}
