//! What the suites share: where the engine is, and the fixtures.

use std::{fs, os::unix::fs::PermissionsExt, process::ExitCode, sync::Arc};

use agents_core::ContainerRuntime;
use agents_runtime_podman::{PodmanConfig, PodmanRuntime};
use agents_testkit::{probe, runtime, runtime::RuntimeFixture, trials};

/// The address of a server that `cargo xtask services` starts, or an end with what to do.
pub(crate) fn variable(name: &str, server: &str) -> Result<String, ExitCode> {
    std::env::var(name).map_err(|_| {
        eprintln!(
            "{name} is not set; run `cargo xtask services up {server}` and `eval \"$(cargo xtask services env)\"` first"
        );
        ExitCode::FAILURE
    })
}

/// Runs the shared suites over an engine as it is, and over one that has gVisor, in that class.
pub(crate) fn run(name: &str, url: &str, gvisor: &str, image: &str) -> ExitCode {
    let mut all = Vec::new();
    for (class, url) in [(None, url), (Some("gvisor"), gvisor)] {
        let (url, image) = (url.to_owned(), image.to_owned());
        let make = move || {
            let (url, image) = (url.clone(), image.clone());
            async move { fixture(&url, &image, class).await }
        };
        let name = class.map_or_else(|| name.to_owned(), |class| format!("{name}::{class}"));
        all.push(trials(&name, runtime::cases(), make.clone()));
        all.push(trials(&format!("{name}::probe"), probe::cases(), make));
    }
    agents_testkit::run(all)
}

async fn fixture(url: &str, image: &str, class: Option<&str>) -> Result<RuntimeFixture, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).map_err(|error| error.to_string())?;
    // The agent is another user than the caller where the engine is root's.
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).map_err(|error| error.to_string())?;
    let config = PodmanConfig::default().with_remote_url(url);
    let runtime = PodmanRuntime::new(config, dir.path().join("podman")).map_err(|error| error.to_string())?;
    runtime.learn().await;
    let runtime: Arc<dyn ContainerRuntime> = Arc::new(runtime);
    if let Some(class) = class
        && let Err(error) = runtime.capabilities().of_class(Some(class))
    {
        return Err(error.message().to_owned());
    }
    Ok(RuntimeFixture::new(runtime, image, shared)
        .of_class(class.map(str::to_owned))
        .keeping(dir))
}
