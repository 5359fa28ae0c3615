//! What only the local store promises: its layout, other processes, crashes, links, damage and a full disk.

#![cfg(feature = "local")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agents_core::{
    ArtifactName, Body, BuildContext, DeleteRequest, ErrorKind, Factory, Result, RetrieveRequest, SecretBytes,
    SecretRef, SecretResolver, SessionId, StorageBackend, StorageBackendExt, StoreRequest,
};
use agents_storage_objectstore::{LocalConfig, LocalFactory, LocalStorage};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

/// Set in a child process: the base folder that it works on.
const CHILD_BASE: &str = "TEST_LOCAL_STORAGE_CHILD_BASE";

struct Fixture {
    dir: tempfile::TempDir,
    storage: Arc<dyn StorageBackend>,
    session: SessionId,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            storage: Arc::new(LocalStorage::new(dir.path().join("store")).unwrap()),
            session: SessionId::new("s1").unwrap(),
            dir,
        }
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    async fn put(&self, name: &str, content: &str) -> String {
        let content = Bytes::copy_from_slice(content.as_bytes());
        let stored = self.storage.store_bytes(&self.session, artifact(name), content).await;
        stored.unwrap().uri
    }

    fn uploads(&self) -> usize {
        fs::read_dir(self.base().join(".tmp")).map_or(0, Iterator::count)
    }
}

fn artifact(name: &str) -> ArtifactName {
    ArtifactName::new(name).unwrap()
}

fn path_of(uri: &str) -> &Path {
    Path::new(uri.strip_prefix("file://").unwrap())
}

/// Runs one test of this file in a child process, where it finds [`CHILD_BASE`].
fn child(test: &str, base: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD_BASE, base);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn child_base() -> Option<PathBuf> {
    std::env::var_os(CHILD_BASE).map(PathBuf::from)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come true in ten seconds");
}

#[tokio::test]
async fn a_uri_is_the_path_of_the_content_and_only_the_owner_may_read_it() {
    let fixture = Fixture::new();
    let uri = fixture.put("plots/report.csv", "a,b").await;
    let path = path_of(&uri);
    assert_eq!(path, fixture.base().join("s1/plots~1report.csv/1/report.csv"));
    assert_eq!(fs::read_to_string(path).unwrap(), "a,b");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path), 0o600);
    assert_eq!(mode(&path.with_file_name(".artifact.json")), 0o600);
    for dir in path.ancestors().skip(1).take(4) {
        assert_eq!(mode(dir), 0o700, "{}", dir.display());
    }
    assert_eq!(fixture.uploads(), 0);
}

#[tokio::test]
async fn artifacts_whose_names_are_awkward_live_side_by_side() {
    let fixture = Fixture::new();
    let long = ["x".repeat(250), "y".repeat(250), "z".repeat(250)].join("/");
    let names = [
        "a",
        "a/b",
        "a~1b",
        "A",
        ".artifact.json",
        "b/.artifact.json",
        ".lock",
        "späße.txt",
        long.as_str(),
    ];
    for name in names {
        let uri = fixture.put(name, name).await;
        assert_eq!(fixture.storage.retrieve_bytes(&uri, 1 << 20).await.unwrap(), name);
    }
    let mut expected = names.map(str::to_owned).to_vec();
    expected.sort_unstable();
    let listed = fixture.storage.list_all(&fixture.session).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|info| info.name.to_string()).collect();
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn a_planted_link_is_never_followed() {
    let fixture = Fixture::new();
    let outside = fixture.dir.path().join("outside");
    fs::create_dir_all(outside.join("x")).unwrap();
    fs::write(outside.join("x/secret"), "secret").unwrap();
    let base = fixture.base();

    let uri = fixture.put("file", "secret").await;
    fs::remove_file(path_of(&uri)).unwrap();
    symlink(outside.join("x/secret"), path_of(&uri)).unwrap();
    let read = |uri: String| async { fixture.storage.retrieve_bytes(&{ uri }, 100).await };
    assert_eq!(read(uri).await.unwrap_err().kind(), ErrorKind::DataInvalid);

    for (name, depth) in [("version", 1), ("folder", 2)] {
        let uri = fixture.put(name, "secret").await;
        let dir = path_of(&uri).ancestors().nth(depth).unwrap();
        let moved = outside.join(name);
        fs::rename(dir, &moved).unwrap();
        symlink(&moved, dir).unwrap();
        assert_eq!(
            read(uri.clone()).await.unwrap_err().kind(),
            ErrorKind::DataInvalid,
            "{name}"
        );
    }

    let session = SessionId::new("linked").unwrap();
    symlink(&outside, base.join("linked")).unwrap();
    let store = fixture.storage.store_bytes(&session, artifact("x"), "new".into()).await;
    assert_eq!(store.unwrap_err().kind(), ErrorKind::DataInvalid);
    assert!(fixture.storage.list_all(&session).await.is_err());
    fixture.storage.delete(DeleteRequest::new(session)).await.unwrap();
    assert!(!base.join("linked").is_symlink());
    fixture
        .storage
        .delete(DeleteRequest::new(fixture.session.clone()))
        .await
        .unwrap();
    assert_eq!(fs::read_to_string(outside.join("x/secret")).unwrap(), "secret");
    assert!(outside.join("folder/1/folder").exists());

    fs::remove_dir_all(base.join(".tmp")).unwrap();
    symlink(&outside, base.join(".tmp")).unwrap();
    let store = fixture
        .storage
        .store_bytes(&fixture.session, artifact("x"), "new".into())
        .await;
    assert_eq!(store.unwrap_err().kind(), ErrorKind::DataInvalid);
    assert!(fixture.storage.reap().await.is_err());
}

