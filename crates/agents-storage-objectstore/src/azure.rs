//! Artifacts in a container of Azure Blob Storage.

use std::{path::Path as FilePath, sync::Arc};

use agents_core::{BuildContext, Error, Factory, Result, SecretRef, StorageBackend};
use async_trait::async_trait;
use object_store::{
    ObjectStoreExt, PutPayload,
    azure::{AzureAccessKey, MicrosoftAzure, MicrosoftAzureBuilder, split_sas},
    path::Path,
};
use serde::{Deserialize, Serialize};

use crate::cloud::{
    CloudStorage, Keys, Service, SignedUploads, Sweep,
    config::{cloud_config, is_local, refused, text},
    layout::Root,
};

/// The type, as in a configuration.
const TYPE: &str = "azure";

/// Where credentials come from when the configuration refers to no secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AzureCredentials {
    /// The first of these that is there: `AZURE_STORAGE_KEY`, `AZURE_STORAGE_SAS_TOKEN`, a client secret in
    /// `AZURE_CLIENT_ID`, `AZURE_TENANT_ID` and `AZURE_CLIENT_SECRET`, a workload identity, a managed identity that the
    /// environment names, the Azure CLI, the managed identity of the machine.
    #[default]
    Auto,
    /// Workload identity of Kubernetes: `AZURE_FEDERATED_TOKEN_FILE`, `AZURE_CLIENT_ID` and `AZURE_TENANT_ID`.
    WorkloadIdentity,
    /// The managed identity of the machine, the app service or the container.
    ManagedIdentity,
    /// Whoever is logged in to the Azure CLI (`az login`).
    Cli,
}

cloud_config! {
    /// The configuration of `type: azure`.
    pub struct AzureConfig {
        /// The storage account. Required.
        pub account: String,
        /// The container. Required.
        pub container: String,
        /// Where credentials come from: `auto`, `workload_identity`, `managed_identity` or `cli`. Default: `auto`.
        pub credentials: AzureCredentials,
        /// The account's key, as a reference.
        pub access_key: Option<SecretRef>,
        /// A shared access signature, as a reference. It cannot sign URLs itself.
        pub sas_token: Option<SecretRef>,
        /// The secret of an application, as a reference; with `client_id` and `tenant_id`.
        pub client_secret: Option<SecretRef>,
        /// The application, or the managed identity when there are several.
        pub client_id: Option<String>,
        /// The tenant of the application.
        pub tenant_id: Option<String>,
        /// The tier of contents: `Hot`, `Cool` or `Cold`. Default: the account's.
        pub access_tier: Option<String>,
        /// A key that every request carries (CPK): 32 bytes in base64, as a reference. URLs cannot be signed then.
        pub customer_key: Option<SecretRef>,
    }
}

impl AzureConfig {
    fn check(&self) -> Result<Root> {
        let account = (3..=24).contains(&self.account.len())
            && self
                .account
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        for (field, value) in [("account", &self.account), ("container", &self.container)] {
            if value.is_empty() {
                return Err(Error::invalid(format!(
                    "{field} is missing: set it to the name of yours"
                )));
            }
        }
        if !account {
            return Err(Error::invalid(format!(
                "account {:?} must be the name of a storage account: 3 to 24 lower-case letters and digits",
                self.account
            )));
        }
        let container = (3..=63).contains(&self.container.len())
            && !self.container.starts_with('-')
            && !self.container.ends_with('-')
            && !self.container.contains("--")
            && self
                .container
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !container {
            return Err(Error::invalid(format!(
                "container {:?} must be the name of a container: 3 to 63 lower-case letters, digits and single '-'",
                self.container
            )));
        }
        self.common().check()?;
        let secrets = [&self.access_key, &self.sas_token, &self.client_secret];
        let given = secrets.iter().filter(|secret| secret.is_some()).count();
        if given > 1 {
            return Err(Error::invalid(
                "give one of access_key, sas_token and client_secret, not several",
            ));
        }
        if given == 1 && self.credentials != AzureCredentials::Auto {
            return Err(Error::invalid(
                "give either credentials or one of access_key, sas_token and client_secret, not both",
            ));
        }
        if self.client_secret.is_some() && (self.client_id.is_none() || self.tenant_id.is_none()) {
            return Err(Error::invalid("client_secret needs client_id and tenant_id"));
        }
        match self.access_tier.as_deref() {
            None | Some("Hot" | "Cool" | "Cold") => {}
            Some("Archive") => {
                return Err(Error::invalid("access_tier Archive cannot be read at once; use Cold"));
            }
            Some(_) => return Err(Error::invalid("access_tier must be Hot, Cool or Cold")),
        }
        Root::new("az", &self.container, &self.prefix)
    }
}

