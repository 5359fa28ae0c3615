//! The runtime's configuration and factory.

use std::{path::PathBuf, sync::Arc};

use agents_core::{BuildContext, ContainerRuntime, Error, Factory, Result};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::NativeRuntime;

/// The configuration of the embedded runtime.
///
/// ```yaml
/// adapters:
///   container_runtime:
///     type: native
///     config:
///       images: /var/lib/agents/images
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct NativeConfig {
    /// The program that is started as the helper, an absolute path. Default: the running program when it has called
    /// [`init`](crate::init), else `agents-native-helper` beside it.
    pub helper: Option<PathBuf>,
    /// The folder of unpacked images, an absolute path. Default: `images` in the data folder.
    pub images: Option<PathBuf>,
    /// The program of gVisor for `runtime_class: gvisor`, an absolute path. Default: `runsc` in the search path; without one
    /// the class is refused.
    pub runsc: Option<PathBuf>,
}

impl NativeConfig {
    /// Sets the helper.
    #[must_use]
    pub fn with_helper(mut self, helper: impl Into<PathBuf>) -> Self {
        self.helper = Some(helper.into());
        self
    }

    /// Sets the folder of images.
    #[must_use]
    pub fn with_images(mut self, images: impl Into<PathBuf>) -> Self {
        self.images = Some(images.into());
        self
    }

    /// Sets the program of gVisor.
    #[must_use]
    pub fn with_runsc(mut self, runsc: impl Into<PathBuf>) -> Self {
        self.runsc = Some(runsc.into());
        self
    }
}

/// Makes the embedded runtime, `type: native`.
#[derive(Clone, Copy, Debug)]
pub struct NativeFactory;

#[async_trait]
impl Factory for NativeFactory {
    const TYPE: &'static str = "native";
    type Config = NativeConfig;
    type Adapter = dyn ContainerRuntime;

    fn validate(config: &NativeConfig) -> Result<()> {
        for (key, path) in [
            ("helper", &config.helper),
            ("images", &config.images),
            ("runsc", &config.runsc),
        ] {
            if let Some(path) = path
                && !path.is_absolute()
            {
                return Err(Error::invalid(format!(
                    "{key}: {} is relative; write an absolute path",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    async fn build(config: NativeConfig, context: &BuildContext) -> Result<Arc<dyn ContainerRuntime>> {
        Self::validate(&config)?;
        let images = config.images.clone().unwrap_or_else(|| context.data_dir.join("images"));
        let mut runtime = NativeRuntime::new(context.state_dir.join("native"), images, config.helper)?;
        if let Some(runsc) = config.runsc {
            runtime = runtime.with_runsc(runsc)?;
        }
        Ok(Arc::new(runtime))
    }
}
