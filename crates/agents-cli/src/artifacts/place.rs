//! Places other than the configured one, where artifacts are copied to or from.

use std::{path::PathBuf, sync::Arc};

use agents_sdk::{
    config::{Environment, Kind},
    core::{Error, ErrorKind, Result, RetrieveRequest, SessionId, StorageBackend},
    session::Engine,
};
use futures_util::TryStreamExt;

use crate::{args::Adapters, context::Context};

/// The storage that `text` names: a URL, a type of storage, or a configuration file.
pub(super) async fn open(context: &Context, engine: &Engine, text: &str) -> Result<Arc<dyn StorageBackend>> {
    let known = agents_sdk::default_registry()?;
    let configure = if let Some((scheme, rest)) = text.split_once("://") {
        let (name, values) = from_url(scheme, rest)?;
        let mut configure = context.configure(&Adapters::default()).with_storage_backend(name);
        for (key, value) in values {
            configure = configure.with_value(Kind::StorageBackend, key, value);
        }
        configure
    } else if known.types(Kind::StorageBackend).contains(&text) {
        context.configure(&Adapters::default()).with_storage_backend(text)
    } else {
        // The file speaks for itself: variables that are set for the configured storage would redirect it to there.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| !name.starts_with("ISOLATED_AGENTS_STORAGE_"))
            .collect::<Environment>();
        context
            .configure(&Adapters::default())
            .with_environment(environment)
            .with_file(Some(PathBuf::from(text)))
    };
    // Only its storage is wanted; the rest is there already.
    let here = engine.adapters();
    let loaded = configure
        .with_container_runtime(Arc::clone(&here.runtime))
        .with_audit_logger(Arc::clone(&here.audit))
        .with_policy_validator(Arc::clone(&here.policy))
        .load()
        .map_err(|error| error.with_context("place", text))?;
    let engine = loaded
        .build()
        .await
        .map_err(|error| error.with_context("place", text))?;
    Ok(Arc::clone(&engine.adapters().storage))
}

/// The type of storage and its keys.
fn from_url<'a>(scheme: &str, rest: &'a str) -> Result<(&'static str, Vec<(&'static str, &'a str)>)> {
    if rest.contains(['?', '#', '@']) {
        return Err(Error::invalid(
            "a URL of a place has a bucket and a prefix only; write credentials and everything else into a configuration file",
        ));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_end_matches('/');
    let found = match scheme {
        "file" => return Ok(("local", vec![("base_path", rest)])),
        "s3" => ("s3", vec![("bucket", bucket), ("prefix", prefix)]),
        "az" => ("azure", vec![("container", bucket), ("prefix", prefix)]),
        "gs" => ("gcs", vec![("bucket", bucket), ("prefix", prefix)]),
        other => {
            return Err(Error::invalid(format!(
                "{other:?} is no place for artifacts; write file://, s3://, az:// or gs://"
            )));
        }
    };
    match bucket.is_empty() {
        true => Err(Error::invalid(format!(
            "the URL names no bucket; write {scheme}://bucket/prefix"
        ))),
        false => Ok(found),
    }
}

/// Refuses to copy a session onto itself, which would look as if all had been there before.
pub(super) async fn refuse_same(from: &dyn StorageBackend, to: &dyn StorageBackend, session: &SessionId) -> Result<()> {
    let Some(artifact) = from.list(session).try_next().await? else {
        return Ok(());
    };
    // A backend refuses the URI of any other before it does anything.
    match to.retrieve(RetrieveRequest::new(artifact.uri.as_str())).await {
        Ok(_) => Err(Error::new(
            ErrorKind::Conflict,
            "the place to copy to is the place to copy from; name another",
        )
        .with_context("uri", artifact.uri)),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_bucket_and_a_prefix_and_nothing_else() {
        let s3 = from_url("s3", "bucket/a/b/").unwrap();
        assert_eq!(s3, ("s3", vec![("bucket", "bucket"), ("prefix", "a/b")]));
        let local = from_url("file", "/srv/a").unwrap();
        assert_eq!(local, ("local", vec![("base_path", "/srv/a")]));
        assert_eq!(from_url("gs", "bucket").unwrap().1[1], ("prefix", ""));
        for (scheme, rest) in [
            ("s3", ""),
            ("s3", "/prefix"),
            ("az", "key:secret@container"),
            ("s3", "bucket?x=y"),
            ("https", "example.org/bucket"),
        ] {
            let error = from_url(scheme, rest).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
