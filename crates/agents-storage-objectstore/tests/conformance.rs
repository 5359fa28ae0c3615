//! The conformance suite over the backends of this crate. Those of the clouds run against real servers, which
//! `cargo xtask services up` starts.

mod support;

use std::{process::ExitCode, sync::Arc};

use agents_storage_objectstore::{LocalStorage, MemoryStorage};
use agents_testkit::{run, storage, storage::StorageFixture, trials};

use support::servers::{self, Server};

fn main() -> ExitCode {
    let mut suites = vec![
        trials("local", storage::cases(), || async {
            local().map_err(|error| error.to_string())
        }),
        trials("memory", storage::cases(), || async {
            Ok(StorageFixture::new(Arc::new(MemoryStorage::new())).with_other(Arc::new(MemoryStorage::new())))
        }),
    ];
    for server in Server::ALL {
        suites.push(trials(server.name(), storage::cases(), move || async move {
            servers::fixture(server).await.map_err(|error| error.to_string())
        }));
    }
    run(suites)
}

fn local() -> Result<StorageFixture, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let storage = Arc::new(LocalStorage::new(dir.path().join("one"))?);
    let other = Arc::new(LocalStorage::new(dir.path().join("two"))?);
    Ok(StorageFixture::new(storage).with_other(other).keeping(dir))
}
