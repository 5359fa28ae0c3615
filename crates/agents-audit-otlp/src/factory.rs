//! How the adapter is made from its configuration.

use std::sync::Arc;

use agents_core::{AuditLogger, BuildContext, Error, Factory, Result};
use async_trait::async_trait;

use crate::{Headers, OtlpAudit, OtlpAuditConfig};

/// Makes an [`OtlpAudit`]; the type is `otlp`.
#[derive(Clone, Copy, Debug)]
pub struct OtlpAuditFactory;

#[async_trait]
impl Factory for OtlpAuditFactory {
    const TYPE: &'static str = "otlp";

    type Config = OtlpAuditConfig;
    type Adapter = dyn AuditLogger;

    fn validate(config: &OtlpAuditConfig) -> Result<()> {
        config.check()
    }

    async fn build(config: OtlpAuditConfig, context: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
        config.check()?;
        let mut headers = Headers::none();
        for (name, reference) in &config.headers {
            let secret = context.secrets.resolve(reference).await?;
            // The error would hold the bytes.
            let value = std::str::from_utf8(secret.expose())
                .map_err(|_| Error::invalid(format!("headers: the value of {reference} is not UTF-8")))?;
            headers = headers.with(name, value)?;
        }
        Ok(Arc::new(OtlpAudit::new(config, headers)?))
    }
}
