//! Building an image from a folder, with the engine's classic builder.

use std::time::Duration;

use agents_core::{BuildImageRequest, Error, ErrorKind, ProvisionProgress, Result};
use bollard::{body_try_stream, models::BuildInfo, query_parameters::BuildImageOptionsBuilder};
use futures_util::{StreamExt, TryStreamExt};
use tokio::time::timeout;

use crate::{
    context,
    engine::Engine,
    error,
    ignore::Ignored,
    image::{ImageName, Images},
};

/// How long a step may say nothing, in deadlines of a call.
const QUIET: u32 = 5;

pub(crate) async fn build(engine: &Engine, images: &Images, request: &BuildImageRequest) -> Result<String> {
    const WHAT: &str = "cannot build the image";
    if ImageName::parse(&request.tag)?.is_pinned() {
        return Err(Error::invalid(
            "tag: an image that is built has a name and a tag, and no digest",
        ));
    }
    let recipe = context::recipe(&request.context, request.containerfile.as_deref())?;
    let ignored = Ignored::read(&request.context)?;
    let mut options = BuildImageOptionsBuilder::new()
        .dockerfile(&recipe)
        .t(&request.tag)
        .rm(true)
        .forcerm(true);
    if !request.network {
        options = options.networkmode("none");
    }
    if let Some(platform) = &images.platform {
        options = options.platform(platform);
    }
    let archive = context::archive(request.context.clone(), recipe, ignored);
    let archive = body_try_stream(archive.map_err(std::io::Error::other));
    let quiet: Duration = engine.deadline() * QUIET;
    let mut messages = engine.docker().build_image(options.build(), None, Some(archive));
    let mut last = String::new();
    loop {
        let message: BuildInfo = match timeout(quiet, messages.next()).await {
            Err(_) => return Err(error::late(WHAT, Some(quiet))),
            Ok(None) => return Ok(request.tag.clone()),
            Ok(Some(message)) => message.map_err(|fault| failed(error::map(WHAT, fault), &last))?,
        };
        if let Some(fault) = message.error_detail.and_then(|detail| detail.message) {
            return Err(failed(error::answered(WHAT, 500, &fault), &last));
        }
        if let Some(line) = message.stream {
            if !line.trim().is_empty() {
                last.clone_from(&line);
            }
            if let Some(listener) = &request.progress {
                listener.tell(ProvisionProgress::Building { line });
            }
        }
    }
}

/// What a step of the recipe says is the reason more often than what the builder says, and a recipe that fails once fails
/// again.
fn failed(error: Error, last: &str) -> Error {
    let of_the_recipe = error.message().contains("returned a non-zero code")
        || error.message().contains("dockerfile parse error")
        || error.message().contains("COPY failed")
        || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConfigInvalid);
    if !of_the_recipe {
        return error;
    }
    Error::invalid(format!(
        "{}; the last output was: {}",
        error.message(),
        error::one_line(last)
    ))
}
