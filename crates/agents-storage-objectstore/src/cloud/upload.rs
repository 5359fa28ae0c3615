//! Stores: what fits one part in one request, and what does not in parts, several at a time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agents_core::{ArtifactInfo, ArtifactName, ByteStream, Error, ErrorKind, Result, SessionId, StoreRequest};
use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use object_store::{
    Attribute, Attributes, GetOptions, MultipartUpload, PutMultipartOptions, PutOptions, PutPayload, PutPayloadMut,
    path::Path,
    retry::{RetryContext, RetryFailure, RetryPolicy},
};
use tokio::{runtime::Handle, task::JoinSet};

use super::{
    Renew, Service, Stored,
    layout::{Place, folder_of, new_id},
    lease::Lease,
    publish::Draft,
    record::{Manifest, Record},
};
use crate::digest::{Hasher, check_announced};

/// The size of a part, unless the content needs larger ones. A smaller content is stored in one request.
pub(crate) const PART: u64 = 8 << 20;

/// The most that the parts on their way and the one that fills may hold together, unless a part is larger than half of it.
const BUFFER: u64 = 4 * PART;

/// S3 and GCS allow 10,000 parts.
const PARTS_MAX: u64 = 10_000;

/// How long a failed store waits until what it left is removed, before that goes on behind it.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// The size of the part with this index.
fn part_size(announced: Option<u64>, index: u64) -> u64 {
    match announced {
        // All the same, since some services that speak S3 want that; a little room for a wrong announcement.
        Some(size) => size.div_ceil(PARTS_MAX - 100).next_multiple_of(1 << 20).max(PART),
        // Larger as it goes on: 10,000 parts make 117 GiB.
        None => PART << (index / 5_000).min(1),
    }
}

/// Cuts a stream into parts.
struct Cutter {
    stream: ByteStream,
    announced: Option<u64>,
    hasher: Hasher,
    part: PutPayloadMut,
    rest: Bytes,
    index: u64,
}

impl Cutter {
    fn new(stream: ByteStream, announced: Option<u64>) -> Self {
        Self {
            stream,
            announced,
            hasher: Hasher::new(),
            part: PutPayloadMut::new().with_block_size(64 << 10),
            rest: Bytes::new(),
            index: 0,
        }
    }

    /// The next part, and whether it is the last.
    async fn next(&mut self) -> Result<(PutPayload, bool)> {
        let size = part_size(self.announced, self.index);
        loop {
            let room = size - self.part.content_length() as u64;
            if self.rest.is_empty() {
                match self.stream.try_next().await? {
                    None => {
                        check_announced(self.announced, self.hasher.size())?;
                        return Ok((self.take(), true));
                    }
                    Some(chunk) => {
                        self.hasher.update(&chunk);
                        // An endless stream with an announced size ends here.
                        if self.announced.is_some_and(|announced| self.hasher.size() > announced) {
                            check_announced(self.announced, self.hasher.size())?;
                        }
                        self.rest = chunk;
                        continue;
                    }
                }
            }
            if room == 0 {
                self.index += 1;
                if self.index == PARTS_MAX {
                    return Err(Error::new(
                        ErrorKind::ResourceExhausted,
                        "the content is too large to be stored without announcing its size",
                    ));
                }
                return Ok((self.take(), false));
            }
            let piece = self.rest.split_to(self.rest.len().min(room as usize));
            // Many small chunks are joined; a large one is not copied.
            match piece.len() < 16 << 10 {
                true => self.part.extend_from_slice(&piece),
                false => self.part.push(piece),
            }
        }
    }

    fn take(&mut self) -> PutPayload {
        let empty = PutPayloadMut::new().with_block_size(64 << 10);
        std::mem::replace(&mut self.part, empty).freeze()
    }
}

/// What a request says besides the content.
struct Label {
    session: SessionId,
    name: ArtifactName,
    content_type: Option<String>,
    metadata: BTreeMap<String, String>,
}

impl Label {
    fn record(&self, hasher: Hasher) -> Record {
        Record {
            name: self.name.clone(),
            size: hasher.size(),
            sha256: hasher.finish(),
            created_at: Timestamp::now(),
            content_type: self.content_type.clone(),
            metadata: self.metadata.clone(),
        }
    }
}

