#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapter;
mod auth;
mod bulk;
mod client;
mod config;
mod cursor;
mod document;
mod error;
mod factory;
mod search;
mod template;

pub use adapter::ElasticsearchAudit;
pub use auth::Credentials;
pub use config::{ElasticsearchAuditConfig, IndexLayout};
pub use factory::ElasticsearchAuditFactory;
