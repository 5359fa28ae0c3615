#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapter;
mod client;
mod config;
mod error;
mod factory;
mod record;

pub use adapter::OtlpAudit;
pub use client::Headers;
pub use config::OtlpAuditConfig;
pub use factory::OtlpAuditFactory;
