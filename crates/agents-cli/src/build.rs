//! `agents build`.

use agents_sdk::{
    core::{BuildImageRequest, ProgressListener, ProvisionProgress},
    session::Scope,
};
use serde_json::json;

use crate::{
    args::{Adapters, BuildArgs},
    context::Context,
    failure::Outcome,
    output::{self, one_line},
};

pub(crate) async fn build(context: &Context, args: &BuildArgs) -> Outcome {
    let engine = context
        .engine(&Adapters {
            runtime: args.runtime.clone(),
            ..Adapters::default()
        })
        .await?;
    let quiet = context.common.quiet;
    let request = BuildImageRequest::new(&args.context, &args.tag)
        .with_containerfile(args.file.clone())
        .with_network(args.network)
        .with_progress(Some(ProgressListener::new(move |progress| {
            if let ProvisionProgress::Building { line } = progress
                && !quiet
            {
                output::note(&one_line(line.trim_end()));
            }
        })));
    let recorded = engine.recorded(Scope::new());
    let built = recorded.adapters.runtime.build_image(request).await;
    recorded.trail.flush().await?;
    let image = built?;
    if context.json() {
        output::json(&json!({"image": image}))?;
    } else {
        output::text(&format!("{image}\n"))?;
    }
    Ok(0)
}
