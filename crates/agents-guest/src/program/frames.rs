//! Frames over standard input and output where nothing else goes on beside.

use std::io::{self, Read, Write};

use agents_guest::protocol::{Decoder, FromGuest, MAX_PAYLOAD, ToGuest};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Timespec,
};

use super::failure::{Context, Fault};

/// Says one thing.
pub(super) fn say(message: &FromGuest) -> Result<(), Fault> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    send(&bytes).context("the host does not listen")
}

fn send(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Whether the host has closed the input. An engine takes the output of a process also when nobody reads it, so that a large
/// file would go on being read for nobody.
fn host_is_gone() -> bool {
    let stdin = io::stdin();
    loop {
        let mut wanted = [PollFd::new(&stdin, PollFlags::IN)];
        let at_once = Timespec::default();
        if !matches!(poll(&mut wanted, Some(&at_once)), Ok(1..)) {
            return false;
        }
        match rustix::io::read(&stdin, &mut [0u8; 4096]) {
            Ok(0) | Err(_) => return true,
            // The host has nothing more to say that would matter.
            Ok(_) => {}
        }
    }
}

/// Bytes that are said as `Data`.
pub(super) struct DataWriter {
    buffer: Vec<u8>,
    watches_host: bool,
}

impl DataWriter {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::with_capacity(MAX_PAYLOAD),
            watches_host: false,
        }
    }

    /// Fails once the host has closed the input, where nobody else reads that.
    pub(super) fn while_the_host_listens() -> Self {
        Self {
            watches_host: true,
            ..Self::new()
        }
    }
}

impl Write for DataWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(MAX_PAYLOAD - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == MAX_PAYLOAD {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.watches_host && host_is_gone() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.buffer.is_empty() {
            let mut frame = Vec::with_capacity(self.buffer.len() + 8);
            FromGuest::Data(&self.buffer).encode(&mut frame);
            send(&frame)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// Bytes that come as `Input`, up to `CloseInput`.
pub(super) struct InputReader {
    decoder: Decoder,
    ready: Vec<u8>,
    taken: usize,
    closed: bool,
}

impl InputReader {
    pub(super) fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            ready: Vec::new(),
            taken: 0,
            closed: false,
        }
    }
}

impl Read for InputReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.ready.len() && !self.closed {
            let message = self
                .decoder
                .next_message()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            match message.map(|(kind, payload)| ToGuest::decode(kind, payload)) {
                Some(Ok(ToGuest::Input(bytes))) => (self.ready, self.taken) = (bytes, 0),
                Some(Ok(ToGuest::CloseInput)) => self.closed = true,
                Some(Ok(_)) => return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no input")),
                Some(Err(error)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                None => {
                    let mut bytes = [0; 16 << 10];
                    let read = io::stdin().lock().read(&mut bytes)?;
                    if read == 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the host went away"));
                    }
                    self.decoder.push(&bytes[..read]);
                }
            }
        }
        let count = buffer.len().min(self.ready.len() - self.taken);
        buffer[..count].copy_from_slice(&self.ready[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}
