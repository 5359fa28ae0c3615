//! Where a trail is, and with which keys it is verified.

use std::{path::Path, sync::Arc};

use agents_sdk::{
    Loaded,
    audit_file::{FileAudit, FileAuditConfig},
    config::Kind,
    core::{AuditEvent, AuditLogger, AuditQuery, Error, ErrorKind, Result, SecretRef},
    journal::{ChainKey, Checkpoint, EventVerification, EventVerifier, Keys, Reading, Verification, writers},
};
use serde_json::{Map, Value};

use crate::{args::Adapters, context::Context, failure::Failure};

/// How many events are read at once.
pub(super) const PAGE: usize = 1000;

/// The sink that the configuration, or the flag, chooses.
pub(super) async fn logger(context: &Context, audit: Option<&String>) -> Result<Arc<dyn AuditLogger>> {
    let engine = context.engine(&adapters(audit)).await?;
    Ok(Arc::clone(&engine.adapters().audit))
}

pub(super) fn adapters(audit: Option<&String>) -> Adapters {
    Adapters {
        audit: audit.cloned(),
        ..Adapters::default()
    }
}

/// Gives all events that match, a page at a time.
pub(super) async fn each_page(
    logger: &dyn AuditLogger,
    query: AuditQuery,
    mut take: impl FnMut(Vec<AuditEvent>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut query = query.with_limit(PAGE);
    loop {
        let page = logger.query(query.clone()).await?;
        take(page.events)?;
        if page.next.is_none() {
            return Ok(());
        }
        query = query.with_cursor(page.next);
    }
}

/// A trail that can be verified.
pub(super) enum Trail {
    /// A journal's folder.
    Journal(std::path::PathBuf),
    /// Files of ours, as they are on disk.
    Files(Box<FileAudit>),
    /// What a sink gives back.
    Sink(Arc<dyn AuditLogger>),
}

/// What was found.
pub(super) enum Found {
    Journal(Verification),
    Events(EventVerification),
}

impl Trail {
    /// A copy of a trail, or a journal.
    pub(super) async fn at(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path)
            .map_err(|error| Error::io("cannot look at the trail", error).with_context("path", path.display()))?;
        if metadata.is_file() {
            return Ok(Self::Files(Box::new(FileAudit::new(FileAuditConfig::file(path))?)));
        }
        let has = |suffix: &str| -> Result<bool> {
            let entries = std::fs::read_dir(path)
                .map_err(|error| Error::io("cannot read the folder", error).with_context("path", path.display()))?;
            Ok(entries
                .filter_map(std::result::Result::ok)
                .any(|entry| entry.file_name().to_string_lossy().ends_with(suffix)))
        };
        if has(".jsonl")? {
            return Ok(Self::Files(Box::new(FileAudit::new(FileAuditConfig::folder(path))?)));
        }
        if has(".seg")? || !writers(path).await?.is_empty() {
            return Ok(Self::Journal(path.to_owned()));
        }
        Err(
            Error::not_found("the folder holds neither daily files YYYY-MM-DD.jsonl nor a journal; name one that does")
                .with_context("path", path.display()),
        )
    }

    /// The one that is configured, and the key that it is sealed with.
    pub(super) async fn configured(context: &Context, audit: Option<&String>) -> Result<(Self, ChainKey)> {
        let adapters = adapters(audit);
        let loaded = context.load(&adapters)?;
        match file_config(&loaded)? {
            Some(mut config) => {
                let key = match config.chain_key.take() {
                    Some(reference) => secret_key(&loaded, &reference).await?,
                    None => ChainKey::none(),
                };
                let files = FileAudit::with_key(config, key.clone())?;
                Ok((Self::Files(Box::new(files)), key))
            }
            None => {
                let engine = context.engine(&adapters).await?;
                Ok((Self::Sink(Arc::clone(&engine.adapters().audit)), ChainKey::none()))
            }
        }
    }

    pub(super) fn location(&self) -> String {
        match self {
            Self::Journal(path) => path.display().to_string(),
            Self::Files(files) => files.info().name,
            Self::Sink(logger) => logger.location(),
        }
    }

    /// Looks at everything that is there.
    pub(super) async fn verify(&self, keys: &Keys, known: &[Checkpoint]) -> Result<Found, Failure> {
        match self {
            Self::Journal(path) => Ok(Found::Journal(agents_sdk::journal::verify(path, keys, known)?)),
            Self::Files(files) => Ok(Found::Events(files.verify(keys, known).await?)),
            // It may sort by time, and a delivery may have been repeated.
            Self::Sink(logger) => {
                let everything = AuditQuery::new();
                read_back(logger.as_ref(), everything, keys, Reading::Repeated, known).await
            }
        }
    }

    /// Looks at the events that a query selects.
    pub(super) async fn verify_selected(
        &self,
        query: AuditQuery,
        keys: &Keys,
        known: &[Checkpoint],
    ) -> Result<Found, Failure> {
        let logger: &dyn AuditLogger = match self {
            Self::Files(files) => files.as_ref(),
            Self::Sink(logger) => logger.as_ref(),
            Self::Journal(_) => {
                return Err(Error::unsupported("a journal is verified as a whole; leave --session out").into());
            }
        };
        read_back(logger, query, keys, Reading::Excerpt, known).await
    }
}

