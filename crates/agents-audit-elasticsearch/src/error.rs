//! What servers say, in our terms. Pure functions from statuses and bodies.

use std::{error::Error as StdError, time::Duration};

use agents_audit_remote::one_line;
use agents_core::{Error, ErrorKind};
use serde_json::Value;

/// An answer other than success.
pub(crate) fn status_error(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Error {
    let reason = reason(body);
    let (kind, temporary, remedy) = match status {
        401 => (
            ErrorKind::Unauthenticated,
            false,
            "the search server does not know these credentials; check username and password, api_key or the AWS keys",
        ),
        // Amazon says so when a token has expired or a signature is wrong.
        403 if reason.contains("security token") || reason.contains("signature") => (
            ErrorKind::Unauthenticated,
            false,
            "AWS does not accept these credentials; renew them, or check aws_region",
        ),
        // Too little disk is no question of rights.
        403 if reason.contains("cluster_block_exception") => (
            ErrorKind::ResourceExhausted,
            true,
            "the search server has blocked writing; make room on its disks",
        ),
        403 => (
            ErrorKind::PermissionDenied,
            false,
            "the search server does not allow this; grant create_doc, read, maintenance and auto_configure on the index, and \
             manage_index_templates unless create_template is false",
        ),
        404 => (
            ErrorKind::NotFound,
            false,
            "the search server has no such index; create it, or allow it to be created",
        ),
        413 => (
            ErrorKind::ResourceExhausted,
            false,
            "the search server takes no request of this size; raise http.max_content_length",
        ),
        429 => (
            ErrorKind::RateLimited,
            true,
            "the search server asks for fewer requests; give it more room or send fewer events",
        ),
        408 | 502..=504 => (
            ErrorKind::Unavailable,
            true,
            "the search server is not ready; see whether its cluster is healthy",
        ),
        500..=599 => (ErrorKind::Unavailable, true, "the search server failed; see its log"),
        _ => (
            ErrorKind::Unexpected,
            false,
            "the search server refused the request; see whether endpoint is an Elasticsearch or OpenSearch server",
        ),
    };
    let mut error = Error::new(kind, remedy).with_context("status", status);
    if !reason.is_empty() {
        error = error.with_context("reason", reason);
    }
    if temporary { error.temporary(retry_after) } else { error }
}

/// What became of one event of a bulk request; `None` when it is stored.
pub(crate) fn item_error(status: u16, error: &Value) -> Option<Error> {
    match status {
        // 409: there is one with this id, which is this one, delivered before.
        200..=299 | 409 => None,
        400 => {
            let reason = one_line(&reason_of(error));
            let told = Error::new(
                ErrorKind::DataInvalid,
                "the search server cannot hold this event; see whether the index has another mapping than the template",
            );
            Some(told.with_context("reason", reason))
        }
        status => {
            let body = serde_json::json!({ "error": error }).to_string();
            Some(status_error(status, None, body.as_bytes()))
        }
    }
}

/// A request without an answer.
pub(crate) fn request_error(error: reqwest::Error) -> Error {
    // The URL is in the message anyway, where it is known to hold no secret.
    let error = error.without_url();
    if is_certificate(&error) {
        let told = Error::new(
            ErrorKind::Unauthenticated,
            "the certificate of the search server is not trusted; set tls_ca_file to the authority that signed it and use \
             the name that it holds in endpoint",
        );
        return told.with_source(error);
    }
    let told = if error.is_timeout() {
        Error::new(
            ErrorKind::Timeout,
            "the search server did not answer in time; see whether it is overloaded",
        )
    } else {
        Error::new(
            ErrorKind::Unavailable,
            "the search server cannot be reached; see whether it runs and endpoint names it",
        )
    };
    told.temporary(None).with_source(error)
}

/// Whether rustls is at the end of the chain of causes. An I/O error that wraps another names the other's cause as its own.
fn is_certificate(error: &(dyn StdError + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|wrapped| is_certificate(wrapped))
        || error.source().is_some_and(is_certificate)
}

/// The seconds of a `Retry-After` header. The other form, a date, is none that these servers use.
pub(crate) fn retry_after(value: Option<&str>) -> Option<Duration> {
    let seconds: u64 = value?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The reason in a body, on one line.
fn reason(body: &[u8]) -> String {
    let Ok(json) = serde_json::from_slice::<Value>(body) else {
        // A proxy's page, of which the beginning tells enough.
        return one_line(&String::from_utf8_lossy(&body[..body.len().min(1000)]));
    };
    one_line(&match (&json["error"], &json["message"], &json["Message"]) {
        (Value::Null, Value::String(message), _) | (Value::Null, _, Value::String(message)) => message.clone(),
        (error, ..) => reason_of(error),
    })
}

fn reason_of(error: &Value) -> String {
    match error {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        error => {
            let part = |error: &Value, key: &str| error[key].as_str().unwrap_or_default().to_owned();
            let mut text = format!("{}: {}", part(error, "type"), part(error, "reason"));
            let cause = part(&error["caused_by"], "reason");
            if !cause.is_empty() {
                text = format!("{text}: {cause}");
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statuses_have_their_meaning() {
        let blocked = br#"{"error":{"type":"cluster_block_exception","reason":"index [a] blocked"},"status":403}"#;
        let expired = br#"{"message":"The security token included in the request is expired"}"#;
        for (status, body, kind, temporary) in [
            (401, &b"{}"[..], ErrorKind::Unauthenticated, false),
            (403, b"", ErrorKind::PermissionDenied, false),
            (403, blocked, ErrorKind::ResourceExhausted, true),
            (403, expired, ErrorKind::Unauthenticated, false),
            (404, b"", ErrorKind::NotFound, false),
            (413, b"", ErrorKind::ResourceExhausted, false),
            (429, b"", ErrorKind::RateLimited, true),
            (500, b"oh", ErrorKind::Unavailable, true),
            (503, b"<html>\n\nbusy", ErrorKind::Unavailable, true),
            (400, b"", ErrorKind::Unexpected, false),
        ] {
            let error = status_error(status, None, body);
            assert_eq!(
                (error.kind(), error.is_temporary()),
                (kind, temporary),
                "{status} {error}"
            );
        }
        let error = status_error(429, retry_after(Some("7")), b"");
        assert_eq!(
            error.retry_status(),
            agents_core::RetryStatus::Temporary {
                retry_after: Some(Duration::from_secs(7))
            }
        );
        assert!(
            status_error(503, None, b"<html>\n\nbusy")
                .to_string()
                .contains("<html> busy")
        );
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_found_in_its_wrappings() {
        let refused = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let inner = std::io::Error::new(std::io::ErrorKind::InvalidData, refused);
        assert!(is_certificate(&std::io::Error::other(inner)));
        assert!(!is_certificate(&std::io::Error::other("another")));
    }

    #[test]
    fn items_have_their_meaning() {
        assert!(item_error(201, &Value::Null).is_none());
        assert!(item_error(409, &json!({"type": "version_conflict_engine_exception"})).is_none());
        let mapping = json!({"type": "mapper_parsing_exception", "reason": "failed", "caused_by": {"reason": "why"}});
        let error = item_error(400, &mapping).unwrap();
        assert_eq!(error.kind(), ErrorKind::DataInvalid);
        assert!(
            error.to_string().contains("mapper_parsing_exception: failed: why"),
            "{error}"
        );
        for status in [429, 503] {
            assert!(
                item_error(status, &json!({"type": "es_rejected_execution_exception"}))
                    .unwrap()
                    .is_temporary()
            );
        }
    }
}
