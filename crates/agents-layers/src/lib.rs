#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(feature = "audit")]
pub mod audit;
#[cfg(feature = "composite")]
pub mod composite;
#[cfg(feature = "spool")]
pub mod spool;