pub(crate) async fn store(service: &Arc<Service>, request: StoreRequest) -> Result<ArtifactInfo> {
    request.check()?;
    let announced = request.body.size();
    let label = Label {
        session: request.session_id,
        name: request.name,
        content_type: request.content_type,
        metadata: request.metadata,
    };
    if let Some(content_type) = &label.content_type
        && (content_type.is_empty() || content_type.chars().any(|c| !(' '..='~').contains(&c)))
    {
        return Err(Error::invalid(format!(
            "content type {content_type:?} may hold only printable ASCII"
        )));
    }
    let mut cutter = Cutter::new(request.body.into_stream(), announced);
    let (first, last) = cutter.next().await?;
    if last {
        let record = label.record(cutter.hasher);
        let place = Place::new(label.session.clone(), &label.name, 1);
        if let Some(mut attributes) = service.keys.write(&record, &place) {
            service.classify(&mut attributes);
            let draft = Draft::Inline {
                record: record.clone(),
                content: first,
                attributes,
            };
            let place = service.publish(&label.session, &draft, 1).await?;
            return Ok(Stored::Inline(record).info(service, &place));
        }
        let upload = Upload::begin(service, &label).await?;
        return upload.finish(&label, record, Ending::Whole(first)).await;
    }
    let mut upload = Upload::begin(service, &label).await?;
    let sent = upload.send(first, &mut cutter).await;
    match sent {
        Ok(()) => {
            let record = label.record(cutter.hasher);
            upload.finish(&label, record, Ending::Parts).await
        }
        Err(error) => Err(upload.abandon(error).await),
    }
}

enum Ending {
    /// One request with everything.
    Whole(PutPayload),
    /// All parts are under way.
    Parts,
}

/// A content that no manifest names yet. Dropping it removes what there is of it.
struct Upload {
    service: Arc<Service>,
    content: Place,
    path: Path,
    content_type: Option<String>,
    /// All but taken when the upload is dropped.
    state: Option<State>,
}

struct State {
    lease: Lease,
    multipart: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
}

impl Upload {
    async fn begin(service: &Arc<Service>, label: &Label) -> Result<Self> {
        let version = service.next_version(&label.session, &folder_of(&label.name)).await?;
        let id = new_id();
        let content = Place::new(label.session.clone(), &label.name, version).with_id(Some(id.clone()));
        let lease = Lease::begin(Arc::clone(service), id, vec![content.key()]).await?;
        Ok(Self {
            path: service.root.path(&content.key()),
            service: Arc::clone(service),
            content,
            content_type: label.content_type.clone(),
            state: Some(State {
                lease,
                multipart: None,
                parts: JoinSet::new(),
            }),
        })
    }

    fn state(&mut self) -> Result<&mut State> {
        self.state
            .as_mut()
            .ok_or_else(|| Error::unexpected("the upload has ended already"))
    }

    fn fault(&self, error: &object_store::Error) -> Error {
        self.service.error(error).with_context("artifact", &self.content.folder)
    }

    fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::new();
        if let Some(content_type) = &self.content_type {
            attributes.insert(Attribute::ContentType, content_type.clone().into());
        }
        self.service.classify(&mut attributes);
        attributes
    }

    /// Sends all parts. The hashes of requests are computed by the tasks that send them.
    async fn send(&mut self, first: PutPayload, cutter: &mut Cutter) -> Result<()> {
        let attributes = self.attributes();
        let service = Arc::clone(&self.service);
        let begin = || {
            let policy = Arc::new(RenewOnce(service.renew.clone()));
            let options = PutMultipartOptions::from(attributes.clone()).with_retry_policy(policy);
            service.store.put_multipart_opts(&self.path, options)
        };
        let multipart = service.call(begin).await.map_err(|error| self.fault(&error))?;
        let state = self.state()?;
        let multipart = state.multipart.insert(multipart);
        let mut next = (first, false);
        loop {
            let (part, last) = next;
            let size = part.content_length() as u64;
            if size > 0 {
                let in_flight = (BUFFER / size.max(PART)).saturating_sub(1).max(1);
                while state.parts.len() as u64 >= in_flight {
                    joined(&mut state.parts, &service).await?;
                }
                state.parts.spawn(multipart.put_part(part));
            }
            if last {
                break;
            }
            next = cutter.next().await?;
        }
        while !state.parts.is_empty() {
            joined(&mut state.parts, &service).await?;
        }
        Ok(())
    }

    /// Completes the content, and makes a version of it.
    async fn finish(mut self, label: &Label, record: Record, ending: Ending) -> Result<ArtifactInfo> {
        match self.try_finish(label, record, ending).await {
            Ok(info) => {
                if let Some(state) = self.state.take() {
                    // The artifact is stored; a note that stays is removed by `reap`.
                    let _ = state.lease.end().await;
                }
                Ok(info)
            }
            Err(error) => Err(self.abandon(error).await),
        }
    }

    async fn try_finish(&mut self, label: &Label, record: Record, ending: Ending) -> Result<ArtifactInfo> {
        let service = Arc::clone(&self.service);
        let result = match ending {
            Ending::Whole(content) => {
                let attributes = self.attributes();
                let put = || {
                    let options = PutOptions {
                        attributes: attributes.clone(),
                        ..PutOptions::default()
                    };
                    service.store.put_opts(&self.path, content.clone(), options)
                };
                service.call(put).await.map(drop)
            }
            Ending::Parts => match &mut self.state()?.multipart {
                Some(multipart) => multipart.complete().await.map(drop),
                None => return Err(Error::unexpected("the upload has no parts")),
            },
        };
        if let Err(error) = result {
            // The answer to an earlier try may have been lost. Nobody else writes this key.
            let head = || service.store.get_opts(&self.path, GetOptions::new().with_head(true));
            match service.call(head).await {
                Ok(found) if found.meta.size == record.size => {}
                _ => return Err(self.fault(&error)),
            }
        }
        self.state()?.lease.check()?;
        let draft = Draft::Manifest(Manifest {
            expected_version: self.content.version,
            id: self.content.id.clone().unwrap_or_default(),
            record,
        });
        let place = service.publish(&label.session, &draft, self.content.version).await?;
        let Draft::Manifest(manifest) = draft else {
            return Err(Error::unexpected("the upload lost its manifest"));
        };
        Ok(Stored::Manifest(manifest).info(&service, &place))
    }

    /// Removes what there is, and gives the error back. When that takes long it goes on without us.
    async fn abandon(mut self, error: Error) -> Error {
        if let Some(state) = self.state.take() {
            let clean_up = tokio::spawn(clean_up(Arc::clone(&self.service), self.path.clone(), state));
            let _ = tokio::time::timeout(CLEAN_UP, clean_up).await;
        }
        error
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Without a runtime it is left to `reap`.
        if let (Some(state), Ok(runtime)) = (self.state.take(), Handle::try_current()) {
            runtime.spawn(clean_up(Arc::clone(&self.service), self.path.clone(), state));
        }
    }
}

