#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod archive;
#[cfg(feature = "registry")]
mod auth;
mod digest;
mod layer;
mod manifest;
mod options;
mod reference;
#[cfg(feature = "registry")]
mod registry;
mod resolve;
mod resolved;
mod store;
mod tarball;
mod tree;
mod unpack;

pub use agents_core::error::{Error, ErrorKind, Result};
pub use options::{Credentials, Limits, Progress, ProgressFn, PullPolicy, ResolveOptions};
pub use reference::{ArchiveFormat, ArchiveRef, ImageRef, RegistryRef};
pub use resolved::{ImageConfig, Resolved};
pub use store::{GcReport, ImageStore, StoredImage};
