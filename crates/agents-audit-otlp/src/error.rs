//! What a collector says, in our terms. Pure functions from statuses and bodies.

use std::time::Duration;

use agents_audit_remote::one_line;
use agents_core::{Error, ErrorKind};
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

/// An answer other than success. The protocol names the statuses that may be tried again; no other may.
pub(crate) fn status_error(status: u16, wait: Option<Duration>, body: &[u8]) -> Error {
    let (kind, remedy) = match status {
        401 | 403 => (
            ErrorKind::Unauthenticated,
            "the collector does not accept these credentials; check headers",
        ),
        400 | 415 | 422 => (ErrorKind::DataInvalid, "the collector cannot read these log records"),
        404 | 405 => (
            ErrorKind::NotFound,
            "there is no OTLP/HTTP receiver of logs; check endpoint, whose port is most often 4318",
        ),
        413 => (
            ErrorKind::ResourceExhausted,
            "the collector takes no request of this size",
        ),
        429 => (
            ErrorKind::RateLimited,
            "the collector asks for fewer requests; give it more room",
        ),
        502..=504 => (ErrorKind::Unavailable, "the collector is not ready; see its log"),
        500..=599 => (ErrorKind::Unavailable, "the collector failed; see its log"),
        _ => (
            ErrorKind::Unexpected,
            "the collector refused the request; see whether endpoint is that of a collector",
        ),
    };
    let mut error = Error::new(kind, remedy).with_context("status", status);
    let reason = reason(body);
    if !reason.is_empty() {
        error = error.with_context("reason", reason);
    }
    if matches!(status, 429 | 502..=504) {
        error = error.temporary(wait);
    }
    error
}

/// A request without an answer.
pub(crate) fn request_error(error: reqwest::Error) -> Error {
    let error = error.without_url();
    let (kind, told) = if error.is_timeout() {
        (
            ErrorKind::Timeout,
            "the collector did not answer in time; see whether it has enough room",
        )
    } else {
        (
            ErrorKind::Unavailable,
            "the collector cannot be reached; see whether it runs, and whether endpoint and tls_ca_file are right",
        )
    };
    Error::new(kind, told).temporary(None).with_source(error)
}

/// Some of these log records were rejected, for good, and nobody says which.
pub(crate) fn rejected(count: u64, of: usize, message: &str) -> Error {
    let told = format!(
        "the collector rejected {count} of {of} log records, and the protocol does not say which; see its log for what it \
         does not take"
    );
    Error::new(ErrorKind::DataInvalid, told).with_context("reason", one_line(message))
}

/// How long the collector wants us to wait: seconds, or a date.
pub(crate) fn wait(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// How many log records were rejected, and what the collector says to that.
pub(crate) fn partial_success(body: &[u8]) -> (u64, String) {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let partial = &answer["partialSuccess"];
    // A 64-bit integer is a string in the JSON of protocol buffers, and a number is to be understood as well.
    let count = &partial["rejectedLogRecords"];
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok()).unwrap_or(0);
    (count, partial["errorMessage"].as_str().unwrap_or_default().to_owned())
}

/// The reason in a body, which is a `Status` of Google's.
fn reason(body: &[u8]) -> String {
    let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
    one_line(json["message"].as_str().unwrap_or_default())
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
            (408, ErrorKind::Unexpected, false),
            (413, ErrorKind::ResourceExhausted, false),
            (429, ErrorKind::RateLimited, true),
            (500, ErrorKind::Unavailable, false),
            (502, ErrorKind::Unavailable, true),
            (503, ErrorKind::Unavailable, true),
            (504, ErrorKind::Unavailable, true),
            (302, ErrorKind::Unexpected, false),
        ] {
            let error = status_error(status, None, br#"{"code":3,"message":"too\nbad"}"#);
            assert_eq!((error.kind(), error.is_temporary()), (kind, temporary), "{status}");
            assert!(error.to_string().contains("too bad"), "{error}");
        }
    }

    #[test]
    fn the_wait_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let asked = |text: &str| {
            let headers = [(RETRY_AFTER, text.parse().unwrap())].into_iter().collect();
            wait(&headers, now)
        };
        assert_eq!(wait(&HeaderMap::new(), now), None);
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Tue, 24 Nov 2026 12:00:09 GMT"), Some(Duration::from_secs(9)));
        assert_eq!(asked("Tue, 24 Nov 2026 11:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("soon"), None);
    }

    #[test]
    fn a_partial_success_is_read() {
        for (body, count) in [
            (&b""[..], 0),
            (b"{}", 0),
            (br#"{"partialSuccess":{}}"#, 0),
            (
                br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"m"}}"#,
                3,
            ),
            (br#"{"partialSuccess":{"rejectedLogRecords":3,"errorMessage":"m"}}"#, 3),
        ] {
            let (found, message) = partial_success(body);
            assert_eq!((found, message.as_str()), (count, if count > 0 { "m" } else { "" }));
        }
    }
}
