//! What `Ctrl-C` does: the work ends as a failure would end it, so that nothing half done stays.

use std::{future::Future, io::IsTerminal, time::Duration};

use agents_sdk::{
    core::{Error, ErrorKind},
    session::CancellationToken,
};

use crate::{
    context::Context,
    failure::{Failure, Outcome},
    output,
    run::watch_signals,
};

/// How long the work may need to take back what it began; a store gives its own removal five seconds.
const GRACE: Duration = Duration::from_secs(8);

/// Does the work until it is done or a signal has ended it. The second signal ends the process at once.
pub(super) async fn interruptible<W>(context: &Context, work: impl FnOnce(CancellationToken) -> W) -> Outcome
where
    W: Future<Output = Outcome>,
{
    let stop = CancellationToken::new();
    watch_signals(&stop, true)?;
    let work = work(stop.clone());
    tokio::pin!(work);
    tokio::select! {
        biased;
        outcome = &mut work => return outcome,
        () = stop.cancelled() => {}
    }
    if !context.common.quiet && std::io::stderr().is_terminal() {
        output::note("stopping, and removing what is not whole; once more ends at once");
    }
    match tokio::time::timeout(GRACE, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::Error(Error::new(ErrorKind::Cancelled, "interrupted"))),
    }
}
