//! Requests of a limited size.

use std::ops::Range;

/// Splits items into what fits into a request each: at most so many of them, and at most so many bytes by the size of each.
/// One that is larger by itself gets a request of its own.
pub fn chunks<T>(
    items: &[T],
    (most_items, most_bytes): (usize, usize),
    size: impl Fn(&T) -> usize,
) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (n, item) in items.iter().enumerate() {
        let size = size(item);
        if n > start && (n - start == most_items || bytes + size > most_bytes) {
            chunks.push(start..n);
            (start, bytes) = (n, 0);
        }
        bytes += size;
    }
    if start < items.len() {
        chunks.push(start..items.len());
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_nothing_is_left_out() {
        let of = |sizes: &[usize]| chunks(sizes, (3, 10), |size| *size);
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[1; 7]), [0..3, 3..6, 6..7]);
        assert_eq!(of(&[5, 5, 1, 10]), [0..2, 2..3, 3..4]);
        assert_eq!(of(&[1, 99, 1]), [0..1, 1..2, 2..3]);
    }
}
