//! The databases. Each has a pool of its own kind: what they share in sqlx's `Any` driver is too little, without times, JSON
//! and arrays.

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::{
    borrow::Cow,
    fmt,
    ops::{Deref, DerefMut},
    pin::Pin,
    time::Duration,
};

use agents_core::{AuditQuery, Error, Result};
use async_trait::async_trait;
use sqlx::{
    Acquire, Encode, Pool, QueryBuilder, SqlSafeStr, Type,
    error::DatabaseError,
    migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator},
    pool::{PoolConnection, PoolOptions},
};

use crate::{
    DatabaseAuditConfig,
    error::Class,
    row::{Row, severity_rank, time_text, user_text},
};

type BoxFuture<'f> = Pin<Box<dyn Future<Output = std::result::Result<(), MigrateError>> + Send + 'f>>;

/// One kind of database.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// Where it is, without a user and a password.
    fn location(&self) -> String;

    /// What a code of this database means.
    fn class(&self) -> fn(&dyn DatabaseError) -> Class;

    /// Creates the tables, or brings them up to date.
    async fn migrate(&self) -> sqlx::Result<()>;

    /// Writes rows in their order, in one transaction. Those that are there already are left alone.
    ///
    /// Transactions must become visible in the order of their sequence numbers. Otherwise a reader that has gone past a
    /// number would miss the events of a slower transaction with a smaller one.
    async fn insert(&self, rows: &[Row]) -> sqlx::Result<()>;

    /// The first rows behind a sequence number that may match, in their order, as number and record.
    async fn select(&self, query: &AuditQuery, after: i64, limit: i64) -> sqlx::Result<Vec<(i64, String)>>;

    /// Connects anew, creates the tables if that is wanted, writes a row and takes it back. Gives the server's version.
    async fn probe(&self, create_tables: bool, row: &Row) -> sqlx::Result<String>;

    /// Closes all connections.
    async fn close(&self);
}

impl fmt::Debug for dyn Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.location())
    }
}

/// Prepares a database; nothing is connected yet.
///
/// # Errors
///
/// `ConfigInvalid` that names the key and never quotes the URL.
pub(crate) fn open(config: &DatabaseAuditConfig, url: Option<&str>) -> Result<Box<dyn Engine>> {
    #[cfg(feature = "sqlite")]
    if let Some(path) = &config.path {
        return Ok(Box::new(sqlite::Sqlite::new(config, path)?));
    }
    let url = url.unwrap_or_default();
    match url.split_once("://").map(|(scheme, _)| scheme) {
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => Ok(Box::new(postgres::Postgres::new(config, url)?)),
        #[cfg(feature = "mysql")]
        Some("mysql" | "mariadb") => Ok(Box::new(mysql::MySql::new(config, url)?)),
        _ => Err(Error::invalid(format!(
            "url: the value must start with one of: {}; for an SQLite file set path instead",
            SCHEMES.join(", ")
        ))),
    }
}

const SCHEMES: &[&str] = &[
    #[cfg(feature = "postgres")]
    "postgres://",
    #[cfg(feature = "mysql")]
    "mysql://",
    #[cfg(feature = "mysql")]
    "mariadb://",
];

#[cfg(any(feature = "postgres", feature = "mysql"))]
fn url_invalid(_: sqlx::Error) -> Error {
    Error::invalid(
        "url: the value is no URL of a database; write postgres://USER:PASSWORD@HOST:PORT/DATABASE or the like",
    )
}

/// Whether to encrypt, for a server at this host.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn wants_tls(mode: crate::TlsMode, local: bool) -> bool {
    use crate::TlsMode;
    match mode {
        TlsMode::Auto => !local,
        TlsMode::Required => true,
        TlsMode::Disabled => false,
    }
}

/// Whether a host is this machine whatever a name server says.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn pool_options<DB: sqlx::Database>(config: &DatabaseAuditConfig) -> PoolOptions<DB> {
    PoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout((config.timeout() / 3).min(Duration::from_secs(5)))
        .idle_timeout(Duration::from_secs(300))
}