/// Removes an unfinished upload. Its note goes last, so that `reap` can do what fails here.
async fn clean_up(service: Arc<Service>, path: Path, mut state: State) -> Result<()> {
    // A part that arrived after the rest was removed would stay.
    state.parts.shutdown().await;
    if let Some(mut multipart) = state.multipart.take() {
        let _ = multipart.abort().await;
    }
    let sweep = || service.sweep.sweep(&path);
    service.call(sweep).await.map_err(|error| service.error(&error))?;
    service.remove(vec![path.clone()]).await?;
    state.lease.end().await
}

async fn joined(parts: &mut JoinSet<object_store::Result<()>>, service: &Service) -> Result<()> {
    match parts.join_next().await {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(error))) => Err(service.error(&error)),
        Some(Err(error)) => Err(Error::unexpected("a part could not be sent").with_source(error)),
    }
}

/// Sends a part once more when its credentials turn out to have expired.
#[derive(Debug)]
struct RenewOnce(Option<Arc<dyn Renew>>);

#[async_trait::async_trait]
impl RetryPolicy for RenewOnce {
    async fn retry(&self, context: RetryContext) -> bool {
        // Services say 400, 401 or 403 for a token that has expired, and more is not known here.
        let refused =
            matches!(context.failure, RetryFailure::Status(status) if matches!(status.as_u16(), 400 | 401 | 403));
        match &self.0 {
            Some(renew) if refused && context.attempt == 1 => renew.renew().await,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};

    use super::*;

    fn cutter(chunks: &[usize], announced: Option<u64>) -> Cutter {
        let chunks: Vec<_> = chunks.iter().map(|size| Ok(Bytes::from(vec![7; *size]))).collect();
        Cutter::new(stream::iter(chunks).boxed(), announced)
    }

    async fn parts(mut cutter: Cutter) -> Vec<usize> {
        let mut sizes = Vec::new();
        loop {
            let (part, last) = cutter.next().await.unwrap();
            sizes.push(part.content_length());
            if last {
                return sizes;
            }
        }
    }

    #[tokio::test]
    async fn parts_are_of_one_size_but_the_last() {
        const P: usize = PART as usize;
        assert_eq!(parts(cutter(&[], None)).await, [0]);
        assert_eq!(parts(cutter(&[1, 0, 2], None)).await, [3]);
        assert_eq!(parts(cutter(&[P], None)).await, [P], "what fits is one request");
        assert_eq!(parts(cutter(&[P, 0, 1], None)).await, [P, 1]);
        assert_eq!(parts(cutter(&[P - 1, P + 2, P], None)).await, [P, P, P, 1]);
        assert_eq!(parts(cutter(&[2 * P + 5], Some(2 * PART + 5))).await, [P, P, 5]);
    }

    #[test]
    fn every_size_that_a_service_allows_has_parts_enough() {
        assert_eq!(part_size(Some(0), 0), PART);
        for size in [1 << 20, 80_u64 << 30, 1 << 40, 5 << 40] {
            assert!(size.div_ceil(part_size(Some(size), 0)) <= PARTS_MAX);
        }
        let total: u64 = (0..PARTS_MAX).map(|index| part_size(None, index)).sum();
        assert!(total > 117 << 30);
        assert!(part_size(None, PARTS_MAX) <= BUFFER / 2);
    }
}
