//! Reads what the program says about a process, so that credit for input and the deadline do not wait for the reader of the
//! output.

use std::{sync::Arc, time::Duration};

use agents_core::{ExecEvent, Exit, KillReason};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{Judge, afterwards::Handover, connection::Messages, exit::exit_of, session::Shared};
use crate::protocol::{FromGuest, INPUT_WINDOW, ToGuest};

/// How long the program may take to end a process tree, while somebody reads. One that was stopped from inside, or that
/// cannot kill as fast as others fork, never does.
const GRACE: Duration = Duration::from_secs(5);

pub(super) struct Pump {
    messages: Messages,
    shared: Arc<Shared>,
    events: mpsc::Sender<ExecEvent>,
    judge: Arc<dyn Judge>,
    deadline: Option<Instant>,
    /// Whoever takes the connection over after a regular end.
    handover: Option<Handover>,
    killing: bool,
    grace: Duration,
}

impl Pump {
    pub(super) fn new(
        messages: Messages,
        shared: Arc<Shared>,
        events: mpsc::Sender<ExecEvent>,
        judge: Arc<dyn Judge>,
        deadline: Option<Instant>,
        handover: Option<Handover>,
    ) -> Self {
        Self {
            messages,
            shared,
            events,
            judge,
            deadline,
            handover,
            killing: false,
            grace: GRACE,
        }
    }

    /// Passes everything on, up to the end.
    pub(super) async fn run(mut self) {
        let exit = match self.pass_on().await {
            Ok(exit) => exit,
            Err(reason) => {
                self.handover = None;
                self.judge.lost(reason).await
            }
        };
        let exit = match self.shared.reason() {
            Some(KillReason::Deadline) => Exit::Deadline,
            Some(KillReason::Cancelled) => Exit::Cancelled,
            None if matches!(exit, Exit::RuntimeLost { .. } | Exit::NotStarted { .. }) || exit.is_success() => exit,
            None => self.judge.failed(exit).await,
        };
        self.shared.close();
        if let Some(handover) = self.handover {
            handover.give(self.messages).await;
        }
        let _ = self.events.send(ExecEvent::Exit(exit)).await;
    }

    /// The ending, or how the connection was lost.
    async fn pass_on(&mut self) -> Result<Exit, String> {
        loop {
            let begun = Instant::now();
            let message = tokio::select! {
                biased;
                () = killed(&self.shared, self.deadline), if !self.killing => {
                    self.kill();
                    continue;
                }
                () = sleep(self.grace), if self.killing => {
                    return Err("the guest program could not end the process tree".to_owned());
                }
                message = self.messages.next() => message,
            };
            if self.killing {
                self.grace = self.grace.saturating_sub(begun.elapsed());
            }
            match message {
                Ok(Some(FromGuest::Stdout(bytes))) => self.give(ExecEvent::Stdout(bytes)).await,
                Ok(Some(FromGuest::Stderr(bytes))) => self.give(ExecEvent::Stderr(bytes)).await,
                Ok(Some(FromGuest::InputTaken(count))) => {
                    let count = count as usize;
                    if self.shared.credit.available_permits() + count > INPUT_WINDOW {
                        return Err("the guest program has taken more input than there was".to_owned());
                    }
                    self.shared.credit.add_permits(count);
                }
                Ok(Some(FromGuest::InputClosed)) => self.shared.credit.close(),
                Ok(Some(FromGuest::Exit(ended))) => return Ok(exit_of(ended)),
                Ok(Some(_)) => return Err("the guest program gave an answer to something else".to_owned()),
                Ok(None) => return Err("the guest program went away without an ending".to_owned()),
                Err(error) => return Err(format!("the connection to the guest program broke: {error}")),
            }
        }
    }

    /// Waits for the reader, and hears of a kill meanwhile. What nobody reads any more is dropped.
    async fn give(&mut self, event: ExecEvent) {
        let events = self.events.clone();
        loop {
            tokio::select! {
                biased;
                () = killed(&self.shared, self.deadline), if !self.killing => self.kill(),
                permit = events.reserve() => match permit {
                    Ok(permit) => return permit.send(event),
                    Err(_) if self.killing => return,
                    Err(_) => {
                        self.shared.kill_for(KillReason::Cancelled);
                        return self.kill();
                    }
                }
            }
        }
    }

    fn kill(&mut self) {
        self.killing = true;
        self.shared.kill_for(KillReason::Deadline);
        self.shared.send(ToGuest::Kill);
    }
}

/// Waits until the process tree is to be killed: for a reason that is set by then, or else for the deadline.
async fn killed(shared: &Shared, deadline: Option<Instant>) {
    let passed = async {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shared.kill.notified() => {}
        () = passed => {}
    }
}
