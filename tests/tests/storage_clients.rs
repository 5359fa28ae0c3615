//! A second opinion on what is stored in the clouds: the vendors' own clients read what we write, and we read, or
//! refuse, what they write.
//!
//! versitygw and MinIO check what they are sent, and so does Azurite. fake-gcs-server takes any token and any signature,
//! so it is no proof of either; what is shown with it is the shape of objects and their metadata.

// What the adapter's own tests put before fake-gcs-server, which lacks a part of the XML API.
#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/agents-storage-objectstore/tests/support/gcs_xml.rs"]
mod gcs_xml;
#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/agents-storage-objectstore/tests/support/proxy.rs"]
mod proxy;

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use agents_sdk::{
    config::{Environment, LocalSecrets},
    core::{
        ArtifactName, Body, BuildContext, ErrorKind, Factory, RetrieveRequest, SessionId, StorageBackend,
        StorageBackendExt, StoreRequest,
    },
    storage_objectstore::{AzureFactory, GcsFactory, S3Factory},
};
use serde_json::{Value, json};

/// More than one part, so that it is stored in several and has a manifest.
const LARGE: usize = 9 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Versitygw,
    Minio,
    Azurite,
    Gcs,
}

const SERVERS: [Server; 4] = [Server::Versitygw, Server::Minio, Server::Azurite, Server::Gcs];

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `cargo xtask services up versitygw minio azurite fake-gcs`, \
             then `eval \"$(cargo xtask services env)\"`"
        )
    })
}

