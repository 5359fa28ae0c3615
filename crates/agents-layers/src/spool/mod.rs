//! The journal in front of a remote sink.
