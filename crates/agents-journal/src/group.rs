//! Group commit: a thread that writes for many callers, so that everything that waits shares one write and one sync.

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use agents_core::{Error, Result};
use tokio::sync::oneshot;

use crate::error::{closed, stopped};

/// How long the thread looks for new work before it sleeps. Waking a thread costs up to a quarter of an `fdatasync`, and
/// who has just got an answer often has the next record at hand.
const LINGER: Duration = Duration::from_micros(50);

/// Who shared the last group is likely to come back for the next one. The thread waits for as many, but at most for this part
/// of what the last group took: without that, the first to come back would have a sync to itself, and the others the next.
const PATIENCE: u32 = 2;

/// A group that takes no longer than this is not worth waiting for company.
const WORTH: Duration = Duration::from_micros(100);

/// The most bytes of one group, save a single payload that is larger.
const GROUP_BYTES: usize = 4 << 20;

/// The far end of a [`GroupCommit`], which has the thread to itself and may block.
pub trait Sink: Send + 'static {
    /// What a caller hands over.
    type Payload: Send;
    /// What a caller gets back once the payload is on record.
    type Receipt: Send;

    /// How many bytes a payload has, more or less.
    fn size(payload: &Self::Payload) -> usize;

    /// Puts payloads on record in their order, and answers each in the same order.
    fn commit(&mut self, payloads: Vec<Self::Payload>) -> Vec<Result<Self::Receipt>>;

    /// Called when nothing waits; says when to call it again if nothing comes.
    fn idle(&mut self) -> Option<Duration> {
        None
    }
}

enum Job<S: Sink> {
    Commit(S::Payload, oneshot::Sender<Result<S::Receipt>>),
    Call(Box<dyn FnOnce(&mut S) + Send>),
    Last(Box<dyn FnOnce(S) + Send>),
}

/// The near end: hands payloads to a thread of its own, in groups. The thread starts with the first job and ends after the
/// last one once this is dropped.
pub struct GroupCommit<S: Sink> {
    name: &'static str,
    queue: Arc<Queue<S>>,
}

struct Queue<S: Sink> {
    state: Mutex<State<S>>,
    ready: Condvar,
}

struct State<S: Sink> {
    jobs: Vec<Job<S>>,
    /// How many jobs the thread is to be woken for.
    wanted: usize,
    /// Until the thread has it.
    sink: Option<S>,
    closed: bool,
}

impl<S: Sink> GroupCommit<S> {
    /// Nothing happens before the first job. The name is that of the thread.
    pub fn new(name: &'static str, sink: S) -> Self {
        Self {
            name,
            queue: Arc::new(Queue {
                state: Mutex::new(State {
                    jobs: Vec::new(),
                    wanted: 1,
                    sink: Some(sink),
                    closed: false,
                }),
                ready: Condvar::new(),
            }),
        }
    }

    /// Puts a payload on record. It is in line when this returns, so that payloads keep the order of these calls; the
    /// receipt comes with the future. Dropping the future does not take the payload back.
    ///
    /// # Errors
    ///
    /// The sink's; `Conflict` after `close`.
    pub fn commit(&self, payload: S::Payload) -> impl Future<Output = Result<S::Receipt>> + Send + use<S> {
        let (done, answer) = oneshot::channel();
        let queued = self.push(Job::Commit(payload, done));
        async move {
            queued?;
            answer.await.map_err(|_| stopped())?
        }
    }

    /// Does something with the sink, after everything that is in line.
    ///
    /// # Errors
    ///
    /// Those of the work; `Conflict` after `close`.
    pub fn call<T: Send + 'static, W: FnOnce(&mut S) -> Result<T> + Send + 'static>(
        &self,
        work: W,
    ) -> impl Future<Output = Result<T>> + Send + use<S, T, W> {
        let (done, answer) = oneshot::channel();
        let queued = self.push(Job::Call(Box::new(move |sink| {
            // Who does not wait any more has no use for the answer.
            let _ = done.send(work(sink));
        })));
        async move {
            queued?;
            answer.await.map_err(|_| stopped())?
        }
    }

    /// Refuses further jobs, does those in line and this last one, and returns once the sink is dropped. Without any job
    /// before, there is no last one either.
    ///
    /// # Errors
    ///
    /// Those of the last job; `Conflict` when it was closed before.
    pub async fn close(&self, last: impl FnOnce(&mut S) -> Result<()> + Send + 'static) -> Result<()> {
        let (done, answer) = oneshot::channel();
        {
            let mut state = self.queue.lock();
            if state.closed {
                return Err(closed());
            }
            state.closed = true;
            if state.sink.take().is_some() {
                return Ok(());
            }
            state.jobs.push(Job::Last(Box::new(move |mut sink| {
                let outcome = last(&mut sink);
                drop(sink);
                let _ = done.send(outcome);
            })));
        }
        self.queue.ready.notify_one();
        answer.await.map_err(|_| stopped())?
    }

