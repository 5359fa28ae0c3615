//! One measurement of `cargo xtask bench storage`, in a process of its own so that its peak memory is its own too.
//!
//! `storage_bench ours|plain|hashing large|small FOLDER` stores and reads artifacts on versitygw, whose address and keys
//! come from the variables that `cargo xtask services env` gives, and prints one JSON object. `plain` is the bare
//! `object_store` client: parts of the same size, as many at once, conditional puts. `hashing` is the same with what the
//! contract demands of us too: the SHA-256 of all that is stored, kept in the metadata of a small object beside the time and
//! the media type, and compared when it is read. Its keys have a component for a name and one for a version as ours have,
//! since the server keeps objects in folders and metadata in attributes of files, and both cost it time.

use std::{fs, sync::Arc, time::Instant};

use agents_sdk::{
    config::{Environment, LocalSecrets},
    core::{
        ArtifactName, Body, BuildContext, ByteStream, Factory, RetrieveRequest, SessionId, StorageBackend, StoreRequest,
    },
    storage_objectstore::S3Factory,
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{
    Attribute, Attributes, ObjectStore, ObjectStoreExt, PutMode, PutOptions, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
};
use ring::digest::{Context, Digest, SHA256, digest};
use serde_json::json;

const USAGE: &str = "usage: storage_bench ours|plain|hashing large|small FOLDER";

/// The size of the large artifact, and of the parts that both send.
const LARGE: u64 = 1 << 30;
const PART: usize = 8 << 20;
const PARTS_AT_ONCE: usize = 3;

const SMALL: usize = 10_000;
const SMALL_SIZE: usize = 1 << 10;
const SMALL_AT_ONCE: usize = 16;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [who, what, folder] = words.as_slice() else {
        return Err(USAGE.into());
    };
    let (stored, read) = match (who.as_str(), what.as_str()) {
        ("ours", "large") => ours_large(folder).await?,
        ("ours", "small") => ours_small(folder).await?,
        ("plain", "large") => plain_large(folder, false).await?,
        ("plain", "small") => plain_small(folder, false).await?,
        ("hashing", "large") => plain_large(folder, true).await?,
        ("hashing", "small") => plain_small(folder, true).await?,
        _ => return Err(USAGE.into()),
    };
    println!(
        "{}",
        json!({
            "store_seconds": stored,
            "retrieve_seconds": read,
            "cpu_seconds": cpu_seconds()?,
            "peak_kib": peak_kib()?,
        })
    );
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| format!("{name} is not set; cargo xtask bench storage sets it").into())
}

/// The most memory that this process had resident.
fn peak_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("/proc/self/status tells no VmHWM")?.parse()?)
}

/// The processor time of this process, which says how much of a difference is our own work.
fn cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?;
    // User and system time, fields 14 and 15 of proc(5), in hundredths of a second on every Linux.
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / 100.0)
}

/// 1 GiB in pieces of 64 KiB that cost nothing to make, none like the one before.
fn large() -> ByteStream {
    let block: Bytes = (0..(1_u32 << 18))
        .flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect::<Vec<_>>()
        .into();
    const PIECE: usize = 64 << 10;
    let pieces = LARGE as usize / PIECE;
    stream::iter((0..pieces).map(move |i| {
        let start = (i * 4099) % (block.len() - PIECE);
        Ok(block.slice(start..start + PIECE))
    }))
    .boxed()
}

fn small(index: usize) -> Bytes {
    let mut content = vec![b'.'; SMALL_SIZE];
    content[..8].copy_from_slice(&(index as u64).to_le_bytes());
    content.into()
}

fn small_name(index: usize) -> String {
    format!("small/{index:05}.bin")
}

/// Reads to the end and counts.
async fn drain<E>(
    mut content: impl futures_util::Stream<Item = std::result::Result<Bytes, E>> + Unpin,
) -> std::result::Result<u64, E> {
    let mut size = 0;
    while let Some(piece) = content.try_next().await? {
        size += piece.len() as u64;
    }
    Ok(size)
}

fn expect(size: u64, expected: u64) -> Result<()> {
    match size == expected {
        true => Ok(()),
        false => Err(format!("read {size} bytes of {expected}").into()),
    }
}

async fn ours(folder: &str) -> Result<Arc<dyn StorageBackend>> {
    let config = serde_json::from_value(json!({
        "bucket": variable("AGENTS_TEST_VERSITYGW_BUCKET")?,
        "endpoint": variable("AGENTS_TEST_VERSITYGW")?,
        "prefix": folder,
        "access_key_id": "env:AGENTS_TEST_VERSITYGW_KEY",
        "secret_access_key": "env:AGENTS_TEST_VERSITYGW_SECRET",
    }))?;
    let secrets = Arc::new(LocalSecrets::new(Environment::from_process()));
    let here = std::env::temp_dir();
    Ok(S3Factory::build(config, &BuildContext::new(&here, &here, secrets)).await?)
}

async fn ours_large(folder: &str) -> Result<(f64, f64)> {
    let storage = ours(folder).await?;
    let begin = Instant::now();
    let body = Body::from_stream(large(), Some(LARGE));
    let request = StoreRequest::new(SessionId::new("bench")?, ArtifactName::new("large.bin")?, body);
    let artifact = storage.store(request).await?;
    let stored = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let retrieved = storage.retrieve(RetrieveRequest::new(artifact.uri)).await?;
    expect(drain(retrieved.content).await?, LARGE)?;
    Ok((stored, begin.elapsed().as_secs_f64()))
}

