//! Against a real registry, and overlayfs of the real kernel. What a case needs and this machine lacks shows as the reason why it is ignored.
//!
//! - `ISOLATED_AGENTS_TEST_REGISTRY=HOST:PORT`: a registry without authentication.
//! - `ISOLATED_AGENTS_TEST_REGISTRY_AUTH=HOST:PORT` with `…_USER` and `…_PASSWORD`: one that wants a password.

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
};

use agents_core::error::ErrorKind;
use agents_image::{Credentials, PullPolicy, ResolveOptions};
use base64::{Engine, engine::general_purpose::STANDARD};
use common::{TarBuilder, TestImage, World, digest};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let registry = variable("ISOLATED_AGENTS_TEST_REGISTRY");
    let auth = variable("ISOLATED_AGENTS_TEST_REGISTRY_AUTH").and_then(|address| {
        Ok((
            address,
            variable("ISOLATED_AGENTS_TEST_REGISTRY_AUTH_USER")?,
            variable("ISOLATED_AGENTS_TEST_REGISTRY_AUTH_PASSWORD")?,
        ))
    });
    let trials = vec![
        case("push_and_pull", registry.clone(), |address| push_and_pull(&address)),
        case("index_and_digest", registry.clone(), |address| {
            index_and_digest(&address)
        }),
        case("unknown_names", registry, |address| unknown_names(&address)),
        case("password", auth.clone(), |(address, user, password)| {
            with_password(&address, &user, &password)
        }),
        case("password_from_files", auth, |(address, user, password)| {
            from_files(&address, &user, &password)
        }),
        case("overlayfs_shows_the_layers_as_meant", can_mount(), |()| overlayfs()),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

/// A trial that is ignored, with the reason in its name, when it lacks what it needs.
fn case<T: Send + 'static>(
    name: &str,
    needs: Result<T, String>,
    run: impl FnOnce(T) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    match needs {
        Ok(value) => Trial::test(name, move || run(value)),
        Err(reason) => Trial::test(format!("{name} (ignored: {reason})"), || Ok(())).with_ignored_flag(true),
    }
}

fn variable(name: &str) -> Result<String, String> {
    std::env::var(name)
        .ok()
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("{name} is not set"))
}

fn can_mount() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("mounting needs root".into());
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    for name in ["a", "b", "m"] {
        fs::create_dir(folder.path().join(name)).map_err(|error| error.to_string())?;
    }
    let path = folder.path().display();
    if mount(&format!("{path}/a:{path}/b"), &format!("{path}/m")) {
        unmount(&format!("{path}/m"));
        Ok(())
    } else {
        Err("overlayfs cannot be mounted here".into())
    }
}

fn mount(lower: &str, target: &str) -> bool {
    Command::new("mount")
        .args([
            "-t",
            "overlay",
            "-o",
            &format!("userxattr,lowerdir={lower}"),
            "overlay",
            target,
        ])
        .status()
        .is_ok_and(|status| status.success())
}

fn unmount(target: &str) {
    assert!(Command::new("umount").arg(target).status().unwrap().success());
}

fn request(address: &str, auth: Option<&str>, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let authorization = auth
        .map(|auth| format!("Authorization: Basic {auth}\r\n"))
        .unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{authorization}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let location = text
        .lines()
        .find_map(|line| {
            line.split_once(": ")
                .filter(|(name, _)| name.eq_ignore_ascii_case("location"))
        })
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default();
    (status, location)
}

fn push_blob(address: &str, auth: Option<&str>, repository: &str, bytes: &[u8]) {
    let octets = "application/octet-stream";
    let (status, location) = request(
        address,
        auth,
        "POST",
        &format!("/v2/{repository}/blobs/uploads/"),
        octets,
        b"",
    );
    assert_eq!(status, 202);
    let location = location
        .split_once(address)
        .map_or(location.as_str(), |(_, path)| path)
        .to_owned();
    let separator = if location.contains('?') { '&' } else { '?' };
    let path = format!("{location}{separator}digest={}", digest(bytes));
    assert_eq!(request(address, auth, "PUT", &path, octets, bytes).0, 201);
}

fn push(address: &str, auth: Option<&str>, repository: &str, tag: &str, image: &TestImage) {
    push_blob(address, auth, repository, &image.config);
    for (_, stored) in &image.layers {
        push_blob(address, auth, repository, stored);
    }
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let path = format!("/v2/{repository}/manifests/{tag}");
    assert_eq!(request(address, auth, "PUT", &path, kind, &image.manifest).0, 201);
}

/// A name that no earlier run has used.
fn repository(name: &str) -> String {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    format!("agents-image/{name}-{nanos}")
}

fn image(seed: u8) -> TestImage {
    let big: Vec<u8> = (0..4_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed)
        .collect();
    TestImage::gzipped(vec![
        TarBuilder::new().file("big", &big).file("gone", b"").bytes(),
        TarBuilder::new().file(".wh.gone", b"").file("seed", &[seed]).bytes(),
    ])
}

fn anonymous() -> ResolveOptions {
    ResolveOptions::new().with_credentials(Credentials::Anonymous)
}

fn pull(world: &World, name: &str, options: &ResolveOptions) -> Result<agents_image::Resolved, Failed> {
    world.resolve_with(name, options).map_err(|error| error.report().into())
}

