//! Images: fetched from registries with and without a password, pinned, and built.

mod support;

use std::{
    fs,
    future::Future,
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex},
};

use agents_core::{
    BuildImageRequest, ContainerId, ContainerRuntime, ContainerRuntimeExt, Error, ErrorKind, ImagePullPolicy, Mount,
    Process, ProgressListener, ProvisionProgress, ProvisionRequest, SessionId, StartRequest,
};
use agents_runtime_docker::{DockerConfig, DockerRuntime};
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use libtest_mimic::{Arguments, Trial};
use support::{
    Target, given,
    proxy::{request as ask, request_with},
};

/// An engine with the registries that it can reach.
struct Place {
    target: Target,
    registry: String,
    closed_registry: String,
    user: String,
    password: String,
}

impl Place {
    fn new(target: Target) -> Self {
        Self {
            target,
            registry: given("ISOLATED_AGENTS_TEST_REGISTRY", "registry"),
            closed_registry: given("ISOLATED_AGENTS_TEST_REGISTRY_AUTH", "registry-auth"),
            user: given("ISOLATED_AGENTS_TEST_REGISTRY_AUTH_USER", "registry-auth"),
            password: given("ISOLATED_AGENTS_TEST_REGISTRY_AUTH_PASSWORD", "registry-auth"),
        }
    }

    /// A runtime with a configuration of docker's in a folder.
    async fn runtime(&self, folder: &Path, config: &str) -> Arc<dyn ContainerRuntime> {
        fs::write(folder.join("config.json"), config).unwrap();
        let host = format!("unix://{}", self.target.socket().display());
        let config = DockerConfig::host(host).with_config_path(folder);
        Arc::new(DockerRuntime::connect(config).await.unwrap())
    }

    /// Builds an image with a content of its own, puts it into a registry, and removes it from the engine. Gives its name
    /// and its digest.
    async fn pushed(&self, registry: &str, name: &str) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let id = SessionId::generate();
        let repository = format!("{registry}/docker-{name}-{id}");
        let recipe = format!("FROM {}\nCOPY own /own\n", self.target.image());
        fs::write(folder.path().join("Dockerfile"), recipe).unwrap();
        fs::write(folder.path().join("own"), id.as_str().repeat(1000)).unwrap();
        let runtime = self.runtime(folder.path(), "{}").await;
        let tag = format!("{repository}:1");
        runtime
            .build_image(BuildImageRequest::new(folder.path(), &tag))
            .await
            .unwrap_or_else(|error| panic!("{}", error.report()));
        let login = serde_json::json!({ "username": self.user, "password": self.password }).to_string();
        let header = format!("X-Registry-Auth: {}\r\n", URL_SAFE.encode(login));
        let socket = self.target.socket();
        let push = format!("/images/{repository}/push?tag=1");
        let (status, said) = request_with(&socket, "POST", &push, &header, b"").await.unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(status == 200 && !said.contains("\"error\""), "{said}");
        let digest = said.split("digest: ").nth(1).and_then(|rest| rest.split(' ').next());
        let digest = digest.unwrap_or_else(|| panic!("{said}")).to_owned();
        self.forget(&tag).await;
        (tag, digest)
    }

    /// Removes what the engine has under a name.
    async fn forget(&self, reference: &str) {
        let path = format!("/images/{reference}?force=true");
        ask(&self.target.socket(), "DELETE", &path, b"").await.unwrap();
    }
}

fn request(image: &str) -> ProvisionRequest {
    let session = SessionId::generate();
    let name = ContainerId::new(format!("images-{session}")).unwrap();
    ProvisionRequest::new(session, name, image).with_mounts([Mount::scratch("/output")])
}

/// Runs a script in an image, and gives what it printed.
async fn run(runtime: &Arc<dyn ContainerRuntime>, request: ProvisionRequest, script: &str) -> Result<String, Error> {
    let request = request.with_process(Some(Process::new(["sh", "-c", script])));
    let container = runtime.provision_verified(request).await?.handle;
    let session = runtime.start(StartRequest::new(container.clone())).await?;
    let output = session.collect(10_000).await;
    runtime.destroy(&container.id).await?;
    Ok(output?.stdout.to_text())
}

async fn a_missing_image_is_fetched_once(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = place.runtime(folder.path(), "{}").await;
    let (image, _) = place.pushed(&place.registry, "missing").await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&seen);
    let listener = ProgressListener::new(move |progress| heard.lock().unwrap().push(progress));
    let with = |policy| request(&image).with_pull_policy(policy);
    let error = run(&runtime, with(ImagePullPolicy::Never), "true").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let text = run(&runtime, request(&image).with_progress(Some(listener)), "echo fetched").await;
    assert_eq!(text.unwrap_or_else(|error| panic!("{}", error.report())), "fetched\n");
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert!(
        seen.iter()
            .any(|progress| matches!(progress, ProvisionProgress::Pulling { .. })),
        "{seen:?}"
    );
    assert_eq!(seen.last(), Some(&ProvisionProgress::ImageReady));
    // From now on it is there.
    assert_eq!(
        run(&runtime, with(ImagePullPolicy::Never), "echo here").await.unwrap(),
        "here\n"
    );
    assert_eq!(
        run(&runtime, with(ImagePullPolicy::Always), "echo again")
            .await
            .unwrap(),
        "again\n"
    );
    place.forget(&image).await;
}

