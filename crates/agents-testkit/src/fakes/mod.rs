//! Adapters in memory, and faults for any adapter: for tests of what stands above adapters.

mod audit;
mod fault;
mod policy;
mod runtime;

pub use audit::MemoryAudit;
pub use fault::FaultLayer;
pub use policy::FixedPolicy;
pub use runtime::{Script, ScriptedRuntime, as_requested};
