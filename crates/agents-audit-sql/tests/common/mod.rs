//! The servers, and databases of a test's own.
#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::Arc;

use agents_audit_sql::{DatabaseAudit, DatabaseAuditConfig};
use agents_core::{AuditEvent, AuditLogger, AuditQuery, EventType, SessionId};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection};

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Postgres,
    MariaDb,
}

impl Server {
    pub(crate) const ALL: [Self; 2] = [Self::Postgres, Self::MariaDb];

    fn variable(self, suffix: &str) -> String {
        let (variable, service) = match self {
            Self::Postgres => ("AGENTS_TEST_POSTGRES", "postgres"),
            Self::MariaDb => ("AGENTS_TEST_MARIADB", "mariadb"),
        };
        let variable = format!("{variable}{suffix}");
        std::env::var(&variable).unwrap_or_else(|_| {
            panic!(
                "{variable} is not set; start a server with `cargo xtask services up {service}` and take what `cargo xtask \
                 services env` prints"
            )
        })
    }

    /// The URL of the server that the environment names. Fails the test when it does not.
    pub(crate) fn url(self) -> String {
        self.variable("")
    }

    /// The file of the authority that signed the server's certificate.
    pub(crate) fn authority(self) -> std::path::PathBuf {
        self.variable("_CA").into()
    }

    /// Makes a database, and gives its URL.
    pub(crate) async fn database(self, purpose: &str) -> String {
        let name = format!("audit_{purpose}_{}", std::process::id());
        self.administer(&format!("CREATE DATABASE {name}")).await;
        replace_database(&self.url(), &name)
    }

    /// Drops the database of a URL.
    pub(crate) async fn drop_database(self, url: &str) {
        let name = url.rsplit_once('/').unwrap().1.split('?').next().unwrap().to_owned();
        let force = if self == Self::Postgres { " WITH (FORCE)" } else { "" };
        self.administer(&format!("DROP DATABASE {name}{force}")).await;
    }

    /// Runs a statement on the server.
    pub(crate) async fn administer(self, sql: &str) {
        self.run(&self.url(), sql).await;
    }

    /// Runs a statement at a URL.
    pub(crate) async fn run(self, url: &str, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                connection.execute(sql).await.unwrap();
            }
            Self::MariaDb => {
                let mut connection = MySqlConnection::connect(url).await.unwrap();
                connection.execute(sql).await.unwrap();
            }
        }
    }
}

fn replace_database(url: &str, name: &str) -> String {
    let (head, query) = match url.split_once('?') {
        Some((head, query)) => (head, format!("?{query}")),
        None => (url, String::new()),
    };
    let server = head.rsplit_once('/').unwrap().0;
    format!("{server}/{name}{query}")
}

/// A configuration for a URL that is passed beside it.
pub(crate) fn config() -> DatabaseAuditConfig {
    DatabaseAuditConfig::server("env:UNUSED".parse().unwrap())
}

pub(crate) fn open(url: &str) -> Arc<DatabaseAudit> {
    Arc::new(DatabaseAudit::new(config(), Some(url)).unwrap())
}

pub(crate) fn event(session: &SessionId, n: usize) -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning)
        .with_session(session.clone())
        .with_fact("n", n)
}

pub(crate) fn number(event: &AuditEvent) -> u64 {
    event.payload["n"].as_u64().unwrap()
}

/// The numbers of the events of a session, by pages of 100.
pub(crate) async fn numbers(audit: &dyn AuditLogger, session: &SessionId) -> Vec<u64> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let query = AuditQuery::new()
            .with_session(Some(session.clone()))
            .with_cursor(cursor);
        let page = audit.query(query).await.unwrap();
        found.extend(page.events.iter().map(number));
        match page.next {
            Some(next) => cursor = Some(next),
            None => return found,
        }
    }
}