impl Server {
    fn prefix(self) -> &'static str {
        match self {
            Self::Versitygw => "AGENTS_TEST_VERSITYGW",
            Self::Minio => "AGENTS_TEST_MINIO",
            Self::Azurite => "AGENTS_TEST_AZURITE",
            Self::Gcs => "AGENTS_TEST_GCS",
        }
    }

    fn get(self, suffix: &str) -> String {
        variable(&format!("{}{suffix}", self.prefix()))
    }

    fn bucket(self) -> String {
        match self {
            Self::Azurite => self.get("_CONTAINER"),
            _ => self.get("_BUCKET"),
        }
    }

    fn reference(self, suffix: &str) -> String {
        format!("env:{}{suffix}", self.prefix())
    }

    /// Our storage below the prefix, and what has to stay until the test is over.
    async fn storage(self, prefix: &str) -> (Arc<dyn StorageBackend>, Option<proxy::Proxy>) {
        let mut endpoint = self.get("");
        let front = match self {
            Self::Gcs => Some(gcs_xml::start(&endpoint).await),
            _ => None,
        };
        if let Some(front) = &front {
            endpoint = front.url.clone();
        }
        let mut config = match self {
            Self::Versitygw | Self::Minio => json!({
                "bucket": self.bucket(),
                "access_key_id": self.reference("_KEY"),
                "secret_access_key": self.reference("_SECRET"),
            }),
            Self::Azurite => json!({
                "account": self.get("_ACCOUNT"),
                "container": self.bucket(),
                "access_key": self.reference("_KEY"),
            }),
            Self::Gcs => json!({"bucket": self.bucket(), "access_token": self.reference("_TOKEN")}),
        };
        config["endpoint"] = endpoint.into();
        config["prefix"] = prefix.into();
        if self == Self::Minio {
            config["ca_file"] = self.get("_CA").into();
        }
        let storage = match self {
            Self::Versitygw | Self::Minio => build::<S3Factory>(config).await,
            Self::Azurite => build::<AzureFactory>(config).await,
            Self::Gcs => build::<GcsFactory>(config).await,
        };
        (storage, front)
    }

    /// The keys of our own metadata: Azure's must be identifiers.
    fn ours(self, key: &str) -> String {
        match self {
            Self::Azurite => format!("agents_{key}"),
            _ => format!("agents-{key}"),
        }
    }

    fn client(self, words: &[&str], input: &[u8]) -> Vec<u8> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/storage_clients/client.py");
        let cloud = match self {
            Self::Azurite => "azure",
            _ => "gcs",
        };
        let mut command = Command::new("python3");
        command
            .arg(script)
            .arg(cloud)
            .args(words)
            .env("PYTHONPATH", self.get("_PYTHONPATH"));
        run(command, input)
    }

    /// The AWS CLI. `s3` and `s3api` have different ideas of where standard input is.
    fn aws(self, words: &[&str], input: &[u8]) -> Vec<u8> {
        let mut command = Command::new("python3");
        command
            .args(["-m", "awscli", "--endpoint-url", &self.get(""), "--region", "us-east-1"])
            .args(words)
            .env("PYTHONPATH", variable("AGENTS_TEST_AWS_PYTHONPATH"))
            .env("AWS_ACCESS_KEY_ID", self.get("_KEY"))
            .env("AWS_SECRET_ACCESS_KEY", self.get("_SECRET"))
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
        if self == Self::Minio {
            command.env("AWS_CA_BUNDLE", self.get("_CA"));
        }
        run(command, input)
    }

    fn is_s3(self) -> bool {
        matches!(self, Self::Versitygw | Self::Minio)
    }

    /// What the vendor's client reads.
    fn read(self, key: &str) -> Vec<u8> {
        match self.is_s3() {
            true => self.aws(&["s3", "cp", &format!("s3://{}/{key}", self.bucket()), "-"], b""),
            false => self.client(&["get", key], b""),
        }
    }

    /// The media type and the metadata, as the vendor's client tells them.
    fn head(self, key: &str) -> (String, BTreeMap<String, String>) {
        let told = match self.is_s3() {
            true => self.aws(&["s3api", "head-object", "--bucket", &self.bucket(), "--key", key], b""),
            false => self.client(&["head", key], b""),
        };
        let told: Value = serde_json::from_slice(&told).unwrap();
        let (content_type, metadata) = match self.is_s3() {
            true => (&told["ContentType"], &told["Metadata"]),
            false => (&told["content_type"], &told["metadata"]),
        };
        let metadata = metadata.as_object().unwrap().iter();
        let metadata = metadata.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()));
        (content_type.as_str().unwrap().to_owned(), metadata.collect())
    }

    /// Writes with the vendor's client.
    fn write(self, key: &str, content: &[u8], metadata: &[(String, String)]) {
        let map: BTreeMap<_, _> = metadata.iter().cloned().collect();
        let map = serde_json::to_string(&map).unwrap();
        match self.is_s3() {
            true => {
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), content).unwrap();
                let (bucket, body) = (self.bucket(), file.path().to_str().unwrap());
                let mut words = vec!["s3api", "put-object", "--bucket", &bucket, "--key", key, "--body", body];
                words.extend(["--content-type", "text/plain", "--metadata", &map]);
                self.aws(&words, b"");
            }
            false => {
                self.client(&["put", key, "text/plain", &map], content);
            }
        }
    }

    /// Copies everything below a prefix with the vendor's client, as an operator would who moves a bucket.
    fn mirror(self, from: &str, to: &str) {
        let bucket = self.bucket();
        match self.is_s3() {
            true => {
                let (from, to) = (format!("s3://{bucket}/{from}"), format!("s3://{bucket}/{to}"));
                self.aws(&["s3", "sync", "--only-show-errors", &from, &to], b"");
            }
            false => {
                self.client(&["mirror", from, to], b"");
            }
        }
    }
}

async fn build<F: Factory<Adapter = dyn StorageBackend>>(config: Value) -> Arc<dyn StorageBackend> {
    let config = serde_json::from_value(config).unwrap();
    F::validate(&config).unwrap();
    let secrets = Arc::new(LocalSecrets::new(Environment::from_process()));
    let context = BuildContext::new("/nonexistent", "/nonexistent", secrets);
    F::build(config, &context).await.unwrap()
}

#[track_caller]
fn run(mut command: Command, input: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    writer.join().unwrap().unwrap();
    output.stdout
}

/// A prefix that nobody else has.
fn fresh(what: &str) -> String {
    format!("clients/{what}-{}", uuid::Uuid::now_v7().simple())
}

/// The key of what a URI names.
fn key(server: Server, uri: &str) -> String {
    let (_, rest) = uri.split_once("://").unwrap();
    rest.strip_prefix(&format!("{}/", server.bucket())).unwrap().to_owned()
}