/// What signs requests.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Key(String),
    Sas(String),
    ClientSecret {
        client: String,
        tenant: String,
        secret: String,
    },
    WorkloadIdentity {
        client: String,
        tenant: String,
        token_file: String,
    },
    ManagedIdentity {
        /// The address that an app service or a container names. Default: that of the machine's metadata.
        endpoint: Option<String>,
    },
    Cli,
}

/// What the environment offers, in the order of `AzureCredentials::Auto`.
fn choose(
    config: &AzureConfig,
    env: impl Fn(&str) -> Option<String>,
    on_path: impl Fn(&str) -> bool,
) -> Result<Choice> {
    let set = |name: &str| env(name).filter(|value| !value.trim().is_empty());
    let client = || config.client_id.clone().or_else(|| set("AZURE_CLIENT_ID"));
    let tenant = || config.tenant_id.clone().or_else(|| set("AZURE_TENANT_ID"));
    let workload = || {
        Some(Choice::WorkloadIdentity {
            client: client()?,
            tenant: tenant()?,
            token_file: set("AZURE_FEDERATED_TOKEN_FILE")?,
        })
    };
    // Azure Arc sets the address alone, and wants a challenge answered that the library does not know.
    let endpoint = set("IDENTITY_ENDPOINT").filter(|_| set("IDENTITY_HEADER").is_some());
    match config.credentials {
        AzureCredentials::Cli => return Ok(Choice::Cli),
        AzureCredentials::ManagedIdentity => return Ok(Choice::ManagedIdentity { endpoint }),
        AzureCredentials::WorkloadIdentity => {
            return workload().ok_or_else(|| {
                Error::invalid(
                    "credentials: workload_identity needs AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID and AZURE_TENANT_ID in \
                     the environment",
                )
            });
        }
        AzureCredentials::Auto => {}
    }
    if let Some(key) = set("AZURE_STORAGE_KEY") {
        return Ok(Choice::Key(key));
    }
    if let Some(token) = set("AZURE_STORAGE_SAS_TOKEN") {
        return Ok(Choice::Sas(token));
    }
    if let (Some(client), Some(tenant), Some(secret)) = (client(), tenant(), set("AZURE_CLIENT_SECRET")) {
        return Ok(Choice::ClientSecret { client, tenant, secret });
    }
    if let Some(choice) = workload() {
        return Ok(choice);
    }
    Ok(match endpoint.is_none() && on_path("az") {
        true => Choice::Cli,
        false => Choice::ManagedIdentity { endpoint },
    })
}

/// Where tokens come from in a cloud that is not the public one, without the slash that Kubernetes's webhook writes.
fn authority_host(host: Option<String>) -> Result<Option<String>> {
    let Some(host) = host.filter(|host| !host.trim().is_empty()) else {
        return Ok(None);
    };
    let good = |url: &url::Url| url.scheme() == "https" || (url.scheme() == "http" && is_local(url));
    match url::Url::parse(host.trim()) {
        Ok(url) if good(&url) => Ok(Some(host.trim().trim_end_matches('/').to_owned())),
        _ => Err(Error::invalid(
            "AZURE_AUTHORITY_HOST must be a URL such as https://login.microsoftonline.us",
        )),
    }
}

fn on_path(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir: std::path::PathBuf| FilePath::is_file(&dir.join(program)))
}

impl Choice {
    /// Says now what would only fail later.
    fn apply(self, mut builder: MicrosoftAzureBuilder, config: &AzureConfig) -> Result<MicrosoftAzureBuilder> {
        if let Some(client) = &config.client_id {
            builder = builder.with_client_id(client);
        }
        Ok(match self {
            Self::Key(key) => {
                AzureAccessKey::try_new(&key)
                    .map_err(|_| Error::invalid("the access key of the storage account must be base64"))?;
                builder.with_credential_type("access_key").with_access_key(key)
            }
            Self::Sas(token) => {
                let token = token.trim_start_matches('?');
                let pairs = split_sas(token).map_err(|_| Error::invalid("the SAS token must be a query string"))?;
                if !pairs.iter().any(|(key, _)| key == "sig") {
                    return Err(Error::invalid("the SAS token has no signature (sig=)"));
                }
                builder.with_credential_type("sas_token").with_sas_authorization(pairs)
            }
            Self::ClientSecret { client, tenant, secret } => builder
                .with_credential_type("client_secret")
                .with_client_secret_authorization(client, secret, tenant),
            Self::WorkloadIdentity {
                client,
                tenant,
                token_file,
            } => builder
                .with_credential_type("workload_identity")
                .with_client_id(client)
                .with_tenant_id(tenant)
                .with_federated_token_file(token_file),
            Self::ManagedIdentity { endpoint } => {
                if let Some(endpoint) = endpoint {
                    builder = builder.with_msi_endpoint(endpoint);
                }
                builder.with_credential_type("managed_identity")
            }
            Self::Cli => builder.with_credential_type("azure_cli").with_use_azure_cli(true),
        })
    }
}

