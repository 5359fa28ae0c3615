//! Sharing, garbage and accidents.

mod common;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agents_core::error::ErrorKind;
use agents_image::{ImageStore, ResolveOptions};
use common::{TarBuilder, TestImage, World};

fn count(store: &ImageStore, folder: &str) -> usize {
    fs::read_dir(store.root().join(folder)).unwrap().count()
}

fn archive(world: &World, name: &str, layers: &[&str]) -> String {
    let layers = layers
        .iter()
        .map(|layer| TarBuilder::new().file(*layer, layer.as_bytes()).bytes())
        .collect();
    world.write(name, &TestImage::gzipped(layers).docker_archive(&[]))
}

#[test]
fn the_store_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("a/b");
    ImageStore::open(&root).unwrap();
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    ImageStore::open(&root).unwrap();
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(ImageStore::open(&file).unwrap_err().message().contains("file"));
}

#[test]
fn gc_keeps_what_is_referred_to_or_in_use() {
    let world = World::new();
    let one = archive(&world, "one.tar", &["shared", "one"]);
    let two = archive(&world, "two.tar", &["shared", "two"]);
    let used = world.resolve(&one).unwrap();
    world.resolve(&two).unwrap();
    assert_eq!(world.store.list().unwrap().len(), 2);
    let listed = &world.store.list().unwrap()[0];
    assert_eq!(
        (listed.source.as_str(), listed.layers, listed.size),
        (one.as_str(), 2, 9)
    );
    let report = world.store.gc().unwrap();
    assert_eq!((report.layers, report.references, report.blobs), (0, 0, 0));

    fs::remove_file(&one).unwrap();
    let report = world.store.gc().unwrap();
    assert_eq!((report.references, report.layers, report.in_use), (1, 0, 1));
    assert!(used.layers.iter().all(|layer| layer.exists()));
    let copy = used.clone();
    drop(used);
    assert_eq!(world.store.gc().unwrap().layers, 0);
    drop(copy);
    let report = world.store.gc().unwrap();
    assert_eq!((report.layers, report.blobs, report.in_use, report.bytes), (1, 1, 0, 3));
    assert_eq!(count(&world.store, "layers"), 4);
    assert!(world.resolve(&two).unwrap().cached);

    assert!(world.store.remove(&two).unwrap());
    assert!(!world.store.remove(&two).unwrap());
    assert_eq!(world.store.gc().unwrap().layers, 2);
    for folder in ["layers", "blobs/sha256", "refs", "tmp"] {
        assert_eq!(count(&world.store, folder), 0, "{folder}");
    }
    assert!(!world.resolve(&two).unwrap().cached);
}

#[test]
fn a_damaged_store_heals() {
    let world = World::new();
    let file = archive(&world, "one.tar", &["a", "b"]);
    let resolved = world.resolve(&file).unwrap();
    fs::remove_dir_all(&resolved.layers[0]).unwrap();
    let again = world.resolve(&file).unwrap();
    assert!(!again.cached && again.layers[0].join("a").exists());
    for entry in fs::read_dir(world.store.root().join("refs")).unwrap() {
        fs::write(entry.unwrap().path(), "{").unwrap();
    }
    assert!(world.store.list().unwrap().is_empty());
    assert!(world.resolve(&file).unwrap().cached, "the layers are still there");
    assert_eq!(world.store.list().unwrap().len(), 1);
}

#[test]
fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
    let world = World::new();
    let tmp = world.store.root().join("tmp");
    let (dead, living) = (tmp.join("dead"), tmp.join("living"));
    fs::create_dir_all(dead.join("layer/d")).unwrap();
    fs::set_permissions(dead.join("layer/d"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::create_dir(&living).unwrap();
    let lock = fs::File::open(&living).unwrap();
    lock.lock().unwrap();
    ImageStore::open(world.store.root()).unwrap();
    assert!(!dead.exists() && living.exists());
    assert_eq!(world.store.gc().unwrap().leftovers, 0);
    drop(lock);
    assert_eq!(world.store.gc().unwrap().leftovers, 1);
    world.assert_clean();
}

#[test]
fn many_at_once_do_the_work_once() {
    let world = World::new();
    let file = archive(&world, "one.tar", &["a", "b", "c"]);
    let runtime = common::runtime();
    let image = agents_image::ImageRef::parse(&file).unwrap();
    let results = runtime.block_on(async {
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let (store, image) = (ImageStore::open(world.store.root()).unwrap(), image.clone());
                tokio::spawn(async move { store.resolve(&image, &ResolveOptions::new()).await })
            })
            .collect();
        let mut results = Vec::new();
        for task in tasks {
            results.push(task.await.unwrap().unwrap());
        }
        results
    });
    assert!(results.iter().all(|resolved| resolved.layers == results[0].layers));
    assert_eq!(count(&world.store, "layers"), 6);
    world.assert_clean();
}

