//! From the output folder into the store.

use std::sync::Arc;

use agents_core::{
    ArtifactInfo, ArtifactName, Body, ByteStream, Error, ErrorKind, EventType, Result, SessionId, StorageBackend,
    StoreRequest,
};
use agents_layers::audit::Trail;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    RefusedArtifact, blocking,
    extract::{Export, ExportDir, Extractor, File, Limits, Refusals},
};

/// The agent's structured result, in its output folder.
const RESULT_NAME: &str = "result.json";
const RESULT_LIMIT: u64 = 1 << 20;
/// A file up to this size is held in memory, so that several are stored at once and a store can be repeated.
const SMALL: u64 = 256 << 10;
const AT_ONCE: usize = 8;

/// What a collection did.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) artifacts: Vec<ArtifactInfo>,
    pub(crate) refused: Vec<RefusedArtifact>,
    /// `max_output_bytes` was exceeded.
    pub(crate) output_limit: bool,
    /// The agent's `result.json`, or what is wrong with it.
    pub(crate) result: Option<Result<Value, String>>,
    /// What kept the rest from being stored.
    pub(crate) error: Option<Error>,
}

/// Stores what it is given.
pub(crate) struct Collector<'a> {
    pub(crate) storage: &'a Arc<dyn StorageBackend>,
    pub(crate) session_id: &'a SessionId,
    pub(crate) trail: &'a Trail,
    pub(crate) export: Option<&'a Arc<ExportDir>>,
}

type Stored = (ArtifactName, Result<ArtifactInfo>, Result<()>);

impl Collector<'_> {
    /// Collects into `collected`, which holds what was done so far when the future is dropped.
    pub(crate) async fn collect(&self, archive: ByteStream, root: &str, limits: Limits, collected: &mut Collected) {
        let mut extractor = Extractor::new(archive, root, false, limits);
        let mut storing: FuturesUnordered<BoxFuture<'_, Stored>> = FuturesUnordered::new();
        loop {
            let file = match extractor.next().await {
                Ok(Some(file)) => file,
                Ok(None) => break,
                Err(error) => {
                    collected.error.get_or_insert(error);
                    break;
                }
            };
            if collected.error.is_some() {
                extractor
                    .refusals
                    .push(file.name.as_str(), "not stored, because storing failed before");
                continue;
            }
            let is_result = file.name.as_str() == RESULT_NAME;
            if file.size > SMALL && !(is_result && file.size <= RESULT_LIMIT) {
                if is_result {
                    collected.result = Some(Err(format!("{RESULT_NAME} is larger than 1 MiB")));
                }
                let stored = self.store_large(file, &mut extractor).await;
                self.settle(stored, &mut extractor.refusals, collected);
                continue;
            }
            let content = match read(&mut extractor, file.size).await {
                Ok(content) => content,
                Err(error) => {
                    collected.error.get_or_insert(error);
                    break;
                }
            };
            if is_result {
                collected.result = Some(
                    serde_json::from_slice(&content).map_err(|error| format!("{RESULT_NAME} is not JSON: {error}")),
                );
            }
            if storing.len() == AT_ONCE
                && let Some(stored) = storing.next().await
            {
                self.settle(stored, &mut extractor.refusals, collected);
            }
            storing.push(self.store_small(file, content).boxed());
        }
        while let Some(stored) = storing.next().await {
            self.settle(stored, &mut extractor.refusals, collected);
        }
        collected.output_limit = extractor.output_limit;
        collected.refused = std::mem::take(&mut extractor.refusals).finish();
        collected.artifacts.sort_by(|a, b| a.name.cmp(&b.name));
    }

    fn settle(&self, stored: Stored, refusals: &mut Refusals, collected: &mut Collected) {
        let (name, stored, exported) = stored;
        if let Err(error) = exported {
            refusals.push(name.as_str(), format!("not put into the folder: {}", error.report()));
            collected.error.get_or_insert(error);
        }
        let info = match stored {
            Ok(info) => info,
            Err(error) => {
                refusals.push(name.as_str(), format!("not stored: {}", error.report()));
                // The name alone may be at fault, in a backend with rules of its own.
                if error.kind() != ErrorKind::ConfigInvalid {
                    collected.error.get_or_insert(error);
                }
                return;
            }
        };
        self.trail.note(
            self.trail
                .event(EventType::ArtifactStored)
                .with_fact("name", info.name.as_str())
                .with_fact("uri", info.uri.as_str())
                .with_fact("size", info.size)
                .with_fact("sha256", info.sha256.as_str())
                .with_fact("version", info.version),
        );
        collected.artifacts.push(info);
    }

    fn request(&self, name: &ArtifactName, body: Body) -> StoreRequest {
        StoreRequest::new(self.session_id.clone(), name.clone(), body)
    }

    async fn store_small(&self, file: File, content: Bytes) -> Stored {
        let exported = match self.export.cloned() {
            Some(target) => {
                let (file, content) = (file.clone(), content.clone());
                blocking(move || target.put(&file, &content)).await
            }
            None => Ok(()),
        };
        let stored = self.storage.store(self.request(&file.name, content.into())).await;
        (file.name, stored, exported)
    }

    async fn store_large(&self, file: File, extractor: &mut Extractor) -> Stored {
        let (sender, receiver) = mpsc::channel(2);
        let stream = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Result<Bytes>>| async move {
            receiver.recv().await.map(|item| (item, receiver))
        });
        let body = Body::from_stream(stream.boxed(), Some(file.size));
        let feed = async {
            let mut export = match self.export {
                Some(target) => Some(Export::begin(target, &file).await),
                None => None,
            };
            let mut wanted = true;
            loop {
                match extractor.chunk().await {
                    Ok(Some(bytes)) => {
                        if let Some(Ok(begun)) = export {
                            export = Some(begun.write(bytes.clone()).await);
                        }
                        wanted = wanted && sender.send(Ok(bytes)).await.is_ok();
                        if !wanted && !matches!(export, Some(Ok(_))) {
                            break;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        // The archive's next member tells the error again, since what is left of this one is missing.
                        let kind = error.kind();
                        let cut = || Error::new(kind, "the archive ended in the middle of the file");
                        let _ = sender.send(Err(cut())).await;
                        return Err(error);
                    }
                }
            }
            drop(sender);
            match export {
                Some(Ok(export)) => export.commit().await,
                Some(Err(error)) => Err(error),
                None => Ok(()),
            }
        };
        let (stored, exported) = tokio::join!(self.storage.store(self.request(&file.name, body)), feed);
        (file.name.clone(), stored, exported)
    }
}

async fn read(extractor: &mut Extractor, size: u64) -> Result<Bytes> {
    let Some(first) = extractor.chunk().await? else {
        return Ok(Bytes::new());
    };
    if first.len() as u64 == size {
        return Ok(first);
    }
    let mut content = BytesMut::with_capacity(size as usize);
    content.extend_from_slice(&first);
    while let Some(bytes) = extractor.chunk().await? {
        content.extend_from_slice(&bytes);
    }
    Ok(content.freeze())
}
