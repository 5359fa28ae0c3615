//! What the service says, in our terms. Pure functions from codes.

use agents_audit_remote::one_line;
use agents_core::{Error, ErrorKind};
use aws_sdk_cloudwatchlogs::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

/// The code of an exception, if it is one.
pub(crate) fn code<E: ProvideErrorMetadata>(error: &SdkError<E>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}

/// What a code means, and whether the same request may succeed later.
fn class(code: &str) -> (ErrorKind, bool, &'static str) {
    match code {
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "InvalidClientTokenId"
        | "IncompleteSignature"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken"
        | "RequestExpired" => (
            ErrorKind::Unauthenticated,
            false,
            "AWS does not accept these credentials; renew them, and check region and this machine's clock",
        ),
        "AccessDeniedException" | "AccessDenied" => (
            ErrorKind::PermissionDenied,
            false,
            "AWS does not allow this; grant logs:PutLogEvents, logs:CreateLogStream and logs:FilterLogEvents on the log \
             group, and logs:CreateLogGroup unless create_log_group is false",
        ),
        "ResourceNotFoundException" => (
            ErrorKind::NotFound,
            false,
            "there is no such log group; create it, or set create_log_group: true",
        ),
        "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "RequestLimitExceeded" => (
            ErrorKind::RateLimited,
            true,
            "CloudWatch Logs asks for fewer requests; have the quota raised",
        ),
        "LimitExceededException" => (
            ErrorKind::ResourceExhausted,
            false,
            "a quota of CloudWatch Logs is reached; have it raised",
        ),
        "ServiceUnavailableException"
        | "ServiceUnavailable"
        | "InternalFailure"
        | "InternalServerError"
        | "OperationAbortedException" => (
            ErrorKind::Unavailable,
            true,
            "CloudWatch Logs is not ready; see https://health.aws.amazon.com",
        ),
        "InvalidParameterException" => (
            ErrorKind::DataInvalid,
            false,
            "CloudWatch Logs cannot take this request",
        ),
        _ => (
            ErrorKind::Unexpected,
            false,
            "CloudWatch Logs refused the request; see whether region and endpoint are right",
        ),
    }
}

/// An error of the SDK as ours.
pub(crate) fn map<E>(error: &SdkError<E>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let mut reason = DisplayErrorContext(error).to_string();
    let (kind, temporary, told) = match error {
        SdkError::TimeoutError(_) => (
            ErrorKind::Timeout,
            true,
            "CloudWatch Logs did not answer in time; see whether a proxy is in between",
        ),
        SdkError::ServiceError(service) => {
            let (code, message) = (service.err().code(), service.err().message());
            reason = format!("{}: {}", code.unwrap_or("no code"), message.unwrap_or("no message"));
            code.map_or_else(|| unnamed(status), class)
        }
        SdkError::ResponseError(_) => unnamed(status),
        SdkError::ConstructionFailure(_) => (
            ErrorKind::Unexpected,
            false,
            "the request could not be made; see whether region and endpoint are right",
        ),
        SdkError::DispatchFailure(failure) if !failure.is_io() && reason.contains("redential") => (
            ErrorKind::Unauthenticated,
            true,
            "no AWS credentials were found; set access_key_id and secret_access_key, a profile, or a role",
        ),
        _ => (
            ErrorKind::Unavailable,
            true,
            "CloudWatch Logs cannot be reached; see whether region and endpoint are right and this machine may connect",
        ),
    };
    let error = Error::new(kind, told).with_context("reason", one_line(&reason));
    if temporary { error.temporary(None) } else { error }
}

/// An answer of which only the status is known, as from a proxy.
fn unnamed(status: Option<u16>) -> (ErrorKind, bool, &'static str) {
    match status {
        Some(408 | 500..=599) => class("ServiceUnavailableException"),
        Some(429) => class("ThrottlingException"),
        Some(403) => class("AccessDeniedException"),
        _ => class(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_meaning() {
        for (code, kind, temporary) in [
            ("ExpiredTokenException", ErrorKind::Unauthenticated, false),
            ("UnrecognizedClientException", ErrorKind::Unauthenticated, false),
            ("AccessDeniedException", ErrorKind::PermissionDenied, false),
            ("ResourceNotFoundException", ErrorKind::NotFound, false),
            ("ThrottlingException", ErrorKind::RateLimited, true),
            ("ServiceUnavailableException", ErrorKind::Unavailable, true),
            ("InvalidParameterException", ErrorKind::DataInvalid, false),
            ("LimitExceededException", ErrorKind::ResourceExhausted, false),
            ("Whatever", ErrorKind::Unexpected, false),
        ] {
            let (found, retry, _) = class(code);
            assert_eq!((found, retry), (kind, temporary), "{code}");
        }
        for (status, temporary) in [
            (Some(503), true),
            (Some(429), true),
            (Some(403), false),
            (Some(400), false),
            (None, false),
        ] {
            assert_eq!(unnamed(status).1, temporary, "{status:?}");
        }
    }
}