fn large() -> Vec<u8> {
    (0..LARGE as u32 / 4)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

fn labelled(session: &SessionId, name: &str, content: Vec<u8>) -> StoreRequest {
    let metadata = [("kind", "a plot"), ("odd_key", " x ")];
    StoreRequest::new(session.clone(), ArtifactName::new(name).unwrap(), Body::from(content))
        .with_content_type(Some("text/csv".to_owned()))
        .with_metadata(metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vendors_clients_read_what_we_write() {
    for server in SERVERS {
        let (storage, _front) = server.storage(&fresh("ours")).await;
        let session = SessionId::generate();
        let small = storage
            .store(labelled(&session, "späße/a b+c~%.csv", b"a,b\n".to_vec()))
            .await
            .unwrap();
        let big = storage.store(labelled(&session, "big.bin", large())).await.unwrap();
        assert!(server.read(&key(server, &small.uri)) == b"a,b\n", "{server:?}");
        assert!(server.read(&key(server, &big.uri)) == large(), "{server:?}");
        let (content_type, metadata) = server.head(&key(server, &small.uri));
        assert_eq!(content_type, "text/csv", "{server:?}");
        assert_eq!(metadata.get("kind").map(String::as_str), Some("a plot"), "{server:?}");
        assert_eq!(metadata.get(&server.ours("sha256")), Some(&small.sha256), "{server:?}");
        assert_eq!(server.head(&key(server, &big.uri)).0, "text/csv", "{server:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vendors_client_mirrors_is_whole_in_its_new_place() {
    for server in SERVERS {
        let (from, to) = (fresh("from"), fresh("to"));
        let (storage, _front) = server.storage(&from).await;
        let session = SessionId::generate();
        for content in [b"one".to_vec(), b"two".to_vec(), large()] {
            storage.store(labelled(&session, "a/b.csv", content)).await.unwrap();
        }
        server.mirror(&format!("{from}/"), &format!("{to}/"));
        let (mirrored, _front) = server.storage(&to).await;
        let (originals, copies) = (
            storage.list_all(&session).await.unwrap(),
            mirrored.list_all(&session).await.unwrap(),
        );
        assert_eq!(copies.len(), 3, "{server:?}");
        for (original, copy) in originals.iter().zip(&copies) {
            let mut expected = original.clone();
            expected.uri = copy.uri.clone();
            assert_eq!(copy, &expected, "{server:?}");
            let content = mirrored.retrieve_bytes(&copy.uri, 64 << 20).await.unwrap();
            assert_eq!(content.len() as u64, original.size, "{server:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vendors_client_writes_is_read_when_it_says_what_it_is_and_refused_else() {
    for server in SERVERS {
        let prefix = fresh("theirs");
        let (storage, _front) = server.storage(&prefix).await;
        let session = SessionId::generate();
        let stored = storage
            .store(labelled(&session, "model.csv", b"as ours".to_vec()))
            .await
            .unwrap();
        let model = key(server, &stored.uri);

        // The next version, by our layout and with its hash.
        let second = model.replace("/1/", "/2/");
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        server.write(&second, b"hello", &[(server.ours("sha256"), sha256.to_owned())]);
        let listed = storage.list_all(&session).await.unwrap();
        assert_eq!(listed.len(), 2, "{server:?}");
        assert_eq!(
            (listed[1].version, listed[1].sha256.as_str()),
            (2, sha256),
            "{server:?}"
        );
        assert_eq!(listed[1].content_type.as_deref(), Some("text/plain"), "{server:?}");
        let content = storage.retrieve_bytes(&listed[1].uri, 64).await.unwrap();
        assert_eq!(&content[..], b"hello", "{server:?}");

        // Another content under the same hash is damage, and one that says nothing is no artifact.
        server.write(&second, b"hellO", &[(server.ours("sha256"), sha256.to_owned())]);
        let error = storage.retrieve_bytes(&listed[1].uri, 64).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataInvalid, "{server:?}: {error}");
        server.write(&second, b"hello", &[]);
        let error = storage
            .retrieve(RetrieveRequest::new(&listed[1].uri))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataInvalid, "{server:?}: {error}");
        let error = storage.list_all(&session).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataInvalid, "{server:?}: {error}");

        // What is elsewhere in the bucket is nobody's artifact, and does not disturb.
        let other = SessionId::generate();
        storage.store(labelled(&other, "a", b"a".to_vec())).await.unwrap();
        for stray in ["README.txt", &format!("{other}/notes.txt"), &format!("{other}/a/x/a")] {
            server.write(&format!("{prefix}/{stray}"), b"stray", &[]);
        }
        let listed = storage.list_all(&other).await.unwrap();
        assert_eq!(listed.len(), 1, "{server:?}: {listed:?}");
    }
}
