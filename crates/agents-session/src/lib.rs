#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod engine;
mod observer;
mod outcome;
mod record;
mod request;
mod session;

pub use engine::{Engine, EngineConfig};
pub use observer::{Observer, OutputStream, Phase, PhaseState};
pub use outcome::{AgentResult, RefusedArtifact, RunStatus, Timings, Usage};
pub use record::{GcReport, Inspection, LogChunk, SessionInfo, SessionStatus};
pub use request::{Agent, Input, SessionRequest};
pub use session::{Downloaded, Session, SessionHandle, Snapshot, Upload};
pub use tokio_util::sync::CancellationToken;