async fn a_pinned_image_is_that_very_one(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = place.runtime(folder.path(), "{}").await;
    let (image, digest) = place.pushed(&place.registry, "pinned").await;
    let name = image.rsplit_once(':').unwrap().0;
    let pinned = format!("{name}:no-such-tag@{digest}");
    let text = run(&runtime, request(&pinned), "echo pinned").await;
    assert_eq!(text.unwrap_or_else(|error| panic!("{}", error.report())), "pinned\n");
    let other = format!("{name}@sha256:{}", "0".repeat(64));
    let error = run(&runtime, request(&other), "true").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    place.forget(&format!("{name}@{digest}")).await;
}

async fn a_password_is_needed_where_it_is(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let (image, _) = place.pushed(&place.closed_registry, "closed").await;
    let config = |user: &str, password: &str| {
        let pair = URL_SAFE.encode(format!("{user}:{password}"));
        serde_json::json!({ "auths": { place.closed_registry.as_str(): { "auth": pair } } }).to_string()
    };
    for config in ["{}".to_owned(), config("agents", "wrong-password")] {
        let runtime = place.runtime(folder.path(), &config).await;
        let error = run(&runtime, request(&image), "true").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{}", error.report());
        assert!(!error.report().contains("wrong-password"), "{}", error.report());
    }
    let runtime = place
        .runtime(folder.path(), &config(&place.user, &place.password))
        .await;
    let text = run(&runtime, request(&image), "echo in").await;
    assert_eq!(text.unwrap_or_else(|error| panic!("{}", error.report())), "in\n");
    place.forget(&image).await;
}

async fn an_unknown_image_and_an_odd_name_are_told_apart(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = place.runtime(folder.path(), "{}").await;
    let unknown = format!("{}/docker-no-such-image:1", place.registry);
    let error = run(&runtime, request(&unknown), "true").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    for odd in ["--privileged", "x/../containers/x", "a b", "a?b"] {
        let error = run(&runtime, request(odd), "true").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{odd}: {error}");
    }
}

async fn an_image_is_built_from_a_folder(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = place.runtime(folder.path(), "{}").await;
    let context = folder.path().join("context");
    fs::create_dir_all(context.join("data")).unwrap();
    let recipe = format!(
        "FROM {}\nCOPY data /data\nRUN echo built > /data/step && ls /data\nUSER 4321:4321\n",
        place.target.image()
    );
    fs::write(context.join("Containerfile"), recipe).unwrap();
    fs::write(context.join("data/kept"), "kept").unwrap();
    fs::write(context.join("data/secret.key"), "secret").unwrap();
    fs::write(context.join(".dockerignore"), "**/*.key\n").unwrap();
    let lines = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&lines);
    let listener = ProgressListener::new(move |progress| {
        if let ProvisionProgress::Building { line } = progress {
            heard.lock().unwrap().push_str(&line);
        }
    });
    let tag = format!("localhost/docker-built-{}:1", SessionId::generate());
    let build = BuildImageRequest::new(&context, &tag).with_progress(Some(listener));
    let built = runtime.build_image(build).await;
    assert_eq!(built.unwrap_or_else(|error| panic!("{}", error.report())), tag);
    assert!(lines.lock().unwrap().contains("Step 2"), "{lines:?}");
    let here = request(&tag).with_pull_policy(ImagePullPolicy::Never);
    let text = run(&runtime, here, "id -u; cat /data/step; ls /data").await;
    // The image's own user, and nothing of what was to stay out.
    assert_eq!(
        text.unwrap_or_else(|error| panic!("{}", error.report())),
        "4321\nbuilt\nkept\nstep\n"
    );
    place.forget(&tag).await;

    let recipe = format!("FROM {}\nRUN echo why >&2; exit 7\n", place.target.image());
    fs::write(context.join("Containerfile"), recipe).unwrap();
    let failing = BuildImageRequest::new(&context, "localhost/docker-not-built:1");
    let error = runtime.build_image(failing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{}", error.report());
    for bad in ["--tag", "a b", "", "x@sha256:1"] {
        let error = runtime
            .build_image(BuildImageRequest::new(&context, bad))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{bad}: {error}");
    }
}

fn trial<R: Future<Output = ()> + Send + 'static>(
    target: Target,
    name: &'static str,
    case: impl Fn(Place) -> R + Send + 'static,
) -> Trial {
    Trial::test(format!("{}::{name}", target.name()), move || {
        // A panic is the failure, which the harness catches.
        tokio::runtime::Runtime::new()?.block_on(async { case(Place::new(target)).await });
        Ok(())
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = support::engines().into_iter().flat_map(|target| {
        [
            trial(
                target,
                "a_missing_image_is_fetched_once",
                a_missing_image_is_fetched_once,
            ),
            trial(
                target,
                "a_pinned_image_is_that_very_one",
                a_pinned_image_is_that_very_one,
            ),
            trial(
                target,
                "a_password_is_needed_where_it_is",
                a_password_is_needed_where_it_is,
            ),
            trial(
                target,
                "an_unknown_image_and_an_odd_name_are_told_apart",
                an_unknown_image_and_an_odd_name_are_told_apart,
            ),
            trial(
                target,
                "an_image_is_built_from_a_folder",
                an_image_is_built_from_a_folder,
            ),
        ]
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
