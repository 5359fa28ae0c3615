//! What every [`StorageBackend`] must do.

use std::{any::Any, collections::BTreeMap, fmt, ops::Range, sync::Arc, time::Duration};

use agents_core::{
    ArtifactInfo, ArtifactName, Body, DeleteRequest, Error, ErrorKind, PresignPutRequest, RetrieveRequest, SessionId,
    StorageBackend, StorageBackendExt, StoreRequest,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

use crate::{
    Case, CaseResult, Fixture,
    case::{cases, failed, skipped},
    sha256_hex,
};

/// A backend to judge.
pub struct StorageFixture {
    /// The backend. Cases use sessions of their own, so it may be shared.
    pub storage: Arc<dyn StorageBackend>,
    other: Option<Arc<dyn StorageBackend>>,
    kept: Vec<Box<dyn Any + Send + Sync>>,
}

impl StorageFixture {
    /// Judges a backend.
    pub fn new(storage: Arc<dyn StorageBackend>) -> Self {
        Self {
            storage,
            other: None,
            kept: Vec::new(),
        }
    }

    /// Gives a second backend of the same type in another place, whose URIs the first must refuse.
    #[must_use]
    pub fn with_other(mut self, other: Arc<dyn StorageBackend>) -> Self {
        self.other = Some(other);
        self
    }

    /// Keeps something, such as a temporary folder, until the case has ended.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self.kept.push(Box::new(kept));
        self
    }

    async fn put(
        &self,
        session: &SessionId,
        name: &str,
        content: impl Into<Bytes>,
    ) -> agents_core::Result<ArtifactInfo> {
        self.storage
            .store_bytes(session, ArtifactName::new(name)?, content.into())
            .await
    }
}

impl fmt::Debug for StorageFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorageFixture({:?}, {} kept)", self.storage, self.kept.len())
    }
}

#[async_trait]
impl Fixture for StorageFixture {}

/// A name that somebody may give to an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameCase {
    /// The name.
    pub name: String,
    /// Whether it must work; otherwise it must be refused before any I/O.
    pub valid: bool,
}

/// Names that go wrong easily, each with what must become of it.
pub fn names() -> Vec<NameCase> {
    let good = [
        "a",
        "A",
        "a/b",
        "a/b/c.txt",
        ".env",
        "...",
        "a..b",
        "-rf",
        "~",
        "~1",
        "~root",
        "a b",
        " ",
        "späße/ü.txt",
        "日本語",
        "🦀",
        "%2e%2e",
        "100%",
        "a?b#c&d=e",
        "a+b",
        "'\"$(x)`",
        "a:b",
        "*",
        "con",
        "nul.txt",
        "index.json",
        ".artifact.json",
        ".tmp",
        "1",
        "a.",
    ];
    let bad = [
        "",
        "/",
        "/etc/passwd",
        ".",
        "..",
        "../a",
        "a/..",
        "a/../b",
        "./a",
        "a/.",
        "a//b",
        "a/",
        "a\0b",
        "a\nb",
        "a\rb",
        "\u{1b}[2J",
        "\u{7f}",
        "a\\b",
        "..\\a",
        "C:\\a",
    ];
    let long = [
        ("x".repeat(255), true),
        ("ü".repeat(127), true),
        (["y".repeat(255), "z".repeat(255), "x".repeat(255)].join("/"), true),
        (vec!["a"; 450].join("/"), true),
        ("x".repeat(256), false),
        (
            ["x".repeat(255), "y".repeat(255), "z".repeat(255), "a".repeat(200)].join("/"),
            false,
        ),
    ];
    let case = |valid: bool| {
        move |name: &str| NameCase {
            name: name.to_owned(),
            valid,
        }
    };
    let mut names: Vec<_> = good.into_iter().map(case(true)).collect();
    names.extend(bad.into_iter().map(case(false)));
    names.extend(long.into_iter().map(|(name, valid)| NameCase { name, valid }));
    names
}

