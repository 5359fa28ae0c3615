//! The one error type that every adapter, layer and engine returns.

use std::{error::Error as StdError, fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// The result of every fallible operation in the SDK.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in terms that a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// A fault that no other kind describes, for example a failed system call.
    Unexpected,
    /// The adapter or this host cannot do what was asked.
    Unsupported,
    /// A configuration, policy or request value is wrong.
    ConfigInvalid,
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// The caller did not prove who it is.
    Unauthenticated,
    /// The other side asks for fewer requests.
    RateLimited,
    /// The other side cannot be reached or is not ready.
    Unavailable,
    /// A deadline passed.
    Timeout,
    /// The thing is in a state that does not allow the operation.
    Conflict,
    /// The policy forbids it.
    PolicyDenied,
    /// A limit, a quota or a disk is full.
    ResourceExhausted,
    /// The caller cancelled the operation.
    Cancelled,
    /// What is in force differs from what was requested.
    EnforcementMismatch,
    /// Data is damaged, or breaks the format or a safety rule that it must keep.
    DataInvalid,
}

impl ErrorKind {
    /// The stable name, as it appears in logs and JSON, for example `not_found`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unexpected => "unexpected",
            Self::Unsupported => "unsupported",
            Self::ConfigInvalid => "config_invalid",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::PermissionDenied => "permission_denied",
            Self::Unauthenticated => "unauthenticated",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Conflict => "conflict",
            Self::PolicyDenied => "policy_denied",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Cancelled => "cancelled",
            Self::EnforcementMismatch => "enforcement_mismatch",
            Self::DataInvalid => "data_invalid",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryStatus {
    /// The same request will fail again.
    Permanent,
    /// The same request may succeed later, and not before the delay when there is one.
    Temporary {
        /// The delay that the other side asked for.
        retry_after: Option<Duration>,
    },
    /// It was temporary, and a retry layer has given up: outer layers do not try again.
    Exhausted,
}

/// An error with its kind, whether to retry, the operation, context and its source.
///
/// `Display` is one line and leaves the source out; [`std::error::Error::source`] carries it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    retry: RetryStatus,
    message: String,
    operation: Option<&'static str>,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates a permanent error. The message is lower case, without a final stop, and says what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            retry: RetryStatus::Permanent,
            message: message.into(),
            operation: None,
            context: Vec::new(),
            source: None,
        }))
    }

    /// An [`ErrorKind::Unsupported`] error.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// An [`ErrorKind::ConfigInvalid`] error.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ConfigInvalid, message)
    }

    /// An [`ErrorKind::NotFound`] error.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// An [`ErrorKind::Unexpected`] error.
    pub fn unexpected(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unexpected, message)
    }

    /// Wraps an I/O error: the kind follows from the I/O error's kind.
    pub fn io(message: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound | Io::NotADirectory => ErrorKind::NotFound,
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge | Io::OutOfMemory => ErrorKind::ResourceExhausted,
            Io::TimedOut => ErrorKind::Timeout,
            Io::ConnectionRefused | Io::ConnectionReset | Io::ConnectionAborted => ErrorKind::Unavailable,
            _ => ErrorKind::Unexpected,
        };
        Self::new(kind, message).with_source(source)
    }

    /// Marks the error as temporary.
    #[must_use]
    pub fn temporary(mut self, retry_after: Option<Duration>) -> Self {
        self.0.retry = RetryStatus::Temporary { retry_after };
        self
    }

    /// Marks the error as given up on, so that an outer retry layer passes it through.
    #[must_use]
    pub fn exhausted(mut self) -> Self {
        self.0.retry = RetryStatus::Exhausted;
        self
    }

    /// Names the operation, unless an inner layer has named it.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Adds a fact that helps to understand the error. Never a secret.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// Sets the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether trying again can help.
    pub fn retry_status(&self) -> RetryStatus {
        self.0.retry
    }

    /// Whether the error is temporary and nobody has given up on it.
    pub fn is_temporary(&self) -> bool {
        matches!(self.0.retry, RetryStatus::Temporary { .. })
    }

    /// The message alone.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The operation that failed, if known.
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The added facts, in the order in which they were added.
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// The message with the whole chain of sources, separated by `: `, on one line.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            let next = error.to_string();
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            source = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if !self.0.context.is_empty() {
            f.write_str(" (")?;
            for (i, (key, value)) in self.0.context.iter().enumerate() {
                if i > 0 {
                    f.write_str(", ")?;
                }
                write!(f, "{key}: {value}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("retry", &self.0.retry)
            .field("operation", &self.0.operation)
            .field("message", &self.0.message)
            .field("context", &self.0.context)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_and_leaves_the_source_out() {
        let error = Error::io("cannot open the workspace", std::io::Error::other("disk gone"))
            .with_context("path", "/w")
            .with_operation("provision")
            .with_operation("outer");
        assert_eq!(error.to_string(), "cannot open the workspace (path: /w)");
        assert_eq!(error.report(), "cannot open the workspace (path: /w): disk gone");
        assert_eq!(error.operation(), Some("provision"));
    }

    #[test]
    fn exhausted_is_no_longer_temporary() {
        let error = Error::new(ErrorKind::Unavailable, "down").temporary(None);
        assert!(error.is_temporary());
        assert!(!error.exhausted().is_temporary());
    }
}