fn migrator(sql: &'static str) -> Migrator {
    let migration = Migration::new(
        1,
        Cow::Borrowed("audit events"),
        MigrationType::Simple,
        sql.into_sql_str(),
        false,
    );
    let mut migrator = Migrator::with_migrations(vec![migration]);
    // Applications may have migrations of their own in the same database.
    migrator.dangerous_set_table_name("audit_events_migrations");
    // A later version may have added some.
    migrator.set_ignore_missing(true);
    migrator
}

/// Spelled with its lifetime, since the compiler finds `Acquire` "not general enough" within an async trait.
fn run_migrations<'c, C>(migrator: &'c Migrator, connection: &'c mut C) -> BoxFuture<'c>
where
    &'c mut C: Acquire<'c> + Send,
    <&'c mut C as Acquire<'c>>::Connection: DerefMut<Target: Migrate> + Send,
{
    Box::pin(migrator.run(connection))
}

/// A connection that goes back to the pool only when the work with it was done. One that was left in the middle may hang,
/// or be in a transaction.
struct Lease<DB: sqlx::Database> {
    connection: PoolConnection<DB>,
    done: bool,
}

impl<DB: sqlx::Database> Lease<DB> {
    async fn new(pool: &Pool<DB>) -> sqlx::Result<Self> {
        Ok(Self {
            connection: pool.acquire().await?,
            done: false,
        })
    }

    fn give_back(mut self) {
        self.done = true;
    }
}

impl<DB: sqlx::Database> Drop for Lease<DB> {
    fn drop(&mut self) {
        if !self.done {
            self.connection.close_on_drop();
        }
    }
}

impl<DB: sqlx::Database> Deref for Lease<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<DB: sqlx::Database> DerefMut for Lease<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

/// What the statements of databases differ in.
struct Casts {
    /// Behind a text that is a time.
    time: &'static str,
    /// Behind a record that is to be text.
    record: &'static str,
}

impl Casts {
    #[cfg(any(feature = "mysql", feature = "sqlite"))]
    const NONE: Self = Self { time: "", record: "" };
}

/// The statement that finds rows.
fn select_statement<DB>(query: &AuditQuery, after: i64, limit: i64, casts: &Casts) -> QueryBuilder<DB>
where
    DB: sqlx::Database,
    DB::Arguments: Default,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
    String: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut sql = QueryBuilder::new("SELECT seq, record");
    sql.push(casts.record).push(" FROM audit_events WHERE seq > ");
    sql.push_bind(after);
    let columns = [
        ("session_id", query.session_id.as_ref().map(ToString::to_string)),
        ("agent_id", query.agent_id.as_ref().map(ToString::to_string)),
        ("user_id", query.user_id.as_deref().map(user_text)),
    ];
    for (column, value) in columns {
        if let Some(value) = value {
            sql.push(format_args!(" AND {column} = ")).push_bind(value);
        }
    }
    if !query.event_types.is_empty() {
        sql.push(" AND event_type IN (");
        let mut types = sql.separated(", ");
        for event_type in &query.event_types {
            types.push_bind(event_type.to_string());
        }
        sql.push(")");
    }
    // Both ends, since the column is coarser than the event's time.
    if let Some(start) = query.start_time {
        sql.push(" AND timestamp >= ")
            .push_bind(time_text(start))
            .push(casts.time);
    }
    if let Some(end) = query.end_time {
        sql.push(" AND timestamp <= ")
            .push_bind(time_text(end))
            .push(casts.time);
    }
    if let Some(severity) = query.severity {
        // Written out, so that an index over the grave ones alone can be used.
        sql.push(format_args!(" AND severity >= {}", severity_rank(severity)));
    }
    sql.push(" ORDER BY seq LIMIT ").push_bind(limit);
    sql
}
