//! Archives over a connection.

use agents_core::{ByteStream, Error, Result};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::io::AsyncWriteExt;

use super::{
    Afterwards, Connection,
    connection::{Messages, gone, unexpected},
};
use crate::protocol::{FromGuest, MAX_PAYLOAD, ToGuest};

/// The archive. A connection that is still good for something afterwards is given back.
///
/// What follows a chunk is read before the chunk is given, so that whoever stops where the archive itself says that it is at
/// its end has read to the end of the answer too.
pub(super) async fn read(connection: Connection, back: Option<Afterwards>) -> Result<ByteStream> {
    let first = match following(connection, back).await {
        Some((Err(error), _)) => return Err(error),
        first => first,
    };
    let chunks = stream::unfold(first, |next| async {
        let (chunk, rest) = next?;
        let next = match rest {
            Some((connection, back)) => following(connection, back).await,
            None => None,
        };
        Some((chunk, next))
    });
    Ok(chunks.boxed())
}

type Rest = (Connection, Option<Afterwards>);

/// The next chunk, with what more comes from.
async fn following(mut connection: Connection, back: Option<Afterwards>) -> Option<(Result<Bytes>, Option<Rest>)> {
    match next_chunk(&mut connection).await {
        Ok(Some(bytes)) => Some((Ok(bytes), Some((connection, back)))),
        Ok(None) => {
            if let Some(back) = back {
                back.put(connection);
            }
            None
        }
        Err(error) => Some((Err(error), None)),
    }
}

async fn next_chunk(connection: &mut Connection) -> Result<Option<Bytes>> {
    match connection.messages.expect().await? {
        FromGuest::Data(bytes) => Ok(Some(bytes)),
        FromGuest::Done => Ok(None),
        other => Err(unexpected(other)),
    }
}

pub(super) async fn write(connection: Connection, mut archive: ByteStream) -> Result<()> {
    let Connection {
        mut messages,
        mut writer,
    } = connection;
    let sending = async {
        let mut frame = Vec::new();
        while let Some(chunk) = archive.next().await {
            for piece in chunk?.chunks(MAX_PAYLOAD) {
                frame.clear();
                ToGuest::Input(piece.to_vec()).encode(&mut frame);
                writer
                    .write_all(&frame)
                    .await
                    .map_err(|error| gone().with_source(error))?;
            }
        }
        frame.clear();
        ToGuest::CloseInput.encode(&mut frame);
        writer
            .write_all(&frame)
            .await
            .map_err(|error| gone().with_source(error))?;
        writer.flush().await.map_err(|error| gone().with_source(error))
    };
    let mut verdict = std::pin::pin!(verdict(&mut messages));
    tokio::select! {
        biased;
        // It comes early when something went wrong.
        verdict = &mut verdict => return verdict,
        sent = sending => if let Err(error) = sent {
            // The program's own answer says more than that it does not read on.
            return match error.kind() {
                agents_core::ErrorKind::Unavailable => Err(verdict.await.err().unwrap_or(error)),
                _ => Err(error),
            };
        }
    }
    verdict.await
}

async fn verdict(messages: &mut Messages) -> Result<(), Error> {
    match messages.expect().await? {
        FromGuest::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}
