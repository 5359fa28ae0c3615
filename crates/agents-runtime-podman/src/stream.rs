//! The connection of an attached process: its output comes in frames that say which of the two outputs they are of.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// How much of the standard error is kept: it is the engine's or the container runtime's own, for the guest writes none.
const COMPLAINT: usize = 4096;

/// What came on the standard error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Complaint(Arc<Mutex<Vec<u8>>>);

impl Complaint {
    fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = COMPLAINT - kept.len();
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// As text.
    pub(crate) fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        crate::error::shown(&String::from_utf8_lossy(&kept))
    }
}

/// Reads the standard output out of the frames: a byte for the stream (1 output, 2 error), three zeros, four bytes of
/// length in network order, and that many bytes.
#[derive(Debug)]
pub(crate) struct Output<R> {
    inner: R,
    head: [u8; 8],
    have: usize,
    left: u32,
    complaint: Complaint,
}

impl<R> Output<R> {
    pub(crate) fn new(inner: R) -> (Self, Complaint) {
        let complaint = Complaint::default();
        let output = Self {
            inner,
            head: [0; 8],
            have: 0,
            left: 0,
            complaint: complaint.clone(),
        };
        (output, complaint)
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Output<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.left == 0 {
                let mut head = ReadBuf::new(&mut this.head);
                head.advance(this.have);
                ready!(Pin::new(&mut this.inner).poll_read(context, &mut head))?;
                let have = head.filled().len();
                if have == this.have {
                    return Poll::Ready(if have == 0 {
                        Ok(())
                    } else {
                        Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "the stream was cut within a frame",
                        ))
                    });
                }
                this.have = have;
                if have < 8 {
                    continue;
                }
                this.have = 0;
                let [kind, a, b, c, length @ ..] = this.head;
                if !(1..=2).contains(&kind) || [a, b, c] != [0; 3] {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "this is no multiplexed stream",
                    )));
                }
                this.left = u32::from_be_bytes(length);
                continue;
            }
            let wanted = usize::try_from(this.left).unwrap_or(usize::MAX);
            if this.head[0] == 2 {
                let mut bytes = [0; 1024];
                let mut part = ReadBuf::new(&mut bytes[..wanted.min(1024)]);
                ready!(Pin::new(&mut this.inner).poll_read(context, &mut part))?;
                let read = part.filled();
                if read.is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                this.complaint.add(read);
                this.left -= read.len() as u32;
                continue;
            }
            let room = wanted.min(buffer.remaining());
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut part))?;
            let read = part.filled().len();
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            buffer.advance(read);
            this.left -= read as u32;
            return Poll::Ready(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 0, 0];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame
    }

    async fn read(bytes: &[u8], chunk: usize) -> (io::Result<Vec<u8>>, String) {
        let chunks: Vec<_> = bytes
            .chunks(chunk)
            .map(|chunk| Ok::<_, io::Error>(bytes::Bytes::copy_from_slice(chunk)))
            .collect();
        let (mut output, complaint) =
            Output::new(tokio_util::io::StreamReader::new(futures_util::stream::iter(chunks)));
        let mut all = Vec::new();
        let result = output.read_to_end(&mut all).await.map(|_| all);
        (result, complaint.text())
    }

    proptest! {
        #[test]
        fn output_is_what_its_frames_hold_however_it_is_cut(
            frames in prop::collection::vec((1u8..3, prop::collection::vec(any::<u8>(), 0..300)), 0..12),
            chunk in 1usize..64,
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
            let expected: Vec<u8> = frames.iter().filter(|(kind, _)| *kind == 1).flat_map(|(_, payload)| payload.clone()).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (read, _) = runtime.block_on(read(&bytes, chunk));
            prop_assert_eq!(read.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn a_cut_or_a_foreign_stream_is_an_error_and_complaints_are_kept() {
        let mut bytes = frame(2, b"exec failed\n");
        bytes.extend(frame(1, b"abc"));
        let (all, complaint) = read(&bytes, 5).await;
        assert_eq!((all.unwrap(), complaint.as_str()), (b"abc".to_vec(), "exec failed"));
        for cut in 1..bytes.len() {
            // At the end of a frame a stream may end.
            let fits = cut == 20;
            assert_eq!(read(&bytes[..cut], 3).await.0.is_ok(), fits, "{cut}");
        }
        assert!(read(b"plain text of a terminal", 100).await.0.is_err());
        let endless = frame(2, &[b'x'; 100_000]);
        assert!(read(&endless, 1000).await.1.len() <= 1000);
    }
}
