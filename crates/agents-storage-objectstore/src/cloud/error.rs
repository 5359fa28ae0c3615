//! What the services' errors mean to a caller.
//!
//! The library keeps status codes and bodies to itself, so they are read from its text. Nothing of that text is passed on
//! but the service's own code and message: URLs may hold signatures.

use std::{error::Error as StdError, time::Duration};

use agents_core::{Error, ErrorKind};
use object_store::client::{HttpError, HttpErrorKind};

/// What a service said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answer {
    status: Option<u16>,
    code: String,
    message: String,
}

/// Translates an error of the library.
///
/// `place` is the bucket or container, as in a URI.
pub(crate) fn map(error: &object_store::Error, place: &str) -> Error {
    let text = chain(error);
    let answer = answer(&text);
    let transport = transport(error);
    let mapped = match (&answer, transport) {
        (answer, _) if !answer.code.is_empty() || answer.status.is_some() => from_answer(answer),
        (_, Some(kind)) => from_transport(kind, &text),
        _ => from_variant(error, &text),
    };
    mapped.with_context("storage", place)
}

/// Whether the service refused credentials that were good once, so that fresh ones may help.
pub(crate) fn is_expired(error: &object_store::Error) -> bool {
    let answer = answer(&chain(error));
    matches!(
        answer.code.as_str(),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired"
    ) || answer.status == Some(401)
        || answer.message.contains("expired")
}

/// Whether the request may have been carried out although no answer came.
pub(crate) fn is_uncertain(error: &object_store::Error) -> bool {
    match answer(&chain(error)).status {
        Some(status) => status >= 500 || status == 408,
        None => matches!(error, object_store::Error::Generic { .. }),
    }
}

fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

fn transport(error: &(dyn StdError + 'static)) -> Option<HttpErrorKind> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return Some(error.kind());
        }
        source = error.source();
    }
    None
}

fn answer(text: &str) -> Answer {
    let status = text
        .split_once("status code: ")
        .and_then(|(_, rest)| rest.get(..3)?.parse().ok())
        .or(text.contains("status 401").then_some(401));
    // S3 and GCS say <Code>; Azure too, and it repeats the code in JSON for tokens.
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0)
    };
    let json = |name: &str| {
        let (_, rest) = text.split_once(&format!("\"{name}\":"))?;
        rest.trim_start()
            .strip_prefix('"')?
            .split_once('"')
            .map(|(value, _)| value)
    };
    Answer {
        status,
        code: tag("Code")
            .or_else(|| json("error"))
            .unwrap_or_default()
            .trim()
            .to_owned(),
        message: tag("Message")
            .or_else(|| json("error_description"))
            .or_else(|| json("message"))
            .map(one_line)
            .unwrap_or_default(),
    }
}

