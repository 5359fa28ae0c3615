//! From the engine's answers to errors.

use agents_core::{Error, ErrorKind};
use serde::Deserialize;

/// The body of an answer that is an error. Both spellings are in use.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    message: Option<String>,
    cause: Option<String>,
}

/// How much of a message is shown.
const SHOWN: usize = 1000;

/// The error that an answer means. The text comes from the engine, which repeats what a caller or an image says, so that it
/// is shown escaped and bounded.
pub(crate) fn from_answer(what: &str, status: u16, body: &[u8]) -> Error {
    let said: Body = serde_json::from_slice(body).unwrap_or_default();
    let message = said
        .message
        .filter(|message| !message.is_empty())
        .or(said.cause)
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let message = shown(&message);
    let kind = kind(status, &message);
    let advice = advice(kind, &message);
    let text = if message.is_empty() {
        format!("podman cannot {what}: it answered {status} without a reason")
    } else {
        format!("podman cannot {what}: {message}")
    };
    let error = Error::new(kind, format!("{text}{advice}")).with_context("status", status);
    match kind {
        ErrorKind::Unavailable | ErrorKind::RateLimited => error.temporary(None),
        _ => error,
    }
}

/// One line of at most [`SHOWN`] characters.
pub(crate) fn shown(text: &str) -> String {
    let line: String = text
        .trim()
        .chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    line.trim_end_matches(['.', ' ']).to_owned()
}

/// The kind, from the status and from what older engines put into a 500.
fn kind(status: u16, message: &str) -> ErrorKind {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&[
        "no space left on device",
        "disk quota exceeded",
        "cannot allocate memory",
        "too many open files",
    ]) {
        return ErrorKind::ResourceExhausted;
    }
    if says(&["is already in use", "already exists"]) {
        return ErrorKind::AlreadyExists;
    }
    if says(&["oci runtime", "ociruntime"])
        && says(&["is not available", "not found", "no such file"])
        && says(&["requested oci runtime"])
    {
        return ErrorKind::Unsupported;
    }
    match status {
        400 | 405 | 406 | 415 | 422 => ErrorKind::ConfigInvalid,
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::PermissionDenied,
        404 => ErrorKind::NotFound,
        408 => ErrorKind::Timeout,
        409 => ErrorKind::Conflict,
        429 => ErrorKind::RateLimited,
        502..=504 => ErrorKind::Unavailable,
        _ if says(&["unauthorized", "authentication required", "invalid username/password"]) => {
            ErrorKind::Unauthenticated
        }
        _ if says(&["toomanyrequests", "too many requests"]) => ErrorKind::RateLimited,
        _ if says(&["access to the resource is denied", "permission denied"]) => ErrorKind::PermissionDenied,
        _ if says(&[
            "manifest unknown",
            "name unknown",
            "no such image",
            "image not known",
            "no such container",
            "no container with",
            "no such file or directory",
        ]) =>
        {
            ErrorKind::NotFound
        }
        _ if says(&[
            "connection refused",
            "no such host",
            "i/o timeout",
            "connection reset",
            "network is unreachable",
            "server misbehaving",
            "name resolution",
        ]) =>
        {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Unexpected,
    }
}

fn advice(kind: ErrorKind, message: &str) -> &'static str {
    let message = message.to_ascii_lowercase();
    if message.contains("rlimit") {
        return "; the engine may not raise that limit on this host: set default_ulimits in containers.conf to what its own process has";
    }
    match kind {
        ErrorKind::ResourceExhausted => "; make room on the engine's disk (`podman system prune`) or raise its limits",
        ErrorKind::Unauthenticated => "; log in with `podman login`, or set auth_file",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_status_and_the_words_of_older_engines() {
        let table = [
            (
                404,
                r#"{"cause":"no such image","message":"x: image not known","response":404}"#,
                ErrorKind::NotFound,
            ),
            (
                409,
                r#"{"message":"can only attach to running containers"}"#,
                ErrorKind::Conflict,
            ),
            (
                500,
                r#"{"message":"creating container storage: the container name \"a\" is already in use by b"}"#,
                ErrorKind::AlreadyExists,
            ),
            (
                500,
                r#"{"message":"write /var/x: no space left on device"}"#,
                ErrorKind::ResourceExhausted,
            ),
            (
                500,
                r#"{"message":"requested OCI runtime kata is not available: invalid argument"}"#,
                ErrorKind::Unsupported,
            ),
            (
                500,
                r#"{"message":"initializing source docker://r/x:1: reading manifest 1 in r/x: manifest unknown"}"#,
                ErrorKind::NotFound,
            ),
            (
                500,
                r#"{"message":"pinging container registry r: dial tcp: lookup r: no such host"}"#,
                ErrorKind::Unavailable,
            ),
            (
                500,
                r#"{"message":"reading manifest: unauthorized: authentication required"}"#,
                ErrorKind::Unauthenticated,
            ),
            (500, "plain text", ErrorKind::Unexpected),
            (503, "", ErrorKind::Unavailable),
        ];
        for (status, body, kind) in table {
            let error = from_answer("do it", status, body.as_bytes());
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with("podman cannot do it: "), "{error}");
        }
    }

    #[test]
    fn a_message_is_one_bounded_line() {
        let long = "x\n\u{1b}[31m".repeat(10_000);
        let error = from_answer("do it", 500, long.as_bytes());
        assert!(error.message().len() < 1200);
        assert!(!error.message().contains(char::is_control));
    }
}
