//! Artifacts in a bucket of Amazon S3, or of a service that speaks like it.

mod credentials;

use std::sync::Arc;

use agents_core::{BuildContext, Error, Factory, Result, SecretRef, StorageBackend};
use async_trait::async_trait;
use aws_config::{
    environment::region::EnvironmentVariableRegionProvider, meta::region::ProvideRegion,
    profile::ProfileFileRegionProvider,
};
use object_store::{
    aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredentialProvider, Checksum},
    client::{HttpConnector, HttpRequest},
};
use serde::{Deserialize, Serialize};

use self::credentials::{Chain, Keys as SecretKeys};
use crate::cloud::{
    CloudStorage, Keys, Renew, Service, SignedUploads,
    config::{cloud_config, refused, text},
    credentials::Cached,
    layout::Root,
    sweep::{Authorize, XmlSweep},
};

/// The type, as in a configuration.
const TYPE: &str = "s3";

/// How the service encrypts what it stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum S3Encryption {
    /// With keys of S3 (SSE-S3).
    S3,
    /// With a key of KMS (SSE-KMS): `kms_key_id`, or the account's own key for S3.
    Kms,
    /// With a key of KMS, twice (DSSE-KMS).
    DsseKms,
    /// With a key that every request carries (SSE-C): `customer_key`. URLs cannot be signed then.
    Customer,
}

/// What the service compares each request's content with. The SHA-256 of the whole artifact is kept and compared by us in
/// any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum S3Checksum {
    /// CRC-64/NVME, as Amazon's own clients send it: costs nearly nothing.
    Crc64nvme,
    /// SHA-256 as part of the signature: for services that do not know the other, and it costs as much again as the hash
    /// of the artifact.
    Sha256,
}

cloud_config! {
    /// The configuration of `type: s3`.
    ///
    /// Without `access_key_id`, credentials come from where every program of AWS looks: the environment, the profile with
    /// its roles, SSO and processes, web identity, and the metadata of the container or instance.
    pub struct S3Config {
        /// The bucket. Required.
        pub bucket: String,
        /// The bucket's region, for example `eu-central-1`. Default: that of the environment or the profile, and
        /// `us-east-1` for an `endpoint`.
        pub region: Option<String>,
        /// Whether the bucket is part of the path, not of the host's name. Default: true with an `endpoint`.
        pub path_style: Option<bool>,
        /// The profile of `~/.aws/config`. Default: `AWS_PROFILE`, or `default`.
        pub profile: Option<String>,
        /// The access key's id, as a reference such as `env:MINIO_KEY`.
        pub access_key_id: Option<SecretRef>,
        /// The access key's secret, as a reference.
        pub secret_access_key: Option<SecretRef>,
        /// The token of temporary keys, as a reference.
        pub session_token: Option<SecretRef>,
        /// The storage class of contents, for example `STANDARD_IA` or `GLACIER_IR`. Default: the bucket's.
        pub storage_class: Option<String>,
        /// How the service encrypts: `s3`, `kms`, `dsse_kms` or `customer`. Default: as the bucket does.
        pub encryption: Option<S3Encryption>,
        /// The key of KMS, as its ARN or id.
        pub kms_key_id: Option<String>,
        /// Whether S3 may derive keys from one key of the bucket, which makes fewer calls to KMS.
        pub bucket_key: Option<bool>,
        /// The key of `encryption: customer`: 32 bytes in base64, as a reference.
        pub customer_key: Option<SecretRef>,
        /// What the service compares contents with: `crc64nvme` or `sha256`. Default: `crc64nvme`; `sha256` with
        /// `encryption: customer`, and with an unencrypted endpoint on another machine.
        pub checksum: Option<S3Checksum>,
        /// Whether objects are deleted one by one, for a service without `DeleteObjects`. Default: false.
        pub single_deletes: bool,
    }
}

impl S3Config {
    fn path_style(&self) -> bool {
        self.path_style.unwrap_or(self.endpoint.is_some())
    }

