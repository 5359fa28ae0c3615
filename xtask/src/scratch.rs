//! Temporary folders that are removed again.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use crate::error::{Context, Result};
use crate::{paths, random};

/// A folder that is removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// In the cache: on a real disk, which a memory-backed /tmp is not.
    pub(crate) fn new(name: &str) -> Result<Self> {
        Self::at(&paths::cache()?.join("scratch"), name)
    }

    /// In the system's folder for temporary files: a short path.
    pub(crate) fn temporary(name: &str) -> Result<Self> {
        Self::at(&env::temp_dir(), name)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn at(parent: &Path, name: &str) -> Result<Self> {
        let prefix = format!("xtask-{name}-");
        sweep(parent, &prefix);
        let folder = parent.join(format!("{prefix}{}-{}", process::id(), random::hex(3)?));
        fs::create_dir_all(&folder).context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what processes left behind that were killed.
fn sweep(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(prefix)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_go_and_only_those_of_the_dead_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        // No process has this id: it is above the kernel's limit.
        let dead = parent.path().join("xtask-x-4194305-aa");
        let other = parent.path().join("somebody-else");
        fs::create_dir(&dead).unwrap();
        fs::create_dir(&other).unwrap();
        let first = Scratch::at(parent.path(), "x").unwrap();
        let second = Scratch::at(parent.path(), "x").unwrap();
        assert!(first.path().is_dir() && second.path().is_dir() && other.is_dir());
        assert!(!dead.exists());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists());
    }
}
