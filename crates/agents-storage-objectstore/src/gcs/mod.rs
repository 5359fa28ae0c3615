//! Artifacts in a bucket of Google Cloud Storage.

mod sign;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use agents_core::{BuildContext, Error, Factory, Result, SecretRef, SecretResolver, StorageBackend};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use object_store::{
    CredentialProvider, StaticCredentialProvider,
    client::{HttpConnector, HttpRequest},
    gcp::{
        GcpCredential, GcpCredentialProvider, GcpSigningCredential, GcpSigningCredentialProvider,
        GoogleCloudStorageBuilder,
    },
};
use tokio::sync::Mutex;

use self::sign::{Signing, UrlSigner, service_account};
use crate::cloud::{
    CloudStorage, Keys, Service, SignedUploads,
    config::{cloud_config, refused, text},
    layout::Root,
    sweep::{Authorize, XmlSweep},
};

/// The type, as in a configuration.
const TYPE: &str = "gcs";

const ENDPOINT: &str = "https://storage.googleapis.com";

/// A token is read again after this time; those of Google hold for an hour.
const READ_AGAIN: Duration = Duration::from_secs(5 * 60);

cloud_config! {
    /// The configuration of `type: gcs`.
    ///
    /// Without `service_account` and `access_token`, credentials are the application default ones: the file that
    /// `GOOGLE_APPLICATION_CREDENTIALS` names, what `gcloud auth application-default login` left, or the metadata server of
    /// the machine or of GKE's workload identity.
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

/// A token that something else keeps fresh.
struct Token {
    secrets: Arc<dyn SecretResolver>,
    reference: SecretRef,
    read: Mutex<Option<(Instant, Arc<GcpCredential>)>>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?})", self.reference)
    }
}

impl Token {
    async fn resolve(&self) -> Result<GcpCredential> {
        let bearer = text("access_token", &self.secrets.resolve(&self.reference).await?)?;
        if !bearer.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::invalid("the secret of access_token is no token"));
        }
        Ok(GcpCredential { bearer })
    }
}

#[async_trait]
impl CredentialProvider for Token {
    type Credential = GcpCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<GcpCredential>> {
        let mut read = self.read.lock().await;
        if let Some((at, credential)) = read.as_ref()
            && at.elapsed() < READ_AGAIN
        {
            return Ok(Arc::clone(credential));
        }
        let credential = self
            .resolve()
            .await
            .map(Arc::new)
            .map_err(|error| object_store::Error::Unauthenticated {
                path: String::new(),
                source: error.report().into(),
            })?;
        *read = Some((Instant::now(), Arc::clone(&credential)));
        Ok(credential)
    }
}

/// The application default credentials that are a file.
enum DefaultCredentials {
    /// The key of a service account, in JSON.
    ServiceAccount(String),
    /// What `gcloud auth application-default login` left, by its path.
    User(String),
}

impl DefaultCredentials {
    /// Looks where Google's own clients look.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for a file that `GOOGLE_APPLICATION_CREDENTIALS` names and that cannot be used.
    fn find() -> Result<Option<Self>> {
        let named = std::env::var("GOOGLE_APPLICATION_CREDENTIALS").ok();
        let path = match &named {
            Some(path) => path.into(),
            None => {
                let home = std::env::var_os("HOME").unwrap_or_default();
                std::path::Path::new(&home).join(".config/gcloud/application_default_credentials.json")
            }
        };
        let fault = |error: Error| error.with_context("file", path.display());
        let json = match std::fs::read_to_string(&path) {
            Ok(json) => json,
            Err(_) if named.is_none() => return Ok(None),
            Err(error) => {
                return Err(fault(Error::io(
                    "cannot read the file of GOOGLE_APPLICATION_CREDENTIALS",
                    error,
                )));
            }
        };
        #[derive(serde::Deserialize)]
        struct Kind {
            #[serde(default)]
            r#type: String,
        }
        let kind = serde_json::from_str::<Kind>(&json)
            .map(|kind| kind.r#type)
            .unwrap_or_default();
        match kind.as_str() {
            "service_account" => Ok(Some(Self::ServiceAccount(json))),
            "authorized_user" => Ok(Some(Self::User(path.display().to_string()))),
            "external_account" => Err(fault(Error::unsupported(
                "workload identity federation (\"type\": \"external_account\") is not built in; let `gcloud auth \
                 print-access-token` or a token service write an access token, and give it as access_token",
            ))),
            _ => Err(fault(Error::invalid(
                "the application default credentials must be a service account's key or a login of gcloud",
            ))),
        }
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
        if let Some(reference) = &config.service_account {
            let json = text("service_account", &context.secrets.resolve(reference).await?)?;
            key = Some(service_account(&json)?);
            builder = builder.with_service_account_key(json);
        } else if let Some(reference) = &config.access_token {
            let token = Token {
                secrets: Arc::clone(&context.secrets),
                reference: reference.clone(),
                read: Mutex::new(None),
            };
            token.resolve().await?;
            builder = builder.with_credentials(Arc::new(token));
            if config.signing_account.is_none() {
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
                    if config.signing_account.is_none() {
                        unsigned = Some("a person's credentials cannot sign URLs; set signing_account");
                    }
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
        let signing = match (key, &config.signing_account) {
            (Some(key), _) => Signing::Key(Box::new(key)),
            (None, email) => Signing::Iam {
                account: match email {
                    Some(email) => Arc::new(StaticCredentialProvider::new(GcpSigningCredential {
                        email: email.clone(),
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
            renew: None,
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
