//! `copy`, `backup`, `restore`, `verify` and `prune`: what works on whole sessions.

use std::sync::Arc;

use agents_sdk::{
    core::{ArtifactInfo, EventType, Result, SessionId, StorageBackend},
    session::{
        CancellationToken, Engine, Recorded, Scope,
        transfer::{self, CopyOptions, CopyReport, RetainOptions, VerifyReport},
    },
};
use futures_util::TryStreamExt;
use serde_json::json;

use super::{
    args::{BackupArgs, CopyArgs, PruneArgs, RestoreArgs, VerifyArgs},
    bar::Bar,
    done, engine, place, record, recorded, session,
};
use crate::{
    args::Adapters,
    context::Context,
    failure::{CODE_FAILED, Outcome},
    output::{self, one_line},
    units,
};

pub(super) async fn copy(context: &Context, args: &CopyArgs, stop: CancellationToken) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let from = open(context, &engine, args.from.as_deref()).await?;
    let to = open(context, &engine, args.to.as_deref()).await?;
    let mut sessions = Vec::new();
    for text in &args.sessions {
        sessions.push(session(&engine, text).await?);
    }
    let options = CopyOptions::default()
        .with_parallel(args.parallel.parallel)
        .with_read_back(args.verify)
        .with_cancellation(stop);
    let report = Copier::new(context, &engine, from, to, options, "copy")
        .all(sessions)
        .await?;
    tell(context, &report, "copied")
}

pub(super) async fn backup(context: &Context, args: &BackupArgs, stop: CancellationToken) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let from = open(context, &engine, None).await?;
    let to = open(context, &engine, Some(&args.to)).await?;
    let options = whole(args.parallel.parallel, stop);
    everything(context, &engine, from, to, options, "back up").await
}

pub(super) async fn restore(context: &Context, args: &RestoreArgs, stop: CancellationToken) -> Outcome {
    let engine = context.engine(&Adapters::default()).await?;
    let from = open(context, &engine, Some(&args.from)).await?;
    let to = open(context, &engine, None).await?;
    let options = whole(args.parallel.parallel, stop);
    everything(context, &engine, from, to, options, "restore").await
}

fn whole(parallel: usize, stop: CancellationToken) -> CopyOptions {
    CopyOptions::default()
        .with_parallel(parallel)
        .with_read_back(true)
        .with_cancellation(stop)
}

async fn everything(
    context: &Context,
    engine: &Engine,
    from: Arc<dyn StorageBackend>,
    to: Arc<dyn StorageBackend>,
    options: CopyOptions,
    doing: &'static str,
) -> Outcome {
    let sessions = from.sessions().try_collect().await?;
    let report = Copier::new(context, engine, from, to, options, doing)
        .all(sessions)
        .await?;
    tell(context, &report, "copied and read back")
}

/// The place that is named, or else the configured one.
async fn open(context: &Context, engine: &Engine, text: Option<&str>) -> Result<Arc<dyn StorageBackend>> {
    match text {
        Some(text) => place::open(context, engine, text).await,
        None => Ok(Arc::clone(&engine.adapters().storage)),
    }
}

/// Copies sessions, one after the other.
struct Copier<'a> {
    context: &'a Context,
    engine: &'a Engine,
    from: Arc<dyn StorageBackend>,
    to: Arc<dyn StorageBackend>,
    options: CopyOptions,
    doing: &'static str,
}

impl<'a> Copier<'a> {
    fn new(
        context: &'a Context,
        engine: &'a Engine,
        from: Arc<dyn StorageBackend>,
        to: Arc<dyn StorageBackend>,
        options: CopyOptions,
        doing: &'static str,
    ) -> Self {
        Self {
            context,
            engine,
            from,
            to,
            options,
            doing,
        }
    }

    async fn all(&self, sessions: Vec<SessionId>) -> Result<CopyReport> {
        let from = self.from.as_ref();
        let bar = Bar::new(self.context, self.doing, None);
        let progress = bar.listen();
        let mut report = CopyReport::default();
        for (index, session) in sessions.iter().enumerate() {
            if index == 0 {
                place::refuse_same(from, self.to.as_ref(), session).await?;
            }
            let recorded = recorded(self.engine, session);
            let to = recorded.storage(Arc::clone(&self.to));
            let copied = transfer::copy_session(from, to.as_ref(), session, &self.options, Arc::clone(&progress)).await;
            let one = done(&recorded.trail, copied)
                .await
                .map_err(|error| error.with_context("session", session))?;
            // Session by session, so that an interrupted copy leaves few that the trail does not know.
            record(&recorded.trail, EventType::ArtifactStored, &one.copied).await?;
            report.copied.extend(one.copied);
            report.skipped += one.skipped;
            report.bytes += one.bytes;
        }
        Ok(report)
    }
}

