//! The service, by its SDK.

use std::fmt;

use agents_audit_remote::Retry;
use agents_core::{Error, Result};
use aws_config::{
    BehaviorVersion, Region, environment::region::EnvironmentVariableRegionProvider, meta::region::ProvideRegion,
    profile::ProfileFileRegionProvider, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_sdk_cloudwatchlogs::{
    Client as Sdk,
    error::{ProvideErrorMetadata, SdkError},
    types::{InputLogEvent, RejectedLogEventsInfo},
};
use aws_smithy_http_client::tls;

use crate::{
    config::CloudWatchAuditConfig,
    error::{code, map},
    message::Message,
    search::Search,
};

/// What proves to AWS who sends. Never printed.
pub struct Credentials(Option<aws_credential_types::Credentials>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Credentials {
    /// Keys of AWS.
    pub fn keys(id: impl Into<String>, secret: impl Into<String>, token: Option<String>) -> Self {
        Self(Some(aws_credential_types::Credentials::new(
            id,
            secret,
            token,
            None,
            "configuration",
        )))
    }

    /// What every program of AWS uses: the environment, profiles with their roles, SSO and processes, web identity, and the
    /// metadata of containers and instances. They are fetched again before they expire.
    pub fn environment() -> Self {
        Self(None)
    }
}

pub(crate) struct Client {
    sdk: Sdk,
    region: String,
    config: CloudWatchAuditConfig,
}

/// A log event that was found.
pub(crate) struct Found {
    pub(crate) millisecond: i64,
    pub(crate) text: String,
}

impl Client {
    pub(crate) async fn new(config: CloudWatchAuditConfig, credentials: Credentials) -> Result<Self> {
        let region = region(&config).await?;
        // The default would bring another TLS, and C code with it.
        let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().tls_provider(ring).build_https())
            .region(Region::new(region.clone()))
            // Attempts are counted by our own deadline.
            .retry_config(RetryConfig::disabled());
        if let Some(profile) = &config.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(endpoint) = &config.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(keys) = credentials.0 {
            loader = loader.credentials_provider(keys);
        }
        Ok(Self {
            sdk: Sdk::new(&loader.load().await),
            region,
            config,
        })
    }

    pub(crate) fn region(&self) -> &str {
        &self.region
    }

    fn retry(&self) -> Retry {
        Retry::new(self.config.timeout())
    }

    /// Sends an operation, with everything that is tried again.
    async fn send<T, E, A>(&self, mut attempt: impl FnMut(TimeoutConfig) -> A) -> Result<T, Failure>
    where
        A: Future<Output = Result<T, SdkError<E>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let mut retry = self.retry();
        loop {
            let timeout = TimeoutConfig::builder().operation_timeout(retry.attempt()).build();
            let error = match attempt(timeout).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let told = code(&error).map(str::to_owned);
            retry
                .wait(map(&error))
                .await
                .map_err(|error| Failure { error, code: told })?;
        }
    }

    /// Sends log events to a stream, which is created when it is missing. Gives those that were rejected.
    pub(crate) async fn put(&self, stream: &str, messages: &[Message]) -> Result<Option<RejectedLogEventsInfo>> {
        let mut made = false;
        loop {
            match self.put_once(stream, messages).await {
                Err(failure) if failure.is("ResourceNotFoundException") && !made => {
                    self.create(stream).await?;
                    made = true;
                }
                other => return other.map_err(|failure| failure.error),
            }
        }
    }

    async fn put_once(&self, stream: &str, messages: &[Message]) -> Result<Option<RejectedLogEventsInfo>, Failure> {
        let event = |message: &Message| {
            let event = InputLogEvent::builder()
                .timestamp(message.millisecond)
                .message(&message.text);
            // Both that are required are set.
            event.build().map_err(|error| Failure::from(unmade(error)))
        };
        let events = messages.iter().map(event).collect::<Result<Vec<_>, _>>()?;
        let answer = self.send(|timeout| {
            self.sdk
                .put_log_events()
                .log_group_name(&self.config.log_group)
                .log_stream_name(stream)
                .set_log_events(Some(events.clone()))
                .customize()
                .config_override(aws_sdk_cloudwatchlogs::config::Builder::new().timeout_config(timeout))
                .send()
        });
        Ok(answer.await?.rejected_log_events_info)
    }

    /// Creates a stream and, if that is wanted, its group.
    async fn create(&self, stream: &str) -> Result<()> {
        match self.create_stream(stream).await {
            Err(failure) if failure.is("ResourceNotFoundException") && self.config.create_log_group => {
                self.create_group().await?;
                self.create_stream(stream).await.map_err(|failure| failure.error)
            }
            other => other.map_err(|failure| failure.error),
        }
    }

    async fn create_stream(&self, stream: &str) -> Result<(), Failure> {
        let made = self.send(|timeout| {
            self.sdk
                .create_log_stream()
                .log_group_name(&self.config.log_group)
                .log_stream_name(stream)
                .customize()
                .config_override(aws_sdk_cloudwatchlogs::config::Builder::new().timeout_config(timeout))
                .send()
        });
        there(made.await.map(|_| ()))
    }

    pub(crate) async fn create_group(&self) -> Result<()> {
        let made = self.send(|timeout| {
            self.sdk
                .create_log_group()
                .log_group_name(&self.config.log_group)
                .customize()
                .config_override(aws_sdk_cloudwatchlogs::config::Builder::new().timeout_config(timeout))
                .send()
        });
        let made = made.await.map(|_| ());
        let is_new = made.is_ok();
        there(made).map_err(|failure| failure.error)?;
        if let Some(days) = self.config.retention_days.filter(|_| is_new) {
            let kept = self.send(|timeout| {
                self.sdk
                    .put_retention_policy()
                    .log_group_name(&self.config.log_group)
                    .retention_in_days(days)
                    .customize()
                    .config_override(aws_sdk_cloudwatchlogs::config::Builder::new().timeout_config(timeout))
                    .send()
            });
            kept.await.map_err(|failure| failure.error)?;
        }
        Ok(())
    }

    /// Whether the group may be written to, by log events for a stream that does not exist: rights are looked at before that,
    /// and nothing is left behind. And whether it can be read.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is no group.
    pub(crate) async fn probe(&self, message: &Message) -> Result<()> {
        let stream = format!("{}_check", self.config.stream_prefix);
        match self.put_once(&stream, std::slice::from_ref(message)).await {
            Err(failure) if failure.is("ResourceNotFoundException") => {}
            other => return other.map(|_| ()).map_err(|failure| failure.error),
        }
        // Without a stream, it is the group that is missing.
        let latest = Search::latest();
        self.search_once(&latest, None)
            .await
            .map(|_| ())
            .map_err(|failure| failure.error)
    }

    /// One page of a search. It may be empty while there are more.
    pub(crate) async fn search(&self, search: &Search, token: Option<String>) -> Result<(Vec<Found>, Option<String>)> {
        match self.search_once(search, token).await {
            // The session has written nothing yet, or nobody has.
            Err(failure) if failure.is("ResourceNotFoundException") => Ok((Vec::new(), None)),
            other => other.map_err(|failure| failure.error),
        }
    }

    async fn search_once(
        &self,
        search: &Search,
        token: Option<String>,
    ) -> Result<(Vec<Found>, Option<String>), Failure> {
        let answer = self.send(|timeout| {
            self.sdk
                .filter_log_events()
                .log_group_name(&self.config.log_group)
                .set_log_stream_names(search.stream.clone().map(|stream| vec![stream]))
                .set_log_stream_name_prefix(search.prefix.clone())
                .set_filter_pattern(search.pattern.clone())
                .start_time(search.from)
                .set_end_time(search.to)
                .limit(search.limit)
                .set_next_token(token.clone())
                .customize()
                .config_override(aws_sdk_cloudwatchlogs::config::Builder::new().timeout_config(timeout))
                .send()
        });
        let answer = answer.await?;
        let events = answer.events.unwrap_or_default();
        let found = events.into_iter().filter_map(|event| {
            Some(Found {
                millisecond: event.timestamp?,
                text: event.message?,
            })
        });
        Ok((found.collect(), answer.next_token))
    }
}

