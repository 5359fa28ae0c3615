//! Frames out of bytes that may be hostile.

use std::fmt;

use super::{CONTINUED, MAX_MESSAGE, MAX_PAYLOAD};

/// How long a frame's header is.
pub const HEADER: usize = 5;

/// What was received keeps no rule of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub(crate) String);

impl Malformed {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a malformed frame: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the message is.
    pub kind: u8,
    /// Whether the message goes on in the next frame.
    pub continued: bool,
    /// How long the payload is.
    pub length: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    ///
    /// A length above [`MAX_PAYLOAD`], which is never trusted.
    pub fn parse(bytes: [u8; HEADER]) -> Result<Self, Malformed> {
        let [kind, length @ ..] = bytes;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_PAYLOAD {
            return Err(Malformed::new(format!("{length} bytes are longer than a frame may be")));
        }
        Ok(Self {
            kind: kind & !CONTINUED,
            continued: kind & CONTINUED != 0,
            length,
        })
    }
}

/// Puts messages together from bytes as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    taken: usize,
    begun: Option<(u8, Vec<u8>)>,
}

impl Decoder {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes more bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.taken));
        self.buffer.extend_from_slice(bytes);
    }

    /// The kind and the payload of the next message, if it is complete.
    ///
    /// # Errors
    ///
    /// Bytes that keep no rule of the protocol. Nothing that follows can be understood then.
    pub fn next_message(&mut self) -> Result<Option<(u8, Vec<u8>)>, Malformed> {
        loop {
            let rest = &self.buffer[self.taken..];
            let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else {
                return Ok(None);
            };
            let header = Header::parse(*header)?;
            let Some(payload) = rest.get(..header.length) else {
                return Ok(None);
            };
            self.taken += HEADER + header.length;
            if let Some(message) = join(&mut self.begun, header, payload)? {
                return Ok(Some(message));
            }
        }
    }
}

/// Adds a frame to the message that it belongs to, and returns that when it is complete.
pub(crate) fn join(
    begun: &mut Option<(u8, Vec<u8>)>,
    header: Header,
    payload: &[u8],
) -> Result<Option<(u8, Vec<u8>)>, Malformed> {
    let (kind, mut message) = begun.take().unwrap_or((header.kind, Vec::new()));
    if kind != header.kind {
        return Err(Malformed::new("a message is broken off by another"));
    }
    if message.len() + payload.len() > MAX_MESSAGE {
        return Err(Malformed::new("a message is longer than it may be"));
    }
    message.extend_from_slice(payload);
    if header.continued {
        *begun = Some((kind, message));
        return Ok(None);
    }
    Ok(Some((kind, message)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::append;

    #[test]
    fn a_long_message_takes_several_frames() {
        let long = vec![7; MAX_PAYLOAD * 2 + 1];
        let mut bytes = Vec::new();
        append(&mut bytes, 3, &long);
        assert_eq!(bytes.len(), long.len() + 3 * HEADER);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next_message(), Ok(Some((3, long))));
        assert_eq!(decoder.next_message(), Ok(None));
    }

    #[test]
    fn lengths_are_not_trusted() {
        let mut decoder = Decoder::new();
        decoder.push(&[1, 0xff, 0xff, 0xff, 0xff]);
        assert!(decoder.next_message().is_err());
        let mut decoder = Decoder::new();
        // A message that never ends.
        let mut frame = vec![1 | CONTINUED, 0, 1, 0, 0];
        frame.extend([0; MAX_PAYLOAD]);
        let ended = (0..=MAX_MESSAGE / MAX_PAYLOAD).find_map(|_| {
            decoder.push(&frame);
            decoder.next_message().err()
        });
        assert!(ended.is_some());
        assert!(decoder.buffer.len() <= 2 * frame.len());
    }

    #[test]
    fn a_message_cannot_be_broken_off() {
        let mut decoder = Decoder::new();
        decoder.push(&[1 | CONTINUED, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        assert!(decoder.next_message().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn messages_survive_any_cutting(
            messages in proptest::collection::vec((0u8..0x80, proptest::collection::vec(any::<u8>(), 0..200_000)), 0..4),
            cut in 1usize..70_000,
        ) {
            let mut bytes = Vec::new();
            for (kind, payload) in &messages {
                append(&mut bytes, *kind, payload);
            }
            let mut decoder = Decoder::new();
            let mut got = Vec::new();
            for chunk in bytes.chunks(cut) {
                decoder.push(chunk);
                while let Some(message) = decoder.next_message().unwrap() {
                    got.push(message);
                }
            }
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn anything_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message() {}
        }
    }
}
