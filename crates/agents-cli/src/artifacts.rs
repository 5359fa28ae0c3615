//! `agents artifacts`.

pub(crate) mod args;
mod bar;
mod interrupt;
mod place;
mod transfer;
mod url;

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use agents_sdk::{
    core::{
        ArtifactInfo, ArtifactName, AuditEvent, Body, DeleteRequest, Error, EventType, Result, RetrieveRequest,
        SessionId, StorageBackendExt, StoreRequest,
    },
    session::{CancellationToken, Engine, OutputStream, Recorded, Scope, Trail, transfer::until_cancelled},
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;
use tokio_util::io::ReaderStream;

use self::{
    args::{ArtifactsCommand, GetArgs, LsArgs, PutArgs, RmArgs, Storage},
    bar::Bar,
    interrupt::interruptible,
};
use crate::{
    args::Adapters,
    context::{Context, find_session},
    failure::{CODE_PIPE, Failure, Outcome},
    output::{self, one_line},
    run::Sink,
    units,
};

pub(crate) async fn run(context: &Context, command: &ArtifactsCommand) -> Outcome {
    interruptible(context, |stop| async move {
        match command {
            ArtifactsCommand::Ls(args) => ls(context, args).await,
            ArtifactsCommand::Get(args) => get(context, args, stop).await,
            ArtifactsCommand::Put(args) => put(context, args, stop).await,
            ArtifactsCommand::Url(args) => url::url(context, args).await,
            ArtifactsCommand::Rm(args) => rm(context, args).await,
            ArtifactsCommand::Copy(args) => transfer::copy(context, args, stop).await,
            ArtifactsCommand::Verify(args) => transfer::verify(context, args, stop).await,
            ArtifactsCommand::Prune(args) => transfer::prune(context, args).await,
            ArtifactsCommand::Backup(args) => transfer::backup(context, args, stop).await,
            ArtifactsCommand::Restore(args) => transfer::restore(context, args, stop).await,
        }
    })
    .await
}

async fn engine(context: &Context, storage: &Storage) -> Result<Engine> {
    let adapters = Adapters {
        storage: storage.storage.clone(),
        ..Adapters::default()
    };
    context.engine(&adapters).await
}

/// The session of an artifact. One that is not known here may still have artifacts in a store that is shared.
async fn session(engine: &Engine, text: &str) -> Result<SessionId> {
    match find_session(engine, text).await {
        Err(error) if error.kind() == agents_sdk::core::ErrorKind::NotFound => SessionId::new(text),
        found => found,
    }
}

/// The adapters with what is done to a session's artifacts on record.
fn recorded(engine: &Engine, session: &SessionId) -> Recorded {
    engine.recorded(Scope::new().with_session(Some(session.clone())))
}

/// What came of an operation. A failure is on record before it is told, since nothing may follow it in this process.
async fn done<T>(trail: &Trail, result: Result<T>) -> Result<T> {
    if result.is_err() {
        // When the sink fails as well, the operation's own error is the one to tell.
        let _ = trail.flush().await;
    }
    result
}

/// Puts it on record that this happened to artifacts, with all that was done for it.
async fn record(trail: &Trail, event: EventType, artifacts: &[ArtifactInfo]) -> Result<()> {
    let events: Vec<_> = artifacts
        .iter()
        .map(|artifact| event_of(trail, event, artifact))
        .collect();
    trail.record(events).await
}

fn event_of(trail: &Trail, event: EventType, artifact: &ArtifactInfo) -> AuditEvent {
    trail
        .event(event)
        .with_session(artifact.session_id.clone())
        .with_fact("name", artifact.name.as_str())
        .with_fact("uri", artifact.uri.as_str())
        .with_fact("version", artifact.version)
        .with_fact("sha256", artifact.sha256.as_str())
}

async fn ls(context: &Context, args: &LsArgs) -> Outcome {
    let engine = engine(context, &args.storage).await?;
    let Some(text) = &args.session else {
        return sessions(context, &engine).await;
    };
    let id = session(&engine, text).await?;
    let artifacts = engine.adapters().storage.list_all(&id).await?;
    if context.json() {
        output::json(&artifacts)?;
        return Ok(0);
    }
    let rows = artifacts
        .iter()
        .map(|artifact| {
            [
                artifact.name.to_string(),
                artifact.version.to_string(),
                units::bytes(artifact.size),
                artifact.sha256.get(..12).unwrap_or_default().to_owned(),
                artifact.uri.clone(),
            ]
        })
        .collect();
    output::table(
        ["NAME", "VERSION", "SIZE", "SHA256", "URI"],
        rows,
        false,
        "no artifacts",
    )?;
    Ok(0)
}

/// The sessions that have artifacts, also those that are known only to the store.
async fn sessions(context: &Context, engine: &Engine) -> Outcome {
    let storage = &engine.adapters().storage;
    let mut found = Vec::new();
    let mut ids = storage.sessions();
    while let Some(id) = ids.try_next().await? {
        let (mut artifacts, mut bytes) = (0_u64, 0_u64);
        let mut list = storage.list(&id);
        while let Some(artifact) = list.try_next().await? {
            artifacts += 1;
            bytes += artifact.size;
        }
        found.push((id, artifacts, bytes));
    }
    if context.json() {
        let list: Vec<_> = found
            .iter()
            .map(|(id, artifacts, bytes)| json!({"session_id": id, "artifacts": artifacts, "bytes": bytes}))
            .collect();
        output::json(&list)?;
        return Ok(0);
    }
    let rows = found
        .into_iter()
        .map(|(id, artifacts, bytes)| [id.to_string(), artifacts.to_string(), units::bytes(bytes)])
        .collect();
    output::table(["SESSION", "ARTIFACTS", "SIZE"], rows, false, "no artifacts")?;
    Ok(0)
}

async fn get(context: &Context, args: &GetArgs, stop: CancellationToken) -> Outcome {
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    if to_stdout && context.json() {
        return Err(Failure::Usage(Error::invalid(
            "--json and --output - both want standard output; name a file, or leave --json out",
        )));
    }
    let name = ArtifactName::new(args.name.as_str())?;
    let engine = engine(context, &args.storage).await?;
    let id = session(&engine, &args.session).await?;
    let artifact = newest(&engine, &id, &name, args.version).await?;
    let Recorded { adapters, trail, .. } = recorded(&engine, &id);
    record(&trail, EventType::ArtifactRetrieved, std::slice::from_ref(&artifact)).await?;
    let retrieved = adapters
        .storage
        .retrieve(RetrieveRequest::new(artifact.uri.as_str()))
        .await?;
    let content = until_cancelled(retrieved.content, stop);
    if to_stdout {
        return print(content).await;
    }
    let path = target(args.output.as_deref(), &name);
    let bar = Bar::new(context, "get", Some(artifact.size));
    write_file(&path, bar.count(content)).await?;
    drop(bar);
    if context.json() {
        output::json(&json!({"artifact": artifact, "path": path}))?;
    } else if !context.common.quiet {
        output::note(&format!(
            "{} {}",
            one_line(&path.to_string_lossy()),
            units::bytes(artifact.size)
        ));
    }
    Ok(0)
}

async fn newest(engine: &Engine, id: &SessionId, name: &ArtifactName, version: Option<u64>) -> Result<ArtifactInfo> {
    let mut all = engine.adapters().storage.list(id);
    let mut found = None;
    while let Some(artifact) = all.try_next().await? {
        if artifact.name == *name && version.is_none_or(|version| artifact.version == version) {
            found = Some(artifact);
        }
    }
    found.ok_or_else(|| {
        let version = version.map(|version| format!(" version {version}")).unwrap_or_default();
        Error::not_found(format!(
            "session {id} has no artifact {name:?}{version}; agents artifacts ls {id} lists what there is"
        ))
    })
}

async fn print(mut content: agents_sdk::core::ByteStream) -> Outcome {
    let (sink, never) = (Sink::new(OutputStream::Stdout), CancellationToken::new());
    while let Some(chunk) = content.next().await {
        sink.write(chunk?, &never).await;
        if sink.has_failed() {
            return Ok(CODE_PIPE);
        }
    }
    Ok(0)
}

/// The file to write: in a folder that was named, the artifact's last component; never a path that the artifact chose.
fn target(output: Option<&Path>, name: &ArtifactName) -> PathBuf {
    let last = name.components().last().unwrap_or_default();
    match output {
        None => PathBuf::from(last),
        Some(folder) if folder.is_dir() => folder.join(last),
        Some(file) => file.to_owned(),
    }
}

/// Writes beside the file and renames, so that an interrupted transfer leaves nothing that looks whole.
async fn write_file(path: &Path, mut content: agents_sdk::core::ByteStream) -> Result<()> {
    let cannot = |error| Error::io(format!("cannot write {}", path.display()), error);
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&part)
        .map_err(cannot)?;
    let written = async {
        while let Some(chunk) = content.try_next().await? {
            write_chunk(&mut file, &chunk).map_err(cannot)?;
        }
        std::fs::rename(&part, path).map_err(cannot)
    };
    let written = written.await;
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn write_chunk(file: &mut File, chunk: &Bytes) -> std::io::Result<()> {
    file.write_all(chunk)
}

async fn put(context: &Context, args: &PutArgs, stop: CancellationToken) -> Outcome {
    let name = match &args.name {
        Some(name) => ArtifactName::new(name.as_str())?,
        None => {
            let name = args.file.file_name().and_then(|name| name.to_str());
            ArtifactName::new(name.ok_or_else(|| {
                Failure::Usage(Error::invalid(format!(
                    "{} has no name that an artifact can have; give one with --name",
                    args.file.display()
                )))
            })?)?
        }
    };
    let cannot = |error| Error::io(format!("cannot read {}", args.file.display()), error);
    // A pipe opens when somebody writes to it, and a signal must be heard until then.
    let file = tokio::fs::File::open(&args.file).await.map_err(cannot)?;
    let metadata = file.metadata().await.map_err(cannot)?;
    if metadata.is_dir() {
        return Err(Error::invalid(format!(
            "{} is a folder; store its files one by one",
            args.file.display()
        ))
        .into());
    }
    let engine = engine(context, &args.storage).await?;
    let id = session(&engine, &args.session).await?;
    let path = args.file.clone();
    let size = metadata.is_file().then_some(metadata.len());
    let content = ReaderStream::with_capacity(file, 256 << 10)
        .map_err(move |error| Error::io(format!("cannot read {}", path.display()), error))
        .boxed();
    let content = until_cancelled(content, stop);
    let bar = Bar::new(context, "put", size);
    let Recorded { adapters, trail, .. } = recorded(&engine, &id);
    let request = StoreRequest::new(id, name, Body::from_stream(bar.count(content), size))
        .with_content_type(args.about.content_type.clone())
        .with_metadata(args.about.metadata.iter().cloned().collect());
    let artifact = done(&trail, adapters.storage.store(request).await).await?;
    drop(bar);
    record(&trail, EventType::ArtifactStored, std::slice::from_ref(&artifact)).await?;
    match context.json() {
        true => output::json(&artifact)?,
        false => output::text(&format!("{}\n", one_line(&artifact.uri)))?,
    }
    Ok(0)
}

async fn rm(context: &Context, args: &RmArgs) -> Outcome {
    let name = args.name.as_deref().map(ArtifactName::new).transpose()?;
    let engine = engine(context, &args.storage).await?;
    let id = session(&engine, &args.session).await?;
    let Recorded { adapters, trail, .. } = recorded(&engine, &id);
    let request = DeleteRequest::new(id).with_name(name);
    let deleted = done(&trail, adapters.storage.delete(request).await).await?;
    record(&trail, EventType::ArtifactDeleted, &deleted).await?;
    if context.json() {
        output::json(&deleted)?;
    } else if deleted.is_empty() && !context.common.quiet {
        output::note("there was nothing to delete");
    } else {
        for artifact in &deleted {
            output::text(&format!(
                "{} version {}\n",
                one_line(artifact.name.as_str()),
                artifact.version
            ))?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_never_chooses_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let name = ArtifactName::new("a/b/c.txt").unwrap();
        assert_eq!(target(None, &name), Path::new("c.txt"));
        assert_eq!(target(Some(folder.path()), &name), folder.path().join("c.txt"));
        assert_eq!(target(Some(Path::new("x.bin")), &name), Path::new("x.bin"));
    }
}
