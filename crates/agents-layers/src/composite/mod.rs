//! Several sinks at once.
