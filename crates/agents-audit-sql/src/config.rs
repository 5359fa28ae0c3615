//! The configuration.

use std::{path::PathBuf, time::Duration};

use agents_core::{Error, Result, SecretRef};
use serde::{Deserialize, Serialize};

/// The configuration of a [`DatabaseAudit`](crate::DatabaseAudit).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DatabaseAuditConfig {
    /// Where the URL of the database is kept, which may hold a password: `postgres://USER:PASSWORD@HOST/DATABASE`,
    /// `mysql://…` or `mariadb://…`. Default: none. Example: `env:AUDIT_DATABASE_URL`.
    pub url: Option<SecretRef>,
    /// The file of an SQLite database, instead of `url`. Default: none. Example: `/var/lib/agents/audit.db`.
    pub path: Option<PathBuf>,
    /// Whether the connection is encrypted, and the server's certificate and name are checked. Default: `auto`.
    /// Example: `required`.
    pub tls: TlsMode,
    /// The certificate authority that the server's certificate is checked against, as a PEM file. Default: those of the
    /// system. Example: `/etc/ssl/database-ca.pem`.
    pub tls_ca_file: Option<PathBuf>,
    /// Whether missing tables are created and older ones brought up to date. Default: `true`.
    pub create_tables: bool,
    /// The most connections at once. Default: `5`.
    pub max_connections: u32,
    /// How long an operation may take, with everything that is tried again. Default: `30`.
    pub timeout_seconds: u64,
}

/// Whether the connection to a server is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// As `required`, but not to a Unix socket or a loopback address, which are this machine.
    #[default]
    Auto,
    /// Always; the certificate and the name in it are checked.
    Required,
    /// Never. Refused for a MySQL or MariaDB server on another machine, since its passwords need TLS.
    Disabled,
}

impl Default for DatabaseAuditConfig {
    fn default() -> Self {
        Self {
            url: None,
            path: None,
            tls: TlsMode::Auto,
            tls_ca_file: None,
            create_tables: true,
            max_connections: 5,
            timeout_seconds: 30,
        }
    }
}

impl DatabaseAuditConfig {
    /// A server, whose URL is a secret.
    pub fn server(url: SecretRef) -> Self {
        Self {
            url: Some(url),
            ..Self::default()
        }
    }