/// Makes the storage of `type: azure`.
#[derive(Debug)]
pub struct AzureFactory;

#[async_trait]
impl Factory for AzureFactory {
    const TYPE: &'static str = TYPE;
    type Config = AzureConfig;
    type Adapter = dyn StorageBackend;

    fn validate(config: &Self::Config) -> Result<()> {
        config.check().map(drop)
    }

    async fn build(config: Self::Config, context: &BuildContext) -> Result<Arc<Self::Adapter>> {
        let root = config.check()?;
        let common = config.common();
        let secret = async |field: &str, reference: &SecretRef| text(field, &context.secrets.resolve(reference).await?);
        let choice = if let Some(reference) = &config.access_key {
            Choice::Key(secret("access_key", reference).await?)
        } else if let Some(reference) = &config.sas_token {
            Choice::Sas(secret("sas_token", reference).await?)
        } else if let Some(reference) = &config.client_secret {
            Choice::ClientSecret {
                client: config.client_id.clone().unwrap_or_default(),
                tenant: config.tenant_id.clone().unwrap_or_default(),
                secret: secret("client_secret", reference).await?,
            }
        } else {
            choose(&config, |name| std::env::var(name).ok(), on_path)?
        };
        let mut unsigned = None;
        if matches!(choice, Choice::Sas(_)) {
            unsigned = Some("a SAS token cannot sign URLs; use access_key or an identity of Azure");
        }
        let mut builder = MicrosoftAzureBuilder::new()
            .with_account(&config.account)
            .with_container_name(&config.container)
            .with_client_options(common.client()?)
            .with_http_connector(common.connector())
            .with_retry(config.retry.build());
        if let Some(host) = authority_host(std::env::var("AZURE_AUTHORITY_HOST").ok())? {
            builder = builder.with_authority_host(host);
        }
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        if let Some(reference) = &config.customer_key {
            builder = builder.with_encryption_key(secret("customer_key", reference).await?);
            unsigned = Some("a URL cannot carry customer_key; retrieve the artifact instead");
        }
        let store = choice
            .apply(builder, &config)?
            .build()
            .map_err(|error| refused(TYPE, &error))?;
        let store = Arc::new(store);
        Ok(Arc::new(CloudStorage::new(Service {
            adapter_type: TYPE,
            sweep: Arc::new(Blocks(Arc::clone(&store))),
            signer: Arc::clone(&store) as _,
            store,
            renew: None,
            root,
            keys: Keys { separator: '_' },
            uploads: SignedUploads {
                metadata_prefix: "x-ms-meta-",
                class_header: "x-ms-access-tier",
                headers: vec![
                    ("x-ms-blob-type".to_owned(), "BlockBlob".to_owned()),
                    ("if-none-match".to_owned(), "*".to_owned()),
                ],
                checksum_header: None,
                signs_headers: false,
            },
            unsigned,
            storage_class: config.access_tier.clone(),
            orphan_after: common.orphan_after(),
        })))
    }
}

/// Azure keeps blocks that were never committed for a week, and shows them nowhere; writing a blob discards them.
#[derive(Debug)]
struct Blocks(Arc<MicrosoftAzure>);

