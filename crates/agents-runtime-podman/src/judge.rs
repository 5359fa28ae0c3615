//! What the engine and this host's kernel know about an ending that the guest program cannot.

use std::{io, sync::Arc, time::Duration};

use agents_core::Exit;
use agents_guest::Judge;
use async_trait::async_trait;
use tokio::{io::AsyncReadExt, net::unix::pipe, sync::watch, task::AbortHandle, time::timeout};

use crate::{client::Client, kernel::Group, stream::Complaint};

/// How long the kernel may take to say the last of a cgroup that is gone.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Judges the ending of one process.
#[derive(Debug)]
pub(crate) struct PodmanJudge {
    client: Arc<Client>,
    id: String,
    complaint: Complaint,
    group: Option<Group>,
    /// What the kernel had ended before the process began.
    kills_before: Option<u64>,
    /// Notes that memory ran out while there still is a cgroup to ask.
    witness: Option<Witness>,
}

/// Hears of memory that runs out, and ends when it is dropped.
///
/// A kernel of gVisor's is one process: when it is ended for want of memory the whole container is, and podman removes
/// its cgroup at once. Who asks afterwards may come too late, and podman itself does not notice with this runtime.
#[derive(Debug)]
struct Witness {
    saw: watch::Receiver<bool>,
    watch: AbortHandle,
}

impl Witness {
    fn of(group: Group, kills_before: u64) -> io::Result<Self> {
        // Not a pipe, and read like one: Tokio has no other safe way to wait for a descriptor.
        let mut notices = pipe::Receiver::from_owned_fd_unchecked(group.memory_notices()?)?;
        let (seen, saw) = watch::channel(false);
        let watch = tokio::spawn(async move {
            // Room for a notice of either kind.
            let mut notice = [0; 512];
            let mut heard = 0;
            while let Ok(read @ 1..) = notices.read(&mut notice).await {
                heard += group.notices_in(&notice[..read]);
                if group.is_told_of(kills_before, heard) {
                    let _ = seen.send(true);
                    break;
                }
            }
        });
        Ok(Self {
            saw,
            watch: watch.abort_handle(),
        })
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl PodmanJudge {
    pub(crate) fn new(client: Arc<Client>, id: String, complaint: Complaint, group: Option<Group>) -> Self {
        let kills_before = group.as_ref().and_then(Group::memory_kills);
        let witness = group.clone().zip(kills_before).and_then(|(group, kills)| {
            Witness::of(group, kills)
                .inspect_err(|error| tracing::debug!(%error, "memory that runs out is looked up afterwards only"))
                .ok()
        });
        Self {
            client,
            id,
            complaint,
            group,
            kills_before,
            witness,
        }
    }

    /// Whether memory ran out while the cgroup was there, which may be heard of a moment later.
    async fn witnessed(&self) -> bool {
        let Some(witness) = &self.witness else { return false };
        if self.group.as_ref().and_then(Group::memory_kills).is_some() {
            return *witness.saw.borrow();
        }
        let mut saw = witness.saw.clone();
        // Without a sender nothing more is heard, and what was said last counts.
        let heard = timeout(LAST_WORDS, saw.wait_for(|saw| *saw)).await;
        matches!(heard, Ok(Ok(_)))
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
        if self.memory_ran_out() || self.witnessed().await {
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
