//! What the tests of this crate share.

// Each test file uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod bucket;
pub mod gcs_xml;
pub mod internet;
pub mod proxy;
pub mod servers;
