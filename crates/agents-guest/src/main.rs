//! The guest program. The host's side, and what it is for, are in the library's documentation.

#![forbid(unsafe_code)]

mod program;

fn main() -> std::process::ExitCode {
    program::run(std::env::args_os().skip(1).collect())
}
