#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapter;
mod auth;
mod build;
mod config;
mod container;
mod context;
mod create;
mod endpoint;
mod engine;
mod error;
mod facts;
mod ignore;
mod image;
mod inspect;
mod judge;
mod ports;
mod program;
mod provision;
mod readback;
mod ssh;
mod stats;
mod streams;
mod tls;
mod transport;
mod users;
mod watch;

pub use adapter::DockerRuntime;
pub use config::{DockerConfig, DockerFactory};

use serde::{Deserialize, Deserializer};

/// Engines say `null` for what is empty.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
