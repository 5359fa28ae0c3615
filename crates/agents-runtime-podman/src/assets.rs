//! Files of ours that the engine reads on its own host: the guest program and seccomp profiles. Each is named by its content,
//! so that one that is there is complete and right.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use agents_core::{Error, Result};
use agents_guest::{PROGRAM, PROGRAM_MODE, PROGRAM_SHA256};
use sha2::{Digest, Sha256};

/// How much of a SHA-256 is in a name, in hexadecimal digits.
pub(crate) const DIGITS: usize = 16;

/// The folder of the files.
#[derive(Debug)]
pub(crate) struct Assets {
    folder: PathBuf,
}

impl Assets {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder with the program. `readable` is for gVisor, which reads a program's file with its user's rights.
    pub(crate) fn program(&self, readable: bool) -> Result<PathBuf> {
        let mode = if readable { PROGRAM_MODE | 0o444 } else { PROGRAM_MODE };
        let suffix = if readable { "-readable" } else { "" };
        let folder = self.folder.join(format!("guest-{}{suffix}", &PROGRAM_SHA256[..DIGITS]));
        self.put(&folder, "guest", PROGRAM, mode)?;
        Ok(folder)
    }

    /// The file with a profile.
    pub(crate) fn profile(&self, json: &str) -> Result<PathBuf> {
        let folder = self.folder.join("seccomp");
        let name = format!("{}.json", &hex(&Sha256::digest(json))[..DIGITS]);
        self.put(&folder, &name, json.as_bytes(), 0o444)?;
        Ok(folder.join(name))
    }

    fn put(&self, folder: &Path, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let path = folder.join(name);
        let there = |path: &Path| {
            fs::metadata(path).is_ok_and(|file| {
                file.is_file() && file.len() == content.len() as u64 && file.permissions().mode() & 0o7777 == mode
            })
        };
        if there(&path) {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            fs::create_dir_all(folder)?;
            // The engine may be another user's.
            for folder in [&self.folder, folder] {
                fs::set_permissions(folder, PermissionsExt::from_mode(0o755))?;
            }
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            io::Write::write_all(&mut file, content)?;
            file.as_file().set_permissions(PermissionsExt::from_mode(mode))?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|error| Error::io(format!("cannot write {}, which podman reads", path.display()), error))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let assets = Assets::new(folder.path().join("podman"));
        let program = assets.program(false).unwrap();
        let file = program.join("guest");
        assert!(fs::metadata(&file).unwrap().permissions().mode() & 0o777 == 0o111);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "short").unwrap();
        assert_eq!(assets.program(false).unwrap(), program);
        assert_eq!(fs::metadata(&file).unwrap().len(), PROGRAM.len() as u64);
        assert_ne!(assets.program(true).unwrap(), program);
        let profile = assets.profile("{}").unwrap();
        assert_eq!(fs::read_to_string(&profile).unwrap(), "{}");
        assert_ne!(assets.profile("[]").unwrap(), profile);
    }
}
