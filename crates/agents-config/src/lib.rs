#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod composite;
mod config;
mod dirs;
mod document;
mod env;
mod file;
mod kind;
mod loader;
mod registry;
mod secrets;

pub use composite::{AuditPart, CombineAudit};
pub use config::{AgentEntry, Built, Config, Setting};
pub use dirs::Dirs;
pub use document::{parse_document, read_document};
pub use env::Environment;
pub use kind::Kind;
pub use loader::Loader;
pub use registry::Registry;
pub use secrets::LocalSecrets;
