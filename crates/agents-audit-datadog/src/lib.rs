#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapter;
mod client;
mod config;
mod cursor;
mod error;
mod factory;
mod log;
mod search;

pub use adapter::DatadogAudit;
pub use client::Keys;
pub use config::DatadogAuditConfig;
pub use factory::DatadogAuditFactory;
