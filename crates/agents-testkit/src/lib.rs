#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod audit;
mod case;
pub mod fakes;
pub mod hostile;
pub mod policy;
pub mod probe;
pub mod proxy;
pub mod runtime;
pub mod storage;
pub mod tamper;

pub use case::{Case, CaseResult, Failure, Fixture, Outcome, run, trials};
pub use libtest_mimic;

/// The SHA-256 of bytes, in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
