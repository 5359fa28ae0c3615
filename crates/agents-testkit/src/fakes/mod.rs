//! Adapters in memory, for tests of what stands above adapters.

mod audit;
mod policy;

pub use audit::MemoryAudit;
pub use policy::FixedPolicy;
