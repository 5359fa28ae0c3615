#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(any(feature = "local", feature = "memory"))]
mod digest;
#[cfg(feature = "local")]
mod local;
#[cfg(feature = "memory")]
mod memory;

#[cfg(feature = "local")]
pub use local::{LocalConfig, LocalFactory, LocalStorage};
#[cfg(feature = "memory")]
pub use memory::{MemoryConfig, MemoryFactory, MemoryStorage};
