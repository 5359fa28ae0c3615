//! Reads artifacts, and holds the end back until the hash is known.

use std::sync::Arc;

use agents_core::{ArtifactInfo, ByteStream, Error, ErrorKind, Result, RetrieveRequest, Retrieved};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{GetOptions, GetRange, GetResult, ObjectStoreExt};

use super::{Service, Stored, layout::Place};
use crate::digest::{Hasher, check_range};

impl Service {
    pub(crate) async fn retrieve(self: &Arc<Self>, request: RetrieveRequest) -> Result<Retrieved> {
        let place = self.root.parse_uri(&request.uri)?;
        let missing = || Error::not_found("there is no such artifact").with_context("uri", &request.uri);
        let (info, content) = match (&place.id, &request.range) {
            (None, None) => {
                // One request gives the content and what is known of it.
                let path = self.root.path(&place.key());
                let found = match self.call(|| self.store.get(&path)).await {
                    Ok(found) => found,
                    Err(error) => return Err(self.absent(&error).unwrap_or_else(missing)),
                };
                if !self.keys.is_manifest(&found.attributes) {
                    let record = self.keys.read(&found.attributes, &found.meta, &place);
                    let record = record.map_err(|error| error.with_context("uri", &request.uri))?;
                    let info = record.into_info(&place, request.uri);
                    return Ok(self.verified(info, found));
                }
                let manifest = self.manifest(found, &place).await?;
                (
                    Stored::Manifest(manifest.clone()).info(self, &place),
                    manifest.content(&place),
                )
            }
            (None, Some(_)) => match self.look(&place).await?.ok_or_else(missing)? {
                Stored::Manifest(manifest) => {
                    let content = manifest.content(&place);
                    (Stored::Manifest(manifest).info(self, &place), content)
                }
                inline => (inline.info(self, &place), place.clone()),
            },
            (Some(_), _) => {
                let (version, manifest) = self.owner(&place).await?.ok_or_else(missing)?;
                (Stored::Manifest(manifest).info(self, &version), place.clone())
            }
        };
        let range = check_range(request.range.clone(), info.size)?;
        if range.is_empty() && info.size > 0 {
            return Ok(Retrieved {
                info,
                content: stream::empty().boxed(),
            });
        }
        let found = self.open(&content, &range, info.size).await?;
        if range == (0..info.size) {
            return Ok(self.verified(info, found));
        }
        Ok(Retrieved {
            content: self.mapped(found, &info.uri).boxed(),
            info,
        })
    }

    async fn open(&self, content: &Place, range: &std::ops::Range<u64>, size: u64) -> Result<GetResult> {
        let path = self.root.path(&content.key());
        let whole = *range == (0..size);
        let get = || {
            let wanted = (!whole).then(|| GetRange::Bounded(range.clone()));
            self.store.get_opts(&path, GetOptions::new().with_range(wanted))
        };
        let uri = |error: Error| error.with_context("uri", self.root.uri_of(content));
        let found = self.call(get).await.map_err(|error| match self.absent(&error) {
            Some(error) => uri(error),
            None => uri(damaged("its content is gone")),
        })?;
        if found.meta.size != size {
            let told = format!("it has {} bytes and {size} were stored", found.meta.size);
            return Err(uri(damaged(told)));
        }
        Ok(found)
    }

    fn mapped(self: &Arc<Self>, found: GetResult, uri: &str) -> ByteStream {
        let (service, uri) = (Arc::clone(self), uri.to_owned());
        found
            .into_stream()
            .map_err(move |error| service.error(&error).with_context("uri", &uri))
            .boxed()
    }

    fn verified(self: &Arc<Self>, info: ArtifactInfo, found: GetResult) -> Retrieved {
        let content = check(self.mapped(found, &info.uri), &info);
        Retrieved { info, content }
    }
}

struct Checked {
    content: ByteStream,
    hasher: Hasher,
    /// The last piece, which is given away only when another follows or the hash is right.
    held: Option<Bytes>,
    size: u64,
    sha256: String,
    uri: String,
}

/// Ends with `DataInvalid` in place of the last piece when the content differs from what was stored.
fn check(content: ByteStream, info: &ArtifactInfo) -> ByteStream {
    let state = Checked {
        content,
        hasher: Hasher::new(),
        held: None,
        size: info.size,
        sha256: info.sha256.clone(),
        uri: info.uri.clone(),
    };
    stream::try_unfold(Some(state), |state| async move {
        let Some(mut state) = state else { return Ok(None) };
        while let Some(piece) = state.content.try_next().await? {
            if piece.is_empty() {
                continue;
            }
            state.hasher.update(&piece);
            if state.hasher.size() > state.size {
                return Err(damaged("it is longer than what was stored").with_context("uri", &state.uri));
            }
            if let Some(piece) = state.held.replace(piece) {
                return Ok(Some((piece, Some(state))));
            }
        }
        let size = state.hasher.size();
        if size < state.size {
            let told = format!("it ends after {size} of {} bytes", state.size);
            return Err(damaged(told).with_context("uri", &state.uri));
        }
        if state.hasher.finish() != state.sha256 {
            return Err(damaged("its SHA-256 is not that of what was stored").with_context("uri", &state.uri));
        }
        Ok(state.held.map(|piece| (piece, None)))
    })
    .boxed()
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::DataInvalid, format!("the artifact is damaged: {why}"))
}

#[cfg(test)]
mod tests {
    use agents_core::{ArtifactName, SessionId};
    use jiff::Timestamp;

    use super::*;

    async fn read(pieces: &[&'static [u8]], size: u64, sha_of: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
        let mut hasher = Hasher::new();
        hasher.update(sha_of);
        let (session, name) = (SessionId::generate(), ArtifactName::new("a").unwrap());
        let info = ArtifactInfo::new(
            session,
            name,
            "s3://b/x",
            size,
            hasher.finish(),
            1,
            Timestamp::UNIX_EPOCH,
        );
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece))).collect();
        let mut content = check(stream::iter(pieces).boxed(), &info);
        let mut got = Vec::new();
        loop {
            match content.next().await {
                Some(Ok(piece)) => got.extend_from_slice(&piece),
                Some(Err(error)) => return (got, Some(error.kind())),
                None => return (got, None),
            }
        }
    }

    #[tokio::test]
    async fn the_end_comes_only_when_the_hash_is_right() {
        let damaged = Some(ErrorKind::DataInvalid);
        assert_eq!(read(&[b"ab", b"", b"c"], 3, b"abc").await, (b"abc".to_vec(), None));
        assert_eq!(read(&[], 0, b"").await, (Vec::new(), None));
        assert_eq!(read(&[b"ab", b"d"], 3, b"abc").await, (b"ab".to_vec(), damaged));
        assert_eq!(read(&[b"abd"], 3, b"abc").await, (Vec::new(), damaged));
        assert_eq!(read(&[b"ab"], 3, b"abc").await, (Vec::new(), damaged));
        assert_eq!(read(&[b"ab", b"cd"], 3, b"abc").await, (Vec::new(), damaged));
    }
}
