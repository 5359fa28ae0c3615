//! Trying again what may succeed later, within a deadline.

use std::time::Duration;

use agents_core::{Error, ErrorKind, Result, RetryStatus};
use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep, timeout};

/// Runs an operation until it succeeds, fails for good, or the time is up. One attempt gets at most a third of the time, so
/// that a connection that hangs is given up while there is time for another.
///
/// What is given must be harmless to repeat.
pub(crate) async fn within<T, F, A>(total: Duration, mut attempt: F) -> Result<T>
where
    F: FnMut() -> A,
    A: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + total;
    let mut delays = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter()
        .build();
    loop {
        let share = (total / 3).min(deadline.saturating_duration_since(Instant::now()));
        let error = match timeout(share, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if !error.is_temporary() => return Err(error),
            Ok(Err(error)) => error,
            Err(_) => Error::new(
                ErrorKind::Timeout,
                format!(
                    "the database did not answer within {:.0} s; see whether it hangs",
                    share.as_secs_f64()
                ),
            )
            .temporary(None),
        };
        let mut delay = delays.next().unwrap_or(Duration::from_secs(2));
        if let RetryStatus::Temporary {
            retry_after: Some(asked),
        } = error.retry_status()
        {
            delay = delay.max(asked);
        }
        if Instant::now() + delay >= deadline {
            return Err(error);
        }
        tracing::debug!(error = %error.report(), "trying the audit database again");
        sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn failing(kind: ErrorKind) -> Error {
        Error::new(kind, "x")
    }

    #[tokio::test(start_paused = true)]
    async fn temporary_errors_are_tried_again_until_the_time_is_up() {
        let tries = AtomicUsize::new(0);
        let count = || tries.fetch_add(1, Ordering::Relaxed);
        let total = Duration::from_secs(30);
        let ok = within(total, || async {
            if count() < 3 {
                Err(failing(ErrorKind::Unavailable).temporary(None))
            } else {
                Ok(7)
            }
        });
        assert_eq!(ok.await.unwrap(), 7);

        tries.store(0, Ordering::Relaxed);
        let permanent = within(total, || async {
            count();
            Err::<(), _>(failing(ErrorKind::PermissionDenied))
        });
        assert_eq!(permanent.await.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(tries.load(Ordering::Relaxed), 1);

        tries.store(0, Ordering::Relaxed);
        let start = Instant::now();
        let hanging = within(total, || async {
            count();
            std::future::pending::<Result<()>>().await
        });
        let error = hanging.await.unwrap_err();
        assert_eq!((error.kind(), error.is_temporary()), (ErrorKind::Timeout, true));
        assert!(start.elapsed() <= total && tries.load(Ordering::Relaxed) >= 3);
    }
}
