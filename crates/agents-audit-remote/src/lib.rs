#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod batch;
mod error;
mod place;
mod retry;

pub use batch::chunks;
pub use error::{closed, not_tried, unavailable};
pub use place::places;
pub use retry::Retry;
