//! `agents audit report`.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    process::Stdio,
};

use agents_sdk::{
    audit_export::{ChainCheck, ChainVerdict, OutputPiece, SessionReport},
    core::{AuditQuery, Error, ErrorKind, Result, SessionId},
    journal::{ChainKey, Keys},
    session::{Engine, OutputStream},
};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::{
    args::{Open, ReportArgs},
    export::Whole,
    trail::{Trail, adapters, each_page},
    verify::plural,
};
use crate::{
    context::{Context, find_session},
    failure::Outcome,
    output,
};

/// How much of the output is shown, of its beginning and of its end each.
const SHOWN: usize = 64 << 10;

pub(crate) async fn report(context: &Context, args: ReportArgs) -> Outcome {
    let engine = context.engine(&adapters(args.audit.as_ref())).await?;
    // The trail may know a session of elsewhere.
    let (id, inspection) = match find_session(&engine, &args.session).await {
        Ok(id) => {
            let inspection = engine.inspect(&id).await?;
            (id, json!(inspection))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => (SessionId::new(args.session.as_str())?, Value::Null),
        Err(error) => return Err(error.into()),
    };
    let logger = &engine.adapters().audit;
    let mut events = Vec::new();
    each_page(
        logger.as_ref(),
        AuditQuery::new().with_session(Some(id.clone())),
        |page| {
            events.extend(page);
            Ok(())
        },
    )
    .await?;
    if events.is_empty() && inspection.is_null() {
        return Err(Error::not_found(format!(
            "nothing is known of session {:?}, neither here nor in {}; agents ps -a lists what there is",
            args.session,
            logger.location()
        ))
        .into());
    }
    let (output, omitted) = match inspection.is_null() {
        true => (Vec::new(), 0),
        false => printed(&engine, &id).await?,
    };
    let page = SessionReport::new(id.clone(), events)
        .with_inspection(inspection)
        .with_output(output, omitted)
        .with_chain(chain(context, args.audit.as_ref()).await)
        .with_location(logger.location())
        .to_html();
    let path = args.output.unwrap_or_else(|| PathBuf::from(format!("{id}.html")));
    let mut file = Whole::begin(&path)?;
    file.write(page.as_bytes())?;
    let path = file.finish()?;
    match context.json() {
        true => output::json(&json!({"session_id": id, "file": path}))?,
        false => output::text(&format!("{}\n", path.display()))?,
    }
    if args.open == Open::Yes {
        show(&path)?;
    }
    Ok(0)
}

/// The beginning and the end of what the agent printed, and how much is between them.
async fn printed(engine: &Engine, id: &SessionId) -> Result<(Vec<OutputPiece>, u64)> {
    let mut chunks = engine.logs(id, false).await?;
    let mut head: Vec<(bool, Vec<u8>)> = Vec::new();
    let mut tail: VecDeque<(bool, Vec<u8>)> = VecDeque::new();
    let (mut in_head, mut in_tail, mut omitted) = (0, 0, 0_u64);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let (stderr, mut bytes) = (chunk.stream == OutputStream::Stderr, chunk.bytes.to_vec());
        if in_head < SHOWN {
            let rest = bytes.split_off(bytes.len().min(SHOWN - in_head));
            in_head += bytes.len();
            append(&mut head, stderr, bytes);
            bytes = rest;
        }
        in_tail += bytes.len();
        if !bytes.is_empty() {
            tail.push_back((stderr, bytes));
        }
        while in_tail > SHOWN {
            let Some((_, first)) = tail.front_mut() else { break };
            let surplus = first.len().min(in_tail - SHOWN);
            first.drain(..surplus);
            if first.is_empty() {
                tail.pop_front();
            }
            in_tail -= surplus;
            omitted += surplus as u64;
        }
    }
    let mut joined = Vec::new();
    for (stderr, bytes) in tail {
        append(&mut joined, stderr, bytes);
    }
    if omitted == 0 {
        for (stderr, bytes) in std::mem::take(&mut joined) {
            append(&mut head, stderr, bytes);
        }
    }
    let gap = head.len();
    let pieces = head
        .into_iter()
        .chain(joined)
        .enumerate()
        .map(|(n, (stderr, bytes))| OutputPiece {
            stderr,
            text: String::from_utf8_lossy(&bytes).into_owned(),
            after_gap: omitted > 0 && n == gap,
        });
    Ok((pieces.collect(), omitted))
}

/// Pieces of one stream are one, so that a character is not torn at the edge of a chunk.
fn append(pieces: &mut Vec<(bool, Vec<u8>)>, stderr: bool, mut bytes: Vec<u8>) {
    match pieces.last_mut() {
        Some((last, before)) if *last == stderr => before.append(&mut bytes),
        _ => pieces.push((stderr, bytes)),
    }
}

/// What a verification of the whole trail finds. That it cannot be done is no reason for there to be no report.
async fn chain(context: &Context, audit: Option<&String>) -> ChainCheck {
    let unknown = |summary: String| ChainCheck {
        verdict: ChainVerdict::Unknown,
        summary,
    };
    let (trail, key) = match Trail::configured(context, audit).await {
        Ok((trail, key)) => (trail, key),
        Err(error) => return unknown(error.report()),
    };
    let found = match trail.verify(&keys(&key), &[]).await {
        Ok(found) => found,
        Err(crate::failure::Failure::Error(error) | crate::failure::Failure::Usage(error)) => {
            return unknown(error.report());
        }
        Err(crate::failure::Failure::Pipe) => return unknown("it was not read to its end".to_owned()),
    };
    if let Some(fault) = found.fault() {
        return ChainCheck {
            verdict: ChainVerdict::Broken,
            summary: format!("The trail is not as it was written: {fault}"),
        };
    }
    let sealed = match (key.id().is_none(), found.unproven()) {
        (true, _) => "the chain has no key, so that whoever can write to it could compute it anew".to_owned(),
        (false, 0) => format!("every one is sealed by {}", key.id()),
        (false, unproven) => format!("{unproven} of them are not sealed by {}", key.id()),
    };
    ChainCheck {
        verdict: ChainVerdict::Intact,
        summary: format!(
            "The hash chain of the whole trail holds: {} of {}; {sealed}.",
            plural(found.events(), "event"),
            plural(found.writers() as u64, "writer")
        ),
    }
}

fn keys(key: &ChainKey) -> Keys {
    Keys::none().with(key)
}

fn show(path: &Path) -> Result<()> {
    let opened = std::process::Command::new("xdg-open")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    opened
        .map(drop)
        .map_err(|error| Error::io("cannot start xdg-open; open the file in a browser", error))
}
