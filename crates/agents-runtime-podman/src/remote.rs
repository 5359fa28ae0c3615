//! Files of ours on the host of an engine that is elsewhere: in a volume of the engine, filled once through its archive call.

use std::collections::{BTreeMap, HashMap};

use agents_core::{Error, ErrorKind, Result, SessionId};
use agents_guest::{PROGRAM, PROGRAM_DIR, PROGRAM_MODE, PROGRAM_SHA256};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::Method;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use crate::{
    assets::{DIGITS, hex},
    client::{Call, Client},
    model::{self, View},
    spec::{Delivery, ProgramMount},
};

/// The label of the volumes, and of the containers that they are filled through.
const LABEL: &str = "isolated-agents.assets";

/// The profile's name in the volume.
const PROFILE: &str = "seccomp.json";

/// How old something unfinished is that nobody is still at work on, in seconds.
const ABANDONED: i64 = 3600;

/// The volumes that are known to be filled, with their places on the engine's host.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    known: Mutex<HashMap<String, String>>,
}

impl Volumes {
    /// The volume with the program and this profile.
    pub(crate) async fn deliver(
        &self,
        client: &Client,
        image: &str,
        profile: &str,
        readable: bool,
    ) -> Result<Delivery> {
        let mode = if readable { PROGRAM_MODE | 0o444 } else { PROGRAM_MODE };
        let digest = Sha256::new()
            .chain_update(PROGRAM_SHA256)
            .chain_update(mode.to_be_bytes())
            .chain_update(profile)
            .finalize();
        let name = format!("isolated-agents-{}", &hex(&digest)[..DIGITS]);
        let mut known = self.known.lock().await;
        let folder = match known.get(&name) {
            Some(folder) => folder.clone(),
            None => {
                let folder = ensure(client, &name, image, profile, mode).await?;
                known.insert(name.clone(), folder.clone());
                folder
            }
        };
        Ok(Delivery {
            program: ProgramMount::Volume(name),
            seccomp_profile: format!("{}/{PROFILE}", folder.trim_end_matches('/')),
        })
    }

    /// Forgets what is known, after a volume was found missing.
    pub(crate) async fn forget(&self) {
        self.known.lock().await.clear();
    }
}

/// The volume whose presence says that the other one is complete.
fn marker(name: &str) -> String {
    format!("{name}-filled")
}

async fn ensure(client: &Client, name: &str, image: &str, profile: &str, mode: u32) -> Result<String> {
    if volume(client, &marker(name)).await?.is_none() {
        create_volume(client, name).await?;
        fill(client, name, image, profile, mode).await?;
        create_volume(client, &marker(name)).await?;
    }
    let view = volume(client, name).await?;
    view.as_ref()
        .and_then(|view| view.text("/Mountpoint"))
        .filter(|folder| folder.starts_with('/'))
        .map(str::to_owned)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the volume {name} with the guest program is damaged; remove it with `podman volume rm {name} {name}-filled`"),
            )
        })
}

async fn volume(client: &Client, name: &str) -> Result<Option<View>> {
    let call = Call::get("look at a volume", &["volumes", name, "json"]);
    match client.json(call).await {
        Ok(view) => Ok(Some(view)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn create_volume(client: &Client, name: &str) -> Result<()> {
    let body = json!({ "Name": name, "Label": { LABEL: PROGRAM_SHA256 }, "Labels": { LABEL: PROGRAM_SHA256 } });
    let call = Call::post("create a volume", &["volumes", "create"]).json(&body)?;
    match client.call(call).await {
        // Somebody else was quicker, and fills it with the same.
        Err(error) if !matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::Conflict) => Err(error),
        _ => Ok(()),
    }
}

/// Fills the volume through a container that is never started.
async fn fill(client: &Client, name: &str, image: &str, profile: &str, mode: u32) -> Result<()> {
    let filler = format!("{name}-{}", SessionId::generate());
    let specification = json!({
        "name": filler,
        "image": image,
        "entrypoint": [],
        "command": ["/nothing"],
        "cap_drop": ["ALL"],
        "netns": { "nsmode": "none" },
        "image_volume_mode": "ignore",
        "labels": { LABEL: PROGRAM_SHA256 },
        "volumes": [{ "Name": name, "Dest": PROGRAM_DIR, "Options": ["nocopy"] }],
    });
    let id = client.create(&filler, &specification).await?;
    let archive = archive(&[("guest", PROGRAM, mode), (PROFILE, profile.as_bytes(), 0o444)])?;
    let call = Call::new(Method::PUT, "fill a volume", &["containers", &id, "archive"])
        .query("path", PROGRAM_DIR)
        .query("pause", "false")
        .tar(stream::iter([Ok(Bytes::from(archive))]).boxed());
    let filled = client.call(call).await;
    let removed = client.remove(&id).await;
    filled?;
    removed
}

fn archive(files: &[(&str, &[u8], u32)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        builder
            .append_data(&mut header, name, *content)
            .map_err(|error| Error::io("cannot pack the guest program", error))?;
    }
    builder
        .into_inner()
        .map_err(|error| Error::io("cannot pack the guest program", error))
}

/// Removes what fills that were broken off have left.
pub(crate) async fn reap(client: &Client) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let now = jiff::Timestamp::now().as_second();
    let fillers = client.list_with(&[LABEL.to_owned()]).await?;
    for view in fillers {
        if now - model::created(&view).as_second() > ABANDONED
            && let Some(id) = view.text("/Id")
        {
            client.remove(id).await?;
            removed.push(format!("container {}", view.texts("/Names").join(", ")));
        }
    }
    let filters = json!({ "label": [LABEL] }).to_string();
    let call = Call::get("list the volumes", &["volumes", "json"]).query("filters", filters);
    let volumes: BTreeMap<String, View> = client
        .json::<Option<Vec<View>>>(call)
        .await?
        .unwrap_or_default()
        .into_iter()
        .filter_map(|view| Some((view.text("/Name")?.to_owned(), view)))
        .collect();
    for (name, view) in &volumes {
        let created = view
            .text("/CreatedAt")
            .and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let old = created.is_some_and(|created| now - created.as_second() > ABANDONED);
        if old && !name.ends_with("-filled") && !volumes.contains_key(&marker(name)) {
            let call = Call::new(Method::DELETE, "remove a volume", &["volumes", name]);
            match client.call(call).await {
                Ok(_) => removed.push(format!("volume {name}")),
                // It is in use after all.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_both_files_with_their_modes() {
        let bytes = archive(&[("guest", b"x", 0o111), (PROFILE, b"{}", 0o444)]).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                (
                    entry.path().unwrap().display().to_string(),
                    header.mode().unwrap(),
                    header.uid().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            entries,
            [("guest".to_owned(), 0o111, 0), (PROFILE.to_owned(), 0o444, 0)]
        );
    }
}
