#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod cloudevents;
mod ocsf;
mod report;
mod trace;

pub use cloudevents::{CLOUDEVENTS_SOURCE, CLOUDEVENTS_TYPE_PREFIX, cloudevent};
pub use ocsf::{OCSF_VERSION, ocsf};
pub use report::{ChainCheck, ChainVerdict, OutputPiece, SessionReport};
pub use trace::{TraceContext, TraceLayer};
