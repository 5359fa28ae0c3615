//! Where S3 credentials come from.

use std::{fmt, sync::Arc, time::SystemTime};

use agents_core::{Error, Result, SecretRef, SecretResolver};
use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_http_client::{
    Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use object_store::aws::AwsCredential;
use tokio::sync::OnceCell;

use crate::cloud::{
    config::{Common, NO_PROXY, text},
    credentials::{Source, refused},
};

/// Keys that the configuration refers to.
pub(super) struct Keys {
    pub(super) secrets: Arc<dyn SecretResolver>,
    pub(super) access_key_id: SecretRef,
    pub(super) secret_access_key: SecretRef,
    pub(super) session_token: Option<SecretRef>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &self.secret_access_key)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// # Errors
    ///
    /// That of a reference which cannot be resolved, and `ConfigInvalid` for what can be no key.
    pub(super) async fn resolve(&self) -> Result<AwsCredential> {
        let get = async |field: &str, reference: &SecretRef| {
            let value = text(field, &self.secrets.resolve(reference).await?)?;
            match value
                .chars()
                .any(|c| c.is_whitespace() || c.is_control() || !c.is_ascii())
            {
                true => Err(Error::invalid(format!("the secret of {field} is no key of S3"))),
                false => Ok(value),
            }
        };
        Ok(AwsCredential {
            key_id: get("access_key_id", &self.access_key_id).await?,
            secret_key: get("secret_access_key", &self.secret_access_key).await?,
            token: match &self.session_token {
                Some(reference) => Some(get("session_token", reference).await?),
                None => None,
            },
        })
    }
}

#[async_trait]
impl Source for Keys {
    type Credential = AwsCredential;

    async fn fetch(&self) -> object_store::Result<(AwsCredential, Option<SystemTime>)> {
        match self.resolve().await {
            Ok(credential) => Ok((credential, None)),
            Err(error) => Err(refused(error.report())),
        }
    }
}

/// What every program of AWS uses: the environment, profiles with their roles, SSO and processes, web identity, and the
/// metadata of containers and instances.
pub(super) struct Chain {
    profile: Option<String>,
    region: String,
    proxy: ProxyConfig,
    trusted: TlsContext,
    provider: OnceCell<SharedCredentialsProvider>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({:?})", self.profile)
    }
}

impl Chain {
    /// # Errors
    ///
    /// `ConfigInvalid` for certificates and a proxy that cannot be used.
    pub(super) fn new(profile: Option<String>, region: String, common: &Common<'_>) -> Result<Self> {
        let mut store = TrustStore::default();
        if let Some((_, pem)) = common.certificates()? {
            store.add_pem_certificate(pem);
        }
        let trusted = TlsContext::builder().with_trust_store(store).build();
        let proxy = match common.proxy {
            Some(url) => ProxyConfig::all(url)
                .map_err(|_| Error::invalid("proxy must be a URL such as http://host:3128"))?
                .no_proxy(NO_PROXY),
            None => ProxyConfig::from_env(),
        };
        Ok(Self {
            profile,
            region,
            proxy,
            trusted: trusted.map_err(|_| Error::invalid("ca_file must hold certificates in PEM"))?,
            provider: OnceCell::new(),
        })
    }

    async fn load(&self) -> object_store::Result<SharedCredentialsProvider> {
        let (proxy, trusted) = (self.proxy.clone(), self.trusted.clone());
        let client = aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
            let mut builder = Connector::builder();
            builder.set_connector_settings(settings.cloned());
            if let Some(components) = components {
                builder.set_sleep_impl(components.sleep_impl());
            }
            builder
                .proxy_config(proxy.clone())
                .tls_provider(Provider::Rustls(CryptoMode::Ring))
                .tls_context(trusted.clone())
                .build()
        });
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(client)
            .region(aws_config::Region::new(self.region.clone()));
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        let config = loader.load().await;
        config
            .credentials_provider()
            .ok_or_else(|| refused("no source of AWS credentials is configured"))
    }
}

#[async_trait]
impl Source for Chain {
    type Credential = AwsCredential;

    async fn fetch(&self) -> object_store::Result<(AwsCredential, Option<SystemTime>)> {
        let provider = self.provider.get_or_try_init(|| self.load()).await?;
        let found = provider.provide_credentials().await.map_err(|error| {
            let mut told = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                told = format!("{told}: {error}");
                source = error.source();
            }
            refused(format!("no AWS credentials were found: {told}"))
        })?;
        let credential = AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        };
        Ok((credential, found.expiry()))
    }
}