fn tell(context: &Context, report: &CopyReport, done: &str) -> Outcome {
    if context.json() {
        output::json(report)?;
    } else if !context.common.quiet {
        let already = match report.skipped {
            0 => String::new(),
            skipped => format!("; {skipped} were there already"),
        };
        output::note(&format!(
            "{done} {}, {}{already}",
            count(report.copied.len() as u64),
            units::bytes(report.bytes)
        ));
    }
    Ok(0)
}

fn count(artifacts: u64) -> String {
    match artifacts {
        1 => "1 artifact".to_owned(),
        many => format!("{many} artifacts"),
    }
}

pub(super) async fn verify(context: &Context, args: &VerifyArgs, stop: CancellationToken) -> Outcome {
    let engine = engine(context, &args.storage).await?;
    let storage = &engine.adapters().storage;
    let mut sessions = Vec::new();
    for text in &args.sessions {
        sessions.push(session(&engine, text).await?);
    }
    if sessions.is_empty() {
        sessions = storage.sessions().try_collect().await?;
    }
    let bar = Bar::new(context, "verify", None);
    let progress = bar.listen();
    let options = CopyOptions::default()
        .with_parallel(args.parallel.parallel)
        .with_cancellation(stop);
    let mut report = VerifyReport::default();
    for session in &sessions {
        let one = transfer::verify_session(storage.as_ref(), session, &options, Arc::clone(&progress))
            .await
            .map_err(|error| error.with_context("session", session))?;
        report.verified += one.verified;
        report.bytes += one.bytes;
        report.damaged.extend(one.damaged);
    }
    drop(bar);
    tell_verified(context, &report)
}

fn tell_verified(context: &Context, report: &VerifyReport) -> Outcome {
    let damaged = report.damaged.len() as u64;
    if context.json() {
        let list: Vec<_> = report
            .damaged
            .iter()
            .map(|damaged| {
                json!({
                    "artifact": damaged.artifact,
                    "error": damaged.error.report(),
                    "error_kind": damaged.error.kind(),
                })
            })
            .collect();
        output::json(&json!({"verified": report.verified, "bytes": report.bytes, "damaged": list}))?;
    } else {
        for damaged in &report.damaged {
            let which = damaged.artifact.as_ref().map(|artifact| artifact.uri.as_str());
            output::text(&format!(
                "{}: {}\n",
                one_line(which.unwrap_or("an artifact that cannot be told")),
                one_line(&damaged.error.report())
            ))?;
        }
        if !context.common.quiet {
            output::note(&format!(
                "{} whole, {}",
                count(report.verified),
                units::bytes(report.bytes)
            ));
        }
    }
    match damaged {
        0 => Ok(0),
        _ => {
            output::error(&format!(
                "{} cannot be read as stored; restore what is damaged from a backup",
                count(damaged)
            ));
            Ok(CODE_FAILED)
        }
    }
}

pub(super) async fn prune(context: &Context, args: &PruneArgs) -> Outcome {
    let engine = engine(context, &args.storage).await?;
    let options = RetainOptions::new(args.older_than).with_dry_run(args.dry_run);
    let Recorded { adapters, trail, .. } = engine.recorded(Scope::new());
    let report = done(&trail, transfer::retain(adapters.storage.as_ref(), &options).await).await?;
    if !args.dry_run {
        record(&trail, EventType::ArtifactDeleted, &report.removed).await?;
    }
    if context.json() {
        output::json(&report)?;
        return Ok(0);
    }
    for artifact in &report.removed {
        output::text(&format!("{}\n", line(artifact)))?;
    }
    if !context.common.quiet {
        let bytes = report.removed.iter().map(|artifact| artifact.size).sum();
        let done = if args.dry_run { "would be deleted" } else { "deleted" };
        output::note(&format!(
            "{} {done}, {}; {} stay",
            count(report.removed.len() as u64),
            units::bytes(bytes),
            report.kept
        ));
    }
    Ok(0)
}

fn line(artifact: &ArtifactInfo) -> String {
    format!(
        "{} {} version {}",
        artifact.session_id,
        one_line(artifact.name.as_str()),
        artifact.version
    )
}
