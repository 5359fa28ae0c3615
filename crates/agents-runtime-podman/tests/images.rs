//! Images: pulled from registries with and without a password, pinned, and built.

#[path = "support/variables.rs"]
mod variables;

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
};

use agents_core::{
    BuildImageRequest, ContainerId, ContainerRuntime, ContainerRuntimeExt, Error, ErrorKind, ImagePullPolicy, Mount,
    Process, ProgressListener, ProvisionProgress, ProvisionRequest, SessionId, StartRequest,
};
use agents_runtime_podman::{PodmanConfig, PodmanRuntime};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use libtest_mimic::{Arguments, Trial};

/// Where everything is.
#[derive(Clone, Debug)]
struct Place {
    engine: PathBuf,
    image: String,
    registry: String,
    closed_registry: String,
    user: String,
    password: String,
}

impl Place {
    fn runtime(&self, folder: &Path, auth: Option<&str>) -> Arc<dyn ContainerRuntime> {
        let file = folder.join("auth.json");
        fs::write(&file, auth.unwrap_or("{}")).expect("a file");
        let config = PodmanConfig::default()
            .with_socket_path(&self.engine)
            .with_auth_file(file);
        Arc::new(PodmanRuntime::new(config, folder.join("podman")).unwrap_or_else(|error| panic!("{error}")))
    }

    /// A call of the engine's, as nobody but a test needs it.
    fn call(&self, method: &str, path: &str, headers: &str) -> String {
        let mut stream = UnixStream::connect(&self.engine).expect("the engine");
        write!(
            stream,
            "{method} /v4.0.0/libpod{path} HTTP/1.0\r\nHost: d\r\n{headers}\r\n"
        )
        .expect("a call");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// Puts the test image into a registry under a new name, and gives that with its digest.
    fn pushed(&self, registry: &str, name: &str) -> (String, String) {
        let reference = format!("{registry}/podman-{name}-{}:1", SessionId::generate());
        let header = if registry == self.closed_registry {
            let json = serde_json::json!({ "username": self.user, "password": self.password }).to_string();
            format!("X-Registry-Auth: {}\r\n", STANDARD.encode(json))
        } else {
            String::new()
        };
        let image = self.image.replace('/', "%2F");
        let destination = reference.replace('/', "%2F").replace(':', "%3A");
        let answer = self.call(
            "POST",
            &format!("/images/{image}/push?destination={destination}&tlsVerify=false"),
            &header,
        );
        assert!(answer.contains("200 OK") && !answer.contains("\"error\""), "{answer}");
        // The registry knows the digest of what it has.
        let host = registry.to_owned();
        let (_, path) = reference.split_once('/').expect("a registry");
        let (repository, tag) = path.split_once(':').expect("a tag");
        let mut stream = std::net::TcpStream::connect(host).expect("the registry");
        let login = if registry == self.closed_registry {
            format!(
                "Authorization: Basic {}\r\n",
                STANDARD.encode(format!("{}:{}", self.user, self.password))
            )
        } else {
            String::new()
        };
        write!(
            stream,
            "GET /v2/{repository}/manifests/{tag} HTTP/1.0\r\nHost: r\r\n{login}Accept: application/vnd.oci.image.manifest.v1+json, \
             application/vnd.docker.distribution.manifest.v2+json\r\n\r\n"
        )
        .expect("a question");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let digest = answer
            .lines()
            .find_map(|line| line.strip_prefix("Docker-Content-Digest: "));
        (
            reference.clone(),
            digest.unwrap_or_else(|| panic!("{answer}")).trim().to_owned(),
        )
    }

    /// Removes what the engine has under a name.
    fn forget(&self, reference: &str) {
        self.call(
            "DELETE",
            &format!("/images/{}?force=true", reference.replace('/', "%2F")),
            "",
        );
    }
}

fn request(image: &str) -> ProvisionRequest {
    let session = SessionId::generate();
    let name = ContainerId::new(format!("images-{session}")).expect("a name");
    ProvisionRequest::new(session, name, image).with_mounts([Mount::scratch("/output")])
}

/// Runs a script in an image, and gives what it printed.
async fn run(runtime: &Arc<dyn ContainerRuntime>, request: ProvisionRequest, script: &str) -> Result<String, Error> {
    let request = request.with_process(Some(Process::new(["sh", "-c", script])));
    let container = runtime.provision_verified(request).await?.handle;
    let output = runtime
        .start(StartRequest::new(container.clone()))
        .await?
        .collect(10_000)
        .await;
    runtime.destroy(&container.id).await?;
    Ok(output?.stdout.to_text())
}

async fn a_missing_image_is_pulled_once(place: Place) {
    let folder = open_folder();
    let runtime = place.runtime(folder.path(), None);
    let (image, _) = place.pushed(&place.registry, "missing");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&seen);
    let listener = ProgressListener::new(move |progress| heard.lock().expect("a list").push(progress));
    let never = request(&image).with_pull_policy(ImagePullPolicy::Never);
    let error = run(&runtime, never, "true").await.expect_err("it is not there");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let text = run(&runtime, request(&image).with_progress(Some(listener)), "echo pulled").await;
    assert_eq!(text.unwrap_or_else(|error| panic!("{}", error.report())), "pulled\n");
    let seen = std::mem::take(&mut *seen.lock().expect("a list"));
    assert!(
        seen.iter().any(
            |progress| matches!(progress, ProvisionProgress::Pulling { layer, .. } if layer.starts_with("sha256:"))
        ),
        "{seen:?}"
    );
    assert_eq!(seen.last(), Some(&ProvisionProgress::ImageReady));
    // From now on it is there.
    let never = request(&image).with_pull_policy(ImagePullPolicy::Never);
    assert_eq!(run(&runtime, never, "echo here").await.expect("an image"), "here\n");
    let always = request(&image).with_pull_policy(ImagePullPolicy::Always);
    assert_eq!(run(&runtime, always, "echo again").await.expect("an image"), "again\n");
    place.forget(&image);
}