#[tokio::test]
async fn damage_is_told_before_the_end() {
    let fixture = Fixture::new();
    let content = vec![7u8; 3 << 20];
    let stored = fixture
        .storage
        .store_bytes(&fixture.session, artifact("a"), content.clone().into())
        .await
        .unwrap();
    let path = path_of(&stored.uri);
    let mut damaged = content.clone();
    damaged[5] ^= 1;
    fs::write(path, &damaged).unwrap();
    let retrieved = fixture
        .storage
        .retrieve(RetrieveRequest::new(&stored.uri))
        .await
        .unwrap();
    let chunks: Vec<_> = retrieved.content.collect().await;
    let received: usize = chunks.iter().flatten().map(Bytes::len).sum();
    assert!(
        received < content.len(),
        "the last bytes must be held back until the hash is known"
    );
    let error = chunks.into_iter().next_back().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataInvalid);

    fs::write(path, &content[1..]).unwrap();
    let error = fixture
        .storage
        .retrieve(RetrieveRequest::new(&stored.uri))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataInvalid);

    fs::write(path.with_file_name(".artifact.json"), "{").unwrap();
    let error = fixture
        .storage
        .retrieve(RetrieveRequest::new(&stored.uri))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataInvalid);
    fixture.put("b", "fine").await;
    let listed: Vec<_> = fixture.storage.list(&fixture.session).collect().await;
    assert!(matches!(&listed[..], [Err(_), Ok(fine)] if fine.name.as_str() == "b"));
}

