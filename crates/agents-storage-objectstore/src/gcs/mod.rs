//! Artifacts in a bucket of Google Cloud Storage.

mod credentials;
mod federation;
mod sign;

use std::sync::Arc;

use agents_core::{BuildContext, Error, Factory, Result, SecretRef, StorageBackend};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use object_store::{
    StaticCredentialProvider,
    client::{HttpConnector, HttpRequest},
    gcp::{GcpCredentialProvider, GcpSigningCredential, GcpSigningCredentialProvider, GoogleCloudStorageBuilder},
};

use self::{
    credentials::{DefaultCredentials, Token},
    federation::Federation,
    sign::{Signing, UrlSigner, service_account},
};
use crate::cloud::{
    CloudStorage, Keys, Renew, Service, SignedUploads,
    config::{cloud_config, refused, text},
    credentials::Cached,
    layout::Root,
    sweep::{Authorize, XmlSweep},
};

/// The type, as in a configuration.
const TYPE: &str = "gcs";

const ENDPOINT: &str = "https://storage.googleapis.com";

cloud_config! {
    /// The configuration of `type: gcs`.
    ///
    /// Without `service_account` and `access_token`, credentials are the application default ones: the file that
    /// `GOOGLE_APPLICATION_CREDENTIALS` names (a key, or workload identity federation), what
    /// `gcloud auth application-default login` left, or the metadata server of the machine or of GKE's workload identity.
    pub struct GcsConfig {
        /// The bucket. Required.
        pub bucket: String,
        /// The key of a service account in JSON, as a reference such as `file:/etc/agents/key.json`.
        pub service_account: Option<SecretRef>,
        /// An access token that something else keeps fresh, as a reference. It is read again every five minutes.
        pub access_token: Option<SecretRef>,
        /// The service account that signs URLs through IAM (`signBlob`), by its e-mail address. Default: the key's own, or
        /// the machine's.
        pub signing_account: Option<String>,
        /// The storage class of contents: `STANDARD`, `NEARLINE`, `COLDLINE` or `ARCHIVE`. Default: the bucket's.
        pub storage_class: Option<String>,
        /// The key of Cloud KMS that encrypts what is stored (CMEK):
        /// `projects/P/locations/L/keyRings/R/cryptoKeys/K`. Default: as the bucket does.
        pub kms_key: Option<String>,
    }
}

impl GcsConfig {
    fn check(&self) -> Result<Root> {
        let named = (3..=222).contains(&self.bucket.len())
            && self
                .bucket
                .starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && self
                .bucket
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c));
        if self.bucket.is_empty() {
            return Err(Error::invalid("bucket is missing: set it to the name of a bucket"));
        }
        if !named {
            return Err(Error::invalid(format!(
                "bucket {:?} must be the name of a bucket: lower-case letters, digits, '-', '.' and '_'",
                self.bucket
            )));
        }
        self.common().check()?;
        if self.service_account.is_some() && self.access_token.is_some() {
            return Err(Error::invalid("give either service_account or access_token, not both"));
        }
        if self.service_account.is_some() && self.signing_account.is_some() {
            return Err(Error::invalid(
                "service_account signs URLs itself; leave signing_account out",
            ));
        }
        if matches!(&self.signing_account, Some(account) if !account.contains('@')) {
            return Err(Error::invalid(
                "signing_account must be the e-mail address of a service account",
            ));
        }
        match self.storage_class.as_deref() {
            None | Some("STANDARD" | "NEARLINE" | "COLDLINE" | "ARCHIVE") => {}
            Some(_) => {
                return Err(Error::invalid(
                    "storage_class must be STANDARD, NEARLINE, COLDLINE or ARCHIVE",
                ));
            }
        }
        if let Some(key) = &self.kms_key {
            let parts: Vec<_> = key.split('/').collect();
            let well_formed = matches!(
                parts[..],
                ["projects", p, "locations", l, "keyRings", r, "cryptoKeys", k]
                    if [p, l, r, k].iter().all(|part| !part.is_empty())
            ) && key.bytes().all(|byte| byte.is_ascii_graphic());
            if !well_formed {
                return Err(Error::invalid(
                    "kms_key must be projects/P/locations/L/keyRings/R/cryptoKeys/K",
                ));
            }
        }
        Root::new("gs", &self.bucket, &self.prefix)
    }
}

/// Makes the storage of `type: gcs`.
#[derive(Debug)]
pub struct GcsFactory;

#[async_trait]
impl Factory for GcsFactory {
    const TYPE: &'static str = TYPE;
    type Config = GcsConfig;
    type Adapter = dyn StorageBackend;

    fn validate(config: &Self::Config) -> Result<()> {
        config.check().map(drop)
    }