    fn checksum(&self) -> S3Checksum {
        let plain = self.allow_http
            && self
                .endpoint
                .as_ref()
                .is_some_and(|endpoint| endpoint.starts_with("http://"));
        let customer = self.encryption == Some(S3Encryption::Customer);
        self.checksum.unwrap_or(match plain || customer {
            true => S3Checksum::Sha256,
            false => S3Checksum::Crc64nvme,
        })
    }

    fn check(&self) -> Result<Root> {
        let named = (1..=255).contains(&self.bucket.len())
            && self.bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
            && self
                .bucket
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if self.bucket.is_empty() {
            return Err(Error::invalid("bucket is missing: set it to the name of a bucket"));
        }
        if !named {
            return Err(Error::invalid(format!(
                "bucket {:?} must be the name of a bucket: letters, digits, '-', '.' and '_'",
                self.bucket
            )));
        }
        self.common().check()?;
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err(Error::invalid(
                "access_key_id and secret_access_key must be given together",
            ));
        }
        if self.session_token.is_some() && self.access_key_id.is_none() {
            return Err(Error::invalid(
                "session_token needs access_key_id and secret_access_key",
            ));
        }
        if self.profile.is_some() && self.access_key_id.is_some() {
            return Err(Error::invalid("give either profile or access_key_id, not both"));
        }
        if matches!(self.region.as_deref(), Some(region) if !is_word(region)) {
            return Err(Error::invalid(
                "region must be the name of a region, such as eu-central-1",
            ));
        }
        match self.storage_class.as_deref() {
            Some("GLACIER" | "DEEP_ARCHIVE") => {
                return Err(Error::invalid(
                    "storage_class GLACIER and DEEP_ARCHIVE cannot be read at once; use GLACIER_IR",
                ));
            }
            Some(class) if !is_word(class) => {
                return Err(Error::invalid(
                    "storage_class must be a class of S3, such as STANDARD_IA",
                ));
            }
            _ => {}
        }
        let kms = matches!(self.encryption, Some(S3Encryption::Kms | S3Encryption::DsseKms));
        if !kms && (self.kms_key_id.is_some() || self.bucket_key.is_some()) {
            return Err(Error::invalid("kms_key_id and bucket_key need encryption: kms"));
        }
        if (self.encryption == Some(S3Encryption::Customer)) != self.customer_key.is_some() {
            return Err(Error::invalid(
                "encryption: customer and customer_key must be given together",
            ));
        }
        if self.checksum == Some(S3Checksum::Crc64nvme) && self.customer_key.is_some() {
            return Err(Error::invalid("encryption: customer needs checksum: sha256"));
        }
        Root::new("s3", &self.bucket, &self.prefix)
    }

    async fn region(&self) -> Result<String> {
        if let Some(region) = &self.region {
            return Ok(region.clone());
        }
        if let Some(region) = EnvironmentVariableRegionProvider::new().region().await {
            return Ok(region.to_string());
        }
        let mut profile = ProfileFileRegionProvider::builder();
        if let Some(name) = &self.profile {
            profile = profile.profile_name(name);
        }
        match profile.build().region().await {
            Some(region) => Ok(region.to_string()),
            None if self.endpoint.is_some() => Ok("us-east-1".to_owned()),
            None => Err(Error::invalid(
                "region is missing: set it to the bucket's region, or set AWS_REGION",
            )),
        }
    }

    /// What every upload by URL must send for the encryption that is configured.
    fn encryption_headers(&self) -> Vec<(String, String)> {
        let mut headers = Vec::new();
        let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
        let name = "x-amz-server-side-encryption";
        match self.encryption {
            Some(S3Encryption::S3) => add(name, "AES256"),
            Some(S3Encryption::Kms) => add(name, "aws:kms"),
            Some(S3Encryption::DsseKms) => add(name, "aws:kms:dsse"),
            Some(S3Encryption::Customer) | None => {}
        }
        if let Some(key) = &self.kms_key_id {
            add("x-amz-server-side-encryption-aws-kms-key-id", key);
        }
        if let Some(enabled) = self.bucket_key {
            add(
                "x-amz-server-side-encryption-bucket-key-enabled",
                if enabled { "true" } else { "false" },
            );
        }
        headers
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}