async fn ours_small(folder: &str) -> Result<(f64, f64)> {
    let storage = ours(folder).await?;
    let session = SessionId::new("bench")?;
    let begin = Instant::now();
    let uris: Vec<String> = stream::iter(0..SMALL)
        .map(|index| {
            let (storage, session) = (Arc::clone(&storage), session.clone());
            async move {
                let request = StoreRequest::new(session, ArtifactName::new(small_name(index))?, small(index).into());
                Result::Ok(storage.store(request).await?.uri)
            }
        })
        .buffered(SMALL_AT_ONCE)
        .try_collect()
        .await?;
    let stored = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    stream::iter(uris)
        .map(|uri| {
            let storage = Arc::clone(&storage);
            async move {
                let retrieved = storage.retrieve(RetrieveRequest::new(uri)).await?;
                expect(drain(retrieved.content).await?, SMALL_SIZE as u64)
            }
        })
        .buffered(SMALL_AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok((stored, begin.elapsed().as_secs_f64()))
}

fn plain() -> Result<AmazonS3> {
    // The client asks for the process's default, also without TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(AmazonS3Builder::new()
        .with_bucket_name(variable("AGENTS_TEST_VERSITYGW_BUCKET")?)
        .with_region("us-east-1")
        .with_endpoint(variable("AGENTS_TEST_VERSITYGW")?)
        .with_allow_http(true)
        .with_access_key_id(variable("AGENTS_TEST_VERSITYGW_KEY")?)
        .with_secret_access_key(variable("AGENTS_TEST_VERSITYGW_SECRET")?)
        .build()?)
}

/// The hash of what passes by, or nothing.
fn hasher(hashing: bool) -> Option<Context> {
    hashing.then(|| Context::new(&SHA256))
}

const SHA: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("bench-sha256"));
const TIME: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("bench-created"));

fn hex(digest: &Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a small object says of itself.
fn attributes(content: &[u8]) -> Attributes {
    Attributes::from_iter([
        (SHA, hex(&digest(&SHA256, content))),
        (TIME, jiff::Timestamp::now().to_string()),
        (Attribute::ContentType, "application/octet-stream".to_owned()),
    ])
}

/// What is read must have this hash.
enum Expected {
    Nothing,
    This(Digest),
    Metadata,
}

/// Reads to the end, and compares when there is something to compare with.
async fn read(store: &AmazonS3, path: &Path, size: u64, expected: &Expected) -> Result<()> {
    let found = store.get(path).await?;
    let expected = match expected {
        Expected::Nothing => None,
        Expected::This(digest) => Some(hex(digest)),
        Expected::Metadata => Some(found.attributes.get(&SHA).ok_or("the hash is gone")?.to_string()),
    };
    let mut content = found.into_stream();
    let (mut hasher, mut seen) = (hasher(expected.is_some()), 0);
    while let Some(piece) = content.try_next().await? {
        seen += piece.len() as u64;
        if let Some(hasher) = &mut hasher {
            hasher.update(&piece);
        }
    }
    expect(seen, size)?;
    let differs = match (hasher, expected) {
        (Some(hasher), Some(expected)) => hex(&hasher.finish()) != expected,
        _ => false,
    };
    match differs {
        true => Err("the content differs from what was stored".into()),
        false => Ok(()),
    }
}

async fn plain_large(folder: &str, hashing: bool) -> Result<(f64, f64)> {
    let store = plain()?;
    let path = Path::from(format!("{folder}/large.bin"));
    let begin = Instant::now();
    let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(&path).await?, PART);
    let (mut content, mut hasher) = (large(), hasher(hashing));
    while let Some(piece) = content.try_next().await? {
        if let Some(hasher) = &mut hasher {
            hasher.update(&piece);
        }
        upload.wait_for_capacity(PARTS_AT_ONCE).await?;
        upload.put(piece);
    }
    upload.finish().await?;
    let expected = hasher.map_or(Expected::Nothing, |hasher| Expected::This(hasher.finish()));
    let stored = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    read(&store, &path, LARGE, &expected).await?;
    Ok((stored, begin.elapsed().as_secs_f64()))
}

async fn plain_small(folder: &str, hashing: bool) -> Result<(f64, f64)> {
    let store = Arc::new(plain()?);
    let (under, expected) = match hashing {
        true => ("/1/content.bin", Expected::Metadata),
        false => ("", Expected::Nothing),
    };
    let path = |index| Path::from(format!("{folder}/{}{under}", small_name(index)));
    let begin = Instant::now();
    stream::iter(0..SMALL)
        .map(|index| {
            let (store, path) = (Arc::clone(&store), path(index));
            async move {
                let content = small(index);
                let options = PutOptions {
                    mode: PutMode::Create,
                    attributes: if hashing {
                        attributes(&content)
                    } else {
                        Attributes::new()
                    },
                    ..PutOptions::default()
                };
                store.put_opts(&path, content.into(), options).await.map(drop)
            }
        })
        .buffered(SMALL_AT_ONCE)
        .try_collect::<()>()
        .await?;
    let stored = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    stream::iter(0..SMALL)
        .map(|index| {
            let (store, path, expected) = (Arc::clone(&store), path(index), &expected);
            async move { read(&store, &path, SMALL_SIZE as u64, expected).await }
        })
        .buffered(SMALL_AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok((stored, begin.elapsed().as_secs_f64()))
}