fn push_and_pull(address: &str) -> Result<(), Failed> {
    let (world, repository) = (World::new(), repository("plain"));
    push(address, None, &repository, "1", &image(1));
    let name = format!("{address}/{repository}:1");
    let first = pull(&world, &name, &anonymous())?;
    assert_eq!(fs::read(first.layers[1].join("seed")).unwrap(), [1]);
    assert_eq!(first.digest, Some(digest(&image(1).manifest)));
    assert!(pull(&world, &name, &anonymous().with_pull(PullPolicy::Never))?.cached);
    assert!(pull(&world, &name, &anonymous().with_pull(PullPolicy::Always))?.cached);
    push(address, None, &repository, "1", &image(2));
    assert_eq!(pull(&world, &name, &anonymous())?.digest, first.digest);
    let second = pull(&world, &name, &anonymous().with_pull(PullPolicy::Always))?;
    assert_eq!(fs::read(second.layers[1].join("seed")).unwrap(), [2]);
    world.assert_clean();
    Ok(())
}

fn index_and_digest(address: &str) -> Result<(), Failed> {
    let (world, repository, image) = (World::new(), repository("index"), image(3));
    push(address, None, &repository, "single", &image);
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&image.manifest), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": arch}
        }]
    })
    .to_string();
    let path = format!("/v2/{repository}/manifests/multi");
    let kind = "application/vnd.oci.image.index.v1+json";
    assert_eq!(request(address, None, "PUT", &path, kind, index.as_bytes()).0, 201);
    for reference in [
        ":multi".to_owned(),
        format!("@{}", digest(index.as_bytes())),
        format!("@{}", digest(&image.manifest)),
    ] {
        let resolved = pull(&world, &format!("{address}/{repository}{reference}"), &anonymous())?;
        assert_eq!(resolved.digest, Some(digest(&image.manifest)));
    }
    Ok(())
}

fn unknown_names(address: &str) -> Result<(), Failed> {
    let (world, repository) = (World::new(), repository("unknown"));
    push(address, None, &repository, "1", &image(4));
    for name in [
        format!("{address}/{repository}:2"),
        format!("{address}/no/such"),
        format!("{address}/{repository}@{}", digest(b"no")),
    ] {
        let error = world.resolve_with(&name, &anonymous()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
        assert!(error.message().contains(&name), "{error}");
    }
    Ok(())
}

fn with_password(address: &str, user: &str, password: &str) -> Result<(), Failed> {
    let (world, repository) = (World::new(), repository("password"));
    push(
        address,
        Some(&STANDARD.encode(format!("{user}:{password}"))),
        &repository,
        "1",
        &image(5),
    );
    let name = format!("{address}/{repository}:1");
    let basic = |password: &str| {
        ResolveOptions::new().with_credentials(Credentials::Basic {
            username: user.into(),
            password: password.into(),
        })
    };
    for options in [anonymous(), basic("wrong")] {
        let error = world.resolve_with(&name, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{}", error.report());
    }
    pull(&world, &name, &basic(password)).map(drop)
}

/// The file is read in another process, so that its variable disturbs no other case.
fn from_files(address: &str, user: &str, password: &str) -> Result<(), Failed> {
    if let Ok(name) = std::env::var("AGENTS_IMAGE_TEST_NAME") {
        return pull(&World::new(), &name, &ResolveOptions::new()).map(drop);
    }
    let repository = repository("files");
    let auth = STANDARD.encode(format!("{user}:{password}"));
    push(address, Some(&auth), &repository, "1", &image(6));
    let folder = tempfile::tempdir()?;
    let file = serde_json::json!({"auths": {(address): {"auth": auth}}}).to_string();
    fs::write(folder.path().join("config.json"), &file)?;
    fs::write(folder.path().join("auth.json"), &file)?;
    for (variable, value) in [
        ("DOCKER_CONFIG", folder.path().to_owned()),
        ("REGISTRY_AUTH_FILE", folder.path().join("auth.json")),
    ] {
        let output = Command::new(std::env::current_exe()?)
            .args(["--exact", "password_from_files"])
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("REGISTRY_AUTH_FILE")
            .env("HOME", folder.path())
            .env(variable, value)
            .env("AGENTS_IMAGE_TEST_NAME", format!("{address}/{repository}:1"))
            .output()?;
        assert!(
            output.status.success(),
            "{variable}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(())
}

fn overlayfs() -> Result<(), Failed> {
    let world = World::new();
    let image = TestImage::gzipped(vec![
        TarBuilder::new()
            .file("a", b"1")
            .file("b", b"1")
            .file("d/x", b"1")
            .file("e/x", b"1")
            .file("f/x", b"1")
            .bytes(),
        TarBuilder::new()
            .file(".wh.a", b"")
            .file("b", b"2")
            .file("d/.wh..wh..opq", b"")
            .file("d/y", b"2")
            .file("e/y", b"2")
            .file(".wh.f", b"")
            .file("f/y", b"2")
            .bytes(),
    ]);
    let file = world.write("image.tar", &image.docker_archive(&[]));
    let resolved = pull(&world, &file, &anonymous())?;
    let merged = world.path("merged");
    fs::create_dir(&merged)?;
    let lower: Vec<_> = resolved
        .layers
        .iter()
        .rev()
        .map(|path| path.to_str().unwrap())
        .collect();
    assert!(mount(&lower.join(":"), merged.to_str().unwrap()));
    let there = |name: &str| merged.join(name).exists();
    let seen = [
        there("a"),
        there("d/x"),
        there("d/y"),
        there("e/x"),
        there("e/y"),
        there("f/x"),
        there("f/y"),
    ];
    let b = fs::read(merged.join("b"));
    unmount(merged.to_str().unwrap());
    assert_eq!(seen, [false, false, true, true, true, false, true]);
    assert_eq!(b?, b"2");
    Ok(())
}
