//! A writer that is killed in the middle, and what `reap` does about it; and how much memory a writer needs.

#![cfg(feature = "s3")]

mod support;

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agents_core::{ArtifactName, Body, RetrieveRequest, SessionId, StorageBackendExt, StoreRequest};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use support::{
    bucket::Bucket,
    proxy::{Fault, Proxy, is_put},
    servers::{Server, prefix, variable},
};

/// Set in a child process: the prefix that it works below, and the address.
const CHILD_PREFIX: &str = "TEST_CLOUD_STORAGE_CHILD_PREFIX";
const CHILD_ENDPOINT: &str = "TEST_CLOUD_STORAGE_CHILD_ENDPOINT";

fn child(test: &str, prefix: &str, endpoint: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD_PREFIX, prefix)
        .env(CHILD_ENDPOINT, endpoint)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn is_child() -> Option<(String, String)> {
    Some((std::env::var(CHILD_PREFIX).ok()?, std::env::var(CHILD_ENDPOINT).ok()?))
}

fn session() -> SessionId {
    SessionId::new("s1").unwrap()
}

fn request(body: Body) -> StoreRequest {
    StoreRequest::new(session(), ArtifactName::new("a").unwrap(), body)
}

fn chunks(count: usize) -> impl stream::Stream<Item = agents_core::Result<Bytes>> {
    stream::iter(0..count).map(|i| Ok(Bytes::from(vec![i as u8; 1 << 20])))
}

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_writer_leaves_is_invisible_and_reaped() {
    let test = "what_a_killed_writer_leaves_is_invisible_and_reaped";
    if let Some((prefix, endpoint)) = is_child() {
        let storage = Server::Versitygw
            .storage(json!({ "prefix": prefix, "endpoint": endpoint, "orphan_after_seconds": 3 }))
            .await
            .unwrap();
        // One upload hangs in the middle of its parts.
        let endless = chunks(20).chain(stream::pending());
        storage
            .store(request(Body::from_stream(endless.boxed(), None)))
            .await
            .unwrap();
        return;
    }
    let bucket = Bucket::new();
    let prefix = prefix();
    let storage = Server::Versitygw
        .storage(json!({ "prefix": prefix, "orphan_after_seconds": 3 }))
        .await
        .unwrap();
    let mut writer = child(test, &prefix, &Server::Versitygw.endpoint().unwrap());
    until("the upload", || async { !bucket.unfinished(&prefix).await.is_empty() }).await;
    // Longer than an orphan may live.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(storage.reap().await.unwrap(), Vec::<String>::new(), "the writer lives");
    assert_eq!(bucket.unfinished(&prefix).await.len(), 1);
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(storage.list_all(&session()).await.unwrap(), []);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let reaped = storage.reap().await.unwrap();
    assert_eq!(reaped.len(), 1);
    assert!(reaped[0].contains(&format!("{prefix}/s1/a/1.")), "{reaped:?}");
    assert_eq!(bucket.unfinished(&prefix).await, Vec::<String>::new());
    assert_eq!(bucket.keys(&prefix).await, Vec::<String>::new());
    assert_eq!(
        storage
            .store_bytes(&session(), ArtifactName::new("a").unwrap(), "x".into())
            .await
            .unwrap()
            .version,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_killed_before_its_manifest_leaves_no_content() {
    let test = "a_writer_killed_before_its_manifest_leaves_no_content";
    if let Some((prefix, endpoint)) = is_child() {
        let storage = Server::Versitygw
            .storage(json!({ "prefix": prefix, "endpoint": endpoint, "orphan_after_seconds": 2 }))
            .await
            .unwrap();
        storage
            .store(request(Body::from_stream(chunks(20).boxed(), None)))
            .await
            .unwrap();
        return;
    }
    let bucket = Bucket::new();
    let prefix = prefix();
    // The manifest never arrives.
    let proxy = Proxy::before(&Server::Versitygw.endpoint().unwrap()).await;
    proxy.set(|parts| match is_put(parts, false) {
        true => Fault::Hang,
        false => Fault::None,
    });
    let storage = Server::Versitygw
        .storage(json!({ "prefix": prefix, "orphan_after_seconds": 2 }))
        .await
        .unwrap();
    let mut writer = child(test, &prefix, &proxy.url);
    let has_content = || async { bucket.keys(&prefix).await.iter().any(|key| key.starts_with("s1/a/1.")) };
    until("the content", has_content).await;
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(storage.list_all(&session()).await.unwrap(), []);
    assert_eq!(storage.sessions().try_collect::<Vec<_>>().await.unwrap(), []);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(storage.reap().await.unwrap().len(), 1);
    assert_eq!(bucket.keys(&prefix).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_never_reaped() {
    let bucket = Bucket::new();
    let prefix = prefix();
    // The note of a finished upload cannot be removed.
    let proxy = Proxy::before(&Server::Versitygw.endpoint().unwrap()).await;
    proxy.set(|parts| match parts.uri.query() == Some("delete") {
        true => Fault::Answer(403, Vec::new(), "<Error><Code>AccessDenied</Code></Error>".to_owned()),
        false => Fault::None,
    });
    let config = json!({ "prefix": prefix, "endpoint": proxy.url, "orphan_after_seconds": 1 });
    let storage = Server::Versitygw.storage(config).await.unwrap();
    let stored = storage
        .store(request(Body::from_stream(chunks(10).boxed(), None)))
        .await
        .unwrap();
    proxy.set(|_| Fault::None);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bucket.keys(&prefix).await.len(), 3);
    assert_eq!(storage.reap().await.unwrap(), Vec::<String>::new());
    assert_eq!(bucket.keys(&prefix).await.len(), 2, "only the note is gone");
    assert_eq!(
        storage.retrieve_bytes(&stored.uri, 64 << 20).await.unwrap().len(),
        10 << 20
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_deletion_is_finished() {
    let bucket = Bucket::new();
    let prefix = prefix();
    let config = json!({ "prefix": prefix, "orphan_after_seconds": 1 });
    let storage = Server::Versitygw.storage(config).await.unwrap();
    let stored = storage
        .store(request(Body::from_stream(chunks(10).boxed(), None)))
        .await
        .unwrap();
    // The manifest is gone, and the content not yet.
    let content = stored.uri.split_once(&format!("{prefix}/")).unwrap().1;
    let note = format!(r#"{{"contents": ["{content}"]}}"#);
    bucket
        .put(
            &format!("{prefix}/.uploads/d"),
            Box::leak(note.into_boxed_str()).as_bytes(),
        )
        .await;
    bucket.delete(&format!("{prefix}/s1/a/1/a")).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(storage.reap().await.unwrap(), [stored.uri]);
    assert_eq!(bucket.keys(&prefix).await, Vec::<String>::new());
}

/// The most memory that this process ever had, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_the_content() {
    const MIB: usize = 320;
    if let Some((prefix, endpoint)) = is_child() {
        let storage = Server::Versitygw
            .storage(json!({ "prefix": prefix, "endpoint": endpoint }))
            .await
            .unwrap();
        for size in [None, Some((MIB as u64) << 20)] {
            let stored = storage
                .store(request(Body::from_stream(chunks(MIB).boxed(), size)))
                .await
                .unwrap();
            let mut read = storage
                .retrieve(RetrieveRequest::new(stored.uri))
                .await
                .unwrap()
                .content;
            let mut size = 0;
            while let Some(piece) = read.try_next().await.unwrap() {
                size += piece.len();
            }
            assert_eq!(size, MIB << 20);
        }
        println!("peak {} MiB", peak() >> 20);
        assert!(peak() < 64 << 20, "{} MiB", peak() >> 20);
        return;
    }
    let prefix = prefix();
    let mut writer = child(
        "memory_does_not_grow_with_the_content",
        &prefix,
        &variable("AGENTS_TEST_VERSITYGW"),
    );
    assert!(writer.wait().unwrap().success());
    let storage = Server::Versitygw.storage(json!({ "prefix": prefix })).await.unwrap();
    assert_eq!(
        storage
            .delete(agents_core::DeleteRequest::new(session()))
            .await
            .unwrap()
            .len(),
        2
    );
}
