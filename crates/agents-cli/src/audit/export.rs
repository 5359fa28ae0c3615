//! `agents audit export`.

use std::{
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use agents_sdk::{
    audit_export::{cloudevent, ocsf},
    core::{AuditEvent, Error, Result},
};
use serde_json::json;

use super::{
    args::{ExportArgs, Format},
    trail::{each_page, logger},
};
use crate::{
    context::Context,
    failure::{Failure, Outcome},
    output,
};

pub(crate) async fn export(context: &Context, args: ExportArgs) -> Outcome {
    let logger = logger(context, args.selection.audit.as_ref()).await?;
    let query = args.period.narrow(args.selection.query()?);
    let mut file = args.output.as_deref().map(Whole::begin).transpose()?;
    let mut count = 0_u64;
    each_page(logger.as_ref(), query, |events| {
        let mut lines = Vec::new();
        for event in &events {
            line(event, args.format, &mut lines)?;
        }
        count += events.len() as u64;
        match &mut file {
            Some(file) => Ok(file.write(&lines)?),
            None => output::bytes(&lines),
        }
    })
    .await?;
    if let Some(file) = file {
        let path = file.finish()?;
        if context.json() {
            output::json(&json!({"events": count, "file": path}))?;
        } else if !context.common.quiet {
            output::note(&format!("{count} events in {}", path.display()));
        }
    }
    Ok(0)
}

fn line(event: &AuditEvent, format: Format, out: &mut Vec<u8>) -> Result<(), Failure> {
    let written = match format {
        Format::Jsonl => serde_json::to_writer(&mut *out, event),
        Format::Ocsf => serde_json::to_writer(&mut *out, &ocsf(event)),
        Format::Cloudevents => serde_json::to_writer(&mut *out, &cloudevent(event)),
    };
    written.map_err(|error| Error::unexpected("cannot write JSON").with_source(error))?;
    out.push(b'\n');
    Ok(())
}

/// A file that appears once it is whole.
pub(super) struct Whole {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
}

impl Whole {
    pub(super) fn begin(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| {
            Error::invalid("the output names no file; write one such as events.jsonl")
                .with_context("path", path.display())
        })?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}", std::process::id()));
        let partial = path.with_file_name(partial);
        // The trail is its owner's business.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial);
        let file = file.map_err(|error| failed(error, path))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
            partial,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| failed(error, &self.path))
    }

    pub(super) fn finish(mut self) -> Result<PathBuf> {
        let finished = self
            .file
            .flush()
            .and_then(|()| std::fs::rename(&self.partial, &self.path));
        finished.map_err(|error| failed(error, &self.path))?;
        self.partial = PathBuf::new();
        Ok(self.path.clone())
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if !self.partial.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

fn failed(error: std::io::Error, path: &Path) -> Error {
    Error::io("cannot write the file", error).with_context("path", path.display())
}
