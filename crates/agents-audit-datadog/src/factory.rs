//! How the adapter is made from its configuration.

use std::sync::Arc;

use agents_core::{AuditLogger, BuildContext, Error, Factory, Result, SecretRef};
use async_trait::async_trait;

use crate::{DatadogAudit, DatadogAuditConfig, Keys};

/// Makes a [`DatadogAudit`]; the type is `datadog`.
#[derive(Clone, Copy, Debug)]
pub struct DatadogAuditFactory;

#[async_trait]
impl Factory for DatadogAuditFactory {
    const TYPE: &'static str = "datadog";

    type Config = DatadogAuditConfig;
    type Adapter = dyn AuditLogger;

    fn validate(config: &DatadogAuditConfig) -> Result<()> {
        config.check()
    }

    async fn build(config: DatadogAuditConfig, context: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
        config.check()?;
        let api = secret("api_key", config.api_key.as_ref(), context).await?;
        let app = secret("app_key", config.app_key.as_ref(), context).await?;
        let keys = Keys::new(api.unwrap_or_default(), app.as_deref())?;
        Ok(Arc::new(DatadogAudit::new(config, keys)?))
    }
}

async fn secret(key: &str, reference: Option<&SecretRef>, context: &BuildContext) -> Result<Option<String>> {
    let Some(reference) = reference else {
        return Ok(None);
    };
    let secret = context.secrets.resolve(reference).await?;
    // The error would hold the bytes.
    let text = String::from_utf8(secret.expose().to_vec());
    text.map(Some)
        .map_err(|_| Error::invalid(format!("{key}: the value of {reference} is not UTF-8")))
}
