//! Messages between the runtime and its helper: JSON with a length in front, over a unix socket that can carry descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// The longest message. A specification with a large environment and secrets fits; a runaway peer does not.
const MAX_LEN: usize = 16 << 20;

/// The most descriptors of a message.
pub(crate) const MAX_FDS: usize = 250;

/// A message as it travels.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::other)?;
    let len = u32::try_from(bytes.len() - 4).map_err(io::Error::other)?;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

/// Sends a message with descriptors.
pub(crate) fn send(socket: &UnixStream, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encode(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let sent = loop {
        match sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    (&mut &*socket).write_all(&bytes[sent..])
}

/// Receives a message with its descriptors; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut header = [0; 4];
    let (got, fds) = receive_some(socket, &mut header)?;
    if got == 0 {
        return Ok(None);
    }
    (&mut &*socket).read_exact(&mut header[got..])?;
    let mut body = vec![0; body_len(header)?];
    (&mut &*socket).read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body).map_err(io::Error::other)?, fds)))
}

/// The length of a body by its header.
pub(crate) fn body_len(header: [u8; 4]) -> io::Result<usize> {
    let len = u32::from_le_bytes(header) as usize;
    if len > MAX_LEN {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    Ok(len)
}

/// Receives bytes and the descriptors that came with them.
pub(crate) fn receive_some(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(
            &socket,
            &mut [IoSliceMut::new(buffer)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "descriptors were lost on the way: too many files are open",
        ));
    }
    let mut fds = Vec::new();
    for item in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            fds.extend(rights);
        }
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_travels_with_its_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&a, &vec!["x"; 10_000], &[writer.as_fd()]).unwrap();
        drop(writer);
        let (words, fds) = receive::<Vec<String>>(&b).unwrap().unwrap();
        assert_eq!(words.len(), 10_000);
        rustix::io::write(&fds[0], b"hi").unwrap();
        drop(fds);
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
        drop(a);
        assert!(receive::<Vec<String>>(&b).unwrap().is_none());
    }
}