#[test]
fn gc_beside_pulls_breaks_neither() {
    let world = World::new();
    let files: Vec<_> = (0..6)
        .map(|i| archive(&world, &format!("{i}.tar"), &["shared", &format!("l{i}")]))
        .collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                world.store.gc().unwrap();
            }
        });
        let pullers: Vec<_> = files
            .iter()
            .map(|file| {
                let world = &world;
                scope.spawn(move || {
                    for _ in 0..20 {
                        let resolved = world.resolve(file).unwrap_or_else(|error| panic!("{}", error.report()));
                        assert!(resolved.layers.iter().all(|layer| layer.exists()));
                        world.store.remove(file).unwrap();
                    }
                })
            })
            .collect();
        let results: Vec<_> = pullers.into_iter().map(|puller| puller.join()).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
        collector.join().unwrap();
    });
}

#[test]
fn dropping_the_future_stops_and_cleans() {
    let world = World::new();
    let layer = (0..4000)
        .fold(TarBuilder::new(), |tar, i| tar.file(format!("f{i}"), &[1; 2000]))
        .bytes();
    let file = world.write("big.tar", &TestImage::gzipped(vec![layer]).docker_archive(&[]));
    let image = agents_image::ImageRef::parse(&file).unwrap();
    let runtime = common::runtime();
    runtime.block_on(async {
        let options = ResolveOptions::new();
        let _ = tokio::time::timeout(Duration::from_millis(15), world.store.resolve(&image, &options)).await;
    });
    // Dropping the runtime waits for blocking work, which notices that nobody wants it.
    drop(runtime);
    world.assert_clean();
    world.resolve(&file).unwrap();
}

/// The example `resolve`, which cargo builds with the tests: a process of its own, to be killed.
fn resolver() -> std::path::PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).unwrap().join("examples/resolve")
}

#[test]
fn kill_at_any_moment_leaves_only_what_gc_takes() {
    let world = World::new();
    let layers: Vec<_> = (0..3)
        .map(|l| {
            (0..300)
                .fold(TarBuilder::new(), |tar, i| tar.file(format!("{l}-{i}"), &[1; 500]))
                .bytes()
        })
        .collect();
    let file = world.write("image.tar", &TestImage::gzipped(layers).docker_archive(&[]));
    let root = world.store.root().to_owned();
    let run = |root: &Path| {
        Command::new(resolver())
            .arg(&file)
            .arg(root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let start = Instant::now();
    assert!(run(&world.path("first")).wait().unwrap().success());
    let whole = start.elapsed();
    for i in 0..16u32 {
        let mut process = run(&root);
        std::thread::sleep(whole * i / 16);
        process.kill().unwrap();
        process.wait().unwrap();
        let store = ImageStore::open(&root).unwrap();
        world.assert_clean();
        // What has appeared is whole.
        for layer in fs::read_dir(root.join("layers")).unwrap() {
            let layer = layer.unwrap().path();
            if layer.is_dir() {
                assert_eq!(fs::read_dir(&layer).unwrap().count(), 300);
            }
        }
        if i % 2 == 0 {
            fs::remove_dir_all(root.join("refs")).unwrap();
            fs::create_dir(root.join("refs")).unwrap();
            store.gc().unwrap();
            assert_eq!(count(&store, "layers") + count(&store, "blobs/sha256"), 0);
        }
    }
    assert_eq!(world.resolve(&file).unwrap().layers.len(), 3);
}

#[test]
fn a_store_of_another_user_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    ImageStore::open(&root).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&root, Some(1000), Some(1000)).unwrap();
        let error = ImageStore::open(&root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.message().contains("1000"), "{error}");
    }
}
