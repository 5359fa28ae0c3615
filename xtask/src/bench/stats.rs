//! Order statistics of a handful of samples.

use std::time::Duration;

/// What a table shows of a series of wall times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) p90: f64,
}

/// Summarises `samples`; `None` when there are none.
pub(super) fn summary(samples: &[Duration]) -> Option<Summary> {
    let mut sorted: Vec<f64> = samples.iter().map(|time| millis(*time)).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        _ if sorted.is_empty() => return None,
        1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    };
    // Nearest rank: a value that was really measured.
    let rank = (sorted.len() * 9).div_ceil(10);
    Some(Summary {
        min: sorted[0],
        median,
        p90: sorted[rank - 1],
    })
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples: &[u64]) -> Option<Summary> {
        let times: Vec<_> = samples.iter().map(|&n| Duration::from_millis(n)).collect();
        summary(&times)
    }

    #[test]
    fn the_order_of_samples_does_not_matter() {
        let wanted = Summary {
            min: 1.0,
            median: 5.5,
            p90: 9.0,
        };
        assert_eq!(of(&[10, 1, 9, 2, 8, 3, 7, 4, 6, 5]), Some(wanted));
        assert_eq!(of(&[3, 1, 2]).unwrap().median, 2.0);
        assert_eq!(of(&[7]).unwrap().p90, 7.0);
        assert_eq!(of(&[]), None);
    }
}
