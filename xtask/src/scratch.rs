//! Temporary folders that are removed again.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::paths;

/// A folder that is removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// In the cache: on a real disk, which a memory-backed /tmp is not.
    pub(crate) fn new(name: &str) -> Result<Self> {
        Self::at(paths::cache()?.join("scratch").join(name))
    }

    /// In the system's folder for temporary files: a short path.
    pub(crate) fn temporary(name: &str) -> Result<Self> {
        Self::at(env::temp_dir().join(name))
    }

    fn at(folder: PathBuf) -> Result<Self> {
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
