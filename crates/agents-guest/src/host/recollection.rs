//! What an engine said of itself, kept for the next process: engines take longer to say it than to create a container, since
//! they ask other programs for theirs.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// Keeps what engines said of themselves, in a folder with a file for each address.
///
/// What is kept is believed while the engine gives the same signature, such as its version, has not made its socket anew, the
/// host was not booted, and the calling crate is of the same version; and never for longer than was said. Each container's
/// read-back finds what does not hold any more.
#[derive(Debug)]
pub struct Recollection {
    folder: PathBuf,
    believed: Duration,
}

#[derive(Serialize, Deserialize)]
struct Kept<T> {
    key: String,
    said: T,
}

impl Recollection {
    /// In a folder, which is made when something is kept, and believed for so long.
    pub fn new(folder: impl Into<PathBuf>, believed: Duration) -> Self {
        Self {
            folder: folder.into(),
            believed,
        }
    }

    fn file(&self, address: &str) -> PathBuf {
        let digest = Sha256::digest(address);
        let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("engine-{name}.json"))
    }

    /// What the engine at this address said, when it still is the same one. The socket is that of a local engine.
    pub fn recall<T: DeserializeOwned>(&self, address: &str, socket: Option<&Path>, signature: &str) -> Option<T> {
        let file = self.file(address);
        let written = fs::metadata(&file).ok()?.modified().ok()?;
        // One that was written in the future says nothing about its age.
        let age = SystemTime::now().duration_since(written).ok()?;
        let kept: Kept<T> = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        (age < self.believed && kept.key == key(socket, signature)).then_some(kept.said)
    }

    /// Keeps what the engine said. Failing to costs time and nothing else.
    pub fn keep<T: Serialize>(&self, address: &str, socket: Option<&Path>, signature: &str, said: &T) {
        let kept = Kept {
            key: key(socket, signature),
            said,
        };
        let write = || -> Option<()> {
            fs::create_dir_all(&self.folder).ok()?;
            let mut file = tempfile::NamedTempFile::new_in(&self.folder).ok()?;
            serde_json::to_writer(&mut file, &kept).ok()?;
            file.persist(self.file(address)).ok()?;
            Some(())
        };
        if write().is_none() {
            tracing::debug!(folder = %self.folder.display(), "what the engine said of itself cannot be kept");
        }
    }
}

/// Changes with the engine's signature, a restart that makes its socket anew, a boot, and our own version.
fn key(socket: Option<&Path>, signature: &str) -> String {
    let socket = socket.and_then(|path| fs::metadata(path).ok()).map(|socket| {
        let (seconds, nanoseconds) = (socket.ctime(), socket.ctime_nsec());
        format!("{}:{}:{seconds}.{nanoseconds}", socket.dev(), socket.ino())
    });
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!(
        "{} {signature} {} {}",
        env!("CARGO_PKG_VERSION"),
        socket.unwrap_or_default(),
        boot.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_of_one_engine_and_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let known = Recollection::new(folder.path().join("docker"), hour);
        let socket = folder.path().join("docker.sock");
        fs::write(&socket, "").unwrap();
        let recall = |address: &str, signature: &str| known.recall::<u32>(address, Some(&socket), signature);
        assert_eq!(recall("here", "29"), None);
        known.keep("here", Some(&socket), "29", &7);
        assert_eq!(recall("here", "29"), Some(7));
        assert_eq!(recall("here", "30"), None, "another version");
        assert_eq!(recall("there", "29"), None, "another engine");
        for written in [SystemTime::now() - 2 * hour, SystemTime::now() + hour] {
            let file = fs::File::open(known.file("here")).unwrap();
            file.set_modified(written).unwrap();
            assert_eq!(recall("here", "29"), None, "too old, or of the future");
        }
        known.keep("here", Some(&socket), "29", &8);
        assert_eq!(recall("here", "29"), Some(8));
        // The engine has made its socket anew.
        fs::remove_file(&socket).unwrap();
        fs::create_dir(&socket).unwrap();
        assert_eq!(recall("here", "29"), None, "another start");
    }

    #[test]
    fn a_remote_engine_has_no_socket_and_nothing_kept_is_no_fault() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let nowhere = Recollection::new(file.join("below"), Duration::from_secs(60));
        nowhere.keep("tcp://localhost:1", None, "5", &7);
        assert_eq!(nowhere.recall::<u32>("tcp://localhost:1", None, "5"), None);
        let known = Recollection::new(folder.path(), Duration::from_secs(60));
        known.keep("tcp://localhost:1", None, "5", &7);
        assert_eq!(known.recall("tcp://localhost:1", None, "5"), Some(7));
        assert_eq!(known.recall::<u32>("tcp://localhost:1", None, "6"), None);
    }
}