/// The first line of a service's message; what follows it is ids and times.
fn one_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim().trim_end_matches('.');
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn from_answer(answer: &Answer) -> Error {
    let status = answer.status.unwrap_or_default();
    let (kind, advice) = match answer.code.as_str() {
        "NoSuchBucket" | "ContainerNotFound" => (
            ErrorKind::NotFound,
            "the bucket or container does not exist; create it, or correct its name",
        ),
        "NoSuchKey" | "BlobNotFound" | "NotFound" | "NoSuchUpload" | "ResourceNotFound" => {
            (ErrorKind::NotFound, "there is no such object")
        }
        "AuthorizationHeaderMalformed" if !answer.message.contains("region") => (
            ErrorKind::Unauthenticated,
            "the service does not accept the credentials; correct or renew them",
        ),
        "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException"
        | "TemporaryRedirect" => (
            ErrorKind::ConfigInvalid,
            "the bucket is in another region; set region to the bucket's",
        ),
        "RequestTimeTooSkewed" | "RequestNotYetValid" => (
            ErrorKind::Unauthenticated,
            "this machine's clock differs from the service's; set the clock",
        ),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired" => {
            (ErrorKind::Unauthenticated, "the credentials have expired; renew them")
        }
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "AuthenticationFailed"
        | "InvalidSecurity"
        | "InvalidAuthenticationInfo"
        | "invalid_grant"
        | "invalid_client"
        | "NoAuthenticationInformation"
        | "AuthenticationRequired" => (
            ErrorKind::Unauthenticated,
            "the service does not accept the credentials; correct or renew them",
        ),
        "AccessDenied"
        | "AllAccessDisabled"
        | "AuthorizationFailure"
        | "AuthorizationPermissionMismatch"
        | "AccountIsDisabled"
        | "AuthorizationProtocolMismatch"
        | "InsufficientAccountPermissions"
        | "Forbidden" => (
            ErrorKind::PermissionDenied,
            "the credentials do not allow this; grant the permissions that docs/storage.md lists",
        ),
        "SlowDown" | "ServerBusy" | "TooManyRequests" | "ThrottlingException" | "RequestLimitExceeded" => {
            return temporary(ErrorKind::RateLimited, "the service asks for fewer requests", answer);
        }
        "QuotaExceeded" | "XMinioStorageFull" | "EntityTooLarge" | "AccountLimitExceeded" | "RequestBodyTooLarge" => {
            (ErrorKind::ResourceExhausted, "the service has no room for this")
        }
        "BadDigest" | "XAmzContentSHA256Mismatch" | "Md5Mismatch" | "XAmzContentChecksumMismatch" | "InvalidDigest" => {
            (
                ErrorKind::DataInvalid,
                "the content was changed on its way to the service; store it again",
            )
        }
        "NotImplemented" => (ErrorKind::Unsupported, "the service does not offer this"),
        _ => match status {
            400 | 405 | 411 | 414 => (ErrorKind::ConfigInvalid, "the service refuses the request"),
            401 => (
                ErrorKind::Unauthenticated,
                "the service does not accept the credentials; correct or renew them",
            ),
            403 => (
                ErrorKind::PermissionDenied,
                "the credentials do not allow this; grant the permissions that docs/storage.md lists",
            ),
            404 => (ErrorKind::NotFound, "there is no such object"),
            409 | 412 => (ErrorKind::Conflict, "somebody else changes the same object"),
            416 => (ErrorKind::ConfigInvalid, "the range is beyond the end"),
            429 => return temporary(ErrorKind::RateLimited, "the service asks for fewer requests", answer),
            501 => (ErrorKind::Unsupported, "the service does not offer this"),
            507 => (ErrorKind::ResourceExhausted, "the service is full"),
            500.. => return temporary(ErrorKind::Unavailable, "the service fails", answer),
            300..400 => (
                ErrorKind::ConfigInvalid,
                "the service answers with a redirect; correct endpoint and region",
            ),
            _ => (
                ErrorKind::Unexpected,
                "the service gave an answer that is not understood",
            ),
        },
    };
    said(Error::new(kind, advice), answer)
}

/// The library has tried again until its limits, so outer layers need not.
fn temporary(kind: ErrorKind, advice: &str, answer: &Answer) -> Error {
    said(Error::new(kind, advice).exhausted(), answer)
}

fn said(error: Error, answer: &Answer) -> Error {
    let error = match answer.status {
        Some(status) => error.with_context("status", status),
        None => error,
    };
    let error = match answer.code.as_str() {
        "" => error,
        code => error.with_context("code", code),
    };
    match answer.message.as_str() {
        // A service may quote the credentials that it refuses.
        _ if error.kind() == ErrorKind::Unauthenticated => error,
        "" => error,
        message => error.with_context("said", message),
    }
}

fn from_transport(kind: HttpErrorKind, text: &str) -> Error {
    let error = match kind {
        HttpErrorKind::Timeout => Error::new(ErrorKind::Timeout, "the service did not answer in time"),
        HttpErrorKind::Connect => Error::new(
            ErrorKind::Unavailable,
            "cannot connect to the service; check endpoint, proxy, certificates and network",
        ),
        _ => Error::new(ErrorKind::Unavailable, "the connection to the service broke"),
    };
    error.with_context("cause", without_urls(text)).exhausted()
}

fn from_variant(error: &object_store::Error, text: &str) -> Error {
    use object_store::Error as E;
    let (kind, advice) = match error {
        E::NotFound { .. } => (ErrorKind::NotFound, "there is no such object"),
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => {
            (ErrorKind::Conflict, "somebody else changes the same object")
        }
        E::PermissionDenied { .. } => (
            ErrorKind::PermissionDenied,
            "the credentials do not allow this; grant the permissions that docs/storage.md lists",
        ),
        E::Unauthenticated { .. } => (
            ErrorKind::Unauthenticated,
            "the service does not accept the credentials; correct or renew them",
        ),
        E::NotSupported { .. } | E::NotImplemented { .. } => {
            (ErrorKind::Unsupported, "this cannot be done with this service")
        }
        E::UnknownConfigurationKey { .. } | E::InvalidPath { .. } => {
            (ErrorKind::ConfigInvalid, "the configuration is wrong")
        }
        _ => (ErrorKind::Unexpected, "the storage client failed"),
    };
    Error::new(kind, advice).with_context("cause", without_urls(text))
}

