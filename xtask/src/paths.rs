//! Where things are: the workspace, the cache, the build folder.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result, fail};

/// The root of the workspace, whatever folder the command was called from.
pub(crate) fn workspace() -> Result<PathBuf> {
    // `cargo run` sets it; the walk upwards serves a binary that is called directly.
    if let Some(manifest) = env::var_os("CARGO_MANIFEST_DIR")
        && let Some(root) = Path::new(&manifest).parent()
    {
        return Ok(root.to_owned());
    }
    let here = env::current_dir().context(|| "cannot tell the current folder".to_owned())?;
    for folder in here.ancestors() {
        if fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|text| text.contains("[workspace]")) {
            return Ok(folder.to_owned());
        }
    }
    fail("not inside the workspace; call it as `cargo xtask`")
}

/// The user's cache folder for this project.
pub(crate) fn cache() -> Result<PathBuf> {
    base("XDG_CACHE_HOME", ".cache")
}

/// Where the state of running services is kept.
pub(crate) fn services_state() -> Result<PathBuf> {
    match env::var_os("ISOLATED_AGENTS_SERVICES_DIR") {
        Some(folder) => Ok(folder.into()),
        None => Ok(base("XDG_STATE_HOME", ".local/state")?.join("services")),
    }
}

/// Cargo's build folder: what the caller chose, or one in the cache that outlives a clone.
pub(crate) fn target() -> Result<PathBuf> {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => Ok(workspace()?.join(folder)),
        None => Ok(cache()?.join("target")),
    }
}

fn base(variable: &str, under_home: &str) -> Result<PathBuf> {
    if let Some(folder) = env::var_os(variable)
        && Path::new(&folder).is_absolute()
    {
        return Ok(PathBuf::from(folder).join("isolated-agents"));
    }
    match env::var_os("HOME") {
        Some(home) if !home.is_empty() => Ok(PathBuf::from(home).join(under_home).join("isolated-agents")),
        _ => fail(format!("neither {variable} nor HOME is set; set one")),
    }
}
