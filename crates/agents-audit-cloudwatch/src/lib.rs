#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapter;
mod client;
mod config;
mod cursor;
mod error;
mod factory;
mod message;
mod search;

pub use adapter::CloudWatchAudit;
pub use client::Credentials;
pub use config::CloudWatchAuditConfig;
pub use factory::CloudWatchAuditFactory;
