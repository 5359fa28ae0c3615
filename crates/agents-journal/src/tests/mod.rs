//! Tests that see the inside.

mod crash;
mod live;
mod tamper;
