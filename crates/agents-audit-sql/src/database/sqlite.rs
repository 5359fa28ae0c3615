//! SQLite, built in.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use agents_core::{AuditQuery, Error, Result};
use async_trait::async_trait;
use sqlx::{
    Connection, QueryBuilder, SqliteConnection, SqlitePool,
    error::DatabaseError,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{Casts, Engine, Lease, migrator, pool_options, run_migrations, select_statement};
use crate::{
    DatabaseAuditConfig,
    error::{Class, UNKNOWN, sqlite},
    row::Row,
};

/// The most rows of a statement: SQLite has at most 32,766 parameters.
const ROWS: usize = 500;

pub(super) struct Sqlite {
    pool: SqlitePool,
    options: SqliteConnectOptions,
    migrator: Migrator,
    path: PathBuf,
}

impl Sqlite {
    pub(super) fn new(config: &DatabaseAuditConfig, path: &Path) -> Result<Self> {
        let path = std::path::absolute(path)
            .map_err(|error| Error::io("cannot tell the current folder; write an absolute path", error))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            // Every commit is on disk before it is acknowledged.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(config.timeout() / 4);
        let pool: SqlitePoolOptions = pool_options(config);
        Ok(Self {
            pool: pool.connect_lazy_with(options.clone()),
            options,
            migrator: migrator(include_str!("../../migrations/sqlite/0001_audit_events.sql")),
            path,
        })
    }

    /// Makes the file, for this user alone. SQLite itself would let all read it.
    fn create(&self) {
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path);
        if let Err(error) = created {
            // It is there already, or SQLite will say what is wrong with the path.
            tracing::debug!(%error, path = %self.path.display(), "the audit database was not created");
        }
    }
}

/// One transaction for all, since sqlx has no lock here that keeps two processes from creating the same table.
async fn migrate(migrator: &Migrator, connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    run_migrations(migrator, &mut *transaction).await?;
    transaction.commit().await
}

/// Must be in a transaction.
async fn insert(connection: &mut SqliteConnection, rows: &[Row]) -> sqlx::Result<()> {
    for rows in rows.chunks(ROWS) {
        let mut statement = QueryBuilder::new(
            "INSERT INTO audit_events \
             (event_id, event_type, timestamp, session_id, agent_id, user_id, severity, record) ",
        );
        statement.push_values(rows, |mut values, row| {
            values
                .push_bind(&row.event_id)
                .push_bind(row.event_type)
                .push_bind(&row.timestamp)
                .push_bind(&row.session_id)
                .push_bind(&row.agent_id)
                .push_bind(&row.user_id)
                .push_bind(row.severity)
                .push_bind(&row.record);
        });
        statement.push(" ON CONFLICT (event_id) DO NOTHING");
        let persistent = rows.len() == 1 || rows.len() == ROWS;
        statement
            .build()
            .persistent(persistent)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

#[async_trait]
impl Engine for Sqlite {
    fn location(&self) -> String {
        format!("{}, table audit_events", self.path.display())
    }

    fn class(&self) -> fn(&dyn DatabaseError) -> Class {
        |error| error.code().map_or(UNKNOWN, |code| sqlite(&code))
    }

    async fn migrate(&self) -> sqlx::Result<()> {
        self.create();
        let mut lease = Lease::new(&self.pool).await?;
        migrate(&self.migrator, &mut lease).await?;
        lease.give_back();
        Ok(())
    }

    async fn insert(&self, rows: &[Row]) -> sqlx::Result<()> {
        let mut lease = Lease::new(&self.pool).await?;
        // A transaction that reads first could fail to become one that writes.
        let mut transaction = lease.begin_with("BEGIN IMMEDIATE").await?;
        insert(&mut transaction, rows).await?;
        transaction.commit().await?;
        lease.give_back();
        Ok(())
    }

    async fn select(&self, query: &AuditQuery, after: i64, limit: i64) -> sqlx::Result<Vec<(i64, String)>> {
        let mut lease = Lease::new(&self.pool).await?;
        let mut statement = select_statement(query, after, limit, &Casts::NONE);
        let rows = statement.build_query_as().fetch_all(&mut *lease).await?;
        lease.give_back();
        Ok(rows)
    }

    async fn probe(&self, create_tables: bool, row: &Row) -> sqlx::Result<String> {
        if create_tables {
            self.create();
        }
        let mut connection = SqliteConnection::connect_with(&self.options).await?;
        if create_tables {
            migrate(&self.migrator, &mut connection).await?;
        }
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        insert(&mut transaction, std::slice::from_ref(row)).await?;
        transaction.rollback().await?;
        let version: String = sqlx::query_scalar("SELECT sqlite_version()")
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(format!("SQLite {version}"))
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
