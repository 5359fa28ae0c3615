//! What went wrong, as it is told to the host.

use std::{fmt, io};

use agents_guest::protocol::{Failure, FailureKind};

#[derive(Debug)]
pub(super) struct Fault {
    kind: FailureKind,
    message: String,
}

pub(super) fn fault(kind: FailureKind, message: impl Into<String>) -> Fault {
    Fault {
        kind,
        message: message.into(),
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self {
            kind: fault.kind,
            message: fault.message,
        }
    }
}

/// Adds what was tried to a failed call.
pub(super) trait Context<T> {
    fn context(self, what: impl fmt::Display) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T, Fault> {
        self.map_err(|error| {
            let error = error.into();
            // A library may wrap the cause in its own text.
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            fault(kind_of(&error), format!("{what}: {error}{}", cause.unwrap_or_default()))
        })
    }
}

fn kind_of(error: &io::Error) -> FailureKind {
    use io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound | Io::NotADirectory => FailureKind::NotFound,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => FailureKind::PermissionDenied,
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge | Io::OutOfMemory => FailureKind::ResourceExhausted,
        Io::InvalidData | Io::InvalidInput | Io::InvalidFilename => FailureKind::Invalid,
        Io::ConnectionRefused | Io::TimedOut => FailureKind::Unavailable,
        _ => FailureKind::Unexpected,
    }
}
