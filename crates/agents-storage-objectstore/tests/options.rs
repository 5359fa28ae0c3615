//! Options, and mistakes in them, against the real servers: each mistake is one clear error, and no option is ignored.

#![cfg(all(feature = "s3", feature = "azure", feature = "gcs"))]

mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agents_core::{
    ArtifactName, Body, DeleteRequest, ErrorKind, SessionId, StorageBackend, StorageBackendExt, StoreRequest,
};
use agents_storage_objectstore::{AzureConfig, GcsConfig, MemoryStorage, S3Config};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use support::{
    gcs_xml,
    proxy::{Fault, Proxy},
    servers::{Server, assume, prefix, variable},
};

fn name(text: &str) -> ArtifactName {
    ArtifactName::new(text).unwrap()
}

fn secret_file(content: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let reference = format!("file:{}", file.path().display());
    (file, reference)
}

/// Thirty-two bytes.
const CUSTOMER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const OTHER_KEY: &str = "YWJjZGVmMDEyMzQ1Njc4OTAxMjM0NTY3ODlhYmNkZWY=";

/// A small and a large artifact come back, and are gone after their deletion.
async fn assert_works(storage: &Arc<dyn StorageBackend>) {
    let session = SessionId::generate();
    let large = Bytes::from(vec![7; (9 << 20) + 1]);
    for content in [Bytes::from_static(b"small"), large] {
        let body = Body::from_stream(stream::iter([Ok(content.clone())]).boxed(), None);
        let request = StoreRequest::new(session.clone(), name("a"), body).with_content_type(Some("text/x".to_owned()));
        let stored = storage
            .store(request)
            .await
            .unwrap_or_else(|error| panic!("{}", error.report()));
        let read = storage.retrieve_bytes(&stored.uri, 64 << 20).await;
        assert!(read.unwrap_or_else(|error| panic!("{}", error.report())) == content);
    }
    assert_eq!(
        storage.delete(DeleteRequest::new(session.clone())).await.unwrap().len(),
        2
    );
    assert_eq!(storage.list_all(&session).await.unwrap(), []);
}

/// The kind of the error of storing, which says where.
async fn refused(storage: &Arc<dyn StorageBackend>) -> (ErrorKind, String) {
    let error = storage
        .store_bytes(&SessionId::generate(), name("a"), "x".into())
        .await
        .unwrap_err();
    let availability = storage.check_availability().await.unwrap();
    assert!(!availability.available && !availability.problems[0].remedy.is_empty());
    (error.kind(), error.report())
}

