//! URLs that others use: with plain curl, for as long as they hold, and for what they were made for.

#![cfg(all(feature = "s3", feature = "azure", feature = "gcs"))]

mod support;

use std::{process::Command, sync::Arc, time::Duration};

use agents_core::{
    ArtifactName, Body, ErrorKind, PresignPutRequest, PresignedPut, SessionId, StorageBackend, StorageBackendExt,
    StoreRequest,
};
use agents_storage_objectstore::GcsFactory;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Response;
use serde_json::json;
use support::{
    proxy::Proxy,
    servers::{Server, build, prefix, variable},
};

const SERVERS: [Server; 3] = [Server::Versitygw, Server::Minio, Server::Azurite];

async fn storage(server: Server) -> Arc<dyn StorageBackend> {
    server.storage(json!({ "prefix": prefix() })).await.unwrap()
}

fn sha256(content: &[u8]) -> String {
    agents_testkit::sha256_hex(content)
}

/// The status and the body.
fn curl(server: Server, arguments: &[&str]) -> (u16, Vec<u8>) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--write-out", "\n%{http_code}"]);
    if server == Server::Minio {
        command.args(["--cacert", &variable("AGENTS_TEST_MINIO_CA")]);
    }
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let at = output.stdout.iter().rposition(|byte| *byte == b'\n').unwrap();
    let status = String::from_utf8_lossy(&output.stdout[at + 1..]).parse().unwrap();
    (status, output.stdout[..at].to_vec())
}

