//! How the adapter is made from its configuration.

use std::sync::Arc;

use agents_core::{AuditLogger, BuildContext, Factory, Result};
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
        if config.log_file.is_none() {
            config.log_path.get_or_insert_with(|| context.state_dir.join("audit"));
        }
        Ok(Arc::new(FileAudit::new(config)?))
    }
}