async fn a_pinned_image_is_that_very_one(place: Place) {
    let folder = open_folder();
    let runtime = place.runtime(folder.path(), None);
    let (image, digest) = place.pushed(&place.registry, "pinned");
    let name = image.rsplit_once(':').expect("a tag").0;
    let pinned = format!("{name}:no-such-tag@{digest}");
    let text = run(&runtime, request(&pinned), "echo pinned").await;
    assert_eq!(text.unwrap_or_else(|error| panic!("{}", error.report())), "pinned\n");
    let other = format!("{name}@sha256:{}", "0".repeat(64));
    let error = run(&runtime, request(&other), "true")
        .await
        .expect_err("no such digest");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    place.forget(&format!("{name}@{digest}"));
}

async fn a_password_is_needed_where_it_is(place: Place) {
    let folder = open_folder();
    let (image, _) = place.pushed(&place.closed_registry, "closed");
    let auth = |user: &str, password: &str| {
        let pair = STANDARD.encode(format!("{user}:{password}"));
        serde_json::json!({ "auths": { place.closed_registry.as_str(): { "auth": pair } } }).to_string()
    };
    for auth in [None, Some(auth("agents", "wrong-password"))] {
        let runtime = place.runtime(folder.path(), auth.as_deref());
        let error = run(&runtime, request(&image), "true").await.expect_err("a refusal");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{}", error.report());
        assert!(error.message().contains("podman login"), "{error}");
        assert!(!error.report().contains("wrong-password"), "{}", error.report());
    }
    let right = auth(&place.user, &place.password);
    let runtime = place.runtime(folder.path(), Some(&right));
    let text = run(&runtime, request(&image), "echo in").await;
    assert_eq!(text.unwrap_or_else(|error| panic!("{}", error.report())), "in\n");
    place.forget(&image);
}

async fn an_unknown_image_and_an_unreachable_registry_are_told_apart(place: Place) {
    let folder = open_folder();
    let runtime = place.runtime(folder.path(), None);
    let unknown = format!("{}/podman-no-such-image:1", place.registry);
    let error = run(&runtime, request(&unknown), "true").await.expect_err("no image");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    let error = run(&runtime, request("127.0.0.1:9/x:1"), "true")
        .await
        .expect_err("no registry");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    assert!(error.is_temporary());
    for odd in ["--privileged", "a b"] {
        let error = run(&runtime, request(odd), "true").await.expect_err("no name");
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{odd}: {error}");
    }
}