fn upload(server: Server, put: &PresignedPut, content: &str) -> u16 {
    let mut arguments = vec!["--request".to_owned(), put.method.clone()];
    for (name, value) in &put.headers {
        arguments.extend(["--header".to_owned(), format!("{name}: {value}")]);
    }
    arguments.extend(["--data-binary".to_owned(), content.to_owned(), put.url.clone()]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    curl(server, &arguments).0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_url_gives_the_content_until_it_expires() {
    for server in SERVERS {
        let storage = storage(server).await;
        let session = SessionId::generate();
        let name = ArtifactName::new("späße/a b+c~%.txt").unwrap();
        let small = storage.store_bytes(&session, name, "hello".into()).await.unwrap();
        let large = Bytes::from(vec![7; 9 << 20]);
        let body = Body::from_stream(stream::iter([Ok(large.clone())]).boxed(), None);
        let request = StoreRequest::new(session, ArtifactName::new("large").unwrap(), body)
            .with_content_type(Some("text/x-large".to_owned()));
        let stored = storage.store(request).await.unwrap();
        for (uri, content) in [(&small.uri, Bytes::from("hello")), (&stored.uri, large)] {
            let url = storage.presign(uri, Duration::from_secs(60)).await.unwrap();
            let (status, body) = curl(server, &[&url]);
            assert_eq!(status, 200, "{server:?}: {}", String::from_utf8_lossy(&body));
            assert!(body == content, "{server:?}");
        }
        let url = storage.presign(&stored.uri, Duration::from_secs(60)).await.unwrap();
        let (_, head) = curl(
            server,
            &[
                "--output",
                "/dev/null",
                "--write-out",
                "%{content_type}\n%{http_code}",
                &url,
            ],
        );
        assert_eq!(head, b"text/x-large", "{server:?}");

        // It is good for nothing else.
        assert_eq!(curl(server, &["--request", "DELETE", &url]).0, 403, "{server:?}");
        assert_eq!(curl(server, &[&url.replace("large?", "larger?")]).0, 403, "{server:?}");
        let short = storage.presign(&small.uri, Duration::from_secs(2)).await.unwrap();
        assert_eq!(curl(server, &[&short]).0, 200, "{server:?}");
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(curl(server, &[&short]).0, 403, "{server:?}: it works after its time");

        for bad in [Duration::ZERO, Duration::from_secs(8 * 24 * 3600)] {
            let error = storage.presign(&small.uri, bad).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        }
        let absent = small.uri.replace("/1/", "/2/");
        let error = storage.presign(&absent, Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_url_takes_one_content_once() {
    for server in SERVERS {
        let storage = storage(server).await;
        let session = SessionId::generate();
        let name = ArtifactName::new("a").unwrap();
        let ask = async |content: &str, seconds| {
            let expires = Duration::from_secs(seconds);
            let metadata = [("kind", "a plot"), ("odd_key", " x ")];
            let request = PresignPutRequest::new(session.clone(), name.clone(), sha256(content.as_bytes()), expires)
                .with_content_type(Some("text/plain".to_owned()))
                .with_metadata(metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
            storage.presign_put(request).await.unwrap()
        };
        let put = ask("hello", 60).await;
        if server != Server::Azurite {
            // S3 checks the content, and that no header is left out.
            assert_eq!(upload(server, &put, "hellO"), 400, "{server:?}: another content");
            let mut bare = put.clone();
            bare.headers.remove("if-none-match");
            assert!(
                matches!(upload(server, &bare, "hello"), 400 | 403),
                "{server:?}: a header is missing"
            );
        }
        assert!(matches!(upload(server, &put, "hello"), 200 | 201), "{server:?}");
        assert!(
            matches!(upload(server, &put, "hello"), 409 | 412),
            "{server:?}: it works twice"
        );
        let listed = storage.list_all(&session).await.unwrap();
        assert_eq!(listed.len(), 1);
        let info = &listed[0];
        assert_eq!((&info.uri, info.version, info.size), (&put.uri, 1, 5));
        assert_eq!(info.sha256, sha256(b"hello"));
        assert_eq!(info.content_type.as_deref(), Some("text/plain"));
        assert_eq!(info.metadata["kind"], "a plot");
        assert_eq!(info.metadata["odd_key"], " x ");
        assert_eq!(storage.retrieve_bytes(&put.uri, 10).await.unwrap(), "hello");

        let put = ask("more", 2).await;
        assert_eq!(put.version, 2);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(upload(server, &put, "more"), 403, "{server:?}: it works after its time");
        assert_eq!(storage.list_all(&session).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_sign_says_so() {
    let storage = Server::FakeGcs.storage(json!({ "prefix": prefix() })).await.unwrap();
    assert!(!storage.capabilities().presign && !storage.capabilities().presign_put);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n").unwrap();
    let storage = Server::Minio
        .storage(json!({
            "prefix": prefix(),
            "encryption": "customer",
            "customer_key": format!("file:{}", file.path().display()),
        }))
        .await
        .unwrap();
    let session = SessionId::generate();
    let stored = storage
        .store_bytes(&session, ArtifactName::new("a").unwrap(), "x".into())
        .await
        .unwrap();
    let error = storage.presign(&stored.uri, Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// Google's signature itself is proved by the unit tests, against Google's vectors; here it is seen that URLs for the
/// storage are made by it.
#[tokio::test(flavor = "multi_thread")]
async fn gcs_signs_with_the_key_of_the_service_account() {
    let server = Proxy::serving(Arc::new(|parts, _| {
        Box::pin(async move {
            let response = match parts.method.as_str() {
                "HEAD" => Response::builder()
                    .header("etag", "\"x\"")
                    .header("last-modified", "Tue, 24 Nov 2026 08:00:00 GMT")
                    .header("x-goog-meta-agents-sha256", "0".repeat(64))
                    .header("content-length", "5")
                    .body(Bytes::new()),
                _ => Response::builder().body("<ListBucketResult></ListBucketResult>".into()),
            };
            Ok(response.unwrap())
        })
    }))
    .await;
    let data: serde_json::Value = serde_json::from_str(include_str!("data/gcs_v4.json")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), data["service_account"].to_string()).unwrap();
    let storage = build::<GcsFactory>(json!({
        "bucket": "agents",
        "prefix": "p",
        "endpoint": server.url,
        "service_account": format!("file:{}", file.path().display()),
    }))
    .await
    .unwrap();
    let url = storage
        .presign("gs://agents/p/s1/a~2Fb/1/b", Duration::from_secs(60))
        .await
        .unwrap();
    let email = "test-iam-credentials%40dummy-project-id.iam.gserviceaccount.com";
    assert!(
        url.starts_with(&format!(
            "{}/agents/p/s1/a~2Fb/1/b?X-Goog-Algorithm=GOOG4-RSA-SHA256&",
            server.url
        )),
        "{url}"
    );
    assert!(
        url.contains(&format!("X-Goog-Credential={email}%2F")) && url.contains("X-Goog-Expires=60"),
        "{url}"
    );
    assert!(url.contains("X-Goog-SignedHeaders=host&X-Goog-Signature="), "{url}");
    let request = PresignPutRequest::new(
        SessionId::new("s1").unwrap(),
        ArtifactName::new("a").unwrap(),
        "0".repeat(64),
        Duration::from_secs(60),
    );
    let put = storage.presign_put(request).await.unwrap();
    assert_eq!(put.headers["x-goog-if-generation-match"], "0");
    assert!(
        put.url
            .contains("x-goog-if-generation-match%3Bx-goog-meta-agents-created%3B"),
        "{}",
        put.url
    );
}