/// All cases.
pub fn cases() -> Vec<Case<StorageFixture>> {
    cases![
        identity_and_availability,
        round_trip,
        an_empty_artifact,
        a_large_streamed_artifact,
        storing_again_makes_a_new_version,
        concurrent_writers_get_versions_without_gaps,
        list_is_ordered_and_complete,
        a_session_without_artifacts_is_empty,
        other_sessions_are_not_seen,
        names_are_kept_or_refused,
        ranges,
        ranges_beyond_the_end_are_refused,
        metadata_round_trip,
        metadata_that_cannot_be_kept_is_refused,
        a_wrong_announced_size_is_refused,
        a_failed_stream_leaves_nothing,
        a_dropped_store_leaves_nothing,
        delete_says_what_is_gone_and_is_idempotent,
        what_is_gone_is_not_found,
        foreign_uris_are_refused,
        presign_as_declared,
        presigned_puts_as_declared,
        sessions_as_declared,
        reap_leaves_artifacts_alone,
    ]
}

type Fx = Arc<StorageFixture>;

fn kind_of<T>(result: agents_core::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

async fn read(fx: &Fx, uri: &str, range: Option<Range<u64>>) -> agents_core::Result<Vec<u8>> {
    let retrieved = fx.storage.retrieve(RetrieveRequest::new(uri).with_range(range)).await?;
    let chunks: Vec<Bytes> = retrieved.content.try_collect().await?;
    Ok(chunks.concat())
}

async fn identity_and_availability(fx: Fx) -> CaseResult {
    let info = fx.storage.info();
    assert!(info.adapter_type.starts_with(|c: char| c.is_ascii_lowercase()));
    assert!(!info.name.is_empty() && !info.version.is_empty());
    assert_eq!(fx.storage.info(), info, "info must not change");
    let availability = fx.storage.check_availability().await?;
    assert!(availability.available, "{availability:?}");
    Ok(())
}

async fn round_trip(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let before = Timestamp::now();
    let content: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let stored = fx.put(&session, "dir/report.bin", content.clone()).await?;
    assert_eq!(stored.session_id, session);
    assert_eq!(stored.name.as_str(), "dir/report.bin");
    assert_eq!((stored.version, stored.size), (1, 10_000));
    assert_eq!(stored.sha256, sha256_hex(&content));
    // The clock may be another machine's.
    let slack = jiff::SignedDuration::from_mins(10);
    assert!(stored.created_at > before - slack && stored.created_at < Timestamp::now() + slack);
    assert_eq!(read(&fx, &stored.uri, None).await?, content);
    let retrieved = fx.storage.retrieve(RetrieveRequest::new(&stored.uri)).await?;
    assert_eq!(retrieved.info, stored, "retrieve and store must say the same");
    assert_eq!(
        fx.storage.list_all(&session).await?,
        [stored],
        "list and store must say the same"
    );
    Ok(())
}

async fn an_empty_artifact(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let stored = fx.put(&session, "empty", Bytes::new()).await?;
    assert_eq!((stored.size, stored.version), (0, 1));
    assert_eq!(stored.sha256, sha256_hex(b""));
    assert_eq!(read(&fx, &stored.uri, None).await?, b"");
    assert_eq!(fx.storage.list_all(&session).await?.len(), 1);
    let nothing = stream::empty().boxed();
    let streamed = StoreRequest::new(session, ArtifactName::new("empty")?, Body::from_stream(nothing, None));
    assert_eq!(fx.storage.store(streamed).await?.version, 2);
    Ok(())
}

async fn a_large_streamed_artifact(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let content: Vec<u8> = (0..(8 << 20) + 1_u32)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect();
    for size in [None, Some(content.len() as u64)] {
        let chunks: Vec<_> = content.chunks(65_521).map(Bytes::copy_from_slice).map(Ok).collect();
        let body = Body::from_stream(stream::iter(chunks).boxed(), size);
        let request = StoreRequest::new(session.clone(), ArtifactName::new("large")?, body);
        let stored = fx.storage.store(request).await?;
        assert_eq!(stored.size, content.len() as u64);
        assert_eq!(stored.sha256, sha256_hex(&content));
        assert!(read(&fx, &stored.uri, None).await? == content, "the content differs");
    }
    fx.storage.delete(DeleteRequest::new(session)).await?;
    Ok(())
}

async fn storing_again_makes_a_new_version(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let mut uris = Vec::new();
    for version in 1..=3_u64 {
        let stored = fx.put(&session, "a", format!("content {version}")).await?;
        assert_eq!(stored.version, version);
        uris.push(stored.uri);
    }
    for (i, uri) in uris.iter().enumerate() {
        let content = read(&fx, uri, None).await?;
        assert_eq!(
            content,
            format!("content {}", i + 1).as_bytes(),
            "an earlier version changed"
        );
    }
    assert_eq!(fx.storage.list_all(&session).await?.len(), 3);
    Ok(())
}

async fn concurrent_writers_get_versions_without_gaps(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let writers: Vec<_> = (0..16)
        .map(|i| {
            let (fx, session) = (Arc::clone(&fx), session.clone());
            tokio::spawn(async move {
                let content = format!("writer {i}");
                let stored = fx.put(&session, "shared", content.clone()).await?;
                Ok::<_, Error>((stored, content))
            })
        })
        .collect();
    let mut stored = Vec::new();
    for writer in writers {
        match writer.await {
            Ok(result) => stored.push(result?),
            Err(error) => return failed(error.to_string()),
        }
    }
    stored.sort_by_key(|(info, _)| info.version);
    let versions: Vec<_> = stored.iter().map(|(info, _)| info.version).collect();
    assert_eq!(versions, (1..=16).collect::<Vec<_>>());
    for (info, content) in &stored {
        assert_eq!(read(&fx, &info.uri, None).await?, content.as_bytes());
    }
    let listed = fx.storage.list_all(&session).await?;
    assert_eq!(listed, stored.into_iter().map(|(info, _)| info).collect::<Vec<_>>());
    Ok(())
}

async fn list_is_ordered_and_complete(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let mut expected = Vec::new();
    // Not in order, with names that a path-wise order would sort differently: "n" < "n-1" < "n/1".
    for i in (0..45).rev() {
        for name in [format!("n/{i}"), format!("n-{i}"), format!("N{i}")] {
            fx.put(&session, &name, "x").await?;
            expected.push((name, 1));
        }
    }
    fx.put(&session, "n", "x").await?;
    fx.put(&session, "n/3", "x").await?;
    expected.extend([("n".to_owned(), 1), ("n/3".to_owned(), 2)]);
    expected.sort_unstable();
    let listed = fx.storage.list_all(&session).await?;
    let listed: Vec<_> = listed
        .iter()
        .map(|info| (info.name.to_string(), info.version))
        .collect();
    assert_eq!(listed, expected);
    let first: Vec<_> = fx.storage.list(&session).take(2).collect().await;
    assert_eq!(first.len(), 2, "a list that is not read to its end must do no harm");
    let gone = fx.storage.delete(DeleteRequest::new(session)).await?;
    assert_eq!(gone.len(), expected.len());
    Ok(())
}

async fn a_session_without_artifacts_is_empty(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    assert_eq!(fx.storage.list_all(&session).await?, []);
    assert_eq!(fx.storage.delete(DeleteRequest::new(session)).await?, []);
    Ok(())
}

async fn other_sessions_are_not_seen(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    // A name that begins with the other's must not be taken for it.
    let other = SessionId::new(format!("{session}0"))?;
    let stored = fx.put(&other, "a", "other").await?;
    assert_eq!(fx.storage.list_all(&session).await?, []);
    fx.put(&session, "a", "ours").await?;
    assert_eq!(fx.storage.delete(DeleteRequest::new(session)).await?.len(), 1);
    assert_eq!(fx.storage.list_all(&other).await?, [stored]);
    Ok(())
}

async fn names_are_kept_or_refused(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let mut expected = Vec::new();
    for NameCase { name, valid } in names() {
        if !valid {
            assert_eq!(
                kind_of(ArtifactName::new(name.as_str())),
                Some(ErrorKind::ConfigInvalid),
                "{name:?}"
            );
            continue;
        }
        let stored = match fx.put(&session, &name, name.clone()).await {
            Ok(stored) => stored,
            Err(error) => return failed(format!("{name:?} was refused: {}", error.report())),
        };
        assert_eq!(
            (stored.name.as_str(), stored.version),
            (name.as_str(), 1),
            "names are mixed up"
        );
        expected.push(stored);
    }
    for stored in &expected {
        assert_eq!(read(&fx, &stored.uri, None).await?, stored.name.as_str().as_bytes());
    }
    expected.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(fx.storage.list_all(&session).await?, expected);
    Ok(())
}

async fn ranges(fx: Fx) -> CaseResult {
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let stored = fx.put(&SessionId::generate(), "a", content.clone()).await?;
    let end = content.len() as u64;
    for range in [
        0..1,
        0..end,
        1..end,
        end - 1..end,
        5..5,
        end..end,
        1_000_000..2_500_000,
        1_048_575..1_048_577,
    ] {
        let part = read(&fx, &stored.uri, Some(range.clone())).await?;
        let expected = &content[range.start as usize..range.end as usize];
        assert!(part == expected, "{range:?} gives something else");
        let request = RetrieveRequest::new(&stored.uri).with_range(Some(range));
        assert_eq!(
            fx.storage.retrieve(request).await?.info,
            stored,
            "the info is that of the whole"
        );
    }
    Ok(())
}

async fn ranges_beyond_the_end_are_refused(fx: Fx) -> CaseResult {
    let stored = fx.put(&SessionId::generate(), "a", "seven b").await?;
    for range in [0..8, 7..8, 8..8, 0..u64::MAX, Range { start: 3, end: 2 }] {
        let got = read(&fx, &stored.uri, Some(range.clone())).await;
        assert_eq!(kind_of(got), Some(ErrorKind::ConfigInvalid), "{range:?}");
    }
    Ok(())
}

async fn metadata_round_trip(fx: Fx) -> CaseResult {
    let metadata: BTreeMap<_, _> = [
        ("key", "value"),
        (
            "with-dash_and_0",
            "  spaces, \"quotes\", ~tilde: %41 = é?".trim_end_matches("é?"),
        ),
        ("empty", ""),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let content_type = Some("text/csv; charset=utf-8".to_owned());
    let name = ArtifactName::new("a")?;
    let request = StoreRequest::new(SessionId::generate(), name, Bytes::from_static(b"x").into())
        .with_content_type(content_type.clone())
        .with_metadata(metadata.clone());
    let stored = fx.storage.store(request).await?;
    let retrieved = fx.storage.retrieve(RetrieveRequest::new(&stored.uri)).await?.info;
    let listed = fx.storage.list_all(&stored.session_id).await?.remove(0);
    for info in [&stored, &retrieved, &listed] {
        assert_eq!((&info.metadata, &info.content_type), (&metadata, &content_type));
    }
    Ok(())
}

async fn metadata_that_cannot_be_kept_is_refused(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let long = "x".repeat(2048);
    for (key, value) in [
        ("Upper", "x"),
        ("", "x"),
        ("a b", "x"),
        ("ü", "x"),
        ("k", "ü"),
        ("k", "a\nb"),
        ("k", &long),
    ] {
        let body = Bytes::from_static(b"x").into();
        let request = StoreRequest::new(session.clone(), ArtifactName::new("a")?, body)
            .with_metadata([(key.to_owned(), value.to_owned())].into());
        let refused = kind_of(fx.storage.store(request).await);
        assert_eq!(refused, Some(ErrorKind::ConfigInvalid), "{key:?}={value:?}");
    }
    assert_eq!(fx.storage.list_all(&session).await?, []);
    Ok(())
}

async fn a_wrong_announced_size_is_refused(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    for announced in [0, 9, 11, 1 << 40] {
        let chunks = [Ok(Bytes::from_static(b"12345")), Ok(Bytes::from_static(b"67890"))];
        let body = Body::from_stream(stream::iter(chunks).boxed(), Some(announced));
        let request = StoreRequest::new(session.clone(), ArtifactName::new("a")?, body);
        let refused = kind_of(fx.storage.store(request).await);
        assert_eq!(
            refused,
            Some(ErrorKind::DataInvalid),
            "{announced} announced for 10 bytes"
        );
    }
    assert_eq!(fx.storage.list_all(&session).await?, []);
    Ok(())
}

async fn a_failed_stream_leaves_nothing(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    for size in [1, 3 << 20] {
        let chunks = [
            Ok(Bytes::from(vec![1; size])),
            Err(Error::new(ErrorKind::RateLimited, "the source failed")),
        ];
        let body = Body::from_stream(stream::iter(chunks).boxed(), None);
        let request = StoreRequest::new(session.clone(), ArtifactName::new("a")?, body);
        assert_eq!(
            kind_of(fx.storage.store(request).await),
            Some(ErrorKind::RateLimited),
            "the stream's own error"
        );
    }
    assert_eq!(fx.storage.list_all(&session).await?, []);
    assert_eq!(fx.put(&session, "a", "x").await?.version, 1);
    Ok(())
}

async fn a_dropped_store_leaves_nothing(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    for size in [1, 3 << 20] {
        let begun = stream::iter([Ok(Bytes::from(vec![1; size]))]).chain(stream::pending());
        let body = Body::from_stream(begun.boxed(), None);
        let store = fx
            .storage
            .store(StoreRequest::new(session.clone(), ArtifactName::new("a")?, body));
        if tokio::time::timeout(Duration::from_millis(200), store).await.is_ok() {
            return failed("store ended before its stream did");
        }
    }
    // What was under way may end a little later, and must not become visible then either.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(fx.storage.list_all(&session).await?, []);
    assert_eq!(fx.put(&session, "a", "x").await?.version, 1);
    Ok(())
}

async fn delete_says_what_is_gone_and_is_idempotent(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let mut stored = Vec::new();
    for name in ["a", "a", "a/b", "b"] {
        stored.push(fx.put(&session, name, name).await?);
    }
    let delete = |name: &str| {
        let request = DeleteRequest::new(session.clone()).with_name(ArtifactName::new(name).ok());
        let fx = Arc::clone(&fx);
        async move { fx.storage.delete(request).await }
    };
    assert_eq!(delete("a").await?, stored[..2], "both versions, and not a/b");
    assert_eq!(delete("a").await?, []);
    assert_eq!(fx.storage.list_all(&session).await?, stored[2..]);
    let all = DeleteRequest::new(session.clone());
    assert_eq!(fx.storage.delete(all.clone()).await?, stored[2..]);
    assert_eq!(fx.storage.delete(all).await?, []);
    assert_eq!(fx.storage.list_all(&session).await?, []);
    Ok(())
}

async fn what_is_gone_is_not_found(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let stored = fx.put(&session, "a", "x").await?;
    fx.storage.delete(DeleteRequest::new(session)).await?;
    assert_eq!(kind_of(read(&fx, &stored.uri, None).await), Some(ErrorKind::NotFound));
    Ok(())
}

async fn foreign_uris_are_refused(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let ours = fx.put(&session, "a", "x").await?.uri;
    let mut foreign = vec![
        String::new(),
        "a".to_owned(),
        "/etc/passwd".to_owned(),
        "file:///etc/passwd".to_owned(),
        "s3://no-such-bucket/session/a".to_owned(),
        "az://no-such-container/session/a".to_owned(),
        "gs://no-such-bucket/session/a".to_owned(),
        "memory://nobody/session/1/a".to_owned(),
        "https://example.invalid/a".to_owned(),
        format!("{ours}/../../../../../etc/passwd"),
        format!("x{ours}"),
    ];
    if let Some(other) = &fx.other {
        let stored = other
            .store_bytes(&session, ArtifactName::new("a")?, "theirs".into())
            .await?;
        foreign.push(stored.uri);
    }
    for uri in foreign {
        let refused = kind_of(read(&fx, &uri, None).await);
        assert_eq!(refused, Some(ErrorKind::ConfigInvalid), "{uri:?}");
    }
    Ok(())
}

async fn presign_as_declared(fx: Fx) -> CaseResult {
    let stored = fx.put(&SessionId::generate(), "a", "x").await?;
    let presigned = fx.storage.presign(&stored.uri, Duration::from_secs(60)).await;
    if fx.storage.capabilities().presign {
        let url = presigned?;
        assert!(url.starts_with("https://") || url.starts_with("http://"), "{url:?}");
    } else {
        assert_eq!(kind_of(presigned), Some(ErrorKind::Unsupported));
    }
    Ok(())
}

async fn presigned_puts_as_declared(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let request = |name: &str, sha256: String| -> agents_core::Result<_> {
        let minute = Duration::from_secs(60);
        Ok(PresignPutRequest::new(
            session.clone(),
            ArtifactName::new(name)?,
            sha256,
            minute,
        ))
    };
    let presigned = fx.storage.presign_put(request("a", sha256_hex(b"x"))?).await;
    if !fx.storage.capabilities().presign_put {
        assert_eq!(kind_of(presigned), Some(ErrorKind::Unsupported));
        return Ok(());
    }
    let presigned = presigned?;
    assert!(presigned.url.starts_with("https://") || presigned.url.starts_with("http://"));
    assert_eq!((presigned.method.as_str(), presigned.version), ("PUT", 1));
    assert!(
        !format!("{presigned:?}").contains(&presigned.url),
        "Debug gives the URL away"
    );
    assert_eq!(
        kind_of(read(&fx, &presigned.uri, None).await),
        Some(ErrorKind::NotFound)
    );
    for sha256 in ["", "x", &"A".repeat(64), &"a".repeat(63)] {
        let refused = fx.storage.presign_put(request("a", sha256.to_owned())?).await;
        assert_eq!(kind_of(refused), Some(ErrorKind::ConfigInvalid), "{sha256:?}");
    }
    assert_eq!(fx.storage.list_all(&session).await?, [], "nothing is stored by asking");
    fx.put(&session, "a", "y").await?;
    assert_eq!(
        fx.storage.presign_put(request("a", sha256_hex(b"x"))?).await?.version,
        2
    );
    Ok(())
}

async fn sessions_as_declared(fx: Fx) -> CaseResult {
    let mut ours = vec![SessionId::generate(), SessionId::generate(), SessionId::generate()];
    for session in ours.iter().rev() {
        for name in ["a", "a", "b"] {
            fx.put(session, name, "x").await?;
        }
    }
    let all: agents_core::Result<Vec<_>> = fx.storage.sessions().try_collect().await;
    if !fx.storage.capabilities().sessions {
        assert_eq!(kind_of(all), Some(ErrorKind::Unsupported));
        return Ok(());
    }
    let all = all?;
    assert!(all.is_sorted_by(|a, b| a < b), "each once, in order");
    let seen: Vec<_> = all.into_iter().filter(|session| ours.contains(session)).collect();
    ours.sort_unstable();
    assert_eq!(seen, ours);
    for session in ours {
        fx.storage.delete(DeleteRequest::new(session)).await?;
    }
    Ok(())
}

async fn reap_leaves_artifacts_alone(fx: Fx) -> CaseResult {
    let session = SessionId::generate();
    let stored = fx.put(&session, "a", "x").await?;
    fx.storage.reap().await?;
    assert_eq!(fx.storage.list_all(&session).await?, [stored]);
    if !fx.storage.capabilities().durable {
        return skipped("the rest needs a durable backend");
    }
    // An upload under way belongs to a living owner.
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let chunks = stream::unfold(receive, |mut receive| async move {
        receive.recv().await.map(|chunk: Bytes| (Ok(chunk), receive))
    });
    let body = Body::from_stream(chunks.boxed(), None);
    let request = StoreRequest::new(session.clone(), ArtifactName::new("b")?, body);
    let storage = Arc::clone(&fx.storage);
    let store = tokio::spawn(async move { storage.store(request).await });
    for _ in 0..4 {
        let _ = send.send(Bytes::from(vec![1; 1 << 20])).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    fx.storage.reap().await?;
    drop(send);
    match store.await {
        Ok(stored) => assert_eq!(stored?.size, 4 << 20, "reap took a living upload away"),
        Err(error) => return failed(error.to_string()),
    }
    Ok(())
}
