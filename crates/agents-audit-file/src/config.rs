//! The configuration.

use std::path::{Path, PathBuf};

use agents_core::{Error, Result, SecretRef};
use serde::{Deserialize, Serialize};

/// The configuration of a [`FileAudit`](crate::FileAudit).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct FileAuditConfig {
    /// The folder of the daily files `YYYY-MM-DD.jsonl`. Default: `audit` in the state folder.
    /// Example: `/var/log/agents`.
    pub log_path: Option<PathBuf>,
    /// One file for everything, instead of daily ones. Default: none. Example: `/var/log/agents.jsonl`.
    pub log_file: Option<PathBuf>,
    /// Standard error instead of files, which cannot be read back and is not durable. Default: `false`. Example: `true`.
    pub stderr: bool,
    /// The secret with which the hash chain is sealed, at least 16 bytes. Default: none, a plain chain.
    /// Example: `file:/etc/agents/audit.key`.
    pub chain_key: Option<SecretRef>,
    /// How many days before today daily files are kept; older ones are removed when a new day begins, after a statement of
    /// what goes in `cut.json`. Default: none, all of them. Example: `365`.
    pub keep_days: Option<u16>,
    /// Whether a missing folder is created, with mode 0700. Default: `true`.
    pub create_dirs: bool,
    /// When records are forced to disk. Default: `every_commit`. Example: `none`.
    pub sync: SyncMode,
}

/// When records are forced to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// Before an event is acknowledged. Concurrent events share one `fdatasync`.
    #[default]
    EveryCommit,
    /// When the kernel sees fit, at `flush`, and at `shutdown`. Acknowledged events survive a crash of this process, but
    /// not one of the machine.
    None,
}

impl Default for FileAuditConfig {
    fn default() -> Self {
        Self {
            log_path: None,
            log_file: None,
            stderr: false,
            chain_key: None,
            keep_days: None,
            create_dirs: true,
            sync: SyncMode::EveryCommit,
        }
    }
}

impl FileAuditConfig {
    /// Daily files in a folder.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self {
            log_path: Some(path.into()),
            ..Self::default()
        }
    }

    /// One file for everything.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            log_file: Some(path.into()),
            ..Self::default()
        }
    }

    /// Standard error instead of files.
    pub fn stderr() -> Self {
        Self {
            stderr: true,
            ..Self::default()
        }
    }

    /// Sets the secret with which the hash chain is sealed.
    #[must_use]
    pub fn with_chain_key(mut self, key: Option<SecretRef>) -> Self {
        self.chain_key = key;
        self
    }

    /// Sets how many days before today daily files are kept.
    #[must_use]
    pub fn with_keep_days(mut self, days: Option<u16>) -> Self {
        self.keep_days = days;
        self
    }

    /// Sets whether a missing folder is created.
    #[must_use]
    pub fn with_create_dirs(mut self, create_dirs: bool) -> Self {
        self.create_dirs = create_dirs;
        self
    }

    /// Sets when records are forced to disk.
    #[must_use]
    pub fn with_sync(mut self, sync: SyncMode) -> Self {
        self.sync = sync;
        self
    }

    /// Checks the values without any I/O.
    pub(crate) fn check(&self) -> Result<()> {
        if self.log_path.is_some() && self.log_file.is_some() {
            return Err(Error::invalid(
                "log_path and log_file exclude each other; keep log_path for daily files or log_file for a single one",
            ));
        }
        if self.stderr && (self.log_path.is_some() || self.log_file.is_some()) {
            return Err(Error::invalid(
                "stderr excludes log_path and log_file; leave it out to write files, or leave them out",
            ));
        }
        if self.keep_days.is_some() && (self.stderr || self.log_file.is_some()) {
            return Err(Error::invalid(
                "keep_days is for daily files; leave it out, or use log_path instead of log_file and stderr",
            ));
        }
        if let Some(folder) = &self.log_path {
            check_path("log_path", "/var/log/agents", folder)?;
        }
        if let Some(file) = &self.log_file {
            check_path("log_file", "/var/log/agents.jsonl", file)?;
            // `Path` drops a trailing slash, so the text decides.
            if file.file_name().is_none() || file.as_os_str().as_encoded_bytes().ends_with(b"/") {
                return Err(Error::invalid(format!(
                    "log_file {file:?} names no file; write a file such as /var/log/agents.jsonl, or use log_path"
                )));
            }
        }
        Ok(())
    }
}

fn check_path(key: &str, example: &str, path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(Error::invalid(format!(
            "{key} is empty or holds NUL; write a path such as {example}, or leave it out"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_key_is_read_and_judged() {
        let good = [
            (json!({}), FileAuditConfig::default()),
            (json!({"log_path": "/a"}), FileAuditConfig::folder("/a")),
            (json!({"log_file": "/a/b.jsonl"}), FileAuditConfig::file("/a/b.jsonl")),
            (
                json!({"keep_days": 7}),
                FileAuditConfig::default().with_keep_days(Some(7)),
            ),
            (
                json!({"stderr": true, "chain_key": "env:KEY"}),
                FileAuditConfig::stderr().with_chain_key("env:KEY".parse().ok()),
            ),
            (
                json!({"create_dirs": false, "sync": "none"}),
                FileAuditConfig::default()
                    .with_create_dirs(false)
                    .with_sync(SyncMode::None),
            ),
        ];
        for (value, expected) in good {
            let config: FileAuditConfig = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(config, expected, "{value}");
            config.check().unwrap();
        }
        for value in [
            json!({"log_dir": "/a"}),
            json!({"sync": "never"}),
            json!({"chain_key": "a literal secret"}),
            json!({"keep_days": -1}),
            json!({"create_dirs": 1}),
            json!({"log_path": 3}),
        ] {
            assert!(
                serde_json::from_value::<FileAuditConfig>(value.clone()).is_err(),
                "{value}"
            );
        }
        let bad: [(Value, &str); 8] = [
            (json!({"keep_days": 3, "log_file": "/b"}), "keep_days is for"),
            (json!({"stderr": true, "log_file": "/b"}), "stderr excludes"),
            (json!({"log_path": "/a", "log_file": "/b"}), "exclude each other"),
            (json!({"log_path": ""}), "log_path is empty"),
            (json!({"log_path": "/a\u{0}b"}), "log_path is empty or holds NUL"),
            (json!({"log_file": ""}), "log_file is empty"),
            (json!({"log_file": "/a/"}), "names no file"),
            (json!({"log_file": "/a/.."}), "names no file"),
        ];
        for (value, words) in bad {
            let config: FileAuditConfig = serde_json::from_value(value.clone()).unwrap();
            let error = config.check().expect_err(&value.to_string());
            assert_eq!(error.kind(), agents_core::ErrorKind::ConfigInvalid);
            assert!(error.message().contains(words), "{value}: {error}");
        }
    }

    #[test]
    fn the_example_is_read() {
        #[derive(Deserialize)]
        struct File {
            adapters: Adapters,
        }
        #[derive(Deserialize)]
        struct Adapters {
            audit_logger: AuditLogger,
        }
        #[derive(Deserialize)]
        struct AuditLogger {
            r#type: String,
            config: FileAuditConfig,
        }
        let file: File = serde_saphyr::from_str(include_str!("../example.yaml")).unwrap();
        let logger = file.adapters.audit_logger;
        assert_eq!(logger.r#type, "file");
        logger.config.check().unwrap();
        assert_eq!(logger.config, FileAuditConfig::folder("/var/log/agents"));
    }
}
