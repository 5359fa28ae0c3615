//! What Datadog says, in our terms. Pure functions from statuses and bodies.

use std::time::Duration;

use agents_audit_remote::one_line;
use agents_core::{Error, ErrorKind};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

/// An answer other than success.
pub(crate) fn status_error(status: u16, wait: Option<Duration>, body: &[u8]) -> Error {
    let (kind, temporary, remedy) = match status {
        401 | 403 => (
            ErrorKind::Unauthenticated,
            false,
            "Datadog does not accept these keys; check api_key, app_key with its scope logs_read_data, and site",
        ),
        400 => (ErrorKind::DataInvalid, false, "Datadog cannot read this request"),
        404 => (
            ErrorKind::NotFound,
            false,
            "there is no such API; see whether site, intake_url and api_url are those of Datadog",
        ),
        413 => (
            ErrorKind::ResourceExhausted,
            false,
            "Datadog takes no request of this size",
        ),
        429 => (
            ErrorKind::RateLimited,
            true,
            "Datadog asks for fewer requests; ask for larger pages, or have the limit raised",
        ),
        408 | 500..=599 => (
            ErrorKind::Unavailable,
            true,
            "Datadog is not ready; see https://status.datadoghq.com",
        ),
        _ => (
            ErrorKind::Unexpected,
            false,
            "Datadog refused the request; see whether site, intake_url and api_url are those of Datadog",
        ),
    };
    let mut error = Error::new(kind, remedy).with_context("status", status);
    let reason = reason(body);
    if !reason.is_empty() {
        error = error.with_context("reason", reason);
    }
    if temporary { error.temporary(wait) } else { error }
}

/// A request without an answer.
pub(crate) fn request_error(error: reqwest::Error) -> Error {
    let error = error.without_url();
    let (kind, told) = if error.is_timeout() {
        (
            ErrorKind::Timeout,
            "Datadog did not answer in time; see whether a proxy is in between",
        )
    } else {
        (
            ErrorKind::Unavailable,
            "Datadog cannot be reached; see whether site is right and this machine may connect to it",
        )
    };
    Error::new(kind, told).temporary(None).with_source(error)
}

/// How long Datadog wants us to wait: in `X-RateLimit-Reset`, or `Retry-After` from what is in between. Both are seconds.
pub(crate) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = |value: &reqwest::header::HeaderValue| value.to_str().ok()?.trim().parse().ok();
    let asked = headers.get("x-ratelimit-reset").and_then(seconds);
    asked
        .or_else(|| headers.get(RETRY_AFTER).and_then(seconds))
        .map(Duration::from_secs)
}

/// The reasons in a body, on one line.
fn reason(body: &[u8]) -> String {
    let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let errors = json["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let texts = errors
        .iter()
        .filter_map(|error| error.as_str().or_else(|| error["detail"].as_str()));
    one_line(&texts.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_their_meaning() {
        for (status, kind, temporary) in [
            (400, ErrorKind::DataInvalid, false),
            (401, ErrorKind::Unauthenticated, false),
            (403, ErrorKind::Unauthenticated, false),
            (404, ErrorKind::NotFound, false),
            (408, ErrorKind::Unavailable, true),
            (413, ErrorKind::ResourceExhausted, false),
            (429, ErrorKind::RateLimited, true),
            (500, ErrorKind::Unavailable, true),
            (503, ErrorKind::Unavailable, true),
            (302, ErrorKind::Unexpected, false),
        ] {
            let error = status_error(status, None, b"{}");
            assert_eq!((error.kind(), error.is_temporary()), (kind, temporary), "{status}");
        }
        for body in [
            &br#"{"errors":["Forbidden"]}"#[..],
            br#"{"errors":[{"detail":"Forbidden"}]}"#,
        ] {
            assert!(status_error(403, None, body).to_string().contains("Forbidden"));
        }
    }

    #[test]
    fn the_wait_is_read_from_either_header() {
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            let pair = |(name, value): &(&'static str, &str)| (name.parse().unwrap(), value.parse().unwrap());
            pairs.iter().map(pair).collect()
        };
        assert_eq!(wait(&headers(&[])), None);
        assert_eq!(wait(&headers(&[("retry-after", "3")])), Some(Duration::from_secs(3)));
        let both = headers(&[("x-ratelimit-reset", "7"), ("retry-after", "3")]);
        assert_eq!(wait(&both), Some(Duration::from_secs(7)));
    }
}