    /// Whether `close` was called.
    pub fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    fn push(&self, job: Job<S>) -> Result<()> {
        let mut state = self.queue.lock();
        if state.closed {
            return Err(closed());
        }
        state.jobs.push(job);
        if let Some(sink) = state.sink.take() {
            let queue = Arc::clone(&self.queue);
            // The sink is lost when no thread can be started, and every later job fails.
            let started = thread::Builder::new()
                .name(self.name.to_owned())
                .spawn(move || run(&CloseOnDrop(queue), sink));
            if let Err(error) = started {
                state.closed = true;
                state.jobs.clear();
                return Err(Error::io(
                    "cannot start the thread that writes; allow this process more threads",
                    error,
                ));
            }
        }
        let wake = state.jobs.len() >= state.wanted;
        drop(state);
        if wake {
            self.queue.ready.notify_one();
        }
        Ok(())
    }
}

impl<S: Sink> Drop for GroupCommit<S> {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.ready.notify_one();
    }
}

impl<S: Sink> fmt::Debug for GroupCommit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.queue.lock();
        let (waiting, closed) = (state.jobs.len(), state.closed);
        f.debug_struct("GroupCommit")
            .field("name", &self.name)
            .field("waiting", &waiting)
            .field("closed", &closed)
            .finish_non_exhaustive()
    }
}

impl<S: Sink> Queue<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that waits, once it is as much as expected or patience ends; none once it is closed and empty.
    fn take(&self, sink: &mut S, expected: usize, patience: Duration) -> Vec<Job<S>> {
        let late = Instant::now() + LINGER;
        let mut state = self.look(late, 1);
        while state.jobs.is_empty() && !state.closed {
            drop(state);
            let wait = sink.idle();
            state = self.lock();
            let nothing = |state: &mut State<S>| state.jobs.is_empty() && !state.closed;
            state = match wait {
                Some(wait) => {
                    let waited = self.ready.wait_timeout_while(state, wait, nothing);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.ready.wait_while(state, nothing);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        if state.jobs.len() < expected && !state.closed {
            drop(state);
            let end = Instant::now() + patience;
            state = self.look(end.min(late), expected);
            state.wanted = expected;
            let few = |state: &mut State<S>| state.jobs.len() < expected && !state.closed;
            let left = end.saturating_duration_since(Instant::now());
            let waited = self.ready.wait_timeout_while(state, left, few);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.wanted = 1;
        }
        std::mem::take(&mut state.jobs)
    }

    /// Looks again and again until there are so many jobs, or it is late.
    fn look(&self, late: Instant, count: usize) -> MutexGuard<'_, State<S>> {
        loop {
            let state = self.lock();
            if state.jobs.len() >= count || state.closed || Instant::now() >= late {
                return state;
            }
            drop(state);
            thread::yield_now();
        }
    }
}

/// Fails whatever still waits when the thread ends, also by a panic: nobody must wait for an answer that never comes.
struct CloseOnDrop<S: Sink>(Arc<Queue<S>>);

impl<S: Sink> Drop for CloseOnDrop<S> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.jobs.clear();
    }
}

fn run<S: Sink>(queue: &CloseOnDrop<S>, mut sink: S) {
    let mut group = Group::new();
    let (mut expected, mut patience) = (1, Duration::ZERO);
    loop {
        let jobs = queue.0.take(&mut sink, expected, patience);
        let start = Instant::now();
        expected = jobs.len();
        if jobs.is_empty() {
            return;
        }
        for job in jobs {
            match job {
                Job::Commit(payload, done) => {
                    if group.bytes > 0 && group.bytes + S::size(&payload) > GROUP_BYTES {
                        group.commit(&mut sink);
                    }
                    group.bytes += S::size(&payload);
                    group.payloads.push(payload);
                    group.waiting.push(done);
                }
                Job::Call(work) => {
                    group.commit(&mut sink);
                    work(&mut sink);
                }
                Job::Last(work) => {
                    group.commit(&mut sink);
                    return work(sink);
                }
            }
        }
        group.commit(&mut sink);
        let took = start.elapsed();
        patience = if took > WORTH { took / PATIENCE } else { Duration::ZERO };
    }
}

struct Group<S: Sink> {
    payloads: Vec<S::Payload>,
    waiting: Vec<oneshot::Sender<Result<S::Receipt>>>,
    bytes: usize,
}

impl<S: Sink> Group<S> {
    const fn new() -> Self {
        Self {
            payloads: Vec::new(),
            waiting: Vec::new(),
            bytes: 0,
        }
    }

    fn commit(&mut self, sink: &mut S) {
        self.bytes = 0;
        if self.payloads.is_empty() {
            return;
        }
        let outcomes = sink.commit(std::mem::take(&mut self.payloads));
        for (done, outcome) in self.waiting.drain(..).zip(outcomes) {
            // Who does not wait any more has no use for the answer.
            let _ = done.send(outcome);
        }
    }
}