#[tokio::test]
async fn a_version_without_its_content_is_absent() {
    let fixture = Fixture::new();
    let uri = fixture.put("a", "one").await;
    fs::remove_file(path_of(&uri)).unwrap();
    assert!(fixture.storage.list_all(&fixture.session).await.unwrap().is_empty());
    let error = fixture.storage.retrieve(RetrieveRequest::new(uri)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

fn endless() -> Body {
    let chunk = Bytes::from(vec![1u8; 1 << 16]);
    let chunks = stream::unfold(chunk, |chunk| async move {
        tokio::time::sleep(Duration::from_micros(200)).await;
        Some((Ok(chunk.clone()), chunk))
    });
    Body::from_stream(chunks.boxed(), None)
}

#[tokio::test]
async fn a_killed_writer_leaves_nothing_visible_and_is_reaped() {
    if let Some(base) = child_base() {
        let storage = LocalStorage::new(base).unwrap();
        let request = StoreRequest::new(SessionId::new("s1").unwrap(), artifact("a"), endless());
        storage.store(request).await.unwrap();
    }
    let fixture = Fixture::new();
    let mut writer = child("a_killed_writer_leaves_nothing_visible_and_is_reaped", &fixture.base())
        .spawn()
        .unwrap();
    let content = || {
        let upload = fs::read_dir(fixture.base().join(".tmp")).ok()?.next()?.ok()?.path();
        Some(fs::metadata(upload.join("a")).ok()?.len())
    };
    until("the upload", || content().is_some_and(|size| size > 4 << 20)).await;
    assert_eq!(
        fixture.storage.reap().await.unwrap(),
        Vec::<String>::new(),
        "the writer lives"
    );
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert!(fixture.storage.list_all(&fixture.session).await.unwrap().is_empty());
    let reaped = fixture.storage.reap().await.unwrap();
    assert_eq!(reaped.len(), 1);
    assert!(reaped[0].starts_with(fixture.base().join(".tmp/t-").to_str().unwrap()));
    assert_eq!(fixture.uploads(), 0);
    let stored = fixture
        .storage
        .store_bytes(&fixture.session, artifact("a"), "x".into())
        .await;
    assert_eq!(stored.unwrap().version, 1);
}

#[tokio::test]
async fn an_interrupted_deletion_is_reaped() {
    let fixture = Fixture::new();
    fixture.put("a", "x").await;
    let trash = fixture.base().join(".tmp/d-1");
    fs::rename(fixture.base().join("s1/a"), &trash).unwrap();
    assert_eq!(fixture.storage.reap().await.unwrap(), [trash.display().to_string()]);
    assert!(!trash.exists());
}

const WRITES: u64 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_of_one_name_in_many_processes_number_without_gaps() {
    if let Some(base) = child_base() {
        let storage: Arc<dyn StorageBackend> = Arc::new(LocalStorage::new(base).unwrap());
        let writers = (0..WRITES).map(|_| {
            let storage = Arc::clone(&storage);
            tokio::spawn(async move {
                let content = format!("{}", std::process::id());
                let session = SessionId::new("s1").unwrap();
                storage
                    .store_bytes(&session, artifact("a/b"), content.into())
                    .await
                    .unwrap();
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        return;
    }
    let fixture = Fixture::new();
    let test = "writers_of_one_name_in_many_processes_number_without_gaps";
    let children: Vec<_> = (0..16).map(|_| child(test, &fixture.base()).spawn().unwrap()).collect();
    // Deleting another artifact of the session meanwhile must not disturb them.
    for _ in 0..20 {
        fixture.put("other", "x").await;
        let gone = DeleteRequest::new(fixture.session.clone()).with_name(Some(artifact("other")));
        assert_eq!(fixture.storage.delete(gone).await.unwrap().len(), 1);
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let listed = fixture.storage.list_all(&fixture.session).await.unwrap();
    let versions: Vec<_> = listed.iter().map(|info| info.version).collect();
    assert_eq!(versions, (1..=16 * WRITES).collect::<Vec<_>>());
    assert_eq!(fixture.uploads(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_stored_while_others_delete_is_either_there_or_said_to_be_gone() {
    let fixture = Fixture::new();
    let storage = Arc::clone(&fixture.storage);
    let session = fixture.session.clone();
    let deleter = tokio::spawn(async move {
        let mut gone = 0;
        for _ in 0..60 {
            gone += storage.delete(DeleteRequest::new(session.clone())).await.unwrap().len();
        }
        gone
    });
    for _ in 0..60 {
        fixture.put("a", "x").await;
    }
    let gone = deleter.await.unwrap();
    let there = fixture.storage.list_all(&fixture.session).await.unwrap();
    assert_eq!(gone + there.len(), 60);
    let versions: Vec<_> = there.iter().map(|info| info.version).collect();
    assert_eq!(versions, (1..=there.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_dropped_store_leaves_nothing() {
    let fixture = Fixture::new();
    let request = StoreRequest::new(fixture.session.clone(), artifact("a"), endless());
    let store = fixture.storage.store(request);
    assert!(tokio::time::timeout(Duration::from_millis(300), store).await.is_err());
    until("the removal", || fixture.uploads() == 0).await;
    assert!(fixture.storage.list_all(&fixture.session).await.unwrap().is_empty());
    assert_eq!(fixture.storage.reap().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_full_disk_is_resource_exhausted_and_leaves_nothing() {
    if let Some(base) = child_base() {
        let storage: Arc<dyn StorageBackend> = Arc::new(LocalStorage::new(&base).unwrap());
        let session = SessionId::new("s1").unwrap();
        let store = storage
            .store_bytes(&session, artifact("a"), vec![1; 4 << 20].into())
            .await;
        assert_eq!(store.unwrap_err().kind(), ErrorKind::ResourceExhausted);
        assert!(storage.list_all(&session).await.unwrap().is_empty());
        assert_eq!(fs::read_dir(base.join(".tmp")).unwrap().count(), 0);
        storage
            .store_bytes(&session, artifact("a"), "fits".into())
            .await
            .unwrap();
        return;
    }
    let fixture = Fixture::new();
    fs::create_dir(fixture.base()).unwrap();
    let script = "mount -t tmpfs -o size=2m none \"$0\" || exit 77; exec \"$@\"";
    let inner = child("a_full_disk_is_resource_exhausted_and_leaves_nothing", &fixture.base());
    let status = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(fixture.base())
        .arg(inner.get_program())
        .args(inner.get_args())
        .env(CHILD_BASE, fixture.base())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let code = status.unwrap().code();
    assert_ne!(
        code,
        Some(77),
        "a small file system is mounted in namespaces of its own, which this machine denies"
    );
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn memory_does_not_grow_with_the_content() {
    struct Counted(Vec<u8>, Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(self.0.len(), Ordering::SeqCst);
        }
    }
    let fixture = Fixture::new();
    let (alive, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counter, highest) = (Arc::clone(&alive), Arc::clone(&peak));
    let chunks = stream::iter(0..1024).map(move |i: u32| {
        let chunk = vec![i as u8; 64 << 10];
        let now = counter.fetch_add(chunk.len(), Ordering::SeqCst) + chunk.len();
        highest.fetch_max(now, Ordering::SeqCst);
        Ok(Bytes::from_owner(Counted(chunk, Arc::clone(&counter))))
    });
    let body = Body::from_stream(chunks.boxed(), Some(64 << 20));
    let request = StoreRequest::new(fixture.session.clone(), artifact("big"), body);
    let stored = fixture.storage.store(request).await.unwrap();
    assert_eq!(stored.size, 64 << 20);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    assert!(
        peak.load(Ordering::SeqCst) <= 3 << 20,
        "{} bytes in memory",
        peak.load(Ordering::SeqCst)
    );
    let mut retrieved = fixture
        .storage
        .retrieve(RetrieveRequest::new(stored.uri))
        .await
        .unwrap();
    let mut size = 0;
    while let Some(chunk) = retrieved.content.try_next().await.unwrap() {
        assert!(chunk.len() <= 1 << 20);
        size += chunk.len();
    }
    assert_eq!(size, 64 << 20);
}

#[tokio::test]
async fn a_missing_folder_is_made_only_when_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("x/y");
    let storage: Arc<dyn StorageBackend> = Arc::new(LocalStorage::new(&base).unwrap().with_create_dirs(false));
    let session = SessionId::generate();
    let availability = storage.check_availability().await.unwrap();
    assert!(!availability.available);
    assert!(availability.problems[0].remedy.contains("create_dirs"));
    let error = storage
        .store_bytes(&session, artifact("a"), "x".into())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(storage.list_all(&session).await.unwrap().is_empty());
    assert!(storage.delete(DeleteRequest::new(session)).await.unwrap().is_empty());
    assert!(storage.reap().await.unwrap().is_empty());
    assert!(!base.exists());

    let storage = LocalStorage::new(&base).unwrap();
    assert!(storage.check_availability().await.unwrap().available);
    assert_eq!(fs::metadata(&base).unwrap().permissions().mode() & 0o777, 0o700);
}

#[derive(Debug)]
struct NoSecrets;

#[async_trait::async_trait]
impl SecretResolver for NoSecrets {
    async fn resolve(&self, reference: &SecretRef) -> Result<SecretBytes> {
        panic!("{reference:?} was not asked for")
    }
}

#[tokio::test]
async fn the_factory_takes_the_state_folder_and_refuses_bad_paths() {
    assert_eq!(LocalFactory::TYPE, "local");
    let context = BuildContext::new("/state", "/data", Arc::new(NoSecrets));
    let built = LocalFactory::build(LocalConfig::default(), &context).await.unwrap();
    assert_eq!(built.info().name, "/state/storage");
    let config = |json: &str| serde_json::from_str::<LocalConfig>(json);
    assert!(config(r#"{"base_pth": "/x"}"#).is_err());
    for bad in [r#"{"base_path": ""}"#, r#"{"base_path": "/a/../b"}"#] {
        let error = LocalFactory::validate(&config(bad).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(error.message().contains("base_path"));
    }
}
