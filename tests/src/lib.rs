//! Cross-adapter, fault and end-to-end tests live in `tests/`.
#![forbid(unsafe_code)]
