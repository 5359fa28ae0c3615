//! Adapters in memory, and faults for any adapter: for tests of what stands above adapters.

mod audit;
mod datadog;
mod datadog_query;
mod fault;
mod policy;
mod runtime;
mod server;

pub use audit::MemoryAudit;
pub use datadog::FakeDatadog;
pub use fault::FaultLayer;
pub use policy::FixedPolicy;
pub use runtime::{Script, ScriptedRuntime, as_requested};
