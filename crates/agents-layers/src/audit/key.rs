//! The key of the HMACs that stand in the place of secrets.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use agents_core::{Error, ErrorKind, Result};
use ring::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};

const MADE: usize = 32;
const LEAST: usize = 16;
const MOST: u64 = 4096;

/// A key that makes equal secrets look equal in the trail, and tells nothing of them to who does not have it.
#[derive(Clone)]
pub struct AuditKey(hmac::Key);

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuditKey([redacted])")
    }
}

impl AuditKey {
    /// A key of at least 16 bytes; space around them is no part of it.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for a shorter one.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.trim_ascii();
        if bytes.len() < LEAST {
            return Err(Error::invalid(format!(
                "the key of the audit trail has {} bytes, and needs at least {LEAST}; make it of random ones",
                bytes.len()
            )));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// A key of this process alone.
    ///
    /// # Errors
    ///
    /// When the system has no random numbers.
    pub fn random() -> Result<Self> {
        Self::new(random()?.as_bytes())
    }

    /// The key in a file, which is made with mode 0600 when it is missing.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or made; `DataInvalid` when what it holds is no key.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        let cannot = |error| Error::io("cannot read or make the key of the audit trail", error);
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, MOST), &mut bytes)?;
            Ok(bytes)
        };
        let bytes = match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = random()?;
                // Whoever is first wins, and the others take what is there.
                match create(path, made.as_bytes()) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                    _ => read(),
                }
            }
            other => other,
        };
        let bytes = bytes.map_err(|error| cannot(error).with_context("path", path.display()))?;
        Self::new(&bytes).map_err(|error| {
            Error::new(
                ErrorKind::DataInvalid,
                "the key of the audit trail is damaged; move the file away, and a new one is made",
            )
            .with_context("path", path.display())
            .with_source(error)
        })
    }

    /// What is shown instead of a value: `hmac-sha256:` and 64 hexadecimal digits.
    pub fn conceal(&self, value: &[u8]) -> String {
        format!("hmac-sha256:{}", hex(hmac::sign(&self.0, value).as_ref()))
    }

    pub(super) fn conceal_words(&self, words: &[String]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        for word in words {
            context.update(word.as_bytes());
            // No word holds it, so that other words make another sum.
            context.update(b"\0");
        }
        format!("hmac-sha256:{}", hex(context.sign().as_ref()))
    }
}

/// Puts a whole file in its place, unless there is one.
fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", uuid::Uuid::now_v7().simple()));
    let temporary = Path::new(&temporary);
    let made = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_data()
        })
        .and_then(|()| fs::hard_link(temporary, path));
    let removed = fs::remove_file(temporary);
    made.and(removed)
}

fn random() -> Result<String> {
    let mut bytes = [0; MADE];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::unexpected("the system has no random numbers for the key of the audit trail"))?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.key");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || AuditKey::load_or_create(&path).unwrap().conceal(b"hunter2"))
            })
            .collect();
        let shown: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(shown.iter().all(|text| *text == shown[0]), "{shown:?}");
        assert!(shown[0].starts_with("hmac-sha256:") && shown[0].len() == 76);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let other = AuditKey::random().unwrap();
        assert_ne!(other.conceal(b"hunter2"), shown[0]);
        assert_eq!(format!("{other:?}"), "AuditKey([redacted])");
        fs::write(&path, "short").unwrap();
        let error = AuditKey::load_or_create(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataInvalid);
        assert!(error.to_string().contains("audit.key"), "{error}");
    }

    #[test]
    fn words_are_told_apart() {
        let key = AuditKey::new(b"sixteen bytes or more").unwrap();
        let sum = |words: &[&str]| key.conceal_words(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(sum(&["a", "b"]), sum(&["a", "b"]));
        assert_ne!(sum(&["a", "b"]), sum(&["ab"]));
    }
}
