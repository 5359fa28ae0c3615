#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod batch;
mod error;
#[cfg(feature = "http")]
pub mod http;
mod place;
mod retry;

pub use batch::{Batch, chunks};
pub use error::{again, closed, not_tried, one_line, unavailable};
pub use place::places;
pub use retry::Retry;
