//! How the adapter is made from its configuration.

use std::sync::Arc;

use agents_core::{AuditLogger, BuildContext, Error, Factory, Result, SecretRef};
use async_trait::async_trait;

use crate::{Credentials, ElasticsearchAudit, ElasticsearchAuditConfig};

/// Makes an [`ElasticsearchAudit`]; the type is `elasticsearch`.
#[derive(Clone, Copy, Debug)]
pub struct ElasticsearchAuditFactory;

#[async_trait]
impl Factory for ElasticsearchAuditFactory {
    const TYPE: &'static str = "elasticsearch";

    type Config = ElasticsearchAuditConfig;
    type Adapter = dyn AuditLogger;

    fn validate(config: &ElasticsearchAuditConfig) -> Result<()> {
        config.check()
    }

    async fn build(config: ElasticsearchAuditConfig, context: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
        config.check()?;
        let credentials = if let (Some(user), Some(password)) = (&config.username, &config.password) {
            Credentials::basic(user, secret("password", password, context).await?)
        } else if let Some(key) = &config.api_key {
            Credentials::api_key(secret("api_key", key, context).await?)
        } else if config.aws_region.is_some() {
            aws(&config, context).await?
        } else {
            Credentials::none()
        };
        Ok(Arc::new(ElasticsearchAudit::new(config, credentials)?))
    }
}

#[cfg(feature = "aws")]
async fn aws(config: &ElasticsearchAuditConfig, context: &BuildContext) -> Result<Credentials> {
    let (Some(id), Some(key)) = (&config.access_key_id, &config.secret_access_key) else {
        return Ok(Credentials::aws_environment());
    };
    let token = match &config.session_token {
        Some(token) => Some(secret("session_token", token, context).await?),
        None => None,
    };
    Ok(Credentials::aws_keys(
        secret("access_key_id", id, context).await?,
        secret("secret_access_key", key, context).await?,
        token,
    ))
}

/// A configuration with a region is refused before this is reached.
#[cfg(not(feature = "aws"))]
#[allow(clippy::unused_async, reason = "it is async with aws")]
async fn aws(_: &ElasticsearchAuditConfig, _: &BuildContext) -> Result<Credentials> {
    Ok(Credentials::none())
}

async fn secret(key: &str, reference: &SecretRef, context: &BuildContext) -> Result<String> {
    let secret = context.secrets.resolve(reference).await?;
    // The error would hold the bytes.
    let text = String::from_utf8(secret.expose().to_vec());
    let text = text.map_err(|_| Error::invalid(format!("{key}: the value of {reference} is not UTF-8")))?;
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_control) {
        return Err(Error::invalid(format!(
            "{key}: the value of {reference} is empty or holds control characters"
        )));
    }
    Ok(text.to_owned())
}
