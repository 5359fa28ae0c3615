//! To come.

fn main() -> std::process::ExitCode {
    agents_tests::run(true, Vec::new())
}