async fn an_image_is_built_from_a_folder(place: Place) {
    let folder = open_folder();
    let runtime = place.runtime(folder.path(), None);
    let context = folder.path().join("context");
    fs::create_dir_all(context.join("data")).expect("a folder");
    let recipe = format!(
        "FROM {}\nCOPY data /data\nRUN echo built > /data/step && ls /data\nUSER 4321:4321\n",
        place.image
    );
    fs::write(context.join("Containerfile"), recipe).expect("a recipe");
    fs::write(context.join("data/kept"), "kept").expect("a file");
    fs::write(context.join("data/secret.key"), "secret").expect("a file");
    fs::write(context.join(".containerignore"), "**/*.key\n").expect("a file");
    let lines = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&lines);
    let listener = ProgressListener::new(move |progress| {
        if let ProvisionProgress::Building { line } = progress {
            heard.lock().expect("a text").push_str(&line);
        }
    });
    let tag = format!("localhost/podman-built-{}:1", SessionId::generate());
    let build = BuildImageRequest::new(&context, &tag).with_progress(Some(listener));
    let built = runtime
        .build_image(build)
        .await
        .unwrap_or_else(|error| panic!("{}", error.report()));
    assert_eq!(built, tag);
    assert!(lines.lock().expect("a text").contains("STEP"), "{lines:?}");
    let text = run(
        &runtime,
        request(&built).with_pull_policy(ImagePullPolicy::Never),
        "id -u; cat /data/step; ls /data",
    )
    .await;
    // The image's own user, and nothing of what was to stay out.
    assert_eq!(
        text.unwrap_or_else(|error| panic!("{}", error.report())),
        "4321\nbuilt\nkept\nstep\n"
    );
    place.forget(&built);

    fs::write(
        context.join("Containerfile"),
        format!("FROM {}\nRUN echo why >&2; exit 7\n", place.image),
    )
    .expect("a recipe");
    let failing = BuildImageRequest::new(&context, "localhost/podman-not-built:1");
    let error = runtime.build_image(failing).await.expect_err("a step that fails");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{}", error.report());
    for bad in ["--tag", "a b", ""] {
        let error = runtime
            .build_image(BuildImageRequest::new(&context, bad))
            .await
            .expect_err("no name");
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
    }
}

fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("an open folder");
    folder
}

type Work = fn(Place) -> futures_util::future::BoxFuture<'static, ()>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), (|place| Box::pin($name(place))) as Work)),*]
    };
}

fn main() -> ExitCode {
    let given = [
        ("AGENTS_TEST_PODMAN", "podman"),
        ("AGENTS_TEST_ENGINE_IMAGE", "podman"),
        ("ISOLATED_AGENTS_TEST_REGISTRY", "registry"),
        ("ISOLATED_AGENTS_TEST_REGISTRY_AUTH", "registry-auth"),
        ("ISOLATED_AGENTS_TEST_REGISTRY_AUTH_USER", "registry-auth"),
        ("ISOLATED_AGENTS_TEST_REGISTRY_AUTH_PASSWORD", "registry-auth"),
    ]
    .map(|(name, server)| variables::variable(name, server));
    let [
        Ok(url),
        Ok(image),
        Ok(registry),
        Ok(closed_registry),
        Ok(user),
        Ok(password),
    ] = given
    else {
        return ExitCode::FAILURE;
    };
    let place = Place {
        engine: PathBuf::from(url.strip_prefix("unix://").expect("a unix socket")),
        image,
        registry,
        closed_registry,
        user,
        password,
    };
    let cases = cases![
        a_missing_image_is_pulled_once,
        a_pinned_image_is_that_very_one,
        a_password_is_needed_where_it_is,
        an_unknown_image_and_an_unreachable_registry_are_told_apart,
        an_image_is_built_from_a_folder,
    ];
    let trial = |(name, work): (&'static str, Work)| {
        let place = place.clone();
        Trial::test(name, move || {
            let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
            runtime.block_on(work(place));
            Ok(())
        })
    };
    libtest_mimic::run(&Arguments::from_args(), cases.into_iter().map(trial).collect()).exit_code()
}