#[test]
fn the_docs_name_every_key() {
    fn keys(prefix: &str, value: &Value) -> Vec<String> {
        let fields = value.as_object().into_iter().flatten();
        let names = fields.map(|(name, value)| match value.is_object() {
            true => keys(&format!("{name}."), value),
            false => vec![format!("{prefix}{name}")],
        });
        names.flatten().collect()
    }
    let configuration = include_str!("../../../docs/configuration.md");
    let common = include_str!("../../../docs/storage.md");
    for (config, page) in [
        (json!(S3Config::default()), include_str!("../../../docs/storage-s3.md")),
        (
            json!(AzureConfig::default()),
            include_str!("../../../docs/storage-azure.md"),
        ),
        (
            json!(GcsConfig::default()),
            include_str!("../../../docs/storage-gcs.md"),
        ),
    ] {
        let keys = keys("", &config);
        assert!(keys.len() > 10, "{keys:?}");
        for key in keys {
            assert!(configuration.contains(&format!("`{key}`")), "{key}");
            let last = key.rsplit('.').next().unwrap();
            let told = page.contains(&format!("`{key}`")) || common.contains(&format!(" {last}: "));
            assert!(told, "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_told() {
    for (server, field, scheme) in [
        (Server::Versitygw, "bucket", "s3"),
        (Server::Minio, "bucket", "s3"),
        (Server::Azurite, "container", "az"),
    ] {
        let missing = "no-such-bucket-0815";
        let storage = server.storage(json!({ field: missing })).await.unwrap();
        let (kind, told) = refused(&storage).await;
        assert_eq!(kind, ErrorKind::NotFound, "{server:?}: {told}");
        assert!(
            told.contains("does not exist") && told.contains(&format!("{scheme}://{missing}")),
            "{told}"
        );
        let session = SessionId::generate();
        let uri = format!("{scheme}://{missing}/{session}/a/1/a");
        let error = storage.retrieve_bytes(&uri, 10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(
            storage.list_all(&session).await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
        assert!(storage.delete(DeleteRequest::new(session)).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_and_never_quoted() {
    let wrong = "d3JvbmcgaHVudGVyMg==";
    let (_file, reference) = secret_file(wrong);
    for (server, field) in [
        (Server::Versitygw, "secret_access_key"),
        (Server::Versitygw, "access_key_id"),
        (Server::Minio, "secret_access_key"),
        (Server::Azurite, "access_key"),
    ] {
        let storage = server.storage(json!({ field: reference })).await.unwrap();
        let (kind, told) = refused(&storage).await;
        let kinds = [ErrorKind::Unauthenticated, ErrorKind::PermissionDenied];
        assert!(kinds.contains(&kind), "{server:?} {field}: {told}");
        let debug = format!("{storage:?}");
        assert!(!told.contains(wrong) && !debug.contains(wrong), "{told} {debug}");
    }
    let storage = Server::Versitygw
        .storage(json!({ "region": "mars-north-1" }))
        .await
        .unwrap();
    let (kind, told) = refused(&storage).await;
    assert_eq!(kind, ErrorKind::ConfigInvalid, "{told}");
    assert!(told.contains("region"), "{told}");
    let error = Server::Versitygw
        .storage(json!({ "secret_access_key": "env:TEST_NOT_SET" }))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("TEST_NOT_SET"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_told() {
    for server in Server::ALL {
        let config = json!({ "endpoint": "http://127.0.0.1:9", "ca_file": null, "retry": { "max_retries": 1 } });
        let mut config = config;
        if server != Server::Minio {
            config.as_object_mut().unwrap().remove("ca_file");
        }
        let storage = server.storage(config).await.unwrap();
        let (kind, told) = refused(&storage).await;
        assert_eq!(kind, ErrorKind::Unavailable, "{server:?}: {told}");
        assert!(told.contains("endpoint"), "{told}");
    }
    // A certificate that nobody trusts.
    let error = Server::Minio
        .storage(json!({ "ca_file": null, "retry": { "max_retries": 0 } }))
        .await
        .unwrap();
    assert_eq!(refused(&error).await.0, ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_encrypts_as_it_is_told() {
    let (_one, key) = secret_file(CUSTOMER_KEY);
    let (_two, other) = secret_file(OTHER_KEY);
    let kms = variable("AGENTS_TEST_MINIO_KMS_KEY");
    for more in [
        json!({ "encryption": "s3" }),
        json!({ "encryption": "kms", "kms_key_id": kms }),
        json!({ "encryption": "customer", "customer_key": key }),
    ] {
        let mut more = more;
        let prefix = prefix();
        more["prefix"] = prefix.clone().into();
        let storage = Server::Minio.storage(more.clone()).await.unwrap();
        assert_works(&storage).await;
        let stored = storage
            .store_bytes(&SessionId::generate(), name("a"), "x".into())
            .await
            .unwrap();
        // The customer's key is needed, and the right one; the others are the service's business.
        let plain = Server::Minio.storage(json!({ "prefix": prefix })).await.unwrap();
        let customer = more["encryption"] == "customer";
        assert_eq!(plain.retrieve_bytes(&stored.uri, 10).await.is_err(), customer, "{more}");
        if customer {
            more["customer_key"] = other.clone().into();
            let wrong = Server::Minio.storage(more).await.unwrap();
            assert!(wrong.retrieve_bytes(&stored.uri, 10).await.is_err());
        }
    }
    let bad = secret_file("c2hvcnQ=");
    let short = json!({ "encryption": "customer", "customer_key": bad.1 });
    assert!(
        Server::Minio
            .storage(short)
            .await
            .unwrap_err()
            .to_string()
            .contains("customer_key")
    );
}

/// What is sent, as headers by method and path.
async fn headers_sent(server: Server, more: Value) -> Vec<(String, BTreeMap<String, String>)> {
    let front = match server {
        Server::FakeGcs => gcs_xml::start(&server.endpoint().unwrap()).await,
        _ => Proxy::before(&server.endpoint().unwrap()).await,
    };
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    front.set(move |parts| {
        let headers = parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("?").to_owned()));
        log.lock()
            .unwrap()
            .push((format!("{} {}", parts.method, parts.uri), headers.collect()));
        Fault::None
    });
    let mut config = json!({ "prefix": prefix(), "endpoint": front.url });
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    assert_works(&server.storage(config).await.unwrap()).await;
    let seen = seen.lock().unwrap();
    seen.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_have_the_class_that_is_wanted() {
    for (server, more, header, value) in [
        (
            Server::Versitygw,
            json!({ "storage_class": "STANDARD_IA" }),
            "x-amz-storage-class",
            "STANDARD_IA",
        ),
        (
            Server::Azurite,
            json!({ "access_tier": "Cool" }),
            "x-ms-access-tier",
            "Cool",
        ),
        (
            Server::FakeGcs,
            json!({ "storage_class": "NEARLINE" }),
            "x-goog-storage-class",
            "NEARLINE",
        ),
        (
            Server::FakeGcs,
            json!({ "kms_key": "projects/p/locations/l/keyRings/r/cryptoKeys/k" }),
            "x-goog-encryption-kms-key-name",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k",
        ),
    ] {
        let sent = headers_sent(server, more).await;
        let with: Vec<_> = sent
            .iter()
            .filter(|(_, headers)| headers.get(header).is_some_and(|sent| sent == value))
            .map(|(line, _)| line.as_str())
            .collect();
        assert!(with.len() >= 2, "{server:?}: the small and the large one: {with:?}");
        assert!(
            with.iter()
                .all(|line| line.starts_with("PUT ") || line.starts_with("POST ")),
            "{with:?}"
        );
        // Parts have what their upload began with.
        assert!(
            with.iter()
                .all(|line| !line.contains("partNumber") && !line.contains("comp=block&")),
            "{with:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_takes_a_shared_access_signature() {
    // Azurite's own client makes one.
    let script = "import os, datetime\n\
        from azure.storage.blob import generate_container_sas, ContainerSasPermissions\n\
        print(generate_container_sas(os.environ['AGENTS_TEST_AZURITE_ACCOUNT'], os.environ['AGENTS_TEST_AZURITE_CONTAINER'],\n\
          os.environ['AGENTS_TEST_AZURITE_KEY'], permission=ContainerSasPermissions.from_string('rwdlc'),\n\
          expiry=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)))\n";
    let output = std::process::Command::new("python3")
        .args(["-c", script])
        .env("PYTHONPATH", variable("AGENTS_TEST_AZURITE_PYTHONPATH"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (_file, reference) = secret_file(&String::from_utf8(output.stdout).unwrap());
    let storage = Server::Azurite
        .storage(json!({ "prefix": prefix(), "access_key": null, "sas_token": reference }))
        .await
        .unwrap();
    assert_works(&storage).await;
    assert!(!storage.capabilities().presign);
    let stored = storage
        .store_bytes(&SessionId::generate(), name("a"), "x".into())
        .await
        .unwrap();
    let error = storage.presign(&stored.uri, Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // An error never holds the signature.
    let storage = Server::Azurite
        .storage(json!({ "container": "no-such-container", "access_key": null, "sas_token": reference }))
        .await
        .unwrap();
    let told = refused(&storage).await.1;
    assert!(!told.contains("sig="), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_fill_an_object_are_kept_beside_it() {
    for server in Server::ALL {
        let front = gcs_xml::start(&Server::FakeGcs.endpoint().unwrap()).await;
        let mut config = json!({ "prefix": prefix() });
        if server == Server::FakeGcs {
            config["endpoint"] = front.url.clone().into();
        }
        let storage = server.storage(config).await.unwrap();
        let metadata: BTreeMap<_, _> = [
            ("k".to_owned(), "ä ".replace('ä', "~").repeat(1000)),
            ("l".to_owned(), " x ".to_owned()),
        ]
        .into();
        let request = StoreRequest::new(SessionId::generate(), name("a/b"), Body::from(Bytes::from_static(b"x")))
            .with_content_type(Some("text/x".to_owned()))
            .with_metadata(metadata.clone());
        let stored = storage
            .store(request)
            .await
            .unwrap_or_else(|error| panic!("{server:?}: {}", error.report()));
        assert_eq!(stored.metadata, metadata);
        assert_eq!(
            storage.list_all(&stored.session_id).await.unwrap(),
            std::slice::from_ref(&stored)
        );
        assert_eq!(storage.retrieve_bytes(&stored.uri, 10).await.unwrap(), "x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_fails_late_leaves_nothing_anywhere() {
    for server in Server::ALL {
        let front = gcs_xml::start(&Server::FakeGcs.endpoint().unwrap()).await;
        let mut config = json!({ "prefix": prefix(), "orphan_after_seconds": 1 });
        if server == Server::FakeGcs {
            config["endpoint"] = front.url.clone().into();
        }
        let storage = server.storage(config).await.unwrap();
        let session = SessionId::generate();
        let chunks = (0..20).map(|_| Ok(Bytes::from(vec![1; 1 << 20])));
        let failing = stream::iter(chunks).chain(stream::once(async {
            Err(agents_core::Error::new(ErrorKind::RateLimited, "the source failed"))
        }));
        let request = StoreRequest::new(session.clone(), name("a"), Body::from_stream(failing.boxed(), None));
        assert_eq!(storage.store(request).await.unwrap_err().kind(), ErrorKind::RateLimited);
        assert_eq!(storage.list_all(&session).await.unwrap(), []);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(
            storage.reap().await.unwrap(),
            Vec::<String>::new(),
            "{server:?}: something was left to reap"
        );
        if server == Server::FakeGcs {
            let seen = front.seen();
            assert!(
                seen.iter()
                    .any(|line| line.starts_with("DELETE") && line.contains("uploadId=")),
                "{seen:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_move_between_any_two() {
    use agents_session::transfer::{CopyOptions, RetainOptions, copy_all, copy_session, retain, verify_session};
    let front = gcs_xml::start(&Server::FakeGcs.endpoint().unwrap()).await;
    let memory: Arc<dyn StorageBackend> = Arc::new(MemoryStorage::new());
    let quiet: agents_session::transfer::OnProgress = Arc::new(|_| ());
    let session = SessionId::generate();
    for (artifact, size) in [("a", 3), ("a", 4), ("b/c", 9 << 20), ("empty", 0)] {
        let request = StoreRequest::new(session.clone(), name(artifact), vec![size as u8; size].into())
            .with_content_type(Some("text/x".to_owned()))
            .with_metadata([("k".to_owned(), artifact.to_owned())].into());
        memory.store(request).await.unwrap();
    }
    let mut from = Arc::clone(&memory);
    for server in Server::ALL {
        let mut config = json!({ "prefix": prefix() });
        if server == Server::FakeGcs {
            config["endpoint"] = front.url.clone().into();
        }
        let to = server.storage(config).await.unwrap();
        let progress = Arc::new(std::sync::Mutex::new(None));
        let last = Arc::clone(&progress);
        let tell: agents_session::transfer::OnProgress = Arc::new(move |now| *last.lock().unwrap() = Some(now.clone()));
        let options = CopyOptions::default().with_read_back(true);
        let report = copy_all(&*from, &*to, &options, tell).await.unwrap();
        assert_eq!(
            (report.copied.len(), report.skipped, report.bytes),
            (4, 0, (9 << 20) + 7),
            "{server:?}"
        );
        let told = progress.lock().unwrap().clone().unwrap();
        assert_eq!((told.artifacts_done, told.artifacts_total), (4, 4));
        assert_eq!((told.bytes_done, told.bytes_total), (report.bytes, report.bytes));
        let again = copy_session(&*from, &*to, &session, &options, Arc::clone(&quiet))
            .await
            .unwrap();
        assert_eq!(
            (again.copied.len(), again.skipped),
            (0, 4),
            "a copy that is there is not sent again"
        );
        let verified = verify_session(&*to, &session, &options, Arc::clone(&quiet))
            .await
            .unwrap();
        assert_eq!((verified.verified, verified.damaged.len()), (4, 0));
        let strip = |infos: Vec<agents_core::ArtifactInfo>| {
            let parts = infos
                .into_iter()
                .map(|info| (info.name, info.version, info.sha256, info.content_type, info.metadata));
            parts.collect::<Vec<_>>()
        };
        assert_eq!(
            strip(to.list_all(&session).await.unwrap()),
            strip(memory.list_all(&session).await.unwrap())
        );
        from = to;
    }
    // Something else in the destination is never overwritten.
    let other: Arc<dyn StorageBackend> = Arc::new(MemoryStorage::new());
    other
        .store_bytes(&session, name("a"), "different".into())
        .await
        .unwrap();
    let refused = copy_session(&*memory, &*other, &session, &CopyOptions::default(), quiet).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    let cut = jiff::Timestamp::now();
    other.store_bytes(&session, name("new"), "x".into()).await.unwrap();
    let dry = retain(&*other, &RetainOptions::new(cut).with_dry_run(true))
        .await
        .unwrap();
    assert_eq!((dry.removed.len(), dry.kept), (1, 1));
    assert_eq!(other.list_all(&session).await.unwrap().len(), 2);
    let real = retain(&*other, &RetainOptions::new(cut)).await.unwrap();
    assert_eq!(real.removed[0].name.as_str(), "a");
    assert_eq!(other.list_all(&session).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_of_the_docs_is_enough_and_no_more() {
    let page = include_str!("../../../docs/storage-s3.md");
    let json = page.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let prefix = prefix();
    let policy = json
        .replace("my-agents", &variable("AGENTS_TEST_MINIO_BUCKET"))
        .replace("production", &prefix);
    let credentials = assume(Some(&serde_json::from_str(&policy).unwrap()));
    let file = |field: &str| secret_file(credentials[field].as_str().unwrap());
    let (id, secret, token) = (file("AccessKeyId"), file("SecretAccessKey"), file("SessionToken"));
    let config = |prefix: &str| {
        json!({
            "prefix": prefix,
            "access_key_id": id.1,
            "secret_access_key": secret.1,
            "session_token": token.1,
            "orphan_after_seconds": 1,
        })
    };
    let storage = Server::Minio.storage(config(&prefix)).await.unwrap();
    assert!(storage.check_availability().await.unwrap().available);
    assert_works(&storage).await;
    let stored = storage
        .store_bytes(&SessionId::generate(), name("a"), "x".into())
        .await
        .unwrap();
    storage.presign(&stored.uri, Duration::from_secs(60)).await.unwrap();
    assert_eq!(
        futures_util::TryStreamExt::try_collect::<Vec<_>>(storage.sessions())
            .await
            .unwrap()
            .len(),
        1
    );
    // An upload whose source fails is aborted, which needs the list of uploads.
    let chunks = (0..20).map(|_| Ok(Bytes::from(vec![1; 1 << 20])));
    let failing = stream::iter(chunks).chain(stream::once(async {
        Err(agents_core::Error::new(ErrorKind::RateLimited, "the source failed"))
    }));
    let request = StoreRequest::new(
        SessionId::generate(),
        name("a"),
        Body::from_stream(failing.boxed(), None),
    );
    storage.store(request).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(storage.reap().await.unwrap(), Vec::<String>::new());
    let other = Server::Minio.storage(config("tests/elsewhere")).await.unwrap();
    let (kind, told) = refused(&other).await;
    assert_eq!(kind, ErrorKind::PermissionDenied, "{told}");
    assert!(told.contains("permissions"), "{told}");
}
