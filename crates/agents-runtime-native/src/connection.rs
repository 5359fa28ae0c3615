//! The runtime's side of a connection to a helper.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    sync::Arc,
};

use agents_core::{Error, ErrorKind, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use tokio::{io::Interest, net::UnixStream};

use crate::{
    spec::{Failure, Reply, Request},
    wire,
};

/// A connection. Sending takes `&self`, so that control and output do not hinder each other.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Arc<UnixStream>,
    received: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The sending half.
#[derive(Clone, Debug)]
pub(crate) struct Sender(Arc<UnixStream>);

impl Connection {
    pub(crate) fn new(stream: StdStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: Arc::new(UnixStream::from_std(stream)?),
            received: Vec::new(),
            fds: Vec::new(),
        })
    }

    pub(crate) fn sender(&self) -> Sender {
        Sender(Arc::clone(&self.stream))
    }

    /// The next message; `None` at the end. Nothing is lost when the future is dropped.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some((message, std::mem::take(&mut self.fds))));
            }
            let mut buffer = [0; 16 << 10];
            let (read, fds) = self
                .stream
                .async_io(Interest::READABLE, || wire::receive_some(&*self.stream, &mut buffer))
                .await?;
            if read == 0 {
                return Ok(None);
            }
            self.received.extend_from_slice(&buffer[..read]);
            self.fds.extend(fds);
        }
    }

    fn take(&mut self) -> io::Result<Option<Reply>> {
        let Some(header) = self.received.first_chunk::<4>() else {
            return Ok(None);
        };
        let end = 4 + wire::body_len(*header)?;
        if self.received.len() < end {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.received[4..end]).map_err(io::Error::other)?;
        self.received.drain(..end);
        Ok(Some(message))
    }

    /// Sends a request and waits for its first answer.
    pub(crate) async fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>)> {
        self.sender().send(request, fds).await.map_err(lost)?;
        match self.receive().await.map_err(lost)? {
            Some((Reply::Failed(failure), _)) => Err(failure.into()),
            Some(reply) => Ok(reply),
            None => Err(lost(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

impl Sender {
    pub(crate) async fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = wire::encode(message)?;
        let mut sent = self.stream(&bytes, fds).await?;
        while sent < bytes.len() {
            sent += self.stream(&bytes[sent..], &[]).await?;
        }
        Ok(())
    }

    async fn stream(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::MAX_FDS))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(io::Error::other("too many descriptors for one message"));
                }
                Ok(sendmsg(
                    &*self.0,
                    &[IoSlice::new(bytes)],
                    &mut ancillary,
                    SendFlags::NOSIGNAL,
                )?)
            })
            .await
    }

    /// Ends the connection at once, which the helper takes for a cancellation.
    pub(crate) fn hang_up(&self) {
        let _ = rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Both);
    }
}

/// The helper does not answer.
pub(crate) fn lost(error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the container's helper went away").with_source(error)
}

/// A reply that does not belong to the request.
pub(crate) fn unexpected(reply: &Reply) -> Error {
    match reply {
        Reply::Failed(Failure { kind, message }) => Error::new(*kind, message.clone()),
        other => Error::unexpected(format!("the container's helper answered out of turn: {other:?}")),
    }
}