    /// An SQLite database.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            path: Some(path.into()),
            ..Self::default()
        }
    }

    /// Sets whether the connection is encrypted.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsMode) -> Self {
        self.tls = tls;
        self
    }

    /// Sets the certificate authority.
    #[must_use]
    pub fn with_tls_ca_file(mut self, file: Option<PathBuf>) -> Self {
        self.tls_ca_file = file;
        self
    }

    /// Sets whether missing tables are created.
    #[must_use]
    pub fn with_create_tables(mut self, create_tables: bool) -> Self {
        self.create_tables = create_tables;
        self
    }

    /// Sets the most connections at once.
    #[must_use]
    pub fn with_max_connections(mut self, max_connections: u32) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Sets how long an operation may take.
    #[must_use]
    pub fn with_timeout_seconds(mut self, seconds: u64) -> Self {
        self.timeout_seconds = seconds;
        self
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// Checks the values without any I/O.
    pub(crate) fn check(&self) -> Result<()> {
        match (&self.url, &self.path) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid(
                    "url and path exclude each other; keep url for a server or path for an SQLite file",
                ));
            }
            (None, None) => {
                return Err(Error::invalid(
                    "neither url nor path is set; set url to a reference such as env:AUDIT_DATABASE_URL, or path to an \
                     SQLite file such as /var/lib/agents/audit.db",
                ));
            }
            (None, Some(path)) => {
                let bytes = path.as_os_str().as_encoded_bytes();
                if bytes.contains(&0) || path.file_name().is_none() || bytes.ends_with(b"/") || bytes == b":memory:" {
                    return Err(Error::invalid(format!(
                        "path {path:?} names no file; write one such as /var/lib/agents/audit.db"
                    )));
                }
                if cfg!(not(feature = "sqlite")) {
                    return Err(Error::unsupported(
                        "path needs SQLite, which is not built in; enable the feature sqlite of agents-audit-sql",
                    ));
                }
                if self.tls_ca_file.is_some() || self.tls != TlsMode::Auto {
                    return Err(Error::invalid(
                        "tls and tls_ca_file are for a server; leave them out beside path",
                    ));
                }
            }
            (Some(_), None) => {}
        }
        if self.tls == TlsMode::Disabled && self.tls_ca_file.is_some() {
            return Err(Error::invalid(
                "tls_ca_file has no use with tls: disabled; leave one of them out",
            ));
        }
        if !(1..=1000).contains(&self.max_connections) {
            return Err(Error::invalid(format!(
                "max_connections is {}; write 1 to 1000",
                self.max_connections
            )));
        }
        if !(1..=3600).contains(&self.timeout_seconds) {
            return Err(Error::invalid(format!(
                "timeout_seconds is {}; write 1 to 3600",
                self.timeout_seconds
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use agents_core::ErrorKind;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_key_is_read_and_judged() {
        let all: DatabaseAuditConfig = serde_json::from_value(json!({
            "url": "env:URL", "tls": "required", "tls_ca_file": "/ca", "create_tables": false,
            "max_connections": 7, "timeout_seconds": 8,
        }))
        .unwrap();
        let built = DatabaseAuditConfig::server("env:URL".parse().unwrap())
            .with_tls(TlsMode::Required)
            .with_tls_ca_file(Some("/ca".into()))
            .with_create_tables(false)
            .with_max_connections(7)
            .with_timeout_seconds(8);
        assert_eq!(all, built);
        all.check().unwrap();
        DatabaseAuditConfig::file("/a.db").check().unwrap();

        for value in [
            json!({"dsn": "env:URL"}),
            json!({"tls": "maybe"}),
            json!({"max_connections": -1}),
        ] {
            assert!(serde_json::from_value::<DatabaseAuditConfig>(value).is_err());
        }
        let bad: [(Value, &str); 10] = [
            (json!({}), "neither url nor path"),
            (json!({"url": "env:U", "path": "/a.db"}), "exclude each other"),
            (json!({"path": ""}), "names no file"),
            (json!({"path": ":memory:"}), "names no file"),
            (json!({"path": "/a/"}), "names no file"),
            (json!({"path": "/a.db", "tls": "required"}), "for a server"),
            (
                json!({"url": "env:U", "tls": "disabled", "tls_ca_file": "/c"}),
                "no use",
            ),
            (json!({"url": "env:U", "max_connections": 0}), "max_connections is 0"),
            (json!({"url": "env:U", "timeout_seconds": 0}), "timeout_seconds is 0"),
            (
                json!({"url": "env:U", "timeout_seconds": 9999}),
                "timeout_seconds is 9999",
            ),
        ];
        for (value, words) in bad {
            let config: DatabaseAuditConfig = serde_json::from_value(value.clone()).unwrap();
            let error = config.check().expect_err(&value.to_string());
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
            assert!(error.message().contains(words), "{value}: {error}");
        }
    }

    #[test]
    fn a_literal_url_is_refused_and_not_quoted() {
        let value = json!({"url": "postgres://user:hunter2@db/audit"});
        let error = serde_json::from_value::<DatabaseAuditConfig>(value).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(error.to_string().contains("env:NAME"), "{error}");
    }

    #[test]
    fn the_example_is_read() {
        let file: Value = serde_saphyr::from_str(include_str!("../example.yaml")).unwrap();
        let logger = &file["adapters"]["audit_logger"];
        assert_eq!(logger["type"], "database");
        let config: DatabaseAuditConfig = serde_json::from_value(logger["config"].clone()).unwrap();
        config.check().unwrap();
        assert_eq!(
            config,
            DatabaseAuditConfig::server("env:AUDIT_DATABASE_URL".parse().unwrap())
        );
    }
}
