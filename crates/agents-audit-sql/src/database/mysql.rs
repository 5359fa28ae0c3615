//! MySQL and MariaDB.

use agents_core::{AuditQuery, Error, Result};
use async_trait::async_trait;
use sqlx::{
    Connection, Executor, MySqlConnection, MySqlPool, QueryBuilder,
    error::DatabaseError,
    migrate::Migrator,
    mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlPoolOptions, MySqlSslMode},
};

use super::{
    Casts, Engine, Lease, is_loopback, migrator, pool_options, run_migrations, select_statement, url_invalid, wants_tls,
};
use crate::{
    DatabaseAuditConfig, TlsMode,
    error::{Class, UNKNOWN, mysql},
    row::Row,
};

pub(super) struct MySql {
    pool: MySqlPool,
    options: MySqlConnectOptions,
    migrator: Migrator,
}

impl MySql {
    pub(super) fn new(config: &DatabaseAuditConfig, url: &str) -> Result<Self> {
        let mut options: MySqlConnectOptions = url.parse().map_err(url_invalid)?;
        if options.get_database().is_none() {
            return Err(Error::invalid(
                "url: the value names no database; write mysql://USER:PASSWORD@HOST/DATABASE",
            ));
        }
        let local = options.get_socket().is_some() || is_loopback(options.get_host());
        if config.tls == TlsMode::Disabled && !local {
            return Err(Error::invalid(
                "tls: disabled is refused for a MySQL or MariaDB server on another machine, since its passwords need TLS; \
                 use tls: required, with tls_ca_file for an authority of your own",
            ));
        }
        options = options.ssl_mode(if wants_tls(config.tls, local) {
            MySqlSslMode::VerifyIdentity
        } else {
            MySqlSslMode::Disabled
        });
        if let Some(file) = &config.tls_ca_file {
            options = options.ssl_ca(file);
        }
        let pool: MySqlPoolOptions = pool_options(config);
        let pool = pool.after_connect(|connection, _| Box::pin(prepare(connection)));
        Ok(Self {
            pool: pool.connect_lazy_with(options.clone()),
            options,
            migrator: migrator(include_str!("../../migrations/mysql/0001_audit_events.sql")),
        })
    }
}

/// What does not fit is an error, not cut off; and a commit is read as soon as it is there.
async fn prepare(connection: &mut MySqlConnection) -> sqlx::Result<()> {
    connection
        .execute("SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')")
        .await?;
    connection
        .execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        .await?;
    Ok(())
}

/// Under a lock of our own: sqlx asks for one with a timeout of -1, which MariaDB takes for none.
async fn migrate(migrator: &Migrator, connection: &mut MySqlConnection) -> sqlx::Result<()> {
    // A lock is the server's, so it is named after the database. It goes with the connection, if not before.
    let lock = "SELECT GET_LOCK(CONCAT(LEFT(DATABASE(), 32), '.audit_events'), 30)";
    let locked: Option<i64> = sqlx::query_scalar(lock).fetch_one(&mut *connection).await?;
    if locked != Some(1) {
        return Err(sqlx::Error::PoolTimedOut);
    }
    run_migrations(migrator, &mut *connection).await?;
    connection
        .execute("DO RELEASE_LOCK(CONCAT(LEFT(DATABASE(), 32), '.audit_events'))")
        .await?;
    Ok(())
}

/// Must be in a transaction. Writers wait for each other at the one row of `audit_events_writer`, from before the first
/// sequence number until after the commit is visible.
async fn insert(connection: &mut MySqlConnection, rows: &[Row]) -> sqlx::Result<()> {
    sqlx::query("SELECT id FROM audit_events_writer WHERE id = 1 FOR UPDATE")
        .fetch_one(&mut *connection)
        .await?;
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
    // Not INSERT IGNORE, which also ignores what does not fit.
    statement.push(" ON DUPLICATE KEY UPDATE event_id = audit_events.event_id");
    // Almost every batch has another number of rows, and so a statement of its own.
    statement
        .build()
        .persistent(rows.len() == 1)
        .execute(connection)
        .await?;
    Ok(())
}

#[async_trait]
impl Engine for MySql {
    fn location(&self) -> String {
        let database = self.options.get_database().unwrap_or_default();
        match self.options.get_socket() {
            Some(socket) => format!("mysql://{}/{database}, table audit_events", socket.display()),
            None => format!(
                "mysql://{}:{}/{database}, table audit_events",
                self.options.get_host(),
                self.options.get_port()
            ),
        }
    }

    fn class(&self) -> fn(&dyn DatabaseError) -> Class {
        |error| match error.try_downcast_ref::<MySqlDatabaseError>() {
            Some(error) => mysql(error.number(), error.code()),
            None => UNKNOWN,
        }
    }

    async fn migrate(&self) -> sqlx::Result<()> {
        let mut lease = Lease::new(&self.pool).await?;
        migrate(&self.migrator, &mut lease).await?;
        lease.give_back();
        Ok(())
    }

    async fn insert(&self, rows: &[Row]) -> sqlx::Result<()> {
        let mut lease = Lease::new(&self.pool).await?;
        let mut transaction = lease.begin().await?;
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
        let mut connection = MySqlConnection::connect_with(&self.options).await?;
        prepare(&mut connection).await?;
        if create_tables {
            migrate(&self.migrator, &mut connection).await?;
        }
        let mut transaction = connection.begin().await?;
        insert(&mut transaction, std::slice::from_ref(row)).await?;
        transaction.rollback().await?;
        let version: String = sqlx::query_scalar("SELECT VERSION()")
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(match version.contains("MariaDB") {
            true => format!("MariaDB {version}"),
            false => format!("MySQL {version}"),
        })
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
