//! What every such sink tells alike.

use agents_core::{Availability, Error, ErrorKind, RetryStatus};

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

/// The same error once more, for another event of the same request. The source stays with the first.
pub fn again(error: &Error) -> Error {
    let mut copy = Error::new(error.kind(), error.message());
    for (key, value) in error.context() {
        copy = copy.with_context(key, value);
    }
    match error.retry_status() {
        RetryStatus::Temporary { retry_after } => copy.temporary(retry_after),
        _ => copy,
    }
}

/// What a server says, on one line that is not too long.
pub fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_error_is_told_again_as_it_was() {
        let wait = Some(Duration::from_secs(3));
        let error = Error::new(ErrorKind::RateLimited, "slower")
            .temporary(wait)
            .with_context("status", "429");
        let copy = again(&error);
        assert_eq!((copy.kind(), copy.message()), (error.kind(), error.message()));
        assert_eq!(
            (copy.retry_status(), copy.context()),
            (error.retry_status(), error.context())
        );
        assert!(!again(&Error::invalid("x")).is_temporary());
    }

    #[test]
    fn the_reason_says_where_and_what_and_the_remedy_what_to_do() {
        let error = not_tried().with_context("status", "503");
        let found = unavailable("https://sink", &error);
        assert!(!found.available);
        assert!(
            found
                .problems
                .iter()
                .any(|problem| problem.reason.contains("https://sink") && problem.reason.contains("503"))
        );
        assert_eq!(one_line("a\n b\t c"), "a b c");
        assert_eq!(one_line(&"x".repeat(999)).len(), 300);
    }
}
