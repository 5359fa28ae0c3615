//! What goes wrong with files, in words.

use std::{io, path::Path};

use agents_core::{Error, ErrorKind};

/// An I/O error with the file that it is about and what to do.
pub(crate) fn file_error(what: &str, path: &Path, source: &io::Error) -> Error {
    let remedy = match Error::io("", copy(source)).kind() {
        ErrorKind::PermissionDenied => "; give this user the right to read and write it",
        ErrorKind::NotFound => "; create its folder, or let the journal create folders",
        ErrorKind::ResourceExhausted => "; make room on its disk",
        _ => "",
    };
    Error::io(
        format!("cannot {what} the journal file {}{remedy}", path.display()),
        copy(source),
    )
}

/// The same error again, since every waiting caller gets one and [`io::Error`] is not `Clone`.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

pub(crate) fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::DataInvalid,
        format!(
            "the journal file {} is damaged: {what}; verify the journal, then move the writer's folder away to begin a new chain",
            path.display()
        ),
    )
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Conflict, "the journal was closed; open it again")
}

pub(crate) fn stopped() -> Error {
    Error::unexpected("the thread that writes stopped before it answered; see the log for its panic")
}
