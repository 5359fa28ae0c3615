//! Trying again what may succeed later, within a deadline.

use std::time::Duration;

use agents_core::{Error, Result, RetryStatus};
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep};

/// The time that an operation has left, and the waits between its attempts.
#[derive(Debug)]
pub struct Retry {
    deadline: Instant,
    share: Duration,
    delays: ExponentialBackoff,
}

impl Retry {
    /// So much time for all attempts and the waits between them.
    pub fn new(total: Duration) -> Self {
        Self {
            deadline: Instant::now() + total,
            share: total / 3,
            delays: ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(100))
                .with_max_delay(Duration::from_secs(5))
                .without_max_times()
                .with_jitter()
                .build(),
        }
    }

    /// How long the next attempt may take: a third of the whole, so that a connection that hangs is given up while there is
    /// time for another.
    pub fn attempt(&self) -> Duration {
        self.share.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits before the next attempt, at least as long as the server asked for. Gives the error back when there is no sense
    /// or no time in another.
    ///
    /// # Errors
    ///
    /// The one that was given.
    pub async fn wait(&mut self, error: Error) -> Result<()> {
        let RetryStatus::Temporary { retry_after } = error.retry_status() else {
            return Err(error);
        };
        let delay = self.delays.next().unwrap_or(Duration::from_secs(5));
        let delay = delay.max(retry_after.unwrap_or_default());
        if Instant::now() + delay >= self.deadline {
            return Err(error);
        }
        tracing::debug!(error = %error.report(), "trying the audit sink again");
        sleep(delay).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use agents_core::ErrorKind;

    use super::*;

    fn error(retry_after: u64) -> Error {
        Error::new(ErrorKind::RateLimited, "x").temporary(Some(Duration::from_secs(retry_after)))
    }

    #[tokio::test(start_paused = true)]
    async fn waits_end_with_the_deadline_and_heed_the_server() {
        let start = Instant::now();
        let mut retry = Retry::new(Duration::from_secs(30));
        assert_eq!(retry.attempt(), Duration::from_secs(10));
        retry.wait(error(20)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(20));
        assert!(retry.wait(error(20)).await.is_err(), "no time left");
        while retry.wait(error(0)).await.is_ok() {}
        assert!(start.elapsed() <= Duration::from_secs(30));
        let permanent = Error::new(ErrorKind::PermissionDenied, "x");
        assert!(Retry::new(Duration::from_secs(30)).wait(permanent).await.is_err());
    }
}
