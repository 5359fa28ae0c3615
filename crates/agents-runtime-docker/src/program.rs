//! The guest program on the engine: a named volume by the program's hash, filled once and mounted read-only everywhere.
//!
//! Beside it is a file of hosts. Docker writes one only for a container that it makes a network namespace for, which takes it
//! longer than anything else, and the OCI runtime's own one, with nothing but loopback, is all that is needed.
//!
//! A container without a process is made to fill it, whose name lets only one caller do so at a time. A second volume, empty,
//! is the word that the first is complete.

use std::{sync::Arc, time::Duration};

use agents_core::{Error, ErrorKind, Result};
use agents_guest::{PROGRAM, PROGRAM_DIR, PROGRAM_MODE, PROGRAM_PATH, PROGRAM_SHA256};
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};

use crate::{engine::Engine, error};

/// The label of everything that carries the program.
const LABEL: &str = "isolated-agents.program";

/// The file of hosts in the volume.
const HOSTS_NAME: &str = "hosts";

/// What it says, as docker's own for a container without a network.
const HOSTS: &[u8] = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// How old a container that fills the volume is when whoever made it must be gone, in seconds.
const STALE: i64 = 30;

/// Who may read the program's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// Nobody: it can be executed alone, which makes its processes undumpable from their first instruction.
    Execute,
    /// Everybody, as gVisor demands, which loads programs with their users' rights.
    Read,
}

impl Access {
    /// What the container's kernel needs.
    pub(crate) fn of_kernel(gvisor: bool) -> Self {
        if gvisor { Self::Read } else { Self::Execute }
    }

    fn mode(self) -> u32 {
        match self {
            Self::Execute => PROGRAM_MODE,
            Self::Read => 0o555,
        }
    }

    fn volume(self) -> String {
        let hash = &PROGRAM_SHA256[..16];
        match self {
            Self::Execute => format!("agents-guest-{hash}"),
            Self::Read => format!("agents-guest-{hash}-read"),
        }
    }

    fn complete(self) -> String {
        format!("{}-complete", self.volume())
    }
}

/// Where the file of hosts is on the engine's host, when the volume is there and filled.
pub(crate) async fn find(engine: &Engine, access: Access) -> Result<Option<String>> {
    let volumes = engine.volumes(&format!("{LABEL}={PROGRAM_SHA256}")).await?;
    let place = volumes.get(&access.volume());
    Ok(place
        .filter(|_| volumes.contains_key(&access.complete()))
        .map(|place| format!("{place}/{HOSTS_NAME}")))
}

/// Makes sure that the volume is there and filled, and says the same. The image is any that is on the engine.
pub(crate) async fn ensure(engine: Arc<Engine>, access: Access, image: String) -> Result<String> {
    let begun = tokio::time::Instant::now();
    loop {
        if let Some(hosts) = find(&engine, access).await? {
            return Ok(hosts);
        }
        let filler = format!("{}-fill", access.volume());
        match engine.create(Some(&filler), filling(access, &image)).await {
            Ok(id) => {
                let filled = fill(&engine, access, &id).await;
                engine.remove(&id).await?;
                filled?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && begun.elapsed() < engine.deadline() => {
                clear(&engine).await?;
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

async fn fill(engine: &Engine, access: Access, id: &str) -> Result<()> {
    engine.upload(id, PROGRAM_DIR, archive(access.mode())?.into()).await?;
    engine
        .create_volume(&access.complete(), &[(LABEL, PROGRAM_SHA256)])
        .await
}

/// The program and the hosts as files of root's.
fn archive(mode: u32) -> Result<Vec<u8>> {
    let program = PROGRAM_PATH.rsplit('/').next().unwrap_or(PROGRAM_PATH);
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        archive.append_data(&mut header, name, content)
    };
    add(program, mode, PROGRAM)
        .and_then(|()| add(HOSTS_NAME, 0o444, HOSTS))
        .and_then(|()| archive.into_inner())
        .map_err(|error| Error::io("cannot pack the guest program", error))
}

/// Removes what was left by somebody who began to fill the volume, or to look at an image, and is gone. Says what.
pub(crate) async fn clear(engine: &Engine) -> Result<Vec<String>> {
    let offset = engine.known().map_or(0.0, |facts| facts.clock_offset);
    let now = jiff::Timestamp::now().as_second() + offset as i64;
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

fn filling(access: Access, image: &str) -> ContainerCreateBody {
    let mount = Mount {
        read_only: Some(false),
        ..mount(access)
    };
    let mut body = never_started(image);
    if let Some(host) = &mut body.host_config {
        host.mounts = Some(vec![mount]);
    }
    body
}

/// A container that only gives access to files, and is found by [`clear`] when it was forgotten.
pub(crate) fn never_started(image: &str) -> ContainerCreateBody {
    let labels = [(LABEL.to_owned(), PROGRAM_SHA256.to_owned())];
    ContainerCreateBody {
        image: Some(image.to_owned()),
        // An image may have no command.
        entrypoint: Some(vec![PROGRAM_PATH.to_owned()]),
        labels: Some(labels.into()),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// The mount of the program in a container.
pub(crate) fn mount(access: Access) -> Mount {
    let labels = [(LABEL.to_owned(), PROGRAM_SHA256.to_owned())];
    Mount {
        target: Some(PROGRAM_DIR.to_owned()),
        source: Some(access.volume()),
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
