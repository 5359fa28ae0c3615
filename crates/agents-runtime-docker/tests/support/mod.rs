//! The engines that the suites run on.

#![allow(dead_code, reason = "each suite uses a part")]

pub(crate) mod ports;
pub(crate) mod proxy;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use agents_core::ContainerRuntime;
use agents_runtime_docker::{DockerConfig, DockerRuntime};
use agents_testkit::runtime::RuntimeFixture;

/// An engine with one of its runtime classes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    engine: &'static str,
    variable: &'static str,
    class: Option<&'static str>,
}

/// The engines themselves.
pub(crate) fn engines() -> Vec<Target> {
    targets().into_iter().filter(|target| target.class.is_none()).collect()
}

/// All of them. None may be missing: an engine that is not there fails its cases.
pub(crate) fn targets() -> Vec<Target> {
    let engines = [
        ("docker-old", "AGENTS_TEST_DOCKER_OLD"),
        ("docker-new", "AGENTS_TEST_DOCKER_NEW"),
    ];
    let classes = [None, Some("gvisor")];
    let target = |(engine, variable), class| Target {
        engine,
        variable,
        class,
    };
    engines
        .into_iter()
        .flat_map(|engine| classes.map(|class| target(engine, class)))
        .collect()
}

/// A variable that `cargo xtask services env` gives when a server runs.
pub(crate) fn given(variable: &str, server: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set: run `cargo xtask services up {server}` and put what `cargo xtask services env` prints \
             into the environment"
        )
    })
}

impl Target {
    /// The prefix of the trials' names.
    pub(crate) fn name(&self) -> String {
        match self.class {
            None => self.engine.to_owned(),
            Some(class) => format!("{}::{class}", self.engine),
        }
    }

    /// A variable that `cargo xtask services env` gives.
    fn given(&self, variable: &str) -> String {
        given(variable, self.engine)
    }

    /// The engine's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        let host = self.given(self.variable);
        PathBuf::from(host.strip_prefix("unix://").unwrap_or(&host))
    }

    /// The image with a shell and tools.
    pub(crate) fn image(&self) -> String {
        self.given("AGENTS_TEST_ENGINE_IMAGE")
    }

    /// The image that has a user, an entrypoint, an environment and a volume of its own.
    pub(crate) fn configured_image(&self) -> String {
        self.given("AGENTS_TEST_ENGINE_IMAGE_CONFIGURED")
    }

    /// The runtime.
    pub(crate) async fn runtime(&self) -> Arc<dyn ContainerRuntime> {
        let config = DockerConfig::host(self.given(self.variable));
        let runtime = DockerRuntime::connect(config)
            .await
            .unwrap_or_else(|error| panic!("{}", error.report()));
        Arc::new(runtime)
    }

    /// The runtime with an image and a folder.
    pub(crate) async fn fixture(&self) -> Result<RuntimeFixture, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).map_err(|error| error.to_string())?;
        // The agent's user on the host is another one than the caller.
        for path in [dir.path(), &shared] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
        }
        Ok(RuntimeFixture::new(self.runtime().await, self.image(), shared)
            .of_class(self.class.map(str::to_owned))
            .keeping(dir))
    }
}
