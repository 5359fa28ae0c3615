//! The conformance suite over the backends of this crate.

use std::{process::ExitCode, sync::Arc};

use agents_storage_objectstore::{LocalStorage, MemoryStorage};
use agents_testkit::{run, storage, storage::StorageFixture, trials};

fn main() -> ExitCode {
    run([
        trials("local", storage::cases(), || async {
            local().map_err(|error| error.to_string())
        }),
        trials("memory", storage::cases(), || async {
            Ok(StorageFixture::new(Arc::new(MemoryStorage::new())).with_other(Arc::new(MemoryStorage::new())))
        }),
    ])
}

fn local() -> Result<StorageFixture, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let storage = Arc::new(LocalStorage::new(dir.path().join("one"))?);
    let other = Arc::new(LocalStorage::new(dir.path().join("two"))?);
    Ok(StorageFixture::new(storage).with_other(other).keeping(dir))
}
