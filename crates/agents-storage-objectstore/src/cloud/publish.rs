//! Makes a version visible: one object that is created and never overwritten.

use std::time::Duration;

use agents_core::{ArtifactName, Error, ErrorKind, Result, SessionId};
use object_store::{Attribute, Attributes, GetOptions, PutMode, PutOptions, PutPayload};

use super::{
    Service, error,
    layout::{Place, folder_of},
    record::{Manifest, Record},
};

/// How often a number may be taken by somebody else before we give up.
const TRIES: u32 = 1000;

/// What becomes a version.
#[derive(Debug)]
pub(crate) enum Draft {
    /// Content that fits one request.
    Inline {
        record: Record,
        content: PutPayload,
        attributes: Attributes,
    },
    /// Content that is there already.
    Manifest(Manifest),
}

impl Draft {
    pub(crate) fn record(&self) -> &Record {
        match self {
            Self::Inline { record, .. } => record,
            Self::Manifest(manifest) => &manifest.record,
        }
    }

    fn name(&self) -> &ArtifactName {
        &self.record().name
    }

    fn object(&self, service: &Service) -> Result<(PutPayload, Attributes)> {
        match self {
            Self::Inline {
                content, attributes, ..
            } => Ok((content.clone(), attributes.clone())),
            Self::Manifest(manifest) => {
                let json = serde_json::to_vec(manifest)
                    .map_err(|error| Error::unexpected("cannot write a manifest").with_source(error))?;
                Ok((json.into(), service.keys.manifest(&manifest.id)))
            }
        }
    }
}

impl Service {
    /// Sets the storage class of a content.
    pub(crate) fn classify(&self, attributes: &mut Attributes) {
        if let Some(class) = &self.storage_class {
            attributes.insert(Attribute::StorageClass, class.clone().into());
        }
    }

    /// Publishes under the next number and says which it is.
    pub(crate) async fn publish(&self, session: &SessionId, draft: &Draft, guess: u64) -> Result<Place> {
        let fault = |error: &object_store::Error| self.error(error).with_context("artifact", draft.name());
        let (payload, attributes) = draft.object(self)?;
        let mut version = guess;
        for attempt in 0..TRIES {
            let place = Place::new(session.clone(), draft.name(), version);
            let path = self.root.path(&place.key());
            let create = || {
                let options = PutOptions {
                    mode: PutMode::Create,
                    attributes: attributes.clone(),
                    ..PutOptions::default()
                };
                self.store.put_opts(&path, payload.clone(), options)
            };
            match self.call(create).await {
                Ok(_) => return Ok(place),
                Err(object_store::Error::AlreadyExists { .. }) => {}
                // The answer may have been lost after the object was made.
                Err(error) if error::is_uncertain(&error) => match self.is_made_by(&path, &attributes).await {
                    Ok(true) => return Ok(place),
                    Ok(false) | Err(_) => return Err(fault(&error)),
                },
                Err(error) => return Err(fault(&error)),
            }
            // So may that of an earlier try of the same request.
            if self
                .is_made_by(&path, &attributes)
                .await
                .map_err(|error| fault(&error))?
            {
                return Ok(place);
            }
            if attempt > 0 {
                tokio::time::sleep(pause(attempt)).await;
            }
            // S3 also refuses while another request for the same number is under way, which may yet fail; so never count
            // on from the number that was refused, which could leave a gap.
            version = self.next_version(session, &folder_of(draft.name())).await?;
        }
        Err(Error::new(
            ErrorKind::Conflict,
            "too many others store versions of the same artifact; store it again later",
        )
        .with_context("artifact", draft.name()))
    }

    /// Whether the upload with these attributes made the object.
    async fn is_made_by(&self, path: &object_store::path::Path, ours: &Attributes) -> object_store::Result<bool> {
        let head = || self.store.get_opts(path, GetOptions::new().with_head(true));
        match self.call(head).await {
            Ok(found) => Ok(self.keys.is_same(&found.attributes, ours)),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Grows to a quarter of a second, and differs between writers.
fn pause(attempt: u32) -> Duration {
    let most = 8_u64 << attempt.min(5);
    let random = uuid::Uuid::now_v7().as_u128() as u64;
    Duration::from_millis(random % most)
}
