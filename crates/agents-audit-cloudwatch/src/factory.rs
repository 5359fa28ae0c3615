//! How the adapter is made from its configuration.

use std::sync::Arc;

use agents_core::{AuditLogger, BuildContext, Error, Factory, Result, SecretRef};
use async_trait::async_trait;

use crate::{CloudWatchAudit, CloudWatchAuditConfig, Credentials};

/// Makes a [`CloudWatchAudit`]; the type is `cloudwatch`.
#[derive(Clone, Copy, Debug)]
pub struct CloudWatchAuditFactory;

#[async_trait]
impl Factory for CloudWatchAuditFactory {
    const TYPE: &'static str = "cloudwatch";

    type Config = CloudWatchAuditConfig;
    type Adapter = dyn AuditLogger;

    fn validate(config: &CloudWatchAuditConfig) -> Result<()> {
        config.check()
    }

    async fn build(config: CloudWatchAuditConfig, context: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
        config.check()?;
        let credentials = match (&config.access_key_id, &config.secret_access_key) {
            (Some(id), Some(key)) => {
                let token = match &config.session_token {
                    Some(token) => Some(secret("session_token", token, context).await?),
                    None => None,
                };
                let id = secret("access_key_id", id, context).await?;
                Credentials::keys(id, secret("secret_access_key", key, context).await?, token)
            }
            _ => Credentials::environment(),
        };
        Ok(Arc::new(CloudWatchAudit::new(config, credentials).await?))
    }
}

async fn secret(key: &str, reference: &SecretRef, context: &BuildContext) -> Result<String> {
    let secret = context.secrets.resolve(reference).await?;
    // The error would hold the bytes.
    let text = String::from_utf8(secret.expose().to_vec());
    let text = text.map_err(|_| Error::invalid(format!("{key}: the value of {reference} is not UTF-8")))?;
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(format!(
            "{key}: the value of {reference} is no key of AWS"
        )));
    }
    Ok(text.to_owned())
}
