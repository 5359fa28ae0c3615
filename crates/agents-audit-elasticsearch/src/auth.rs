//! How requests prove who sends them.

use std::fmt;
#[cfg(feature = "aws")]
use std::time::{Duration, SystemTime};

#[cfg(feature = "aws")]
use agents_core::ErrorKind;
use agents_core::{Error, Result};
#[cfg(feature = "aws")]
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{
    Request,
    header::{AUTHORIZATION, HeaderValue},
};
#[cfg(feature = "aws")]
use tokio::sync::Mutex;

use crate::config::ElasticsearchAuditConfig;

/// What proves to the server who sends. Never printed.
pub struct Credentials(Kind);

enum Kind {
    None,
    Header(String),
    #[cfg(feature = "aws")]
    Aws(Option<aws_credential_types::Credentials>),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Credentials {
    /// None at all.
    pub fn none() -> Self {
        Self(Kind::None)
    }

    /// A user and a password.
    pub fn basic(user: &str, password: impl AsRef<str>) -> Self {
        let pair = STANDARD.encode(format!("{user}:{}", password.as_ref()));
        Self(Kind::Header(format!("Basic {pair}")))
    }

    /// An API key, in its encoded form.
    pub fn api_key(key: impl AsRef<str>) -> Self {
        Self(Kind::Header(format!("ApiKey {}", key.as_ref())))
    }

    /// Keys of AWS.
    #[cfg(feature = "aws")]
    pub fn aws_keys(id: impl Into<String>, secret: impl Into<String>, token: Option<String>) -> Self {
        let keys = aws_credential_types::Credentials::new(id, secret, token, None, "configuration");
        Self(Kind::Aws(Some(keys)))
    }

    /// What every program of AWS uses: the environment, profiles with their roles, SSO and processes, web identity, and the
    /// metadata of containers and instances.
    #[cfg(feature = "aws")]
    pub fn aws_environment() -> Self {
        Self(Kind::Aws(None))
    }
}

/// Adds the proof to requests.
pub(crate) enum Auth {
    None,
    Header(HeaderValue),
    #[cfg(feature = "aws")]
    Aws(Box<Aws>),
}

impl Auth {
    #[cfg_attr(not(feature = "aws"), allow(unused_variables, reason = "the region is for aws"))]
    pub(crate) fn new(credentials: Credentials, config: &ElasticsearchAuditConfig) -> Result<Self> {
        match credentials.0 {
            Kind::None => Ok(Self::None),
            Kind::Header(text) => {
                // The error would not hold the text, but says nothing either.
                let mut value = HeaderValue::try_from(text)
                    .map_err(|_| Error::invalid("the password or api_key holds characters that no header may hold"))?;
                value.set_sensitive(true);
                Ok(Self::Header(value))
            }
            #[cfg(feature = "aws")]
            Kind::Aws(keys) => Ok(Self::Aws(Box::new(Aws::new(config, keys)?))),
        }
    }

    #[cfg_attr(not(feature = "aws"), allow(clippy::unused_async, reason = "it is async with aws"))]
    pub(crate) async fn apply(&self, request: &mut Request) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Header(value) => {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
                Ok(())
            }
            #[cfg(feature = "aws")]
            Self::Aws(aws) => aws.sign(request).await,
        }
    }

    /// Forgets credentials that the server refuses, so that the next request gets new ones.
    #[cfg_attr(not(feature = "aws"), allow(clippy::unused_async, reason = "it is async with aws"))]
    pub(crate) async fn refused(&self) {
        #[cfg(feature = "aws")]
        if let Self::Aws(aws) = self {
            *aws.cached.lock().await = None;
        }
    }
}

/// Signs requests for Amazon OpenSearch Service (Signature Version 4).
#[cfg(feature = "aws")]
pub(crate) struct Aws {
    region: String,
    profile: Option<String>,
    provider: tokio::sync::OnceCell<SharedCredentialsProvider>,
    cached: Mutex<Option<aws_credential_types::Credentials>>,
}

