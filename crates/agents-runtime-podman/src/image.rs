//! Images: found among the engine's own, or pulled by it.

use std::{path::PathBuf, time::Duration};

use agents_core::{Error, ErrorKind, ImagePullPolicy, ProgressListener, ProvisionProgress, Result};
use bytes::BytesMut;
use futures_util::StreamExt;
use serde::Deserialize;

use crate::{
    auth,
    client::{Call, Client},
    config, error,
    model::View,
    reference::Reference,
};

/// The longest line of a pull or a build.
const LINE: usize = 1 << 20;

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Its identifier: what is created afterwards is of this very image, whatever its name means then.
    pub(crate) id: String,
    /// The user that it asks for, as it is written there.
    pub(crate) user: String,
}

/// How images are pulled.
#[derive(Debug)]
pub(crate) struct Pulls {
    pub(crate) platform: Option<String>,
    pub(crate) auth_file: Option<PathBuf>,
    /// How long nothing may be heard of a pull.
    pub(crate) idle: Duration,
}

/// Finds the image, pulling it when the policy says so.
pub(crate) async fn ensure(
    client: &Client,
    pulls: &Pulls,
    name: &str,
    policy: ImagePullPolicy,
    progress: Option<&ProgressListener>,
) -> Result<Image> {
    let reference = Reference::parse(name)?;
    let tell = |what: ProvisionProgress| {
        if let Some(listener) = progress {
            listener.tell(what);
        }
    };
    tell(ProvisionProgress::Resolving { image: name.to_owned() });
    if policy != ImagePullPolicy::Always {
        match inspect(client, reference.local()).await {
            Ok(image) => {
                tell(ProvisionProgress::ImageReady);
                return Ok(image);
            }
            Err(error) if error.kind() == ErrorKind::NotFound && policy == ImagePullPolicy::Missing => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::not_found(format!(
                    "image: podman has no {name:?}, and the pull policy is never; pull it or load it, or choose another policy"
                )));
            }
            Err(error) => return Err(error),
        }
    }
    let id = pull(client, pulls, &reference, &tell).await?;
    // The identifier, when the engine says it: the name may mean another image by now.
    let image = inspect(client, id.as_deref().unwrap_or(&reference.remote())).await?;
    tell(ProvisionProgress::ImageReady);
    Ok(image)
}

async fn inspect(client: &Client, name: &str) -> Result<Image> {
    let view: View = client
        .json(Call::get("look at the image", &["images", name, "json"]))
        .await?;
    let id = view.text("/Id").filter(|id| !id.is_empty()).ok_or_else(|| {
        Error::new(
            ErrorKind::DataInvalid,
            "podman describes an image without an identifier",
        )
    })?;
    let user = view.text("/User").filter(|user| !user.is_empty());
    let user = user.or_else(|| view.text("/Config/User")).unwrap_or_default();
    Ok(Image {
        id: id.to_owned(),
        user: user.to_owned(),
    })
}

/// A line of a pull or a build.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    stream: Option<String>,
    error: Option<String>,
    id: Option<String>,
}

async fn pull(
    client: &Client,
    pulls: &Pulls,
    reference: &Reference,
    tell: &impl Fn(ProvisionProgress),
) -> Result<Option<String>> {
    let mut call = Call::post("pull the image", &["images", "pull"]).query("reference", reference.remote());
    if let Some(platform) = &pulls.platform {
        let (os, arch, variant) = config::platform(platform)?;
        call = call.query("OS", os).query("Arch", arch);
        if let Some(variant) = variant {
            call = call.query("Variant", variant);
        }
    }
    if let Some(credentials) = auth::find(reference, &auth::files(pulls.auth_file.as_deref())).await? {
        call = call.header("x-registry-auth", credentials.header()?);
    }
    let mut id = None;
    each_line(client, call, pulls.idle, |line| {
        if let Some(layer) = line.stream.as_deref().and_then(layer) {
            tell(ProvisionProgress::Pulling {
                layer: layer.to_owned(),
                done: 0,
                total: None,
            });
        }
        if let Some(found) = line.id.filter(|id| !id.is_empty()) {
            id = Some(found);
        }
    })
    .await
    .map_err(|error| error.with_context("image", reference.remote()))?;
    Ok(id)
}

/// The layer that a line of progress is about: "Copying blob sha256:…".
fn layer(text: &str) -> Option<&str> {
    let rest = text.trim().strip_prefix("Copying blob ")?;
    rest.split_whitespace().next()
}

/// Builds an image from an archive, and tells each line of the builder's output.
pub(crate) async fn build(client: &Client, call: Call, idle: Duration, tell: impl Fn(&str)) -> Result<()> {
    let mut last = String::new();
    each_line(client, call, idle, |line| {
        if let Some(text) = line.stream {
            tell(&text);
            if !text.trim().is_empty() {
                last = text;
            }
        }
    })
    .await
    .map_err(|error| match error.kind() {
        // What a step of the recipe says is the reason more often than what the builder says.
        ErrorKind::Unexpected | ErrorKind::NotFound => Error::invalid(format!(
            "{}; the last output was: {}",
            error.message(),
            error::shown(&last)
        )),
        _ => error,
    })
}

/// Reads JSON, a line each, to the end. An error in a line is the call's error, whatever the status said before.
async fn each_line(client: &Client, call: Call, idle: Duration, mut each: impl FnMut(Line)) -> Result<()> {
    let mut body = client.stream(call, idle).await?;
    let mut buffer = BytesMut::new();
    let mut failed = None;
    let mut take = |line: &[u8]| {
        // A line that is not understood says nothing, and the end says whether the image is there.
        let line: Line = serde_json::from_slice(line).unwrap_or_default();
        if let Some(message) = line.error.as_deref().filter(|message| !message.is_empty()) {
            let body = serde_json::json!({ "message": message }).to_string();
            failed.get_or_insert_with(|| error::from_answer("get the image", 500, body.as_bytes()));
        }
        each(line);
    };
    while let Some(chunk) = body.next().await {
        buffer.extend_from_slice(&chunk?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            take(&line);
        }
        if buffer.len() > LINE {
            return Err(Error::new(
                ErrorKind::DataInvalid,
                "podman's progress has a line without an end",
            ));
        }
    }
    take(&buffer);
    match failed {
        Some(error) => Err(error.with_context("engine", client.address())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_found_in_progress() {
        assert_eq!(layer("Copying blob sha256:abc\n"), Some("sha256:abc"));
        assert_eq!(layer("Copying blob sha256:abc done\n"), Some("sha256:abc"));
        assert_eq!(layer("Writing manifest to image destination"), None);
    }
}
