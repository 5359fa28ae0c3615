//! Requests of a limited size.

use std::ops::Range;

use agents_core::Result;

use crate::not_tried;

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

/// What is to be written of a call's events, and what became of each event.
#[derive(Debug)]
pub struct Batch<T> {
    /// What can be sent, in order.
    items: Vec<T>,
    /// Which event each is of.
    at: Vec<usize>,
    /// One for each event. Those of the items follow.
    outcomes: Vec<Result<()>>,
}

impl<T> Batch<T> {
    /// Takes what was made of each event. One that could be made nothing of has its outcome, and holds nothing up.
    pub fn new(made: impl IntoIterator<Item = Result<T>>) -> Self {
        let mut batch = Self {
            items: Vec::new(),
            at: Vec::new(),
            outcomes: Vec::new(),
        };
        for (n, made) in made.into_iter().enumerate() {
            batch.outcomes.push(made.map(|item| {
                batch.items.push(item);
                batch.at.push(n);
            }));
        }
        batch
    }

    /// What is to be written.
    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// Outcomes for the items, as long as none was tried.
    pub fn untried(&self) -> Vec<Result<()>> {
        self.items.iter().map(|_| Err(not_tried())).collect()
    }

    /// The outcome of each event, given those of the items.
    ///
    /// # Errors
    ///
    /// The first, when no event was written.
    pub fn settle(mut self, written: Vec<Result<()>>) -> Result<Vec<Result<()>>> {
        for (n, outcome) in self.at.into_iter().zip(written) {
            self.outcomes[n] = outcome;
        }
        if !self.outcomes.is_empty() && self.outcomes.iter().all(Result::is_err) {
            return Err(self.outcomes.swap_remove(0).err().unwrap_or_else(not_tried));
        }
        Ok(self.outcomes)
    }
}

#[cfg(test)]
mod tests {
    use agents_core::Error;

    use super::*;

    #[test]
    fn each_event_has_its_own_outcome() {
        let made = || [Ok('a'), Err(Error::invalid("b")), Ok('c')];
        let batch = Batch::new(made());
        assert_eq!(batch.items(), ['a', 'c']);
        let mut written = batch.untried();
        written[1] = Ok(());
        let outcomes = batch.settle(written).unwrap();
        let told: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.as_ref().err().map(Error::message))
            .collect();
        assert_eq!(told, [Some(not_tried().message()), Some("b"), None]);
        let batch = Batch::new(made());
        let written = batch.untried();
        assert_eq!(batch.settle(written).unwrap_err().message(), not_tried().message());
        assert!(Batch::<char>::new([]).settle(Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn both_limits_hold_and_nothing_is_left_out() {
        let of = |sizes: &[usize]| chunks(sizes, (3, 10), |size| *size);
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[1; 7]), [0..3, 3..6, 6..7]);
        assert_eq!(of(&[5, 5, 1, 10]), [0..2, 2..3, 3..4]);
        assert_eq!(of(&[1, 99, 1]), [0..1, 1..2, 2..3]);
    }
}
