#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(feature = "azure")]
mod azure;
#[cfg(feature = "_cloud")]
mod cloud;
#[cfg(any(feature = "local", feature = "memory", feature = "_cloud"))]
mod digest;
#[cfg(feature = "gcs")]
mod gcs;
#[cfg(feature = "local")]
mod local;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "s3")]
mod s3;

#[cfg(feature = "azure")]
pub use azure::{AzureConfig, AzureCredentials, AzureFactory};
#[cfg(feature = "_cloud")]
pub use cloud::config::RetryConfig;
#[cfg(feature = "gcs")]
pub use gcs::{GcsConfig, GcsFactory};
#[cfg(feature = "local")]
pub use local::{LocalConfig, LocalFactory, LocalStorage};
#[cfg(feature = "memory")]
pub use memory::{MemoryConfig, MemoryFactory, MemoryStorage};
#[cfg(feature = "s3")]
pub use s3::{S3Checksum, S3Config, S3Encryption, S3Factory};
