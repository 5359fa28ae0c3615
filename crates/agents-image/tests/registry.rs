//! Pulling from a registry on loopback, over the wire.

#![cfg(feature = "registry")]

mod common;

use std::{fs, net::TcpListener};

use agents_core::error::ErrorKind;
use agents_image::{Credentials, ImageRef, PullPolicy, ResolveOptions};
use common::{
    TarBuilder, TestImage, World, digest,
    fake::{Auth, Fake},
    gzip,
};
use serde_json::json;

/// Without the credentials of whoever runs the tests.
fn anonymous() -> ResolveOptions {
    ResolveOptions::new().with_credentials(Credentials::Anonymous)
}

fn random(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn image() -> TestImage {
    TestImage::gzipped(vec![
        TarBuilder::new().file("big", &random(2 << 20)).bytes(),
        TarBuilder::new().file("small", b"s").bytes(),
    ])
}

#[test]
fn an_image_is_pulled_once_and_then_needs_no_network() {
    let (world, fake, image) = (World::new(), Fake::start(), image());
    fake.put("1", &image);
    let name = fake.name("team/app:1");
    let first = world
        .resolve_with(&name, &anonymous())
        .unwrap_or_else(|error| panic!("{}", error.report()));
    assert_eq!(fs::read(first.layers[0].join("big")).unwrap(), random(2 << 20));
    assert_eq!(first.digest, Some(digest(&image.manifest)));
    assert_eq!(first.source, name);
    assert!(!first.cached);
    assert!(!fake.requests().is_empty());
    world.assert_clean();

    for pull in [PullPolicy::Missing, PullPolicy::Never] {
        assert!(world.resolve_with(&name, &anonymous().with_pull(pull)).unwrap().cached);
    }
    assert_eq!(fake.requests(), Vec::<String>::new());

    // Always asks for the manifest, and pulls nothing that is there.
    let again = world
        .resolve_with(&name, &anonymous().with_pull(PullPolicy::Always))
        .unwrap();
    assert!(again.cached);
    let requests = fake.requests();
    assert!(!requests.iter().any(|path| path.contains("/blobs/")), "{requests:?}");

    let changed = TestImage::gzipped(vec![
        image.layers[0].0.clone(),
        TarBuilder::new().file("new", b"").bytes(),
    ]);
    fake.put("1", &changed);
    assert_eq!(world.resolve_with(&name, &anonymous()).unwrap().digest, first.digest);
    let updated = world
        .resolve_with(&name, &anonymous().with_pull(PullPolicy::Always))
        .unwrap();
    assert_eq!(updated.layers[0], first.layers[0]);
    assert!(updated.layers[1].join("new").exists());
    let requests = fake.requests();
    assert_eq!(
        requests.iter().filter(|path| path.contains("/blobs/")).count(),
        2,
        "{requests:?}"
    );
    drop((first, again));
    let report = world.store.gc().unwrap();
    assert_eq!((report.layers, report.blobs), (1, 2));
}

#[test]
fn a_pinned_image_is_verified_and_never_asked_for_again() {
    let (world, fake, image) = (World::new(), Fake::start(), image());
    fake.put("1", &image);
    let pinned = fake.name(&format!("app@{}", digest(&image.manifest)));
    world.resolve_with(&pinned, &anonymous()).unwrap();
    fake.requests();
    assert!(
        world
            .resolve_with(&pinned, &anonymous().with_pull(PullPolicy::Always))
            .unwrap()
            .cached
    );
    assert!(fake.requests().is_empty());

    // Another manifest under the pinned digest, with and without a header that owns up to it.
    let world = World::new();
    let other = TestImage::gzipped(vec![TarBuilder::new().file("evil", b"").bytes()]);
    fake.put("evil", &other);
    for no_header in [false, true] {
        let mut state = fake.state.lock().unwrap();
        state.no_digest_header = no_header;
        let evil = state.manifests["evil"].clone();
        state.manifests.insert(digest(&image.manifest), evil);
        drop(state);
        let error = world.resolve_with(&pinned, &anonymous()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataInvalid, "{}", error.report());
    }
}

#[test]
fn an_index_leads_to_this_platform() {
    let (world, fake, image) = (World::new(), Fake::start(), image());
    fake.put("amd", &image);
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let index = |arch: &str| {
        let index = json!({"schemaVersion": 2, "manifests": [
            {"digest": digest(b"other"), "platform": {"os": "linux", "architecture": "s390x"}},
            {"digest": digest(&image.manifest), "platform": {"os": "linux", "architecture": arch}},
        ]});
        (
            "application/vnd.docker.distribution.manifest.list.v2+json".to_owned(),
            index.to_string().into_bytes(),
        )
    };
    fake.state.lock().unwrap().manifests.insert("multi".into(), index(arch));
    fake.state
        .lock()
        .unwrap()
        .manifests
        .insert("foreign".into(), index("mips64"));
    let resolved = world.resolve_with(&fake.name("app:multi"), &anonymous()).unwrap();
    assert_eq!(resolved.digest, Some(digest(&image.manifest)));
    let error = world.resolve_with(&fake.name("app:foreign"), &anonymous()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("app:foreign") && error.message().contains("linux/mips64"),
        "{error}"
    );
}

#[test]
fn a_cut_stream_goes_on_where_it_was() {
    for no_ranges in [false, true] {
        let (world, fake, image) = (World::new(), Fake::start(), image());
        fake.put("1", &image);
        let blob = digest(&image.layers[0].1);
        let mut state = fake.state.lock().unwrap();
        state.cuts.insert(blob, vec![300_000, 500_000]);
        state.no_ranges = no_ranges;
        drop(state);
        let resolved = world
            .resolve_with(&fake.name("app:1"), &anonymous())
            .unwrap_or_else(|e| panic!("{}", e.report()));
        assert_eq!(fs::read(resolved.layers[0].join("big")).unwrap(), random(2 << 20));
        world.assert_clean();
    }
}

#[test]
fn a_stream_that_is_cut_again_and_again_ends_in_one_temporary_error() {
    let (world, fake, image) = (World::new(), Fake::start(), image());
    fake.put("1", &image);
    fake.state
        .lock()
        .unwrap()
        .cuts
        .insert(digest(&image.layers[0].1), vec![100; 50]);
    let error = world.resolve_with(&fake.name("app:1"), &anonymous()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    assert!(error.is_temporary() && error.to_string().contains("app:1"), "{error}");
    world.assert_clean();
    // The layer that did arrive is kept for the next try.
    fake.state.lock().unwrap().cuts.clear();
    fake.requests();
    world.resolve_with(&fake.name("app:1"), &anonymous()).unwrap();
    let small = digest(&image.layers[1].1);
    assert!(!fake.requests().iter().any(|path| path.ends_with(&small)));
}

#[test]
fn wrong_bytes_are_refused() {
    let base = image();
    let evil = gzip(&TarBuilder::new().file("evil", b"").bytes());
    type Spoil = Box<dyn Fn(&Fake)>;
    let layer = digest(&base.layers[0].1);
    let config = digest(&base.config);
    let (a, b, c) = (layer.clone(), layer.clone(), layer);
    let longer = [base.layers[0].1.clone(), vec![0; 100]].concat();
    let cases: Vec<(&str, Spoil)> = vec![
        ("another layer", {
            Box::new(move |fake| {
                fake.state.lock().unwrap().blobs.insert(a.clone(), evil.clone());
            })
        }),
        ("a longer layer", {
            Box::new(move |fake| {
                fake.state.lock().unwrap().blobs.insert(b.clone(), longer.clone());
            })
        }),
        ("flipped bits", {
            Box::new(move |fake| {
                fake.state.lock().unwrap().blobs.get_mut(&c).unwrap()[1000] ^= 1;
            })
        }),
        ("another configuration", {
            Box::new(move |fake| {
                fake.state
                    .lock()
                    .unwrap()
                    .blobs
                    .insert(config.clone(), b"{\"rootfs\":{}}".to_vec());
            })
        }),
    ];
    for (name, spoil) in cases {
        let (world, fake) = (World::new(), Fake::start());
        fake.put("1", &base);
        spoil(&fake);
        let error = world.resolve_with(&fake.name("app:1"), &anonymous()).expect_err(name);
        assert!(
            matches!(error.kind(), ErrorKind::DataInvalid) || (name == "another layer" && error.is_temporary()),
            "{name}: {}",
            error.report()
        );
        let layers = fs::read_dir(world.store.root().join("layers")).unwrap();
        assert!(
            layers
                .flatten()
                .all(|layer| !layer.path().join("evil").exists() && !layer.path().join("big").exists())
        );
        world.assert_clean();
    }
    // The compressed bytes are as promised, and what they hold is not.
    let (world, fake) = (World::new(), Fake::start());
    let tar = TarBuilder::new().file("f", b"").bytes();
    let other = TarBuilder::new().file("g", b"").bytes();
    fake.put("1", &TestImage::new(vec![(tar, gzip(&other))]));
    let error = world.resolve_with(&fake.name("app:1"), &anonymous()).unwrap_err();
    assert!(
        error
            .report()
            .contains("the uncompressed layer is not what its digest promises"),
        "{}",
        error.report()
    );
}

#[test]
fn tokens_and_passwords_are_used() {
    // ann:secret
    const ANN: &str = "YW5uOnNlY3JldA==";
    let ann = Credentials::Basic {
        username: "ann".into(),
        password: "secret".into(),
    };
    let wrong = Credentials::Basic {
        username: "ann".into(),
        password: "hunter2".into(),
    };
    let fake = Fake::start();
    fake.put("1", &image());
    let name = fake.name("app:1");
    for (auth, credentials, works) in [
        (Auth::Token(None), Credentials::Anonymous, true),
        (Auth::Token(Some(ANN)), ann.clone(), true),
        (Auth::Basic(ANN), ann, true),
        (Auth::Basic(ANN), Credentials::Anonymous, false),
        (Auth::Basic(ANN), wrong.clone(), false),
        (Auth::Token(Some(ANN)), Credentials::Anonymous, false),
        (Auth::Token(Some(ANN)), wrong, false),
    ] {
        let world = World::new();
        fake.state.lock().unwrap().auth = auth.clone();
        let result = world.resolve_with(&name, &ResolveOptions::new().with_credentials(credentials));
        match result {
            Ok(_) => assert!(works, "{auth:?}"),
            Err(error) => {
                let report = error.report();
                assert!(!works, "{auth:?}: {report}");
                assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{report}");
                assert!(report.contains("podman login") && report.contains(&name), "{report}");
                assert!(!report.contains("hunter2"), "{report}");
            }
        }
    }
}

#[test]
fn failures_have_kinds_and_advice() {
    let (world, fake) = (World::new(), Fake::start());
    fake.put("1", &image());
    let error = world.resolve_with(&fake.name("app:2"), &anonymous()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("app:2"), "{error}");
    assert_eq!(error.operation(), Some("resolve_image"));

    let unknown = world
        .resolve_with(&fake.name("app:1"), &anonymous().with_pull(PullPolicy::Never))
        .unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert!(
        unknown.message().contains("app:1") && unknown.message().contains("pull it first"),
        "{unknown}"
    );

    for (status, body, kind, temporary) in [
        (500, "oops", ErrorKind::Unavailable, true),
        (503, "", ErrorKind::Unavailable, true),
        (
            429,
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#,
            ErrorKind::RateLimited,
            true,
        ),
        (
            403,
            r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
            ErrorKind::PermissionDenied,
            false,
        ),
        (404, "<html>", ErrorKind::NotFound, false),
        (200, "not json", ErrorKind::DataInvalid, false),
        (200, "{}", ErrorKind::DataInvalid, false),
    ] {
        fake.state.lock().unwrap().status = Some((status, body));
        let error = world.resolve_with(&fake.name("app:1"), &anonymous()).unwrap_err();
        assert_eq!(
            (error.kind(), error.is_temporary()),
            (kind, temporary),
            "{status}: {}",
            error.report()
        );
        assert!(error.report().contains("app:1"), "{}", error.report());
    }

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = world.resolve_with(&format!("{closed}/app"), &anonymous()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.is_temporary() && error.message().contains(&closed.to_string()),
        "{error}"
    );
}

#[test]
fn a_proxy_in_the_environment_is_not_asked_for_loopback() {
    // The variable is read when a client is made, in another process so that no other test sees it.
    if std::env::var_os("AGENTS_IMAGE_TEST_PROXY").is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_proxy_in_the_environment_is_not_asked_for_loopback"])
            .env("AGENTS_IMAGE_TEST_PROXY", "1")
            .env("HTTP_PROXY", "http://127.0.0.1:1")
            .env("http_proxy", "http://127.0.0.1:1")
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let (world, fake) = (World::new(), Fake::start());
    fake.put("1", &image());
    world
        .resolve_with(&fake.name("app:1"), &anonymous())
        .unwrap_or_else(|error| panic!("{}", error.report()));
}

#[test]
fn a_machine_without_ca_certificates_gets_an_error_with_advice() {
    const NAME: &str = "a_machine_without_ca_certificates_gets_an_error_with_advice";
    if std::env::var_os("AGENTS_IMAGE_TEST_NO_CA").is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env("AGENTS_IMAGE_TEST_NO_CA", "1")
            .env("SSL_CERT_FILE", "/dev/null")
            .env("SSL_CERT_DIR", "/nonexistent")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let (world, fake) = (World::new(), Fake::start());
    let error = world.resolve_with(&fake.name("app:1"), &anonymous()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("ca-certificates"), "{error}");
}

#[test]
fn dropping_a_pull_stops_it() {
    let (world, fake) = (World::new(), Fake::start());
    fake.put("1", &image());
    let name = fake.name("app:1");
    let image = ImageRef::parse(&name).unwrap();
    for millis in [1, 5, 10, 20, 40] {
        let runtime = common::runtime();
        runtime.block_on(async {
            let options = anonymous();
            let pull = world.store.resolve(&image, &options);
            let _ = tokio::time::timeout(std::time::Duration::from_millis(millis), pull).await;
        });
        drop(runtime);
        world.assert_clean();
    }
    world.resolve_with(&name, &anonymous()).unwrap();
}

#[test]
fn two_stores_and_two_processes_share_nothing_but_work() {
    let (world, fake, image) = (World::new(), Fake::start(), image());
    fake.put("1", &image);
    let reference = ImageRef::parse(&fake.name("app:1")).unwrap();
    let runtime = common::runtime();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (store, reference) = (world.store.clone(), reference.clone());
                tokio::spawn(async move { store.resolve(&reference, &anonymous()).await.unwrap() })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let big = digest(&image.layers[0].1);
    let pulls = fake.requests().iter().filter(|path| path.ends_with(&big)).count();
    assert_eq!(pulls, 1);
}
