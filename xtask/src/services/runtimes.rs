//! OCI runtimes that engines are given beside Debian's `runc`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::golang::Program;
use crate::error::{Context, Result};
use crate::{paths, sh};

/// Today's Docker asks for namespaces that Debian's version does not know.
const RUNC: Program = Program::new("runc", "github.com/opencontainers/runc", "v1.4.0")
    .tags("seccomp")
    .cgo();

/// gVisor, from the branch that its authors keep for `go install`.
const RUNSC: Program = Program::new("runsc", "gvisor.dev/gvisor/runsc", "v0.0.0-20260905035102-160fafc42237");

/// Without it gVisor leaves the profile of the bundle aside.
const RUNSC_ARGS: &[&str] = &["--oci-seccomp"];

/// Builds both, unless they are in the cache.
pub(super) fn install() -> Result<()> {
    runc()?;
    runsc()?;
    Ok(())
}

/// The newer `runc`.
pub(super) fn runc() -> Result<PathBuf> {
    Ok(RUNC.install(&paths::cache()?.join("services"))?.join("bin/runc"))
}

fn runsc() -> Result<PathBuf> {
    Ok(RUNSC.install(&paths::cache()?.join("services"))?.join("bin/runsc"))
}

/// The variables that name them, for tests that call them without an engine.
pub(super) fn variables() -> Result<[(&'static str, String); 2]> {
    Ok([
        ("AGENTS_TEST_RUNC", runc()?.display().to_string()),
        ("AGENTS_TEST_RUNSC", runsc()?.display().to_string()),
    ])
}

/// As Docker's configuration names them: `runsc`, and the newer `runc` as `runc-next`.
pub(super) fn for_docker() -> Result<Value> {
    Ok(json!({
        "runc-next": { "path": runc()? },
        "runsc": { "path": runsc()?, "runtimeArgs": RUNSC_ARGS },
    }))
}

/// As podman's configuration names them. Podman passes no arguments, so a script in `folder` does.
pub(super) fn for_podman(folder: &Path, rootless: bool) -> Result<String> {
    let making = || format!("cannot put runtimes into {}", folder.display());
    let mut lines = String::from("[engine.runtimes]\n");
    for (name, program, args) in [("runc-next", runc()?, &[][..]), ("runsc", runsc()?, RUNSC_ARGS)] {
        let mut program = program;
        let mut args = args.to_vec();
        if rootless {
            // The cache is closed to others, and a second name of the file costs nothing.
            let own = folder.join(format!("{name}.bin"));
            fs::hard_link(&program, &own)
                .or_else(|_| fs::copy(&program, &own).map(drop))
                .context(making)?;
            program = own;
            if name == "runsc" {
                args.push("--ignore-cgroups");
            }
        }
        let script = folder.join(name);
        let text = format!(
            "#!/bin/sh\nexec {} {} \"$@\"\n",
            sh::quote(&program.to_string_lossy()),
            args.join(" ")
        );
        fs::write(&script, text)
            .and_then(|()| fs::set_permissions(&script, Permissions::from_mode(0o755)))
            .context(making)?;
        lines.push_str(&format!("{name} = [{script:?}]\n"));
    }
    Ok(lines)
}
