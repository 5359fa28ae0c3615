//! The guest program on the engine: a named volume by the program's hash, filled once and mounted read-only everywhere.
//!
//! A container without a process is made to fill it, whose name lets only one caller do so at a time. A second volume, empty,
//! is the word that the first is complete.

use std::time::Duration;

use agents_core::{ErrorKind, Result};
use agents_guest::{PROGRAM_DIR, PROGRAM_SHA256, program_archive};
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};

use crate::{engine::Engine, error};

/// The label of everything that carries the program.
const LABEL: &str = "isolated-agents.program";

/// How old a container that fills the volume is when whoever made it must be gone, in seconds.
const STALE: i64 = 120;

/// The name of the volume.
pub(crate) fn volume() -> String {
    format!("agents-guest-{}", &PROGRAM_SHA256[..16])
}

fn ready() -> String {
    format!("{}-ready", volume())
}

/// Makes sure that the volume is there and filled. The image is any that is on the engine.
pub(crate) async fn ensure(engine: &Engine, image: &str) -> Result<()> {
    let begun = tokio::time::Instant::now();
    loop {
        let volumes = engine.volumes(&format!("{LABEL}={PROGRAM_SHA256}")).await?;
        if [volume(), ready()].iter().all(|name| volumes.contains(name)) {
            return Ok(());
        }
        let filler = format!("{}-fill", volume());
        match engine.create(&filler, filling(image)).await {
            Ok(id) => {
                let filled = fill(engine, &id).await;
                let removed = engine.remove(&id).await;
                return filled.and(removed);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && begun.elapsed() < engine.deadline() => {
                clear(engine).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(error::late(
                    "cannot copy the guest program to the engine",
                    Some(engine.deadline()),
                ));
            }
            Err(error) => return Err(error),
        }
    }
}

async fn fill(engine: &Engine, id: &str) -> Result<()> {
    engine.upload(id, PROGRAM_DIR, program_archive().into()).await?;
    engine.create_volume(&ready(), &[(LABEL, PROGRAM_SHA256)]).await
}

/// Removes what was left by somebody who began to fill the volume and is gone, and says what.
pub(crate) async fn clear(engine: &Engine) -> Result<Vec<String>> {
    let now = jiff::Timestamp::now().as_second();
    let mut removed = Vec::new();
    for container in engine.list(&[LABEL.to_owned()]).await? {
        if now - container.created > STALE {
            engine.remove(&container.id).await?;
            removed.push(format!(
                "container {}",
                container.names.join(" ").trim_start_matches('/')
            ));
        }
    }
    Ok(removed)
}

fn filling(image: &str) -> ContainerCreateBody {
    let labels = [(LABEL.to_owned(), PROGRAM_SHA256.to_owned())];
    let mount = Mount {
        read_only: Some(false),
        ..mount()
    };
    ContainerCreateBody {
        image: Some(image.to_owned()),
        // It is never started, and an image may have no command.
        entrypoint: Some(vec![agents_guest::PROGRAM_PATH.to_owned()]),
        labels: Some(labels.into()),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            mounts: Some(vec![mount]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// The mount of the program in a container.
pub(crate) fn mount() -> Mount {
    let labels = [(LABEL.to_owned(), PROGRAM_SHA256.to_owned())];
    Mount {
        target: Some(PROGRAM_DIR.to_owned()),
        source: Some(volume()),
        typ: Some(MountType::VOLUME),
        read_only: Some(true),
        volume_options: Some(bollard::models::MountVolumeOptions {
            no_copy: Some(true),
            labels: Some(labels.into()),
            ..Default::default()
        }),
        ..Mount::default()
    }
}
