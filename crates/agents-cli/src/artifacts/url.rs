//! `agents artifacts url`.

use agents_sdk::core::{ArtifactInfo, ArtifactName, EventType, PresignPutRequest, PresignedPut, SessionId};
use agents_sdk::session::{Engine, Recorded, Trail};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{args::UrlArgs, done, engine, event_of, newest, recorded, session};
use crate::{
    context::Context,
    failure::Outcome,
    output::{self, one_line},
};

/// What marks the events of a right that was given away: what is done with it is seen by the server alone.
const TAG: &str = "signed_url";

pub(super) async fn url(context: &Context, args: &UrlArgs) -> Outcome {
    let name = ArtifactName::new(args.name.as_str())?;
    let engine = engine(context, &args.storage).await?;
    let id = session(&engine, &args.session).await?;
    match &args.put {
        Some(sha256) => put(context, args, &engine, id, name, sha256).await,
        None => get(context, args, &engine, &id, &name).await,
    }
}

/// When a URL that is signed now ends, for the record.
fn end(args: &UrlArgs) -> Option<Timestamp> {
    let expires = SignedDuration::try_from(args.expires).ok()?;
    Timestamp::now().checked_add(expires).ok()
}

async fn get(context: &Context, args: &UrlArgs, engine: &Engine, id: &SessionId, name: &ArtifactName) -> Outcome {
    let artifact = newest(engine, id, name, args.version).await?;
    let expires_at = end(args);
    let Recorded { adapters, trail, .. } = recorded(engine, id);
    let url = done(&trail, adapters.storage.presign(&artifact.uri, args.expires).await).await?;
    grant(&trail, EventType::ArtifactRetrieved, &artifact, expires_at).await?;
    match context.json() {
        true => output::json(&json!({"url": url, "expires_at": expires_at, "artifact": artifact}))?,
        false => output::text(&format!("{}\n", one_line(&url)))?,
    }
    Ok(0)
}

async fn put(
    context: &Context,
    args: &UrlArgs,
    engine: &Engine,
    id: SessionId,
    name: ArtifactName,
    sha256: &str,
) -> Outcome {
    let expires_at = end(args);
    let request = PresignPutRequest::new(id.clone(), name.clone(), sha256, args.expires)
        .with_content_type(args.about.content_type.clone())
        .with_metadata(args.about.metadata.iter().cloned().collect());
    let Recorded { adapters, trail, .. } = recorded(engine, &id);
    let signed = done(&trail, adapters.storage.presign_put(request).await).await?;
    let to_be = ArtifactInfo::new(
        id,
        name,
        signed.uri.as_str(),
        0,
        sha256,
        signed.version,
        Timestamp::now(),
    );
    grant(&trail, EventType::ArtifactStored, &to_be, expires_at).await?;
    match context.json() {
        true => output::json(&json!({
            "method": signed.method,
            "url": signed.url,
            "headers": signed.headers,
            "expires_at": expires_at,
            "uri": signed.uri,
            "version": signed.version,
        }))?,
        false => output::text(&format!("{}\n", curl(&signed)))?,
    }
    Ok(0)
}

async fn grant(
    trail: &Trail,
    event: EventType,
    artifact: &ArtifactInfo,
    expires_at: Option<Timestamp>,
) -> agents_sdk::core::Result<()> {
    let event = event_of(trail, event, artifact)
        .with_fact("expires_at", expires_at.map(|time| time.to_string()))
        .with_tag(TAG);
    trail.record([event]).await
}

/// The command that does the upload: the URL alone would not, since the headers are signed with it.
fn curl(signed: &PresignedPut) -> String {
    let mut command = format!("curl --fail --request {} --upload-file FILE", quote(&signed.method));
    for (name, value) in &signed.headers {
        command.push_str(&format!(" --header {}", quote(&format!("{name}: {value}"))));
    }
    format!("{command} {}", quote(&signed.url))
}

/// Quotes a word for a POSIX shell.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_upload_is_a_command_that_a_shell_takes_as_it_is() {
        let headers = BTreeMap::from([("x-amz-meta-a".to_owned(), "it's".to_owned())]);
        let signed = PresignedPut::new("https://h/k?a=1&b=2", headers, "s3://b/k", 1);
        assert_eq!(
            curl(&signed),
            r"curl --fail --request PUT --upload-file FILE --header 'x-amz-meta-a: it'\''s' 'https://h/k?a=1&b=2'"
        );
    }
}
