//! Intent before and outcome after every operation that changes something.