    async fn build(config: Self::Config, context: &BuildContext) -> Result<Arc<Self::Adapter>> {
        let root = config.check()?;
        let common = config.common();
        let endpoint = config.endpoint.as_deref().unwrap_or(ENDPOINT).trim_end_matches('/');
        let client = common.client()?;
        let mut connector = common.connector();
        let mut headers = vec![("x-goog-if-generation-match".to_owned(), "0".to_owned())];
        if let Some(key) = &config.kms_key {
            let name = HeaderName::from_static("x-goog-encryption-kms-key-name");
            let value = HeaderValue::from_str(key).map_err(|_| Error::invalid("kms_key must be printable ASCII"))?;
            headers.push((name.to_string(), key.clone()));
            connector = connector.with_object_headers(endpoint, HeaderMap::from_iter([(name, value)]));
        }
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&config.bucket)
            .with_base_url(endpoint)
            .with_client_options(client.clone())
            .with_http_connector(connector.clone())
            .with_retry(config.retry.build());
        let mut unsigned = None;
        let mut key = None;
        let mut renew: Option<Arc<dyn Renew>> = None;
        let mut account = config.signing_account.clone();
        if let Some(reference) = &config.service_account {
            let json = text("service_account", &context.secrets.resolve(reference).await?)?;
            key = Some(service_account(&json)?);
            builder = builder.with_service_account_key(json);
        } else if let Some(reference) = &config.access_token {
            let token = Token {
                secrets: Arc::clone(&context.secrets),
                reference: reference.clone(),
            };
            // What is missing shows now, not when the first artifact is to be stored.
            token.resolve().await?;
            let token = Arc::new(Cached::new(token));
            builder = builder.with_credentials(Arc::<Cached<_>>::clone(&token));
            renew = Some(token);
            if account.is_none() {
                unsigned = Some("an access token cannot sign URLs; set signing_account, or use service_account");
            }
        } else {
            match DefaultCredentials::find()? {
                Some(DefaultCredentials::ServiceAccount(json)) => {
                    key = Some(service_account(&json)?);
                    builder = builder.with_service_account_key(json);
                }
                Some(DefaultCredentials::User(path)) => {
                    builder = builder.with_application_credentials(path);
                    if account.is_none() {
                        unsigned = Some("a person's credentials cannot sign URLs; set signing_account");
                    }
                }
                Some(DefaultCredentials::Federation(json)) => {
                    // Its addresses are checked, and those of a machine's own services are not encrypted.
                    let client = connector.connect(&client.clone().with_allow_http(true));
                    let federation = Federation::new(&json, client.map_err(|error| refused(TYPE, &error))?)?;
                    account = account.or_else(|| federation.account());
                    if account.is_none() {
                        unsigned = Some("a federated identity cannot sign URLs itself; set signing_account");
                    }
                    let federation = Arc::new(Cached::new(federation));
                    builder = builder.with_credentials(Arc::<Cached<_>>::clone(&federation));
                    renew = Some(federation);
                }
                // The metadata server of the machine or of GKE.
                None => {}
            }
        }
        let store = Arc::new(builder.build().map_err(|error| refused(TYPE, &error))?);
        let sweep = XmlSweep {
            uploads: Arc::clone(&store) as _,
            client: connector.connect(&client).map_err(|error| refused(TYPE, &error))?,
            bucket_url: format!("{endpoint}/{}", config.bucket),
            authorize: Box::new(Bearer(Arc::clone(store.credentials()))),
        };
        let signing = match (key, account) {
            (Some(key), _) => Signing::Key(Box::new(key)),
            (None, email) => Signing::Iam {
                account: match email {
                    Some(email) => Arc::new(StaticCredentialProvider::new(GcpSigningCredential {
                        email,
                        private_key: None,
                    })) as GcpSigningCredentialProvider,
                    None => Arc::clone(store.signing_credentials()),
                },
                credentials: Arc::clone(store.credentials()),
                client: connector.connect(&client).map_err(|error| refused(TYPE, &error))?,
            },
        };
        let signer = UrlSigner {
            endpoint: endpoint.to_owned(),
            bucket: config.bucket.clone(),
            signing,
        };
        Ok(Arc::new(CloudStorage::new(Service {
            adapter_type: TYPE,
            signer: Arc::new(signer),
            store,
            sweep: Arc::new(sweep),
            renew,
            root,
            keys: Keys { separator: '-' },
            uploads: SignedUploads {
                metadata_prefix: "x-goog-meta-",
                class_header: "x-goog-storage-class",
                headers,
                checksum_header: None,
                signs_headers: true,
            },
            unsigned,
            storage_class: config.storage_class.clone(),
            orphan_after: common.orphan_after(),
        })))
    }
}

#[derive(Debug)]
struct Bearer(GcpCredentialProvider);

#[async_trait]
impl Authorize for Bearer {
    async fn authorize(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        let credential = self.0.get_credential().await?;
        if let Ok(mut value) = HeaderValue::try_from(format!("Bearer {}", credential.bearer)) {
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_fields_are_named() {
        let check = |json: &str| GcsFactory::validate(&serde_json::from_str(json).unwrap());
        assert!(check(r#"{"bucket": "agents", "kms_key": "projects/p/locations/l/keyRings/r/cryptoKeys/k"}"#).is_ok());
        for (json, field) in [
            ("{}", "bucket"),
            (r#"{"bucket": "A"}"#, "bucket"),
            (
                r#"{"bucket": "agents", "service_account": "env:A", "access_token": "env:B"}"#,
                "access_token",
            ),
            (
                r#"{"bucket": "agents", "service_account": "env:A", "signing_account": "a@b"}"#,
                "signing_account",
            ),
            (r#"{"bucket": "agents", "signing_account": "a"}"#, "signing_account"),
            (r#"{"bucket": "agents", "storage_class": "COLD"}"#, "storage_class"),
            (r#"{"bucket": "agents", "kms_key": "k"}"#, "kms_key"),
            (r#"{"bucket": "agents", "endpoint": "ftp://x"}"#, "endpoint"),
        ] {
            let error = check(json).unwrap_err();
            assert!(error.message().contains(field), "{json}: {}", error.message());
        }
    }
}
