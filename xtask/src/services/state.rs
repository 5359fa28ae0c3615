//! What runs: one JSON record for each server, in a folder that only the user can read (it holds passwords).

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Place, leftovers, process};
use crate::error::{Context, Result};

/// A server that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) boot_id: String,
    pub(super) place: Place,
    pub(super) env: Vec<(String, String)>,
}

impl Record {
    /// True while the very process that was started lives.
    pub(super) fn alive(&self) -> bool {
        self.boot_id == boot_id() && process::start_time(self.pid) == Some(self.start_time)
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "pid": self.pid,
            "start_time": self.start_time,
            "boot_id": self.boot_id,
            "port": self.place.port,
            "program": self.place.program,
            "env": self.env,
        })
    }

    fn from_json(value: &Value, data: PathBuf) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Some(Self {
            name: text("name")?,
            pid: value["pid"].as_u64()?.try_into().ok()?,
            start_time: value["start_time"].as_u64()?,
            boot_id: text("boot_id")?,
            place: Place {
                port: value["port"].as_u64()?.try_into().ok()?,
                // A record that an earlier version wrote has none; it can be stopped all the same.
                program: text("program").unwrap_or_default().into(),
                data,
            },
            env: value["env"]
                .as_array()?
                .iter()
                .map(|pair| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())))
                .collect::<Option<_>>()?,
        })
    }
}

/// A start time counts from boot, so it only means something together with this.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// The folder with the records, the logs and the servers' data.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

impl Store {
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .context(|| format!("cannot create {}", folder.display()))?;
        fs::set_permissions(&folder, Permissions::from_mode(0o700))
            .context(|| format!("cannot close {} to others", folder.display()))?;
        Ok(Self { folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn data(&self, name: &str) -> PathBuf {
        self.folder.join("data").join(name)
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<Record>> {
        let path = self.record(name);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).context(|| format!("cannot read {}", path.display()))?;
        let value: Value = serde_json::from_str(&text).context(|| format!("cannot parse {}", path.display()))?;
        Record::from_json(&value, self.data(name))
            .ok_or("a key is missing")
            .context(|| format!("cannot understand {}", path.display()))
            .map(Some)
    }

    pub(super) fn all(&self) -> Result<Vec<Record>> {
        let mut names: Vec<_> = fs::read_dir(&self.folder)
            .context(|| format!("cannot read {}", self.folder.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .collect();
        names.sort_unstable();
        names.iter().filter_map(|name| self.read(name).transpose()).collect()
    }

    pub(super) fn write(&self, record: &Record) -> Result<()> {
        // Renamed into place, because `status` and `env` read without the lock.
        let path = self.record(&record.name);
        let draft = path.with_extension("draft");
        fs::write(&draft, record.to_json().to_string())
            .and_then(|()| fs::rename(&draft, &path))
            .context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the record and the data; the log stays for whoever wants to know what happened.
    pub(super) fn forget(&self, name: &str) -> Result<()> {
        leftovers::remove(&self.data(name))?;
        let record = self.record(name);
        fs::remove_file(&record).context(|| format!("cannot remove {}", record.display()))
    }

    fn record(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            name: "registry".to_owned(),
            pid: std::process::id(),
            start_time: process::start_time(std::process::id()).unwrap(),
            boot_id: boot_id(),
            place: Place {
                program: PathBuf::from("/cache/registry"),
                data: PathBuf::from("/state/data/registry"),
                port: 4242,
            },
            env: vec![("KEY".to_owned(), "a b".to_owned())],
        }
    }

    #[test]
    fn a_record_survives_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("state")).unwrap();
        assert_eq!(store.read("registry").unwrap(), None);
        store.write(&record()).unwrap();
        let mut expected = record();
        expected.place.data = store.data("registry");
        assert_eq!(store.read("registry").unwrap(), Some(expected.clone()));
        assert_eq!(store.all().unwrap(), [expected]);
        store.forget("registry").unwrap();
        assert_eq!(store.all().unwrap(), []);
    }

    #[test]
    fn another_boot_or_start_time_is_another_process() {
        assert!(record().alive());
        let mut other = record();
        other.start_time += 1;
        assert!(!other.alive());
        let mut other = record();
        other.boot_id = "another".to_owned();
        assert!(!other.alive());
    }

    #[test]
    fn others_cannot_read_the_passwords() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("state")).unwrap();
        let mode = fs::metadata(store.folder()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