#[async_trait]
impl Sweep for Blocks {
    async fn sweep(&self, key: &Path) -> object_store::Result<()> {
        self.0.put(key, PutPayload::new()).await?;
        self.0.delete(key).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> AzureConfig {
        serde_json::from_str(json).unwrap()
    }

    fn chosen(config: &AzureConfig, env: &[(&str, &str)], az: bool) -> Result<Choice> {
        let get = |name: &str| {
            let found = env.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        choose(config, get, |_| az)
    }

    #[test]
    fn the_environment_is_asked_in_order() {
        let auto = config("{}");
        let client = [("AZURE_CLIENT_ID", "c"), ("AZURE_TENANT_ID", "t")];
        let with = |more: &[(&'static str, &'static str)]| [&client[..], more].concat();
        let secret = with(&[("AZURE_CLIENT_SECRET", "s"), ("AZURE_FEDERATED_TOKEN_FILE", "/f")]);
        let token = with(&[("AZURE_FEDERATED_TOKEN_FILE", "/f")]);
        let key = with(&[
            ("AZURE_STORAGE_KEY", "k"),
            ("AZURE_STORAGE_SAS_TOKEN", "s"),
            ("AZURE_CLIENT_SECRET", "s"),
        ]);
        assert_eq!(chosen(&auto, &key, true).unwrap(), Choice::Key("k".to_owned()));
        assert!(matches!(
            chosen(&auto, &[("AZURE_STORAGE_SAS_TOKEN", "s")], true),
            Ok(Choice::Sas(_))
        ));
        assert!(matches!(chosen(&auto, &secret, true), Ok(Choice::ClientSecret { .. })));
        assert!(matches!(
            chosen(&auto, &token, true),
            Ok(Choice::WorkloadIdentity { .. })
        ));
        assert_eq!(chosen(&auto, &client, true).unwrap(), Choice::Cli);
        let machine = Choice::ManagedIdentity { endpoint: None };
        assert_eq!(chosen(&auto, &client, false).unwrap(), machine);
        let service = [("IDENTITY_ENDPOINT", "x"), ("IDENTITY_HEADER", "h")];
        let endpoint = Some("x".to_owned());
        assert_eq!(
            chosen(&auto, &service, true).unwrap(),
            Choice::ManagedIdentity { endpoint }
        );
        assert_eq!(chosen(&auto, &service[..1], true).unwrap(), Choice::Cli);
        let workload = config(r#"{"credentials": "workload_identity"}"#);
        assert!(chosen(&workload, &client, true).is_err());
        assert!(matches!(
            chosen(&workload, &secret, true),
            Ok(Choice::WorkloadIdentity { .. })
        ));
        assert_eq!(
            chosen(&config(r#"{"credentials": "cli"}"#), &key, false).unwrap(),
            Choice::Cli
        );
    }

    #[test]
    fn tokens_come_from_the_cloud_that_the_environment_names() {
        let host = |host: &str| authority_host(Some(host.to_owned()));
        assert_eq!(authority_host(None).unwrap(), None);
        assert_eq!(host(" ").unwrap(), None);
        let us = Some("https://login.microsoftonline.us".to_owned());
        assert_eq!(host("https://login.microsoftonline.us/").unwrap(), us);
        for bad in ["login.microsoftonline.us", "http://login.microsoftonline.us"] {
            assert_eq!(host(bad).unwrap_err().kind(), agents_core::ErrorKind::ConfigInvalid);
        }
    }

    #[test]
    fn nonsense_is_refused_at_once_and_not_quoted() {
        let apply = |choice: Choice| choice.apply(MicrosoftAzureBuilder::new(), &config("{}"));
        for choice in [
            Choice::Key("hunter2!".to_owned()),
            Choice::Sas("hunter2".to_owned()),
            Choice::Sas("a=hunter2".to_owned()),
        ] {
            let error = apply(choice).unwrap_err();
            assert_eq!(error.kind(), agents_core::ErrorKind::ConfigInvalid);
            assert!(!error.report().contains("hunter2"), "{}", error.report());
        }
        assert!(apply(Choice::Sas("?sv=1&sig=a%3D".to_owned())).is_ok());
    }

    #[test]
    fn bad_fields_are_named() {
        let good = r#""account": "account1", "container": "agents""#;
        assert!(AzureFactory::validate(&config(&format!("{{{good}}}"))).is_ok());
        for (json, field) in [
            (r#"{"container": "agents"}"#.to_owned(), "account"),
            (r#"{"account": "account1"}"#.to_owned(), "container"),
            (format!(r#"{{{good}, "access_tier": "Archive"}}"#), "access_tier"),
            (format!(r#"{{{good}, "client_secret": "env:X"}}"#), "client_id"),
            (
                format!(r#"{{{good}, "access_key": "env:X", "sas_token": "env:Y"}}"#),
                "sas_token",
            ),
            (
                format!(r#"{{{good}, "access_key": "env:X", "credentials": "cli"}}"#),
                "credentials",
            ),
            (format!(r#"{{{good}, "prefix": "../x"}}"#), "prefix"),
            (format!(r#"{{{good}, "endpoint": "http://example.com"}}"#), "allow_http"),
            (format!(r#"{{{good}, "timeout_seconds": 0}}"#), "timeout_seconds"),
            (format!(r#"{{{good}, "max_concurrency": 0}}"#), "max_concurrency"),
            (
                format!(r#"{{{good}, "retry": {{"max_retries": 101}}}}"#),
                "retry.max_retries",
            ),
        ] {
            let error = AzureFactory::validate(&config(&json)).unwrap_err();
            assert!(error.message().contains(field), "{json}: {}", error.message());
        }
    }
}
