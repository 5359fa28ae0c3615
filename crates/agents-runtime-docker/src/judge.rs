//! What only the engine knows about the end of a process.

use std::{sync::Arc, time::Duration};

use agents_core::{ErrorKind, Exit};
use agents_guest::Judge;
use async_trait::async_trait;

use crate::{engine::Engine, inspect::Inspected, streams::Said, watch::News};

/// How long the engine may take to hear that a container has ended.
const NEWS: Duration = Duration::from_secs(3);

/// How long its word about memory may come after that about the end of the process.
const MOMENT: Duration = Duration::from_millis(300);

/// Judges one process of one container; made before the process starts.
#[derive(Debug)]
pub(crate) struct EngineJudge {
    engine: Arc<Engine>,
    id: String,
    said: Said,
    news: News,
}

impl EngineJudge {
    pub(crate) fn new(engine: Arc<Engine>, id: String, said: Said, news: News) -> Self {
        Self { engine, id, said, news }
    }

    /// Why a container does not run any more.
    async fn ended(&self, inspected: &Inspected) -> Exit {
        // The engine may tell of the end before it tells of the reason.
        if inspected.state.oom_killed || inspected.state.exit_code == 137 && self.news.out_of_memory(MOMENT).await {
            return Exit::OutOfMemory;
        }
        let said = self.said.line().map_or_else(String::new, |line| format!(": {line}"));
        Exit::RuntimeLost {
            reason: format!("the container ended with code {}{said}", inspected.state.exit_code),
        }
    }
}

#[async_trait]
impl Judge for EngineJudge {
    async fn failed(&self, exit: Exit) -> Exit {
        let killed = matches!(exit, Exit::Signalled { signal: 9 } | Exit::Exited { code: 137 });
        if killed && self.news.out_of_memory(MOMENT).await {
            return Exit::OutOfMemory;
        }
        exit
    }

    async fn lost(&self, reason: String) -> Exit {
        let lost = |reason: String| Exit::RuntimeLost { reason };
        let begun = tokio::time::Instant::now();
        loop {
            match self.engine.inspect(&self.id).await {
                Ok(inspected) if !inspected.state.running => return self.ended(&inspected).await,
                Ok(_) if begun.elapsed() > NEWS => break,
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return lost("the container was removed".to_owned());
                }
                Err(error) => return lost(format!("{reason}; the engine cannot be asked why: {}", error.message())),
            }
        }
        // What is left of the process tree cannot be told from the rest any more.
        let said = self.said.line().map_or_else(String::new, |line| format!(" ({line})"));
        match self.engine.kill(&self.id).await {
            Ok(()) => lost(format!("{reason}{said}; the container's processes were killed")),
            Err(error) => lost(format!(
                "{reason}{said}; the container's processes could not be killed: {}",
                error.message()
            )),
        }
    }
}