/// Makes the storage of `type: s3`.
#[derive(Debug)]
pub struct S3Factory;

#[async_trait]
impl Factory for S3Factory {
    const TYPE: &'static str = TYPE;
    type Config = S3Config;
    type Adapter = dyn StorageBackend;

    fn validate(config: &Self::Config) -> Result<()> {
        config.check().map(drop)
    }

    async fn build(config: Self::Config, context: &BuildContext) -> Result<Arc<Self::Adapter>> {
        let root = config.check()?;
        let region = config.region().await?;
        let common = config.common();
        let (credentials, renew): (AwsCredentialProvider, Arc<dyn Renew>) =
            match (&config.access_key_id, &config.secret_access_key) {
                (Some(id), Some(secret)) => {
                    let keys = SecretKeys {
                        secrets: Arc::clone(&context.secrets),
                        access_key_id: id.clone(),
                        secret_access_key: secret.clone(),
                        session_token: config.session_token.clone(),
                    };
                    // What is missing shows now, not when the first artifact is to be stored.
                    keys.resolve().await?;
                    let cached = Arc::new(Cached::new(keys));
                    (Arc::<Cached<_>>::clone(&cached), cached)
                }
                _ => {
                    let cached = Arc::new(Cached::new(Chain::new(
                        config.profile.clone(),
                        region.clone(),
                        &common,
                    )?));
                    (Arc::<Cached<_>>::clone(&cached), cached)
                }
            };
        let path_style = config.path_style();
        let default_endpoint = format!("https://s3.{region}.amazonaws.com");
        let endpoint = config.endpoint.as_deref().unwrap_or(&default_endpoint);
        let bucket_url = bucket_url(endpoint, &config.bucket, path_style)?;
        let client = common.client()?;
        let connector = common.connector();
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&config.bucket)
            .with_region(&region)
            .with_credentials(Arc::clone(&credentials))
            .with_client_options(client.clone())
            .with_http_connector(connector.clone())
            .with_retry(config.retry.build())
            .with_virtual_hosted_style_request(!path_style)
            .with_disable_bulk_delete(config.single_deletes)
            // The library wants the bucket in the address of a virtual host, and adds it to that of a path.
            .with_endpoint(if path_style { endpoint } else { &bucket_url });
        if config.checksum() == S3Checksum::Crc64nvme {
            builder = builder
                .with_unsigned_payload(true)
                .with_checksum_algorithm(Checksum::CRC64NVME);
        }
        for (name, value) in config.encryption_headers() {
            let key: AmazonS3ConfigKey = match name.as_str() {
                "x-amz-server-side-encryption" => "aws_server_side_encryption",
                "x-amz-server-side-encryption-aws-kms-key-id" => "aws_sse_kms_key_id",
                _ => "aws_sse_bucket_key_enabled",
            }
            .parse()
            .map_err(|error| refused(TYPE, &error))?;
            builder = builder.with_config(key, value);
        }
        if let Some(reference) = &config.customer_key {
            let key = text("customer_key", &context.secrets.resolve(reference).await?)?;
            use base64::Engine as _;
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(&key)
                .unwrap_or_default();
            if decoded.len() != 32 {
                return Err(Error::invalid("the secret of customer_key must be 32 bytes in base64"));
            }
            builder = builder.with_ssec_encryption(key);
        }
        let store = Arc::new(builder.build().map_err(|error| refused(TYPE, &error))?);
        let sweep = XmlSweep {
            uploads: Arc::clone(&store) as _,
            client: connector.connect(&client).map_err(|error| refused(TYPE, &error))?,
            bucket_url,
            authorize: Box::new(Signer { credentials, region }),
        };
        let mut headers = config.encryption_headers();
        headers.push(("if-none-match".to_owned(), "*".to_owned()));
        Ok(Arc::new(CloudStorage::new(Service {
            adapter_type: TYPE,
            signer: Arc::clone(&store) as _,
            store,
            sweep: Arc::new(sweep),
            renew: Some(renew),
            root,
            keys: Keys { separator: '-' },
            uploads: SignedUploads {
                metadata_prefix: "x-amz-meta-",
                class_header: "x-amz-storage-class",
                headers,
                checksum_header: Some("x-amz-checksum-sha256"),
                signs_headers: true,
            },
            unsigned: (config.encryption == Some(S3Encryption::Customer)).then_some(
                "a URL cannot carry the key of encryption: customer; use another encryption, or retrieve the artifact",
            ),
            storage_class: config.storage_class.clone(),
            orphan_after: common.orphan_after(),
        })))
    }
}

