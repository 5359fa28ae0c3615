//! The protocol between the host and the program, which both are built from. It has no dependencies and does no I/O.
//!
//! A frame is one byte that says what it is, four bytes of length (big-endian), and at most [`MAX_PAYLOAD`] bytes. A message
//! that is longer than one frame goes on in the next: all of its frames but the last have the bit [`CONTINUED`] set.

mod decoder;
mod fields;
mod message;

#[cfg(feature = "host")]
pub(crate) use decoder::join;
pub use decoder::{Decoder, HEADER, Header, Malformed};
pub use message::{Ended, Failure, FailureKind, FromGuest, Spawn, Started, State, Status, ToGuest};

/// The version of the protocol. The program and the host are always built together; this is for people who look.
pub const VERSION: u32 = 2;

/// The most bytes of one frame's payload.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// The most bytes of one message. The kernel takes less for a command with its environment (execve(2)).
pub const MAX_MESSAGE: usize = 8 << 20;

/// How many bytes of input may be on their way that the process has not taken yet.
pub const INPUT_WINDOW: usize = 256 << 10;

/// Set in the kind of a frame whose message goes on in the next.
pub const CONTINUED: u8 = 0x80;

/// Appends a message to a buffer, in as many frames as it needs.
pub(crate) fn append(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let kind = if later.is_empty() { kind } else { kind | CONTINUED };
        out.push(kind);
        // It is no longer than MAX_PAYLOAD.
        out.extend_from_slice(&u32::try_from(now.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(now);
        rest = later;
        if rest.is_empty() {
            return;
        }
    }
}
