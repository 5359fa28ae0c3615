//! What only the engine knows about the end of a process.

use std::{sync::Arc, time::Duration};

use agents_core::{ErrorKind, Exit};
use agents_guest::Judge;
use async_trait::async_trait;
use jiff::Timestamp;

use crate::{engine::Engine, streams::Said};

/// How long the engine may take to hear that a container has ended.
const NEWS: Duration = Duration::from_secs(3);

/// Judges one process of one container; made before the process starts.
#[derive(Debug)]
pub(crate) struct EngineJudge {
    engine: Arc<Engine>,
    id: String,
    said: Said,
    since: Timestamp,
}

impl EngineJudge {
    pub(crate) fn new(engine: Arc<Engine>, id: String, said: Said) -> Self {
        Self {
            engine,
            id,
            said,
            since: Timestamp::now(),
        }
    }
}

#[async_trait]
impl Judge for EngineJudge {
    async fn failed(&self, exit: Exit) -> Exit {
        let killed = matches!(exit, Exit::Signalled { signal: 9 } | Exit::Exited { code: 137 });
        if killed && self.engine.has_happened(&self.id, "oom", self.since).await {
            return Exit::OutOfMemory;
        }
        exit
    }

    async fn lost(&self, reason: String) -> Exit {
        let lost = |what: String| Exit::RuntimeLost { reason: what };
        let begun = tokio::time::Instant::now();
        loop {
            let inspected = match self.engine.inspect(&self.id).await {
                Ok(inspected) => inspected,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return lost("the container was removed".to_owned());
                }
                Err(error) => return lost(format!("{reason}; the engine cannot be asked why: {}", error.message())),
            };
            if !inspected.state.running {
                // The event comes before the state of the container knows of it.
                if inspected.state.oom_killed || self.engine.has_happened(&self.id, "oom", self.since).await {
                    return Exit::OutOfMemory;
                }
                let said = self.said.line().map_or_else(String::new, |line| format!(": {line}"));
                return lost(format!(
                    "the container ended with code {}{said}",
                    inspected.state.exit_code
                ));
            }
            if begun.elapsed() > NEWS {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What is left of the process tree cannot be told from the rest any more.
        let killed = self.engine.kill(&self.id).await;
        let said = self.said.line().map_or_else(String::new, |line| format!(" ({line})"));
        match killed {
            Ok(()) => lost(format!("{reason}{said}; the container's processes were killed")),
            Err(error) => lost(format!(
                "{reason}{said}; the container's processes could not be killed: {}",
                error.message()
            )),
        }
    }
}