/// The address of a bucket: `https://host/bucket` or `https://bucket.host`.
fn bucket_url(endpoint: &str, bucket: &str, path_style: bool) -> Result<String> {
    let endpoint = endpoint.trim_end_matches('/');
    if path_style {
        return Ok(format!("{endpoint}/{bucket}"));
    }
    let (scheme, host) = endpoint
        .split_once("://")
        .ok_or_else(|| Error::invalid("endpoint must begin with https:// or http://"))?;
    Ok(format!("{scheme}://{bucket}.{host}"))
}

#[derive(Debug)]
struct Signer {
    credentials: AwsCredentialProvider,
    region: String,
}

#[async_trait]
impl Authorize for Signer {
    async fn authorize(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        let credential = self.credentials.get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(request, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_two_kinds_of_address() {
        let url = |path_style| bucket_url("https://s3.example:9000/", "b", path_style).unwrap();
        assert_eq!(url(true), "https://s3.example:9000/b");
        assert_eq!(url(false), "https://b.s3.example:9000");
    }

    #[test]
    fn bad_fields_are_named() {
        let check = |json: &str| S3Factory::validate(&serde_json::from_str(json).unwrap());
        assert!(check(r#"{"bucket": "agents", "encryption": "kms", "kms_key_id": "k"}"#).is_ok());
        for (json, field) in [
            ("{}", "bucket"),
            (r#"{"bucket": "../x"}"#, "bucket"),
            (r#"{"bucket": "b", "access_key_id": "env:A"}"#, "secret_access_key"),
            (r#"{"bucket": "b", "session_token": "env:A"}"#, "session_token"),
            (
                r#"{"bucket": "b", "profile": "p", "access_key_id": "env:A", "secret_access_key": "env:B"}"#,
                "profile",
            ),
            (r#"{"bucket": "b", "region": ""}"#, "region"),
            (r#"{"bucket": "b", "storage_class": "DEEP_ARCHIVE"}"#, "storage_class"),
            (r#"{"bucket": "b", "kms_key_id": "k"}"#, "kms_key_id"),
            (r#"{"bucket": "b", "encryption": "customer"}"#, "customer_key"),
            (
                r#"{"bucket": "b", "endpoint": "http://minio.internal:9000"}"#,
                "allow_http",
            ),
            (
                r#"{"bucket": "b", "endpoint": "https://key:hunter2@minio.internal"}"#,
                "endpoint",
            ),
            (r#"{"bucket": "b", "proxy": "http://user:hunter2@proxy"}"#, "proxy"),
            (r#"{"bucket": "b", "orphan_after_seconds": 0}"#, "orphan_after_seconds"),
            (
                r#"{"bucket": "b", "retry": {"max_elapsed_seconds": 500}}"#,
                "retry.max_elapsed_seconds",
            ),
        ] {
            let error = check(json).unwrap_err();
            assert!(error.message().contains(field), "{json}: {}", error.message());
            assert!(!error.report().contains("hunter2"), "{}", error.report());
        }
        // A secret in the place of a reference is refused and not quoted.
        let literal =
            serde_json::from_str::<S3Config>(r#"{"bucket": "b", "secret_access_key": "hunter2"}"#).unwrap_err();
        assert!(!literal.to_string().contains("hunter2"), "{literal}");
        assert!(check(r#"{"bucket": "b", "endpoint": "http://127.0.0.1:9000"}"#).is_ok());
    }
}