/// An error with the service's own code.
struct Failure {
    error: Error,
    code: Option<String>,
}

impl Failure {
    fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, code: None }
    }
}

/// Somebody else may have made it.
fn there(made: Result<(), Failure>) -> Result<(), Failure> {
    match made {
        Err(failure) if failure.is("ResourceAlreadyExistsException") => Ok(()),
        other => other,
    }
}

fn unmade(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::unexpected("a log event could not be made").with_source(error)
}

/// The region of the configuration, the environment or the profile. An instance's metadata is not asked, which takes long
/// elsewhere.
async fn region(config: &CloudWatchAuditConfig) -> Result<String> {
    if let Some(region) = &config.region {
        return Ok(region.clone());
    }
    if let Some(region) = EnvironmentVariableRegionProvider::new().region().await {
        return Ok(region.to_string());
    }
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &config.profile {
        profile = profile.profile_name(name);
    }
    match profile.build().region().await {
        Some(region) => Ok(region.to_string()),
        None if config.endpoint.is_some() => Ok("us-east-1".to_owned()),
        None => Err(Error::invalid(
            "region is not set, and neither AWS_REGION nor the profile names one; write one such as eu-central-1",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_printed() {
        let credentials = Credentials::keys("id", "hunter2", Some("hunter2".to_owned()));
        assert_eq!(format!("{credentials:?}"), "[redacted]");
    }
}
