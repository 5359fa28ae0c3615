//! Builds the guest program for the target as a static program, and says where it is.

fn main() {
    for path in [
        "build.rs",
        "Cargo.toml",
        "src/lib.rs",
        "src/main.rs",
        "src/program",
        "src/protocol",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed=AGENTS_GUEST_TARGET");
    #[cfg(feature = "host")]
    host::build();
}

#[cfg(feature = "host")]
mod host {
    use std::{
        env,
        path::{Path, PathBuf},
        process::Command,
    };

    use sha2::{Digest, Sha256};

    pub(super) fn build() {
        let program = compile(&PathBuf::from(variable("OUT_DIR")));
        let bytes = std::fs::read(&program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        println!("cargo::rustc-env=AGENTS_GUEST_PROGRAM={}", program.display());
        println!("cargo::rustc-env=AGENTS_GUEST_SHA256={digest}");
    }

    fn variable(name: &str) -> String {
        env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
    }

    /// The program is a binary of this very package with other features, so that both sides are built from one source.
    fn compile(out: &Path) -> PathBuf {
        // Another C library may be chosen where the target's own cannot be linked statically.
        let target = env::var("AGENTS_GUEST_TARGET").unwrap_or_else(|_| variable("TARGET"));
        let folder = out.join("guest");
        let mut cargo = Command::new(variable("CARGO"));
        cargo
            .args([
                "build",
                "--release",
                "--package",
                "agents-guest",
                "--bin",
                "agents-guest",
            ])
            .args(["--no-default-features", "--features", "program", "--target", &target])
            .arg("--target-dir")
            .arg(&folder)
            .arg("--manifest-path")
            .arg(Path::new(&variable("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
        // Flags and wrappers are meant for the outer build: those of clippy, of coverage and of another target among them.
        for (name, _) in env::vars() {
            let outer = [
                "CARGO_PROFILE_",
                "CARGO_BUILD_",
                "CARGO_TARGET_",
                "CARGO_CFG_",
                "CARGO_FEATURE_",
            ];
            if outer.iter().any(|prefix| name.starts_with(prefix)) {
                cargo.env_remove(name);
            }
        }
        for name in [
            "RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC",
            "RUSTDOC",
            "__CARGO_DEFAULT_LIB_METADATA",
        ] {
            cargo.env_remove(name);
        }
        cargo
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
        let built = cargo
            .status()
            .unwrap_or_else(|error| panic!("cargo cannot be started: {error}"));
        assert!(
            built.success(),
            "the guest program cannot be built as a static program for {target}; install the static C library of this \
             system (glibc-static), or a musl target with rustup and name it in AGENTS_GUEST_TARGET"
        );
        folder.join(target).join("release").join("agents-guest")
    }
}
