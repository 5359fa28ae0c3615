//! What an engine said of itself, kept for the next process: docker takes longer to say it than to create a container, for it
//! asks other programs for their versions.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    endpoint::Endpoint,
    facts::{Info, Version},
};

/// For how long what was kept is believed. Each container's read-back finds what does not hold any more.
const BELIEVED: Duration = Duration::from_secs(60 * 60);

/// What an engine said of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) at: Timestamp,
    pub(crate) version: Version,
    pub(crate) info: Info,
}

/// Where it is kept.
#[derive(Debug)]
pub(crate) struct Memory {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    said: Said,
}

impl Memory {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn file(&self, endpoint: &Endpoint) -> PathBuf {
        let digest = Sha256::digest(endpoint.to_string());
        let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("engine-{name}.json"))
    }

    /// What is known of the engine at this endpoint, when it still is the same one by the signature that it gives.
    pub(crate) fn recall(&self, endpoint: &Endpoint, signature: &str) -> Option<Said> {
        let kept: Kept = serde_json::from_slice(&fs::read(self.file(endpoint)).ok()?).ok()?;
        let age = Duration::try_from(Timestamp::now().duration_since(kept.said.at)).ok()?;
        (age < BELIEVED && kept.key == key(endpoint, signature)).then_some(kept.said)
    }

    /// Keeps it. Failing to costs time and nothing else.
    pub(crate) fn keep(&self, endpoint: &Endpoint, signature: &str, said: &Said) {
        let kept = Kept {
            key: key(endpoint, signature),
            said: said.clone(),
        };
        let write = || -> Option<()> {
            fs::create_dir_all(&self.folder).ok()?;
            let mut file = tempfile::NamedTempFile::new_in(&self.folder).ok()?;
            serde_json::to_writer(&mut file, &kept).ok()?;
            file.persist(self.file(endpoint)).ok()?;
            Some(())
        };
        if write().is_none() {
            tracing::debug!(folder = %self.folder.display(), "what docker said of itself cannot be kept");
        }
    }
}

/// Changes with the engine's version, a restart that makes its socket anew, a boot, and our own version.
fn key(endpoint: &Endpoint, signature: &str) -> String {
    let socket = match endpoint {
        Endpoint::Unix(path) => fs::metadata(path)
            .map(|socket| {
                let (seconds, nanoseconds) = (socket.ctime(), socket.ctime_nsec());
                format!("{}:{}:{seconds}.{nanoseconds}", socket.dev(), socket.ino())
            })
            .unwrap_or_default(),
        _ => String::new(),
    };
    let boot = fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id")).unwrap_or_default();
    format!("{} {signature} {socket} {}", env!("CARGO_PKG_VERSION"), boot.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_of_one_engine_and_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path().join("docker"));
        let here = Endpoint::Unix(folder.path().join("docker.sock"));
        fs::write(folder.path().join("docker.sock"), "").unwrap();
        let mut said = Said {
            at: Timestamp::now(),
            version: Version::default(),
            info: serde_json::from_str(r#"{"CPUCfsQuota":true,"Runtimes":{"runc":{"path":"runc"}}}"#).unwrap(),
        };
        let text = |said: &Said| serde_json::to_string(said).unwrap();
        assert!(memory.recall(&here, "29 1.56").is_none());
        memory.keep(&here, "29 1.56", &said);
        assert_eq!(
            memory.recall(&here, "29 1.56").map(|kept| text(&kept)),
            Some(text(&said))
        );
        assert!(memory.recall(&here, "30 1.57").is_none(), "another version");
        let there = Endpoint::Unix(folder.path().join("other.sock"));
        assert!(memory.recall(&there, "29 1.56").is_none(), "another engine");
        // The engine has made its socket anew.
        fs::remove_file(folder.path().join("docker.sock")).unwrap();
        fs::create_dir(folder.path().join("docker.sock")).unwrap();
        assert!(memory.recall(&here, "29 1.56").is_none(), "another start");
        for wrong in [-3700, 3700] {
            said.at = Timestamp::now() + jiff::SignedDuration::from_secs(wrong);
            memory.keep(&here, "29 1.56", &said);
            assert!(memory.recall(&here, "29 1.56").is_none(), "{wrong}");
        }
    }
}
