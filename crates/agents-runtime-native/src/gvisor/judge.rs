//! What only the host knows about an ending in a sandbox.

use agents_core::Exit;
use agents_guest::Judge;
use async_trait::async_trait;

use crate::{cgroup::Group, spec::Identity, state};

/// Asks the cgroup of the sandbox.
#[derive(Debug)]
pub(super) struct CgroupJudge {
    identity: Identity,
    killed_before: u64,
}

impl CgroupJudge {
    pub(super) fn new(identity: Identity) -> Self {
        let killed_before = killed(&identity);
        Self {
            identity,
            killed_before,
        }
    }
}

fn killed(identity: &Identity) -> u64 {
    identity.group.as_ref().map(Group::usage).unwrap_or_default().oom_kills
}

#[async_trait]
impl Judge for CgroupJudge {
    async fn failed(&self, exit: Exit) -> Exit {
        if killed(&self.identity) > self.killed_before {
            Exit::OutOfMemory
        } else {
            exit
        }
    }

    async fn lost(&self, reason: String) -> Exit {
        let exit = self.failed(Exit::RuntimeLost { reason }).await;
        state::kill_processes(&self.identity);
        exit
    }
}
