//! Archives over a connection.

use agents_core::{ByteStream, Error, Result};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::io::AsyncWriteExt;

use super::{
    Connection,
    connection::{Messages, gone, unexpected},
};
use crate::protocol::{FromGuest, MAX_PAYLOAD, ToGuest};

/// Asks the first process for a path.
pub(super) async fn read_path(mut connection: Connection, path: &str) -> Result<ByteStream> {
    // When it does not listen any more, it does not answer either.
    let _ = connection.say(&ToGuest::Read(path.to_owned())).await;
    read(connection).await
}

pub(super) async fn read(mut connection: Connection) -> Result<ByteStream> {
    let first = next_chunk(&mut connection).await?;
    let rest = stream::unfold(Some(connection), |connection| async move {
        let mut connection = connection?;
        match next_chunk(&mut connection).await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(connection))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    // Nothing follows an empty archive.
    Ok(match first {
        Some(first) => stream::iter([Ok(first)]).chain(rest).boxed(),
        None => stream::empty().boxed(),
    })
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
