//! `agents audit verify` and `agents audit checkpoint`.

use std::{fs::File, io::Write};

use agents_sdk::{
    core::{AuditQuery, Error, Result, SessionId},
    journal::{Checkpoint, EventVerification, Fault, Keys, Verification},
};
use owo_colors::OwoColorize;
use serde_json::{Value, json};

use super::{
    args::{CheckpointArgs, VerifyArgs},
    trail::{self, Found, Trail},
};
use crate::{
    context::Context,
    failure::{CODE_FAILED, Failure, Outcome},
    output::{self, one_line},
};

pub(crate) async fn verify(context: &Context, args: VerifyArgs) -> Outcome {
    let known = trail::checkpoints(&args.checkpoint)?;
    let mut keys = trail::keys(context, &args.key, &args.public_key).await?;
    let trail = match &args.path {
        Some(path) => Trail::at(path).await?,
        None => {
            let (trail, key) = Trail::configured(context, args.audit.as_ref()).await?;
            keys = keys.with(&key);
            trail
        }
    };
    let found = match &args.session {
        Some(session) => {
            let of_session = AuditQuery::new().with_session(Some(SessionId::new(session)?));
            trail.verify_selected(of_session, &keys, &known).await?
        }
        None => trail.verify(&keys, &known).await?,
    };
    let location = trail.location();
    if context.json() {
        output::json(&found.to_json(&location))?;
    } else {
        tell(context, &found, &location, &keys, &known)?;
    }
    if let Some(fault) = found.fault() {
        output::error(&format!("the trail is not as it was written: {fault}"));
        return Ok(CODE_FAILED);
    }
    if found.events() == 0 && args.session.is_some() {
        return Err(Error::not_found("no event of this session is there").into());
    }
    if args.session.is_some() && !context.json() && !context.common.quiet {
        output::note("events that were removed cannot be told from others; verify the whole trail, without --session");
    }
    Ok(0)
}

impl Found {
    pub(super) fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Journal(found) => found.first_fault(),
            Self::Events(found) => found.fault.as_ref(),
        }
    }

    pub(super) fn events(&self) -> u64 {
        match self {
            Self::Journal(found) => found.records(),
            Self::Events(found) => found.events,
        }
    }

    pub(super) fn writers(&self) -> usize {
        match self {
            Self::Journal(found) => found.writers.len(),
            Self::Events(found) => found.writers.len(),
        }
    }

    /// Events that are there, and that no key and no checkpoint vouches for.
    pub(super) fn unproven(&self) -> u64 {
        match self {
            Self::Journal(Verification { writers, .. }) => {
                let each = writers
                    .iter()
                    .map(|writer| writer.last.saturating_sub(writer.proven.max(writer.first - 1)));
                each.sum()
            }
            Self::Events(EventVerification { writers, .. }) => {
                let each = writers
                    .iter()
                    .map(|writer| writer.last.saturating_sub(writer.proven.max(writer.first - 1)));
                each.sum()
            }
        }
    }

    fn to_json(&self, location: &str) -> Value {
        let mut object = match self {
            Self::Journal(found) => json!({"writers": found.writers, "faults": found.faults}),
            Self::Events(found) => {
                json!({"writers": found.writers, "repeats": found.repeats, "unlinked": found.unlinked})
            }
        };
        object["audit"] = location.into();
        object["intact"] = self.fault().is_none().into();
        object["events"] = self.events().into();
        object["unproven"] = self.unproven().into();
        object["fault"] = json!(self.fault());
        object
    }
}

fn tell(context: &Context, found: &Found, location: &str, keys: &Keys, known: &[Checkpoint]) -> Result<(), Failure> {
    let (events, writers, location) = (found.events(), found.writers(), one_line(location));
    let counted = format!("{} of {}", plural(events, "event"), plural(writers as u64, "writer"));
    if found.fault().is_some() {
        return output::text(&format!(
            "{} before the fault: {counted}, in {location}\n",
            "sound".bold()
        ));
    }
    output::text(&format!("{}: {counted}, in {location}\n", "intact".green().bold()))?;
    if context.common.quiet {
        return Ok(());
    }
    if let Found::Events(found) = found {
        if found.unlinked > 0 {
            output::note(&format!(
                "{} from before there was a chain, or unreadable, and not proven",
                plural(found.unlinked, "line")
            ));
        }
        if found.repeats > 0 {
            output::note(&format!("{} came again, as they were", plural(found.repeats, "event")));
        }
    }
    if found.unproven() > 0 {
        let remedy = match keys.is_empty() {
            true => "set chain_key, or keep checkpoints elsewhere (agents audit checkpoint)",
            false => "keep checkpoints elsewhere (agents audit checkpoint)",
        };
        output::note(&format!(
            "{} could have been computed anew by whoever can write there: {remedy}",
            plural(found.unproven(), "event")
        ));
    }
    if known.is_empty() {
        output::note("a tail that was cut off is found with a checkpoint that was kept elsewhere: --checkpoint FILE");
    }
    Ok(())
}

pub(super) fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub(crate) async fn checkpoint(context: &Context, args: CheckpointArgs) -> Outcome {
    let (trail, _) = Trail::configured(context, args.audit.as_ref()).await?;
    let Trail::Files(files) = trail else {
        return Err(Error::unsupported(
            "only the file sink keeps a hash chain of its own; make the checkpoint where the journal is",
        )
        .with_context("audit", trail.location())
        .into());
    };
    let point = files.checkpoint().await?;
    let Some(file) = args.out else {
        output::json(&point)?;
        return Ok(0);
    };
    let write = || -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&point)?;
        line.push(b'\n');
        let mut out = File::options().create(true).append(true).open(&file)?;
        out.write_all(&line)?;
        out.sync_all()
    };
    write().map_err(|error| Error::io("cannot write the checkpoint", error).with_context("path", file.display()))?;
    if context.json() {
        output::json(&point)?;
    } else if !context.common.quiet {
        output::note(&format!(
            "up to record {} of writer {}; keep {} where those who can change the trail cannot",
            point.sequence,
            point.writer,
            file.display()
        ));
    }
    Ok(0)
}
