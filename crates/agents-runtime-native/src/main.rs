//! The helper as a program of its own, for programs that cannot call `agents_runtime_native::init` first in `main`.
#![forbid(unsafe_code)]

fn main() {
    agents_runtime_native::init();
    eprintln!("error: agents-native-helper is started by the embedded runtime, not by hand");
    std::process::exit(2);
}
