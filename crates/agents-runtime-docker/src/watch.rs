//! The engine's events about one container, so that its end and its want of memory are heard of without asking. An engine
//! does not always end the streams of what ran in a container that is gone.

use std::{future::Future, sync::Arc, time::Duration};

use agents_core::{ErrorKind, Result};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyStream;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::{sync::watch, task::AbortHandle, time::timeout};

use crate::{engine::Engine, null_as_default};

/// How long the streams of a container that has ended may take to end by themselves.
const GRACE: Duration = Duration::from_secs(2);

/// The most of one event.
const LONGEST: usize = 1 << 20;

/// How often the engine may fail to answer before the container is given up.
const FAILURES: u32 = 3;

/// What was heard of a container.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    out_of_memory: u64,
    ended: bool,
}

/// Listens for as long as it lives.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: watch::Receiver<Seen>,
    listening: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Watch {
    /// Begins to listen; whatever happens after this returns is heard.
    pub(crate) async fn open(engine: &Arc<Engine>, id: &str) -> Result<Self> {
        let events = engine.events(id).await?;
        let (tell, seen) = watch::channel(Seen::default());
        let listening = tokio::spawn(listen(Arc::clone(engine), id.to_owned(), events, tell));
        Ok(Self {
            seen,
            listening: listening.abort_handle(),
        })
    }

    /// What is heard from now on.
    pub(crate) fn news(&self) -> News {
        let seen = self.seen.clone();
        let before = seen.borrow().out_of_memory;
        News { seen, before }
    }
}

/// What is heard of a container since a process of it was started.
#[derive(Clone, Debug)]
pub(crate) struct News {
    seen: watch::Receiver<Seen>,
    before: u64,
}

impl News {
    /// Waits until the container has ended for so long that its streams should have ended too.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut seen = self.seen.clone();
        async move {
            // Nobody listens any more once the container was destroyed.
            let _ = seen.wait_for(|seen| seen.ended).await;
            tokio::time::sleep(GRACE).await;
        }
    }

    /// Whether the kernel has ended something for want of memory, for which the engine's word may take a moment.
    pub(crate) async fn out_of_memory(&self, moment: Duration) -> bool {
        let (mut seen, before) = (self.seen.clone(), self.before);
        let heard = seen.wait_for(|seen| seen.out_of_memory > before);
        matches!(timeout(moment, heard).await, Ok(Ok(_)))
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(default, rename = "Action", deserialize_with = "null_as_default")]
    action: String,
}

async fn listen(engine: Arc<Engine>, id: String, events: Incoming, tell: watch::Sender<Seen>) {
    let mut events = Some(BodyStream::new(events));
    let mut line = Vec::new();
    let mut failures = 0;
    while !tell.borrow().ended {
        if let Some(body) = &mut events {
            match timeout(engine.deadline(), body.next()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        take(&mut line, &bytes, &tell);
                    }
                    continue;
                }
                Ok(_) => events = None,
                // It is quiet; whether the engine still lives is worth a question.
                Err(_) => {}
            }
        }
        match engine.inspect(&id).await {
            Ok(inspected) if inspected.state.running || inspected.state.status == "created" => failures = 0,
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(_) => failures += 1,
        }
        if failures >= FAILURES {
            break;
        }
        if events.is_none() {
            tokio::time::sleep(Duration::from_millis(200) * (failures + 1)).await;
            line.clear();
            events = engine.events(&id).await.ok().map(BodyStream::new);
        }
    }
    tell.send_modify(|seen| seen.ended = true);
    // Whoever looks later still sees what was heard.
    tell.closed().await;
}

/// Takes the bytes of a stream of events, which are JSON one after the other, each with a line feed.
fn take(line: &mut Vec<u8>, bytes: &Bytes, tell: &watch::Sender<Seen>) {
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        if line.len() + piece.len() > LONGEST {
            line.clear();
            continue;
        }
        line.extend_from_slice(piece);
        if !piece.ends_with(b"\n") {
            continue;
        }
        let event: Option<Event> = serde_json::from_slice(line).ok();
        line.clear();
        match event.as_ref().map(|event| event.action.as_str()) {
            Some("oom") => tell.send_modify(|seen| seen.out_of_memory += 1),
            Some("die" | "destroy") => tell.send_modify(|seen| seen.ended = true),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let (tell, seen) = watch::channel(Seen::default());
        let text =
            b"{\"Action\":\"oom\"}\n{\"Action\":null,\"x\":{}}\nnonsense\n{\"Action\":\"oom\"}\n{\"Action\":\"die\"";
        let mut line = Vec::new();
        for piece in text.chunks(3) {
            take(&mut line, &Bytes::copy_from_slice(piece), &tell);
        }
        assert_eq!((seen.borrow().out_of_memory, seen.borrow().ended), (2, false));
        take(&mut line, &Bytes::from_static(b"}\n"), &tell);
        assert!(seen.borrow().ended);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_came_later_is_news() {
        let (tell, seen) = watch::channel(Seen {
            out_of_memory: 1,
            ended: false,
        });
        let news = News { seen, before: 1 };
        assert!(!news.out_of_memory(Duration::from_millis(10)).await);
        tell.send_modify(|seen| seen.out_of_memory += 1);
        assert!(news.out_of_memory(Duration::ZERO).await);
        drop(tell);
        news.ended().await;
    }
}
