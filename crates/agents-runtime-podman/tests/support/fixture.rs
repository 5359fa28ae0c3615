//! A runtime over the engine at an address, in a place of its own.

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use agents_core::ContainerRuntime;
use agents_runtime_podman::{PodmanConfig, PodmanRuntime};
use agents_testkit::runtime::RuntimeFixture;

/// Makes one whose containers are of the class.
pub(crate) async fn make(url: &str, image: &str, class: Option<&str>) -> Result<RuntimeFixture, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).map_err(|error| error.to_string())?;
    // The agent is another user than the caller where the engine is root's.
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).map_err(|error| error.to_string())?;
    let config = PodmanConfig::default().with_remote_url(url);
    let runtime = PodmanRuntime::new(config, dir.path().join("podman")).map_err(|error| error.to_string())?;
    runtime.learn().await;
    let runtime: Arc<dyn ContainerRuntime> = Arc::new(runtime);
    let offered = runtime.capabilities().of_class(class).map(drop);
    offered.map_err(|error| error.to_string())?;
    Ok(RuntimeFixture::new(runtime, image, shared)
        .of_class(class.map(str::to_owned))
        .keeping(dir))
}
