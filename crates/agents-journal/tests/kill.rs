//! Kills writers.

fn main() {}
