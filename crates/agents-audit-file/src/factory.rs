//! How the adapter is made from its configuration.

use std::sync::Arc;

use agents_core::{AuditLogger, BuildContext, Factory, Result};
use agents_journal::ChainKey;
use async_trait::async_trait;

use crate::{FileAudit, FileAuditConfig};

/// Makes a [`FileAudit`]; the type is `file`.
#[derive(Clone, Copy, Debug)]
pub struct FileAuditFactory;

#[async_trait]
impl Factory for FileAuditFactory {
    const TYPE: &'static str = "file";

    type Config = FileAuditConfig;
    type Adapter = dyn AuditLogger;

    fn validate(config: &FileAuditConfig) -> Result<()> {
        config.check()
    }

    async fn build(mut config: FileAuditConfig, context: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
        if config.log_file.is_none() && !config.stderr {
            config.log_path.get_or_insert_with(|| context.state_dir.join("audit"));
        }
        let key = match config.chain_key.take() {
            Some(reference) => {
                let secret = context.secrets.resolve(&reference).await?;
                ChainKey::hmac(secret.expose()).map_err(|error| error.with_context("chain_key", reference))?
            }
            None => ChainKey::none(),
        };
        Ok(Arc::new(FileAudit::with_key(config, key)?))
    }
}
