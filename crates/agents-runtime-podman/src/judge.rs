//! What the engine and this host's kernel know about an ending that the guest program cannot.

use std::sync::Arc;

use agents_core::Exit;
use agents_guest::Judge;
use async_trait::async_trait;

use crate::{client::Client, kernel::Group, stream::Complaint};

/// Judges the ending of one process.
#[derive(Debug)]
pub(crate) struct PodmanJudge {
    client: Arc<Client>,
    id: String,
    complaint: Complaint,
    group: Option<Group>,
    /// What the kernel had ended before the process began.
    kills_before: Option<u64>,
}

impl PodmanJudge {
    pub(crate) fn new(client: Arc<Client>, id: String, complaint: Complaint, group: Option<Group>) -> Self {
        let kills_before = group.as_ref().and_then(Group::memory_kills);
        Self {
            client,
            id,
            complaint,
            group,
            kills_before,
        }
    }

    /// Whether the kernel has ended something in the container for want of memory since.
    fn memory_ran_out(&self) -> bool {
        let now = self.group.as_ref().and_then(Group::memory_kills);
        matches!((self.kills_before, now), (Some(before), Some(now)) if now > before)
    }
}

#[async_trait]
impl Judge for PodmanJudge {
    async fn failed(&self, exit: Exit) -> Exit {
        match exit {
            Exit::Exited { .. } | Exit::Signalled { .. } if self.memory_ran_out() => Exit::OutOfMemory,
            exit => exit,
        }
    }

    async fn lost(&self, reason: String) -> Exit {
        if self.memory_ran_out() {
            // The container's first process may live, and what it was told to look after may not.
            let _ = self.client.kill(&self.id).await;
            return Exit::OutOfMemory;
        }
        let inspected = self.client.inspect(&self.id).await;
        let reason = match inspected {
            Ok(view) if view.flag("/State/OOMKilled") == Some(true) => return Exit::OutOfMemory,
            Ok(view) if view.flag("/State/Running") == Some(true) => {
                // Nobody can tell any more which of the processes were of this one.
                match self.client.kill(&self.id).await {
                    Ok(()) => format!("{reason}; the container's processes were killed"),
                    Err(error) => format!("{reason}; its processes could not be killed: {error}"),
                }
            }
            Ok(view) => {
                let code = view.number("/State/ExitCode").unwrap_or_default();
                format!("the container ended under it, with code {code}")
            }
            Err(error) if error.kind() == agents_core::ErrorKind::NotFound => {
                "the container was removed under it".to_owned()
            }
            Err(error) => format!("{reason}; {error}"),
        };
        let complaint = self.complaint.text();
        Exit::RuntimeLost {
            reason: if complaint.is_empty() {
                reason
            } else {
                format!("{reason}; podman's runtime said: {complaint}")
            },
        }
    }
}
