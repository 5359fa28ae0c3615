//! Temporary folders that are removed again.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::paths;

/// A folder in the cache, on a real disk and not in a memory-backed /tmp, removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let folder = paths::cache()?.join("scratch").join(name);
        fs::create_dir_all(&folder).context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
