//! A connection to a port inside, carried by the program.

use agents_core::Result;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::{
    Connection,
    connection::{Messages, Writing, unexpected},
};
use crate::protocol::{FromGuest, MAX_PAYLOAD, ToGuest};

pub(super) async fn connect(mut connection: Connection) -> Result<DuplexStream> {
    match connection.messages.expect().await? {
        FromGuest::Started(_) => {}
        other => return Err(unexpected(other)),
    }
    let (ours, theirs) = tokio::io::duplex(MAX_PAYLOAD);
    let (from_caller, to_caller) = tokio::io::split(theirs);
    tokio::spawn(async move {
        let inward = inward(from_caller, connection.writer);
        let outward = outward(connection.messages, to_caller);
        // When the other side has gone away there is nothing to send any more; the reverse may be a half-closed connection.
        let mut outward = std::pin::pin!(outward);
        tokio::select! {
            () = &mut outward => {}
            // Kept, since its end would end the program.
            _writer = inward => outward.as_mut().await,
        }
    });
    Ok(ours)
}

async fn inward(mut from: ReadHalf<DuplexStream>, mut to: Writing) -> Writing {
    let mut buffer = BytesMut::with_capacity(MAX_PAYLOAD);
    let mut frame = Vec::new();
    loop {
        buffer.clear();
        let read = from.read_buf(&mut buffer).await.unwrap_or(0);
        frame.clear();
        if read == 0 {
            ToGuest::CloseInput.encode(&mut frame);
        } else {
            ToGuest::Input(buffer.to_vec()).encode(&mut frame);
        }
        let sent = to.write_all(&frame).await.is_ok() && to.flush().await.is_ok();
        if read == 0 || !sent {
            return to;
        }
    }
}

async fn outward(mut messages: Messages, mut to: WriteHalf<DuplexStream>) {
    while let Ok(Some(FromGuest::Data(bytes))) = messages.next().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
