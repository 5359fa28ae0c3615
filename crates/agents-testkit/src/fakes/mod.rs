//! Adapters in memory, and faults for any adapter: for tests of what stands above adapters.

mod audit;
mod cloudwatch;
mod cloudwatch_pattern;
mod cloudwatch_sigv4;
mod datadog;
mod datadog_query;
mod fault;
mod otlp;
mod policy;
mod runtime;
mod server;

pub use audit::MemoryAudit;
pub use cloudwatch::{SignedProxy, StrictCloudWatch};
pub use datadog::FakeDatadog;
pub use fault::FaultLayer;
pub use otlp::FakeCollector;
pub use policy::FixedPolicy;
pub use runtime::{Script, ScriptedRuntime, as_requested};
