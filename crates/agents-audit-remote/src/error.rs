//! What every such sink tells alike.

use agents_core::{Availability, Error, ErrorKind};

/// The sink was shut down.
pub fn closed() -> Error {
    Error::new(ErrorKind::Conflict, "the audit sink was shut down; build a new one")
}

/// The event was not sent, so that none that came before it is found behind it.
pub fn not_tried() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the event was not written, since one before it in the batch failed",
    )
    .temporary(None)
}

/// The sink at this location cannot be written to: the message is what to do, the rest what happened.
pub fn unavailable(location: &str, error: &Error) -> Availability {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    let context: Vec<_> = error.context().iter().map(|(_, value)| value.as_str()).collect();
    let reason = format!(
        "{location}: {} {}{}",
        error.kind(),
        context.join(" "),
        source.unwrap_or_default()
    );
    Availability::unavailable(reason, error.message())
}
