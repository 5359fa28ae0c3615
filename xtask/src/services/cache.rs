//! Programs that are built or downloaded once per version and recipe, and kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::{lock, random};

/// The folder `<folder>/<version>-<hash of the recipe>`, filled by `build` unless it is there already.
///
/// `build` gets an empty folder to work in and returns the part of it to keep. A process that is killed in the
/// middle leaves nothing that a later one would take for a program.
pub(crate) fn once(
    folder: &Path,
    version: &str,
    recipe: &str,
    build: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let wanted = folder.join(format!("{version}-{}", random::digest(recipe)));
    if wanted.is_dir() {
        return Ok(wanted);
    }
    let _lock = lock::exclusive(folder)?;
    // Whoever had the lock before may have built the same.
    if wanted.is_dir() {
        return Ok(wanted);
    }
    let building = folder.join(".building");
    remove(&building)?;
    fs::create_dir_all(&building).context(|| format!("cannot create {}", building.display()))?;
    let built = build(&building)?;
    fs::rename(&built, &wanted).context(|| format!("cannot create {}", wanted.display()))?;
    remove(&building)?;
    Ok(wanted)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::fail;

    fn make(building: &Path) -> Result<PathBuf> {
        let keep = building.join("keep");
        fs::create_dir(&keep).unwrap();
        fs::write(building.join("waste"), "").unwrap();
        fs::write(keep.join("program"), "").unwrap();
        Ok(keep)
    }

    #[test]
    fn one_build_per_version_and_recipe_and_no_waste() {
        let folder = tempfile::tempdir().unwrap();
        let first = once(folder.path(), "1.0", "a", make).unwrap();
        assert!(first.join("program").is_file());
        assert_eq!(once(folder.path(), "1.0", "a", |_| fail("built twice")).unwrap(), first);
        assert_ne!(once(folder.path(), "1.0", "b", make).unwrap(), first);
        assert!(!folder.path().join(".building").exists());
    }

    #[test]
    fn a_build_that_failed_leaves_no_program() {
        let folder = tempfile::tempdir().unwrap();
        let broken = |building: &Path| {
            make(building)?;
            fail("broken")
        };
        assert!(once(folder.path(), "1.0", "a", broken).is_err());
        assert!(once(folder.path(), "1.0", "a", make).unwrap().join("program").is_file());
    }
}
