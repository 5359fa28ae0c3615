//! Notes of what is under way, so that what an interruption leaves can be found and removed.
//!
//! A note names the contents that an upload or a deletion may leave without a manifest. Its owner writes it again from
//! time to time; a note that grows old has no owner.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agents_core::{Error, ErrorKind, Result};
use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use object_store::{Attribute, Attributes, GetOptions, ObjectStoreExt, PutOptions, path::Path};
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::{
    Service, Stored,
    layout::{Place, new_id},
};

/// A note is a list of keys; a deletion of a session may name many.
const NOTE_MAX: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Keys below the prefix.
    contents: Vec<String>,
}

/// A note that is kept young.
#[derive(Debug)]
pub(crate) struct Lease {
    service: Arc<Service>,
    path: Path,
    /// When it was last written. Of the wall clock, which goes on while a machine sleeps.
    written: Arc<Mutex<Timestamp>>,
    /// Held while it is written again.
    writing: Arc<tokio::sync::Mutex<()>>,
    beat: AbortHandle,
}

impl Lease {
    pub(crate) async fn begin(service: Arc<Service>, id: String, contents: Vec<String>) -> Result<Self> {
        let path = service.root.upload(&id);
        let json = serde_json::to_vec(&Note { contents })
            .map_err(|error| Error::unexpected("cannot write the note of an upload").with_source(error))?;
        let json = bytes::Bytes::from(json);
        let now = Timestamp::now();
        write(&service, &path, &json)
            .await
            .map_err(|error| service.error(&error))?;
        let written = Arc::new(Mutex::new(now));
        let writing = Arc::new(tokio::sync::Mutex::new(()));
        let beat = tokio::spawn({
            let (service, path) = (Arc::clone(&service), path.clone());
            let (written, writing) = (Arc::clone(&written), Arc::clone(&writing));
            async move {
                loop {
                    tokio::time::sleep(service.orphan_after / 4).await;
                    let _held = writing.lock().await;
                    let now = Timestamp::now();
                    // A failure shows when the upload is to be published.
                    if write(&service, &path, &json).await.is_ok() {
                        *written.lock().unwrap_or_else(PoisonError::into_inner) = now;
                    }
                }
            }
        });
        Ok(Self {
            service,
            path,
            written,
            writing,
            beat: beat.abort_handle(),
        })
    }

    /// Whether nobody can have taken the upload for an orphan yet, nor will for a while.
    ///
    /// # Errors
    ///
    /// `Timeout` when the note could not be written for too long.
    pub(crate) fn check(&self) -> Result<()> {
        let written = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if Timestamp::now().duration_since(written) < signed(self.service.orphan_after / 2) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Timeout,
            "the upload stood still for so long that another process may have removed it; store the artifact again",
        ))
    }

    pub(crate) async fn end(&self) -> Result<()> {
        // A request that is on its way would make the note again after it is gone. One that hangs is not waited for.
        let _held = tokio::time::timeout(Duration::from_secs(5), self.writing.lock()).await;
        self.beat.abort();
        self.service.remove(vec![self.path.clone()]).await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.beat.abort();
    }
}

async fn write(service: &Service, path: &Path, json: &bytes::Bytes) -> object_store::Result<()> {
    let put = || {
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::ContentType, "application/json".into());
        let options = PutOptions {
            attributes,
            ..PutOptions::default()
        };
        service.store.put_opts(path, json.clone().into(), options)
    };
    service.call(put).await.map(drop)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// Removes what old notes name and no manifest does; says what it was.
pub(crate) async fn reap(service: &Arc<Service>) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut pages = service.pages(service.root.uploads(), None);
    while let Some(page) = pages.try_next().await? {
        notes.extend(page.objects);
    }
    if notes.is_empty() {
        return Ok(Vec::new());
    }
    // The times of notes are the service's, so what time it is there is asked by a note of our own.
    let marker = service.root.upload(&new_id());
    let empty = bytes::Bytes::from_static(br#"{"contents":[]}"#);
    write(service, &marker, &empty)
        .await
        .map_err(|error| service.error(&error))?;
    let head = || service.store.get_opts(&marker, GetOptions::new().with_head(true));
    let now = service.call(head).await.map(|found| found.meta.last_modified);
    service.remove(vec![marker.clone()]).await?;
    let now = now.map_err(|error| service.error(&error))?;
    let mut removed = Vec::new();
    for note in notes {
        let age = now
            .signed_duration_since(note.last_modified)
            .to_std()
            .unwrap_or_default();
        if age < service.orphan_after {
            continue;
        }
        for key in contents(service, &note.location).await? {
            let Some(place) = Place::parse(&key).filter(|place| place.id.is_some()) else {
                continue;
            };
            if !is_published(service, &place).await? {
                let path = service.root.path(&key);
                service
                    .sweep
                    .sweep(&path)
                    .await
                    .map_err(|error| service.error(&error))?;
                service.remove(vec![path]).await?;
                removed.push(service.root.uri_of(&place));
            }
        }
        service.remove(vec![note.location]).await?;
    }
    Ok(removed)
}

/// What a note names. One that is gone or cannot be read names nothing.
async fn contents(service: &Service, path: &Path) -> Result<Vec<String>> {
    let found = match service.call(|| service.store.get(path)).await {
        Ok(found) if found.meta.size <= NOTE_MAX => found,
        Ok(_) => return Ok(Vec::new()),
        Err(error) => return service.absent(&error).map_or(Ok(Vec::new()), Err),
    };
    let json = found.bytes().await.map_err(|error| service.error(&error))?;
    Ok(serde_json::from_slice::<Note>(&json)
        .map(|note| note.contents)
        .unwrap_or_default())
}

/// Whether a manifest names this content.
async fn is_published(service: &Service, content: &Place) -> Result<bool> {
    Ok(service.owner(content).await?.is_some())
}

impl Service {
    /// The version whose content this is, and its manifest.
    pub(crate) async fn owner(&self, content: &Place) -> Result<Option<(Place, super::Manifest)>> {
        let version = |version| Place {
            version,
            id: None,
            ..content.clone()
        };
        // Nearly always it has the number that was free when the upload began.
        let expected = version(content.version);
        let mut candidates = vec![expected];
        let mut others = None;
        // A manifest that cannot be read may be the one: what it names must not be taken for an orphan.
        let mut damaged = None;
        loop {
            for place in candidates {
                match self.look(&place).await {
                    Ok(Some(Stored::Manifest(manifest))) if manifest.content(&place) == *content => {
                        return Ok(Some((place, manifest)));
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::DataInvalid => damaged = Some(error),
                    Err(error) => return Err(error),
                }
            }
            if others.replace(()).is_some() {
                return damaged.map_or(Ok(None), Err);
            }
            let mut places = self.places(&content.session, Some(&content.folder)).await?;
            places.retain(|place| place.version > content.version);
            places.sort_unstable_by_key(|place| place.version);
            candidates = places;
        }
    }
}