/// Cuts the query of every URL off, and what may be a token.
pub(crate) fn without_urls(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_inclusive(char::is_whitespace) {
        let at = word
            .find("://")
            .and_then(|scheme| word[scheme..].find('?').map(|at| scheme + at));
        match at {
            Some(at) => {
                out.push_str(&word[..=at]);
                out.push_str("… ");
            }
            None if word.contains("sig=") || word.contains("Signature=") || word.contains("Bearer") => {
                out.push_str("… ")
            }
            None => out.push_str(word),
        }
    }
    one_line(&out.replace('\n', " "))
}

/// The library's own wait between tries, and what a service asks for, in seconds or as a date.
pub(crate) fn retry_after(value: &str, now: jiff::Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::parse(value.trim()).ok()?.timestamp();
    Duration::try_from(then.duration_since(now)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Said(String);

    impl std::fmt::Display for Said {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl StdError for Said {}

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic {
            store: "S3",
            source: Box::new(Said(text.to_owned())),
        }
    }

    fn answered(status: u16, code: &str) -> object_store::Error {
        let body = format!("<Error><Code>{code}</Code><Message>It is so.\nRequestId: 1</Message></Error>");
        generic(&format!(
            "Server returned non-2xx status code: {status} Some Text: {body}"
        ))
    }

    #[test]
    fn answers_have_their_kinds() {
        use ErrorKind::{
            ConfigInvalid, Conflict, DataInvalid, NotFound, PermissionDenied, RateLimited, ResourceExhausted,
            Unauthenticated, Unavailable, Unsupported,
        };
        for (status, code, kind) in [
            (404, "NoSuchBucket", NotFound),
            (404, "ContainerNotFound", NotFound),
            (404, "NoSuchKey", NotFound),
            (404, "", NotFound),
            (301, "PermanentRedirect", ConfigInvalid),
            (400, "AuthorizationHeaderMalformed", Unauthenticated),
            (403, "RequestTimeTooSkewed", Unauthenticated),
            (400, "ExpiredToken", Unauthenticated),
            (403, "SignatureDoesNotMatch", Unauthenticated),
            (403, "AuthenticationFailed", Unauthenticated),
            (401, "", Unauthenticated),
            (403, "AccessDenied", PermissionDenied),
            (403, "AuthorizationPermissionMismatch", PermissionDenied),
            (403, "", PermissionDenied),
            (503, "SlowDown", RateLimited),
            (503, "ServerBusy", RateLimited),
            (429, "", RateLimited),
            (507, "XMinioStorageFull", ResourceExhausted),
            (400, "BadDigest", DataInvalid),
            (400, "XAmzContentSHA256Mismatch", DataInvalid),
            (400, "InvalidArgument", ConfigInvalid),
            (412, "PreconditionFailed", Conflict),
            (500, "InternalError", Unavailable),
            (502, "", Unavailable),
            (501, "NotImplemented", Unsupported),
        ] {
            let error = map(&answered(status, code), "s3://b");
            assert_eq!(error.kind(), kind, "{status} {code}");
            let told = error.report();
            assert!(told.contains("s3://b") && !told.contains("RequestId"), "{told}");
        }
    }

    #[test]
    fn only_some_failures_leave_it_open_whether_it_was_done() {
        assert!(is_uncertain(&answered(500, "InternalError")));
        assert!(is_uncertain(&generic("connection closed before message completed")));
        assert!(!is_uncertain(&answered(403, "AccessDenied")));
        assert!(is_expired(&answered(400, "ExpiredToken")));
        assert!(!is_expired(&answered(403, "AccessDenied")));
    }

    #[test]
    fn urls_lose_their_queries() {
        let text = "Error performing GET https://a.blob/c/x?sv=1&sig=SECRET in 1s: sig=SECRET Bearer-SECRET";
        let told = map(&generic(text), "az://c").report();
        assert!(!told.contains("SECRET"), "{told}");
        assert!(told.contains("https://a.blob/c/x?"), "{told}");
    }

    #[test]
    fn a_service_may_ask_to_wait_in_two_ways() {
        let now = "2026-11-24T08:00:00Z".parse().unwrap();
        assert_eq!(retry_after("7", now), Some(Duration::from_secs(7)));
        let date = "Tue, 24 Nov 2026 08:00:30 GMT";
        assert_eq!(retry_after(date, now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("Tue, 24 Nov 2026 07:00:00 GMT", now), None);
        assert_eq!(retry_after("soon", now), None);
    }
}
