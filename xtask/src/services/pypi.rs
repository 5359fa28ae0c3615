//! Programs and libraries from PyPI, at exact versions in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache;
use crate::error::{Error, Result};
use crate::sh;

const RECIPE: &str = "pip install --target; 1";

/// Installs `packages` (`name==version`) with what they need; returns the folder for `PYTHONPATH`.
///
/// A plain folder, because a virtual environment holds its own path and cannot be renamed into place.
pub(super) fn install(cache: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    // Compiled modules fit one minor version only.
    let python = sh::output(Command::new("python3").args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]))?;
    let recipe = format!("{RECIPE}; {}; {}", python.trim(), packages.join(" "));
    cache::once(&cache.join(name), "pypi", &recipe, |building| {
        println!("installing {}", packages.join(" "));
        let kept = building.join("kept");
        sh::output(
            Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(["--no-cache-dir", "--root-user-action=ignore", "--target"])
                .arg(&kept)
                .args(packages),
        )
        .map_err(|error| {
            Error::new(format!(
                "{error}\nis pip there? `apt-get install python3-pip` brings it"
            ))
        })?;
        Ok(kept)
    })
}
