//! What breaks between the storage and the service, and what must hold all the same: nothing partial is visible, nothing
//! is left behind, and what was acknowledged is there and whole.

#![cfg(feature = "s3")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use agents_core::{
    ArtifactInfo, ArtifactName, Body, ErrorKind, Result, RetrieveRequest, SessionId, StorageBackend, StorageBackendExt,
    StoreRequest,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use support::{
    bucket::Bucket,
    proxy::{Fault, Proxy, forward, is_part, is_put},
    servers::{Server, prefix},
};

/// Two whole parts and some more.
const LARGE: usize = (20 << 20) + 7;

struct Fixture {
    proxy: Proxy,
    storage: Arc<dyn StorageBackend>,
    bucket: Bucket,
    prefix: String,
    session: SessionId,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(json!({})).await
    }

    /// Storage in versitygw behind a proxy, with quick retries and some other fields.
    async fn with(more: Value) -> Self {
        let proxy = Proxy::before(&Server::Versitygw.endpoint().unwrap()).await;
        let prefix = prefix();
        let mut config = json!({
            "endpoint": proxy.url,
            "prefix": prefix,
            "retry": { "max_retries": 3, "initial_backoff_ms": 10, "max_backoff_seconds": 1, "max_elapsed_seconds": 20 },
        });
        if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
            config.extend(more);
        }
        Self {
            storage: Server::Versitygw.storage(config).await.unwrap(),
            bucket: Bucket::new(),
            session: SessionId::new("s1").unwrap(),
            proxy,
            prefix,
        }
    }

    async fn put(&self, name: &str, size: usize) -> Result<ArtifactInfo> {
        let request = StoreRequest::new(self.session.clone(), ArtifactName::new(name).unwrap(), body(size));
        self.storage.store(request).await
    }

    async fn is_whole(&self, info: &ArtifactInfo) -> bool {
        let read = self.storage.retrieve_bytes(&info.uri, 64 << 20).await.unwrap();
        read == content(info.size as usize)
    }

    /// Nothing is visible, and nothing is left.
    async fn assert_nothing(&self) {
        assert_eq!(self.storage.list_all(&self.session).await.unwrap(), []);
        assert_eq!(self.bucket.keys(&self.prefix).await, Vec::<String>::new());
        assert_eq!(self.bucket.unfinished(&self.prefix).await, Vec::<String>::new());
    }

    /// The same, a little later.
    async fn assert_nothing_soon(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let left = self.bucket.keys(&self.prefix).await.len() + self.bucket.unfinished(&self.prefix).await.len();
            if left == 0 {
                return self.assert_nothing().await;
            }
            assert!(Instant::now() < end, "{left} objects and uploads are left");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn content(size: usize) -> Bytes {
    (0..size)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect::<Vec<_>>()
        .into()
}

/// A stream, which can be sent once.
fn body(size: usize) -> Body {
    let content = content(size);
    let chunks: Vec<_> = (0..size)
        .step_by(1 << 16)
        .map(|at| Ok(content.slice(at..size.min(at + (1 << 16)))))
        .collect();
    Body::from_stream(stream::iter(chunks).boxed(), Some(size as u64))
}

fn answer(status: u16, code: &str) -> Fault {
    let text = format!("<Error><Code>{code}</Code><Message>On purpose.</Message></Error>");
    Fault::Answer(status, Vec::new(), text)
}

/// Whether a request makes a manifest or a small artifact: the last step of storing.
fn is_version(parts: &http::request::Parts) -> bool {
    is_put(parts, false)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_cut_or_refused_is_sent_again() {
    for faults in [
        vec![Fault::CutRequest(3 << 20)],
        vec![Fault::CutRequest(0), Fault::CutRequest(1 << 20)],
        vec![Fault::LoseAnswer],
        vec![answer(500, "InternalError"), answer(503, "SlowDown")],
        vec![answer(400, "ExpiredToken")],
        vec![Fault::Delay(Duration::from_millis(300))],
    ] {
        let fixture = Fixture::new().await;
        fixture.proxy.script(is_part, &faults);
        let stored = fixture.put("large", LARGE).await;
        let stored = stored.unwrap_or_else(|error| panic!("{faults:?}: {}", error.report()));
        assert!(fixture.is_whole(&stored).await, "{faults:?}");
        assert_eq!(fixture.storage.list_all(&fixture.session).await.unwrap(), [stored]);
        assert_eq!(fixture.bucket.unfinished(&fixture.prefix).await, Vec::<String>::new());
        assert_eq!(
            fixture.bucket.keys(&fixture.prefix).await.len(),
            2,
            "a content and its manifest, and no note"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_asks_to_wait_is_given_the_time() {
    for (name, size) in [("small", 10), ("large", LARGE)] {
        let fixture = Fixture::new().await;
        let busy = Fault::Answer(
            503,
            vec![("retry-after", "2".to_owned())],
            "<Error><Code>SlowDown</Code></Error>".to_owned(),
        );
        fixture
            .proxy
            .script(|parts| is_part(parts) || is_version(parts), &[busy]);
        let start = Instant::now();
        let stored = fixture.put(name, size).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(fixture.is_whole(&stored).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_leaves_nothing() {
    type Matches = fn(&http::request::Parts) -> bool;
    let part: Matches = is_part;
    let version: Matches = is_version;
    let begin: Matches = |parts| parts.uri.query().is_some_and(|query| query.starts_with("uploads"));
    let complete: Matches =
        |parts| parts.method == "POST" && parts.uri.query().is_some_and(|query| query.contains("uploadId"));
    for (matches, fault, kind) in [
        (part, answer(500, "InternalError"), ErrorKind::Unavailable),
        (part, answer(503, "SlowDown"), ErrorKind::RateLimited),
        (part, answer(403, "AccessDenied"), ErrorKind::PermissionDenied),
        (part, answer(400, "ExpiredToken"), ErrorKind::Unauthenticated),
        (part, answer(403, "RequestTimeTooSkewed"), ErrorKind::Unauthenticated),
        (part, answer(507, "XMinioStorageFull"), ErrorKind::ResourceExhausted),
        (part, Fault::CutRequest(1 << 20), ErrorKind::Unavailable),
        (begin, answer(403, "AccessDenied"), ErrorKind::PermissionDenied),
        (begin, Fault::LoseAnswer, ErrorKind::Unavailable),
        (complete, answer(403, "AccessDenied"), ErrorKind::PermissionDenied),
        (version, answer(403, "AccessDenied"), ErrorKind::PermissionDenied),
        (version, answer(500, "InternalError"), ErrorKind::Unavailable),
    ] {
        let fixture = Fixture::new().await;
        let told = format!("{fault:?}");
        let always = fault.clone();
        fixture.proxy.set(move |parts| match matches(parts) {
            true => always.clone(),
            false => Fault::None,
        });
        let error = fixture.put("large", LARGE).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{told}: {}", error.report());
        fixture.proxy.set(|_| Fault::None);
        fixture.assert_nothing_soon().await;
        assert_eq!(fixture.put("large", 10).await.unwrap().version, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_store_that_fails_leaves_nothing() {
    let fixture = Fixture::new().await;
    for (fault, kind) in [
        (answer(500, "InternalError"), ErrorKind::Unavailable),
        (Fault::CutRequest(0), ErrorKind::Unavailable),
        (answer(403, "SignatureDoesNotMatch"), ErrorKind::Unauthenticated),
        (answer(400, "XAmzContentSHA256Mismatch"), ErrorKind::DataInvalid),
    ] {
        let always = fault.clone();
        fixture.proxy.set(move |parts| match is_version(parts) {
            true => always.clone(),
            false => Fault::None,
        });
        let error = fixture.put("small", 10).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}: {}", error.report());
        fixture.proxy.set(|_| Fault::None);
        fixture.assert_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_makes_no_second_version() {
    for size in [10, LARGE] {
        let fixture = Fixture::new().await;
        fixture.proxy.script(is_version, &[Fault::LoseAnswer]);
        let stored = fixture.put("a", size).await.unwrap();
        assert_eq!(stored.version, 1);
        assert_eq!(fixture.storage.list_all(&fixture.session).await.unwrap(), [stored]);
    }
    // That of completing the parts.
    let fixture = Fixture::new().await;
    let complete = |parts: &http::request::Parts| {
        parts.method == "POST" && parts.uri.query().is_some_and(|query| query.contains("uploadId"))
    };
    fixture.proxy.script(complete, &[Fault::LoseAnswer]);
    let stored = fixture.put("a", LARGE).await.unwrap();
    assert!(fixture.is_whole(&stored).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_hangs_is_given_up_on() {
    let fixture = Fixture::with(json!({
        "timeout_seconds": 1,
        "retry": { "max_retries": 1, "initial_backoff_ms": 10, "max_backoff_seconds": 1, "max_elapsed_seconds": 5 },
    }))
    .await;
    for size in [10, LARGE] {
        fixture.proxy.set(|parts| match is_part(parts) || is_version(parts) {
            true => Fault::Hang,
            false => Fault::None,
        });
        let start = Instant::now();
        let error = fixture.put("a", size).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{}", error.report());
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        fixture.proxy.set(|_| Fault::None);
        fixture.assert_nothing_soon().await;
    }
    // And while reading.
    let stored = fixture.put("a", 10).await.unwrap();
    fixture.proxy.set(|_| Fault::Hang);
    let error = fixture
        .storage
        .retrieve(RetrieveRequest::new(stored.uri))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_that_changes_on_its_way_back_is_told() {
    let fixture = Fixture::new().await;
    for size in [10, LARGE] {
        let stored = fixture.put("a", size).await.unwrap();
        // The content itself, then what says where it is.
        let is_content = move |parts: &http::request::Parts| {
            let path = parts.uri.path();
            parts.method == "GET" && parts.uri.query().is_none() && (size == 10 || path.contains("/1."))
        };
        let is_manifest = |parts: &http::request::Parts| parts.method == "GET" && parts.uri.path().ends_with("/1/a");
        for matches in [
            Box::new(is_content) as Box<dyn Fn(&_) -> bool + Send + Sync>,
            Box::new(is_manifest),
        ] {
            fixture.proxy.set(move |parts| match matches(parts) {
                true => Fault::Corrupt,
                false => Fault::None,
            });
            let read = fixture.storage.retrieve_bytes(&stored.uri, 64 << 20).await;
            let error = read.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DataInvalid, "{}", error.report());
        }
        fixture.proxy.set(|_| Fault::None);
        assert!(fixture.is_whole(&stored).await);
        fixture
            .storage
            .delete(agents_core::DeleteRequest::new(fixture.session.clone()))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_that_changes_on_its_way_is_refused() {
    for checksum in ["crc64nvme", "sha256"] {
        let fixture = Fixture::with(json!({ "checksum": checksum })).await;
        for size in [10, LARGE] {
            fixture.proxy.set(|parts| match is_part(parts) || is_version(parts) {
                true => Fault::CorruptRequest,
                false => Fault::None,
            });
            let error = fixture.put("a", size).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DataInvalid, "{checksum}: {}", error.report());
            fixture.proxy.set(|_| Fault::None);
            fixture.assert_nothing_soon().await;
        }
        // And either works.
        let stored = fixture.put("a", LARGE).await.unwrap();
        assert!(fixture.is_whole(&stored).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_that_is_cut_on_its_way_back_is_continued() {
    let fixture = Fixture::new().await;
    for size in [1 << 20, LARGE] {
        let stored = fixture.put("a", size).await.unwrap();
        let cuts = [Fault::CutAnswer(100_000), Fault::CutAnswer(1)];
        fixture
            .proxy
            .script(|parts| parts.method == "GET" && parts.uri.query().is_none(), &cuts);
        assert!(fixture.is_whole(&stored).await, "{size}");
        fixture
            .storage
            .delete(agents_core::DeleteRequest::new(fixture.session.clone()))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_are_under_way_than_are_allowed() {
    let endpoint = Server::Versitygw.endpoint().unwrap();
    let authority = endpoint.strip_prefix("http://").unwrap().to_owned();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = (Arc::clone(&now), Arc::clone(&most));
    let proxy = Proxy::serving(Arc::new(move |parts, body| {
        let (authority, (now, most)) = (authority.clone(), counted.clone());
        Box::pin(async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            let answer = forward(&authority, parts, body).await;
            now.fetch_sub(1, Ordering::SeqCst);
            answer
        })
    }))
    .await;
    let config = json!({ "endpoint": proxy.url, "prefix": prefix(), "max_concurrency": 3 });
    let storage = Server::Versitygw.storage(config).await.unwrap();
    let session = SessionId::new("s1").unwrap();
    let stores = (0..12).map(|i| {
        let name = ArtifactName::new(format!("a{i}")).unwrap();
        storage.store_bytes(&session, name, "x".into())
    });
    futures_util::future::try_join_all(stores).await.unwrap();
    assert_eq!(storage.list_all(&session).await.unwrap().len(), 12);
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_store_removes_its_parts() {
    let fixture = Fixture::new().await;
    let begun = stream::iter([Ok(content(LARGE))]).chain(stream::pending());
    let body = Body::from_stream(begun.boxed(), None);
    let request = StoreRequest::new(fixture.session.clone(), ArtifactName::new("a").unwrap(), body);
    let store = fixture.storage.store(request);
    assert!(tokio::time::timeout(Duration::from_secs(2), store).await.is_err());
    let seen = fixture.proxy.seen();
    assert!(seen.iter().any(|line| line.contains("partNumber=1")), "{seen:?}");
    fixture.assert_nothing_soon().await;
    let seen = fixture.proxy.seen();
    assert!(
        seen.iter()
            .any(|line| line.starts_with("DELETE") && line.contains("uploadId=")),
        "{seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_ever_told() {
    let fixture = Fixture::new().await;
    let secret = support::servers::variable("AGENTS_TEST_VERSITYGW_SECRET");
    let debug = format!("{:?}", fixture.storage);
    assert!(!debug.contains(&secret), "{debug}");
    for fault in [
        answer(403, "SignatureDoesNotMatch"),
        Fault::CutRequest(0),
        answer(500, "X"),
    ] {
        let always = fault.clone();
        fixture.proxy.set(move |_| always.clone());
        let error = fixture.put("a", 10).await.unwrap_err();
        for told in [error.report(), format!("{error:?}")] {
            assert!(!told.contains(&secret) && !told.contains("Signature="), "{told}");
        }
    }
}
