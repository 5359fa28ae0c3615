//! From the engine's answers to our errors.

use std::{io, time::Duration};

use agents_core::{Error, ErrorKind};
use bollard::errors::Error as EngineError;

/// What to do when the engine does not answer.
const REMEDY: &str = "see that the docker engine runs and that `host` or DOCKER_HOST names its socket";

/// An engine's error as one of ours. `what` says what was tried, as in "cannot create the container".
pub(crate) fn map(what: &str, error: EngineError) -> Error {
    match error {
        EngineError::DockerResponseServerError { status_code, message } => answered(what, status_code, &message),
        EngineError::DockerStreamError { error } => answered(what, 500, &error),
        EngineError::RequestTimeoutError => late(what, None),
        EngineError::IOError { err } => unreachable(what, err),
        EngineError::HyperResponseError { err } => cut(what, err),
        EngineError::JsonDataError { .. } | EngineError::JsonSerdeError { .. } => Error::new(
            ErrorKind::DataInvalid,
            format!("{what}: the engine's answer cannot be read; see whether it is a docker engine of 20.10 or later"),
        )
        .with_source(error),
        other => Error::unexpected(what).with_source(other),
    }
}

/// An answer with an error status. The kinds of the registries' errors are only told by their texts, which come from
/// moby's `errdefs` and from the registries themselves.
pub(crate) fn answered(what: &str, status: u16, message: &str) -> Error {
    let message = one_line(message);
    let lower = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let error = |kind| Error::new(kind, format!("{what}: {message}"));
    match status {
        _ if says(&["bind source path does not exist", "mounts denied"]) => error(ErrorKind::NotFound),
        400 => error(ErrorKind::ConfigInvalid),
        401 => error(ErrorKind::Unauthenticated),
        403 => error(ErrorKind::PermissionDenied),
        404 => error(ErrorKind::NotFound),
        409 if says(&["is already in use"]) => error(ErrorKind::AlreadyExists),
        409 => error(ErrorKind::Conflict),
        429 => error(ErrorKind::RateLimited).temporary(None),
        501 => error(ErrorKind::Unsupported),
        503 => error(ErrorKind::Unavailable).temporary(None),
        _ if says(&["no space left", "disk quota exceeded"]) => error(ErrorKind::ResourceExhausted),
        _ if says(&["toomanyrequests", "too many requests"]) => error(ErrorKind::RateLimited).temporary(None),
        _ if says(&["unauthorized", "authentication required", "no basic auth credentials"]) => {
            error(ErrorKind::Unauthenticated)
        }
        _ if says(&["pull access denied", "requested access to the resource is denied"]) => error(ErrorKind::NotFound),
        _ if says(&[
            "manifest unknown",
            "not found",
            "no matching manifest",
            "no such image",
            "does not exist",
        ]) =>
        {
            error(ErrorKind::NotFound)
        }
        500..=599 => error(ErrorKind::Unavailable).temporary(None),
        _ => error(ErrorKind::Unexpected),
    }
}

/// A deadline passed.
pub(crate) fn late(what: &str, deadline: Option<Duration>) -> Error {
    let within = deadline.map_or_else(String::new, |deadline| format!(" within {deadline:?}"));
    Error::new(
        ErrorKind::Timeout,
        format!("{what}: the engine did not answer{within}; {REMEDY}, or raise timeout_seconds"),
    )
    .temporary(None)
}

/// The engine could not be reached.
pub(crate) fn unreachable(what: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Error::new(
            ErrorKind::PermissionDenied,
            format!("{what}: this user may not use the engine's socket; add the user to the group docker, or use rootless docker"),
        )
        .with_source(error);
    }
    Error::new(
        ErrorKind::Unavailable,
        format!("{what}: the engine cannot be reached; {REMEDY}"),
    )
    .temporary(None)
    .with_source(error)
}

/// The connection ended in the middle of an answer.
pub(crate) fn cut(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("{what}: the engine closed the connection; {REMEDY}"),
    )
    .temporary(None)
    .with_source(error)
}

/// Messages of engines may have several lines, and errors have one.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(600) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_kinds() {
        let table = [
            (404, "No such container: x", ErrorKind::NotFound, false),
            (
                409,
                "Conflict. The container name \"/x\" is already in use by container \"y\"",
                ErrorKind::AlreadyExists,
                false,
            ),
            (409, "container x is not running", ErrorKind::Conflict, false),
            (
                500,
                "write /x: no space left on device",
                ErrorKind::ResourceExhausted,
                false,
            ),
            (
                500,
                "Get \"https://r/v2/\": unauthorized: authentication required",
                ErrorKind::Unauthenticated,
                false,
            ),
            (
                500,
                "manifest for x not found: manifest unknown",
                ErrorKind::NotFound,
                false,
            ),
            (500, "toomanyrequests: slow down", ErrorKind::RateLimited, true),
            (500, "anything", ErrorKind::Unavailable, true),
            (503, "", ErrorKind::Unavailable, true),
            (400, "invalid mount config", ErrorKind::ConfigInvalid, false),
            (
                400,
                "invalid mount config for type \"bind\": bind source path does not exist: /x",
                ErrorKind::NotFound,
                false,
            ),
            (418, "", ErrorKind::Unexpected, false),
        ];
        for (status, message, kind, temporary) in table {
            let error = answered("cannot", status, message);
            assert_eq!(
                (error.kind(), error.is_temporary()),
                (kind, temporary),
                "{status} {message}"
            );
        }
    }

    #[test]
    fn a_socket_that_may_not_be_used_is_no_outage() {
        let denied = unreachable("cannot ask", io::ErrorKind::PermissionDenied.into());
        assert_eq!(
            (denied.kind(), denied.is_temporary()),
            (ErrorKind::PermissionDenied, false)
        );
        let gone = unreachable("cannot ask", io::ErrorKind::NotFound.into());
        assert_eq!((gone.kind(), gone.is_temporary()), (ErrorKind::Unavailable, true));
    }
}
