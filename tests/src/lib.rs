//! What the end-to-end tests in `tests/` share. They drive the real `agents` binary and look at what it leaves.
//!
//! Each test program is a `main` that hands its trials to [`run`]. As root, the program runs in a process and a mount
//! namespace of its own, so that a look at all processes is a look at ours.
#![forbid(unsafe_code)]

mod binary;
mod place;
mod ran;
mod suite;
mod traces;

pub use binary::{Caller, TEST_USER};
pub use place::Place;
pub use ran::{OBJECT_KEYS, Ran, assert_object, wait_for, wait_until};
pub use suite::{Outcome, Skip, for_callers, require_root, run, trial};
pub use traces::{assert_nothing_of_ours_runs, network_namespaces, processes};

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// So does what the guide for users of the Python package shows.
#[cfg(doctest)]
#[doc = include_str!("../../docs/upgrade.md")]
struct Upgrade;
