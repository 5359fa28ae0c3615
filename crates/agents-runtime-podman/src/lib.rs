#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adapter;
mod address;
mod assets;
mod auth;
mod build;
mod capabilities;
mod client;
mod config;
mod connect;
mod containers;
mod engine;
mod error;
mod ignore;
mod image;
mod ingress;
mod judge;
mod kernel;
mod model;
mod provision;
mod readback;
mod reference;
mod remote;
mod spec;
mod stream;
mod tunnel;

pub use adapter::PodmanRuntime;
pub use config::{PodmanConfig, PodmanFactory};
