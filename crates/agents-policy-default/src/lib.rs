#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapter;
mod compliance;
mod config;
mod factory;
mod pip;

pub use adapter::DefaultPolicy;
pub use config::DefaultPolicyConfig;
pub use factory::DefaultPolicyFactory;
