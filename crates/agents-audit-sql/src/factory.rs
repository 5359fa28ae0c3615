//! How the adapter is made from its configuration.

use std::sync::Arc;

use agents_core::{AuditLogger, BuildContext, Error, Factory, Result};
use async_trait::async_trait;

use crate::{DatabaseAudit, DatabaseAuditConfig};

/// Makes a [`DatabaseAudit`]; the type is `database`.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseAuditFactory;

#[async_trait]
impl Factory for DatabaseAuditFactory {
    const TYPE: &'static str = "database";

    type Config = DatabaseAuditConfig;
    type Adapter = dyn AuditLogger;

    fn validate(config: &DatabaseAuditConfig) -> Result<()> {
        config.check()
    }

    async fn build(config: DatabaseAuditConfig, context: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
        config.check()?;
        let url = match &config.url {
            Some(reference) => {
                let secret = context.secrets.resolve(reference).await?;
                let text = String::from_utf8(secret.expose().to_vec());
                // The error would hold the bytes.
                let text = text.map_err(|_| Error::invalid(format!("url: the value of {reference} is not UTF-8")))?;
                Some(text.trim().to_owned())
            }
            None => None,
        };
        Ok(Arc::new(DatabaseAudit::new(config, url.as_deref())?))
    }
}
