#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapter;
mod config;
mod cursor;
mod error;
mod factory;
mod line;
mod reader;
mod retention;
mod tail;
mod target;
mod writer;

pub use adapter::FileAudit;
pub use config::{FileAuditConfig, SyncMode};
pub use factory::FileAuditFactory;
