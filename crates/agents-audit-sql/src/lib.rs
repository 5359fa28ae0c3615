#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(not(any(feature = "postgres", feature = "mysql", feature = "sqlite")))]
compile_error!("enable at least one of the features postgres, mysql and sqlite");

mod adapter;
mod config;
mod cursor;
mod database;
mod error;
mod factory;
mod retry;
mod row;

pub use adapter::DatabaseAudit;
pub use config::{DatabaseAuditConfig, TlsMode};
pub use factory::DatabaseAuditFactory;
