//! How the adapter is made from its configuration.

use std::sync::Arc;

use agents_core::{BuildContext, Factory, PolicyValidator, Result};
use async_trait::async_trait;

use crate::{DefaultPolicy, DefaultPolicyConfig};

/// Makes a [`DefaultPolicy`]; the type is `default`.
#[derive(Clone, Copy, Debug)]
pub struct DefaultPolicyFactory;

#[async_trait]
impl Factory for DefaultPolicyFactory {
    const TYPE: &'static str = "default";

    type Config = DefaultPolicyConfig;
    type Adapter = dyn PolicyValidator;

    fn validate(config: &DefaultPolicyConfig) -> Result<()> {
        config.check()
    }

    async fn build(config: DefaultPolicyConfig, _: &BuildContext) -> Result<Arc<dyn PolicyValidator>> {
        Ok(Arc::new(DefaultPolicy::new(config)?))
    }
}
