#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod digest;
mod manifest;
mod options;
mod reference;
mod resolve;
mod resolved;
mod store;
mod tree;

pub use options::{Credentials, Limits, Progress, ProgressFn, PullPolicy, ResolveOptions};
pub use reference::{ArchiveFormat, ArchiveRef, ImageRef, RegistryRef};
pub use resolved::{ImageConfig, Resolved};
pub use store::{GcReport, ImageStore, StoredImage};
