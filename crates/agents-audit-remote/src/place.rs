//! Places in the trail.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// The last place that was given.
static LAST: AtomicI64 = AtomicI64::new(0);

/// The first of so many places in the trail, which nobody else in this process gets.
///
/// A place is a time in nanoseconds, so that those of several processes mix as their clocks do. It is that of the writing and
/// not of the event: an event that is written after another comes after it, the events of a request are near to each other,
/// and one that waited for weeks is not refused as too old.
pub fn places(count: usize) -> i64 {
    let count = i64::try_from(count.max(1)).unwrap_or(i64::MAX);
    let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default();
    let first = |last: i64| now.max(last + 1);
    // Always `Some`, so always `Ok`.
    let last = LAST.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| {
        Some(first(last) + count - 1)
    });
    first(last.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_only_grow() {
        let (a, b, c) = (places(1), places(10), places(1));
        assert!(a < b && b + 9 < c, "{a} {b} {c}");
    }
}
