#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod active;
mod archive;
mod audit;
mod collect;
mod engine;
mod extract;
mod log;
mod monitor;
mod observer;
mod outcome;
mod plan;
mod pump;
mod record;
mod request;
mod session;
pub mod transfer;

pub use agents_layers::audit::{Scope, Trail};
pub use audit::Recorded;
pub use engine::{Engine, EngineConfig};
pub use observer::{Observer, OutputStream, Phase, PhaseState};
pub use outcome::{AgentResult, RefusedArtifact, RunStatus, Timings, Usage};
pub use record::{GcReport, Inspection, LogChunk, SessionInfo, SessionStatus};
pub use request::{Agent, Input, InputStream, SessionRequest};
pub use session::{Downloaded, Session, SessionHandle, Snapshot, Upload};
pub use tokio_util::sync::CancellationToken;

/// Runs what may block, such as `fsync`, where it holds nobody up.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> agents_core::Result<T> + Send + 'static,
) -> agents_core::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(agents_core::Error::new(
                agents_core::ErrorKind::Cancelled,
                "the program is shutting down",
            )),
        },
    }
}
