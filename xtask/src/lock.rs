//! File locks, so that two xtasks do not build or start the same thing at once.

use std::fs::{self, File};
use std::path::Path;

use crate::error::{Context, Result};

/// Waits for the lock in `folder` and holds it until the value is dropped.
pub(crate) fn exclusive(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .context(|| format!("cannot open {}", path.display()))?;
    file.lock().context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