async fn read_back(
    logger: &dyn AuditLogger,
    query: AuditQuery,
    keys: &Keys,
    reading: Reading,
    known: &[Checkpoint],
) -> Result<Found, Failure> {
    let mut verifier = EventVerifier::new(keys.clone(), reading, known.to_vec());
    let (mut linked, mut count) = (false, 0_u64);
    each_page(logger, query, |events| {
        for event in &events {
            count += 1;
            linked |= event.chain.is_some();
            verifier.push(event);
        }
        Ok(())
    })
    .await?;
    if count > 0 && !linked {
        let error = Error::unsupported(
            "no event there has a place in a hash chain, so nothing can be proven; put a journal in front of the sink",
        );
        return Err(error.with_context("audit", logger.location()).into());
    }
    Ok(Found::Events(verifier.finish()))
}

/// The configuration of the file sink, when that is the one.
fn file_config(loaded: &Loaded) -> Result<Option<FileAuditConfig>> {
    if loaded.config.adapter_type(Kind::AuditLogger) != Some("file") {
        return Ok(None);
    }
    let values: Map<String, Value> = loaded
        .config
        .settings()
        .into_iter()
        .filter_map(|setting| {
            let key = setting.key.strip_prefix("adapters.audit_logger.config.")?;
            Some((key.to_owned(), setting.value))
        })
        .collect();
    let mut config: FileAuditConfig = serde_json::from_value(Value::Object(values))
        .map_err(|error| Error::invalid("the configuration of the audit log cannot be read").with_source(error))?;
    if config.log_file.is_none() && !config.stderr {
        config.log_path.get_or_insert_with(|| loaded.dirs.state.join("audit"));
    }
    Ok(Some(config))
}

async fn secret_key(loaded: &Loaded, reference: &SecretRef) -> Result<ChainKey> {
    let secret = loaded.secrets.resolve(reference).await?;
    ChainKey::hmac(secret.expose()).map_err(|error| error.with_context("key", reference))
}

/// The keys that flags name.
pub(super) async fn keys(context: &Context, secrets: &[SecretRef], public: &[SecretRef]) -> Result<Keys> {
    let mut keys = Keys::none();
    if secrets.is_empty() && public.is_empty() {
        return Ok(keys);
    }
    let loaded = context.load(&Adapters::default())?;
    for reference in secrets {
        keys = keys.with(&secret_key(&loaded, reference).await?);
    }
    for reference in public {
        let bytes = loaded.secrets.resolve(reference).await?;
        keys = keys
            .with_ed25519_public(bytes.expose())
            .map_err(|error| error.with_context("key", reference))?;
    }
    Ok(keys)
}

/// The checkpoints in files, one or more each.
pub(super) fn checkpoints(files: &[std::path::PathBuf]) -> Result<Vec<Checkpoint>> {
    let mut all = Vec::new();
    for file in files {
        let wrong = |error: Error| error.with_context("checkpoint", file.display());
        let text =
            std::fs::read_to_string(file).map_err(|error| wrong(Error::io("cannot read the checkpoint", error)))?;
        let before = all.len();
        for point in serde_json::Deserializer::from_str(&text).into_iter::<Checkpoint>() {
            all.push(point.map_err(|error| {
                let message = "the file holds something else than checkpoints of agents audit checkpoint";
                wrong(Error::new(ErrorKind::DataInvalid, message).with_source(error))
            })?);
        }
        if all.len() == before {
            return Err(wrong(Error::invalid(
                "the file is empty; name one that holds a checkpoint",
            )));
        }
    }
    Ok(all)
}
