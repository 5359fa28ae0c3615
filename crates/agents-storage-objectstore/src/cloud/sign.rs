//! URLs that give others access for a while.

use std::{collections::BTreeMap, time::Duration};

use ::http::{HeaderName, HeaderValue, Method};
use agents_core::{Error, PresignPutRequest, PresignedPut, Result};
use jiff::Timestamp;
use object_store::{Attribute, signer::SignedUrlOptions};

use super::{
    Service,
    layout::{Place, folder_of},
    record::{Record, is_sha256},
};

/// The longest that S3 and GCS sign for. Azure is held to the same.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How one service takes an upload by URL.
#[derive(Clone, Debug)]
pub(crate) struct SignedUploads {
    /// What a header of the user's metadata begins with.
    pub(crate) metadata_prefix: &'static str,
    /// The header of the storage class.
    pub(crate) class_header: &'static str,
    /// Headers of every upload: that nothing is overwritten, and what the service wants besides.
    pub(crate) headers: Vec<(String, String)>,
    /// The header in which the service checks a SHA-256 in base64, if it does.
    pub(crate) checksum_header: Option<&'static str>,
    /// Whether the signature covers the headers, so that none can be left out.
    pub(crate) signs_headers: bool,
}

fn check_expiry(expires_in: Duration) -> Result<()> {
    if expires_in.as_secs() == 0 || expires_in > LONGEST {
        return Err(Error::invalid("a URL can be valid for 1 second to 7 days"));
    }
    Ok(())
}

impl Service {
    pub(crate) async fn presign(&self, uri: &str, expires_in: Duration) -> Result<String> {
        let place = self.root.parse_uri(uri)?;
        check_expiry(expires_in)?;
        self.check_signs()?;
        // A URL for what is not there, or not yet published, would only fail later.
        let missing = || Error::not_found("there is no such artifact").with_context("uri", uri);
        let content = match &place.id {
            Some(_) => {
                self.owner(&place).await?.ok_or_else(missing)?;
                place
            }
            None => match self.look(&place).await?.ok_or_else(missing)? {
                super::Stored::Manifest(manifest) => manifest.content(&place),
                super::Stored::Inline(_) => place,
            },
        };
        let path = self.root.path(&content.key());
        let sign = || self.signer.signed_url(Method::GET, &path, expires_in);
        let url = self.call(sign).await.map_err(|error| self.error(&error))?;
        Ok(url.into())
    }

    pub(crate) async fn presign_put(&self, request: PresignPutRequest) -> Result<PresignedPut> {
        check_expiry(request.expires_in)?;
        if !is_sha256(&request.sha256) {
            return Err(Error::invalid(
                "sha256 must be 64 lower-case hexadecimal digits: that of the content to be sent",
            ));
        }
        agents_core::StoreRequest::new(request.session_id.clone(), request.name.clone(), Vec::new().into())
            .with_metadata(request.metadata.clone())
            .check()?;
        self.check_signs()?;
        let version = self
            .next_version(&request.session_id, &folder_of(&request.name))
            .await?;
        let place = Place::new(request.session_id, &request.name, version);
        let record = Record {
            name: request.name,
            // The object's own size counts.
            size: 0,
            sha256: request.sha256,
            created_at: Timestamp::now(),
            content_type: request.content_type,
            metadata: request.metadata,
        };
        let mut attributes = self.keys.write(&record, &place).ok_or_else(|| {
            Error::invalid("the metadata are too large for an upload by URL; send fewer than 1.5 KiB")
        })?;
        self.classify(&mut attributes);
        let rules = &self.uploads;
        let mut headers: BTreeMap<_, _> = rules.headers.iter().cloned().collect();
        for (key, value) in &attributes {
            let header = match key {
                Attribute::Metadata(key) => format!("{}{key}", rules.metadata_prefix),
                Attribute::ContentType => "content-type".to_owned(),
                Attribute::StorageClass => rules.class_header.to_owned(),
                _ => continue,
            };
            headers.insert(header, value.to_string());
        }
        if let Some(header) = rules.checksum_header {
            headers.insert(header.to_owned(), base64_of(&record.sha256));
        }
        let mut options = SignedUrlOptions::new();
        if rules.signs_headers {
            for (name, value) in &headers {
                let bad = || Error::invalid(format!("header {name} cannot hold {value:?}"));
                let name = HeaderName::try_from(name).map_err(|_| bad())?;
                let value = HeaderValue::try_from(value).map_err(|_| bad())?;
                options = options.with_signed_header(name, value);
            }
        }
        let path = self.root.path(&place.key());
        let sign = || {
            self.signer
                .signed_url_opts(Method::PUT, &path, request.expires_in, &options)
        };
        let url = self.call(sign).await.map_err(|error| self.error(&error))?;
        Ok(PresignedPut::new(url, headers, self.root.uri_of(&place), version))
    }

    fn check_signs(&self) -> Result<()> {
        match self.unsigned {
            Some(why) => Err(Error::unsupported(why)),
            None => Ok(()),
        }
    }
}

fn base64_of(hexadecimal: &str) -> String {
    use base64::Engine as _;
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
    let bytes: Vec<_> = hexadecimal
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
