//! Keeps credentials, and fetches them again before they expire.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use object_store::CredentialProvider;
use tokio::sync::Mutex;

use super::Renew;

/// Credentials are fetched again this long before they expire.
const BEFORE_EXPIRY: Duration = Duration::from_secs(5 * 60);

/// What does not say when it expires is read again after this time, since a file may have been replaced.
const READ_AGAIN: Duration = Duration::from_secs(5 * 60);

/// Credentials as new as this are not fetched again, whether the service refuses them or they hold for minutes only.
const NEW: Duration = Duration::from_secs(10);

/// Fetches credentials.
#[async_trait]
pub(crate) trait Source: fmt::Debug + Send + Sync + 'static {
    type Credential: Send + Sync + 'static;

    /// The credentials, and when they expire if they say so.
    async fn fetch(&self) -> object_store::Result<(Self::Credential, Option<SystemTime>)>;
}

struct Fetched<C> {
    credential: Arc<C>,
    expires: Option<SystemTime>,
    at: Instant,
}

impl<C> Fetched<C> {
    fn is_good(&self, now: SystemTime) -> bool {
        match self.expires {
            Some(expires) => expires > now + BEFORE_EXPIRY || (expires > now && self.at.elapsed() < NEW),
            None => self.at.elapsed() < READ_AGAIN,
        }
    }
}

/// Keeps credentials until shortly before they expire.
pub(crate) struct Cached<S: Source> {
    source: S,
    fetched: Mutex<Option<Fetched<S::Credential>>>,
}

impl<S: Source> Cached<S> {
    pub(crate) fn new(source: S) -> Self {
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
    type Credential = S::Credential;

    async fn get_credential(&self) -> object_store::Result<Arc<S::Credential>> {
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

/// Why there are no credentials.
pub(crate) fn refused(why: impl fmt::Display) -> object_store::Error {
    object_store::Error::Unauthenticated {
        path: String::new(),
        source: why.to_string().into(),
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
        type Credential = String;

        async fn fetch(&self) -> object_store::Result<(String, Option<SystemTime>)> {
            let count = self.fetches.fetch_add(1, Ordering::SeqCst) + 1;
            if self.fails_after.is_some_and(|limit| count > limit) {
                return Err(refused("the token service is down"));
            }
            let expires = self.valid_for.map(|valid| SystemTime::now() + valid);
            Ok((format!("secret{count}"), expires))
        }
    }

    async fn get(cached: &Cached<Counting>) -> object_store::Result<String> {
        Ok(cached.get_credential().await?.as_ref().clone())
    }

    /// As if the credentials had been fetched so long ago.
    async fn age(cached: &Cached<Counting>, by: Duration) {
        cached.fetched.lock().await.as_mut().unwrap().at = Instant::now().checked_sub(by).unwrap();
    }

    #[tokio::test]
    async fn credentials_are_kept_until_shortly_before_they_expire() {
        for (valid_for, later) in [(None, "secret1"), (Some(3600), "secret1"), (Some(200), "secret2")] {
            let cached = Cached::new(Counting {
                valid_for: valid_for.map(Duration::from_secs),
                ..Counting::default()
            });
            get(&cached).await.unwrap();
            assert_eq!(get(&cached).await.unwrap(), "secret1", "many requests fetch once");
            age(&cached, NEW).await;
            assert_eq!(get(&cached).await.unwrap(), later, "{valid_for:?}");
        }
        let cached = Cached::new(Counting::default());
        get(&cached).await.unwrap();
        age(&cached, READ_AGAIN).await;
        assert_eq!(get(&cached).await.unwrap(), "secret2", "a file may have been replaced");
    }

    #[tokio::test]
    async fn what_still_holds_outlasts_the_token_services_trouble() {
        let source = |seconds| Counting {
            valid_for: Some(Duration::from_secs(seconds)),
            fails_after: Some(1),
            ..Counting::default()
        };
        let cached = Cached::new(source(200));
        get(&cached).await.unwrap();
        age(&cached, NEW).await;
        assert_eq!(get(&cached).await.unwrap(), "secret1");
        let cached = Cached::new(source(0));
        get(&cached).await.unwrap();
        assert!(get(&cached).await.is_err());
    }

    #[tokio::test]
    async fn credentials_that_are_refused_are_fetched_again_unless_new() {
        let cached = Cached::new(Counting::default());
        get(&cached).await.unwrap();
        assert!(cached.renew().await, "somebody else has just fetched them");
        assert_eq!(get(&cached).await.unwrap(), "secret1");
        age(&cached, Duration::from_secs(5)).await;
        assert!(!cached.renew().await, "new ones that are refused are wrong");
        age(&cached, NEW).await;
        assert!(cached.renew().await);
        assert_eq!(get(&cached).await.unwrap(), "secret2");
    }

    #[tokio::test]
    async fn debug_holds_no_secret() {
        let cached = Cached::new(Counting::default());
        get(&cached).await.unwrap();
        assert!(!format!("{cached:?}").contains("secret"));
    }
}
