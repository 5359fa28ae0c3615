//! Where S3 credentials come from, and when they are fetched again.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use agents_core::{Result, SecretRef, SecretResolver};
use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_http_client::tls;
use object_store::{CredentialProvider, aws::AwsCredential};
use tokio::sync::{Mutex, OnceCell};

use crate::cloud::{Renew, config::text};

/// Credentials are fetched again this long before they expire.
const BEFORE_EXPIRY: Duration = Duration::from_secs(5 * 60);

/// What does not say when it expires is read again after this time, since a file may have been replaced.
const READ_AGAIN: Duration = Duration::from_secs(15 * 60);

/// Credentials that a service refuses are fetched again unless they are as new as this.
const NEW: Duration = Duration::from_secs(10);

/// Fetches credentials.
#[async_trait]
pub(super) trait Source: fmt::Debug + Send + Sync + 'static {
    async fn fetch(&self) -> object_store::Result<(AwsCredential, Option<SystemTime>)>;
}

struct Fetched {
    credential: Arc<AwsCredential>,
    expires: Option<SystemTime>,
    at: Instant,
}

impl Fetched {
    fn is_good(&self, now: SystemTime) -> bool {
        match self.expires {
            Some(expires) => expires > now + BEFORE_EXPIRY,
            None => self.at.elapsed() < READ_AGAIN,
        }
    }
}

/// Keeps credentials until shortly before they expire.
pub(super) struct Cached<S> {
    source: S,
    fetched: Mutex<Option<Fetched>>,
}

impl<S: Source> Cached<S> {
    pub(super) fn new(source: S) -> Self {
        Self {
            source,
            fetched: Mutex::new(None),
        }
    }
}

impl<S: Source> fmt::Debug for Cached<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cached").field(&self.source).finish()
    }
}

#[async_trait]
impl<S: Source> CredentialProvider for Cached<S> {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        // Held while fetching, so that many requests fetch once.
        let mut fetched = self.fetched.lock().await;
        let now = SystemTime::now();
        if let Some(fetched) = fetched.as_ref().filter(|fetched| fetched.is_good(now)) {
            return Ok(Arc::clone(&fetched.credential));
        }
        match self.source.fetch().await {
            Ok((credential, expires)) => {
                let credential = Arc::new(credential);
                *fetched = Some(Fetched {
                    credential: Arc::clone(&credential),
                    expires,
                    at: Instant::now(),
                });
                Ok(credential)
            }
            Err(error) => match fetched.as_ref() {
                // What still holds for minutes may outlast the trouble.
                Some(old) if old.expires.is_some_and(|expires| expires > now) => Ok(Arc::clone(&old.credential)),
                _ => Err(error),
            },
        }
    }
}

#[async_trait]
impl<S: Source> Renew for Cached<S> {
    async fn renew(&self) -> bool {
        let mut fetched = self.fetched.lock().await;
        let old = fetched.as_ref().is_some_and(|fetched| fetched.at.elapsed() >= NEW);
        if old {
            *fetched = None;
        }
        // Somebody else may just have fetched them.
        old || fetched
            .as_ref()
            .is_none_or(|fetched| fetched.at.elapsed() < Duration::from_secs(1))
    }
}

fn refused(why: impl fmt::Display) -> object_store::Error {
    object_store::Error::Unauthenticated {
        path: String::new(),
        source: why.to_string().into(),
    }
}

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
                true => Err(agents_core::Error::invalid(format!(
                    "the secret of {field} is no key of S3"
                ))),
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
    pub(super) profile: Option<String>,
    pub(super) region: String,
    provider: OnceCell<SharedCredentialsProvider>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({:?})", self.profile)
    }
}

impl Chain {
    pub(super) fn new(profile: Option<String>, region: String) -> Self {
        Self {
            profile,
            region,
            provider: OnceCell::new(),
        }
    }

    async fn load(&self) -> object_store::Result<SharedCredentialsProvider> {
        let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        let client = aws_smithy_http_client::Builder::new().tls_provider(ring).build_https();
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Counting {
        fetches: AtomicU32,
        valid_for: Option<Duration>,
        fails_after: Option<u32>,
    }

    #[async_trait]
    impl Source for Counting {
        async fn fetch(&self) -> object_store::Result<(AwsCredential, Option<SystemTime>)> {
            let count = self.fetches.fetch_add(1, Ordering::SeqCst) + 1;
            if self.fails_after.is_some_and(|limit| count > limit) {
                return Err(refused("the token service is down"));
            }
            let credential = AwsCredential {
                key_id: format!("key{count}"),
                secret_key: "secret".to_owned(),
                token: None,
            };
            Ok((credential, self.valid_for.map(|valid| SystemTime::now() + valid)))
        }
    }

    async fn key_id(cached: &Cached<Counting>) -> object_store::Result<String> {
        Ok(cached.get_credential().await?.key_id.clone())
    }

    #[tokio::test]
    async fn credentials_are_kept_until_shortly_before_they_expire() {
        for (valid_for, expected) in [(None, "key1"), (Some(3600), "key1"), (Some(200), "key2")] {
            let cached = Cached::new(Counting {
                valid_for: valid_for.map(Duration::from_secs),
                ..Counting::default()
            });
            key_id(&cached).await.unwrap();
            assert_eq!(key_id(&cached).await.unwrap(), expected, "{valid_for:?}");
        }
    }

    #[tokio::test]
    async fn what_still_holds_outlasts_the_token_services_trouble() {
        let source = |seconds| Counting {
            valid_for: Some(Duration::from_secs(seconds)),
            fails_after: Some(1),
            ..Counting::default()
        };
        let cached = Cached::new(source(200));
        key_id(&cached).await.unwrap();
        assert_eq!(key_id(&cached).await.unwrap(), "key1");
        let cached = Cached::new(source(0));
        key_id(&cached).await.unwrap();
        assert!(key_id(&cached).await.is_err());
    }

    #[tokio::test]
    async fn credentials_that_are_refused_are_fetched_again_unless_new() {
        let cached = Cached::new(Counting::default());
        key_id(&cached).await.unwrap();
        assert!(cached.renew().await, "somebody else has just fetched them");
        assert_eq!(key_id(&cached).await.unwrap(), "key1");
        let past = |by| Instant::now().checked_sub(by).unwrap();
        cached.fetched.lock().await.as_mut().unwrap().at = past(Duration::from_secs(5));
        assert!(!cached.renew().await, "new ones that are refused are wrong");
        cached.fetched.lock().await.as_mut().unwrap().at = past(NEW);
        assert!(cached.renew().await);
        assert_eq!(key_id(&cached).await.unwrap(), "key2");
    }

    #[tokio::test]
    async fn debug_holds_no_secret() {
        let cached = Cached::new(Counting::default());
        key_id(&cached).await.unwrap();
        assert!(!format!("{cached:?}").contains("secret"));
    }
}