/// Credentials are fetched again this long before they expire.
#[cfg(feature = "aws")]
const BEFORE_EXPIRY: Duration = Duration::from_secs(60);

#[cfg(feature = "aws")]
impl Aws {
    fn new(config: &ElasticsearchAuditConfig, keys: Option<aws_credential_types::Credentials>) -> Result<Self> {
        let region = config.aws_region.clone();
        Ok(Self {
            region: region.ok_or_else(|| Error::invalid("credentials of AWS need aws_region, such as eu-central-1"))?,
            profile: config.aws_profile.clone(),
            provider: tokio::sync::OnceCell::new_with(keys.map(SharedCredentialsProvider::new)),
            cached: Mutex::new(None),
        })
    }

    async fn load(&self) -> Result<SharedCredentialsProvider> {
        use aws_smithy_http_client::{Builder, tls};
        let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest())
            .http_client(Builder::new().tls_provider(ring).build_https())
            .region(aws_config::Region::new(self.region.clone()));
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        let provider = loader.load().await.credentials_provider();
        provider.ok_or_else(|| Error::new(ErrorKind::Unauthenticated, "no source of AWS credentials is configured"))
    }

    async fn credentials(&self) -> Result<aws_credential_types::Credentials> {
        // Held while fetching, so that many requests fetch once.
        let mut cached = self.cached.lock().await;
        let soon = SystemTime::now() + BEFORE_EXPIRY;
        if let Some(credentials) = cached.as_ref()
            && credentials.expiry().is_none_or(|expiry| expiry > soon)
        {
            return Ok(credentials.clone());
        }
        let provider = self.provider.get_or_try_init(|| self.load()).await?;
        let credentials = provider.provide_credentials().await.map_err(|error| {
            let told = "no AWS credentials were found; set access_key_id and secret_access_key, a profile, or a role";
            Error::new(ErrorKind::Unauthenticated, told)
                .temporary(None)
                .with_source(error)
        })?;
        Ok(cached.insert(credentials).clone())
    }

    async fn sign(&self, request: &mut Request) -> Result<()> {
        use aws_sigv4::{
            http_request::{PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign},
            sign::v4,
        };
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Error::unexpected(format!("the request for AWS could not be signed: {error}"))
        };
        let identity = self.credentials().await?.into();
        let mut settings = SigningSettings::default();
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("es")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .map_err(|error| failed(&error))?
            .into();
        let body = request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default();
        let headers = request.headers().iter();
        let headers = headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let signable = SignableRequest::new(
            request.method().as_str(),
            request.url().as_str(),
            headers,
            SignableBody::Bytes(body),
        );
        let signable = signable.map_err(|error| failed(&error))?;
        let (instructions, _) = sign(signable, &params).map_err(|error| failed(&error))?.into_parts();
        let mut signed = Vec::new();
        for (name, value) in instructions.headers() {
            let name = reqwest::header::HeaderName::try_from(name).map_err(|error| failed(&error))?;
            let mut value = HeaderValue::try_from(value).map_err(|error| failed(&error))?;
            value.set_sensitive(true);
            signed.push((name, value));
        }
        request.headers_mut().extend(signed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_printed() {
        for credentials in [
            Credentials::basic("user", "hunter2"),
            Credentials::api_key("hunter2"),
            #[cfg(feature = "aws")]
            Credentials::aws_keys("id", "hunter2", Some("hunter2".to_owned())),
        ] {
            assert_eq!(format!("{credentials:?}"), "[redacted]");
        }
        let config = ElasticsearchAuditConfig::default();
        let Ok(Auth::Header(value)) = Auth::new(Credentials::basic("Aladdin", "open sesame"), &config) else {
            panic!("no header");
        };
        // The example of RFC 7617.
        assert_eq!(value, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(!format!("{value:?}").contains("QWxh"));
        assert!(Auth::new(Credentials::api_key("a\nb"), &config).is_err());
    }
}
