//! PostgreSQL.

use agents_core::{AuditQuery, Result};
use async_trait::async_trait;
use sqlx::{
    Connection, PgConnection, PgPool,
    error::DatabaseError,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};

use super::{
    Casts, Engine, Lease, is_loopback, migrator, pool_options, run_migrations, select_statement, url_invalid, wants_tls,
};
use crate::{
    DatabaseAuditConfig,
    error::{Class, UNKNOWN, postgres},
    row::Row,
};

/// The advisory lock of writers; "agents" in ASCII. It is the database's own, so nobody else's in another database.
const WRITERS: i64 = 0x6167_656e_7473;

/// One statement, so one round trip and one transaction of its own.
///
/// The lock is taken before the first sequence number, and given back after the commit is visible. `WITH ORDINALITY` and
/// `ORDER BY` make the numbers follow the order of the batch.
const INSERT: &str = "
    WITH gate AS MATERIALIZED (SELECT pg_advisory_xact_lock($1))
    INSERT INTO audit_events
        (event_id, event_type, timestamp, session_id, agent_id, user_id, severity, record)
    SELECT e.event_id, e.event_type, (e.at || '+00')::timestamptz, e.session_id, e.agent_id, e.user_id, e.severity,
        e.record::json
    FROM gate, unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::int2[], $9::text[])
        WITH ORDINALITY AS e (event_id, event_type, at, session_id, agent_id, user_id, severity, record, place)
    ORDER BY e.place
    ON CONFLICT (event_id) DO NOTHING";

pub(super) struct Postgres {
    pool: PgPool,
    options: PgConnectOptions,
    migrator: Migrator,
}

impl Postgres {
    pub(super) fn new(config: &DatabaseAuditConfig, url: &str) -> Result<Self> {
        let mut options: PgConnectOptions = url.parse().map_err(url_invalid)?;
        let local =
            options.get_socket().is_some() || options.get_host().starts_with('/') || is_loopback(options.get_host());
        options = options.ssl_mode(if wants_tls(config.tls, local) {
            PgSslMode::VerifyFull
        } else {
            PgSslMode::Disable
        });
        if let Some(file) = &config.tls_ca_file {
            options = options.ssl_root_cert(file);
        }
        if options.get_application_name().is_none() {
            options = options.application_name("agents-audit");
        }
        let pool: PgPoolOptions = pool_options(config);
        Ok(Self {
            pool: pool.connect_lazy_with(options.clone()),
            options,
            migrator: migrator(include_str!("../../migrations/postgres/0001_audit_events.sql")),
        })
    }
}

async fn insert(connection: &mut PgConnection, rows: &[Row]) -> sqlx::Result<()> {
    fn column<'r, T>(rows: &'r [Row], cell: impl Fn(&'r Row) -> T) -> Vec<T> {
        rows.iter().map(cell).collect()
    }
    sqlx::query(INSERT)
        .bind(WRITERS)
        .bind(column(rows, |row| row.event_id.as_str()))
        .bind(column(rows, |row| row.event_type))
        .bind(column(rows, |row| row.timestamp.as_str()))
        .bind(column(rows, |row| row.session_id.as_deref()))
        .bind(column(rows, |row| row.agent_id.as_deref()))
        .bind(column(rows, |row| row.user_id.as_deref()))
        .bind(column(rows, |row| row.severity))
        .bind(column(rows, |row| row.record.as_str()))
        .execute(connection)
        .await?;
    Ok(())
}

#[async_trait]
impl Engine for Postgres {
    fn location(&self) -> String {
        let database = self.options.get_database().unwrap_or(self.options.get_username());
        match self.options.get_socket() {
            Some(socket) => format!("postgres://{}/{database}, table audit_events", socket.display()),
            None => format!(
                "postgres://{}:{}/{database}, table audit_events",
                self.options.get_host(),
                self.options.get_port()
            ),
        }
    }

    fn class(&self) -> fn(&dyn DatabaseError) -> Class {
        |error| error.code().map_or(UNKNOWN, |code| postgres(&code))
    }

    async fn migrate(&self) -> sqlx::Result<()> {
        let mut lease = Lease::new(&self.pool).await?;
        run_migrations(&self.migrator, &mut *lease).await?;
        lease.give_back();
        Ok(())
    }

    async fn insert(&self, rows: &[Row]) -> sqlx::Result<()> {
        let mut lease = Lease::new(&self.pool).await?;
        insert(&mut lease, rows).await?;
        lease.give_back();
        Ok(())
    }

    async fn select(&self, query: &AuditQuery, after: i64, limit: i64) -> sqlx::Result<Vec<(i64, String)>> {
        let mut lease = Lease::new(&self.pool).await?;
        let casts = Casts {
            time: "::timestamptz",
            record: "::text",
        };
        let mut statement = select_statement(query, after, limit, &casts);
        let rows = statement.build_query_as().fetch_all(&mut *lease).await?;
        lease.give_back();
        Ok(rows)
    }

    async fn probe(&self, create_tables: bool, row: &Row) -> sqlx::Result<String> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        if create_tables {
            run_migrations(&self.migrator, &mut connection).await?;
        }
        let mut transaction = connection.begin().await?;
        insert(&mut transaction, std::slice::from_ref(row)).await?;
        transaction.rollback().await?;
        let version: String = sqlx::query_scalar("SHOW server_version")
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(format!("PostgreSQL {version}"))
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
