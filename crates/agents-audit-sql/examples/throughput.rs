//! How many events a second PostgreSQL takes through the sink, beside a raw multi-row `INSERT` and a raw `COPY` of the same
//! rows into a table with the same columns and indexes.
//!
//! Run it with `AGENTS_TEST_POSTGRES=postgres://… cargo run --release -p agents-audit-sql --example throughput`. It makes
//! databases of its own, and drops them.

use std::{error::Error, time::Instant};

use agents_audit_sql::{DatabaseAudit, DatabaseAuditConfig};
use agents_core::{AuditEvent, AuditLogger, EventType, SessionId};
use sqlx::{Connection, PgConnection, QueryBuilder, postgres::PgConnectOptions};

const BATCH: usize = 1000;
const ROUND: usize = 20;
const ROUNDS: usize = 5;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("AGENTS_TEST_POSTGRES").map_err(|_| {
        "AGENTS_TEST_POSTGRES is not set; start a server with `cargo xtask services up postgres` and take what \
         `cargo xtask services env` prints"
    })?;
    let options: PgConnectOptions = url.parse()?;
    let name = format!("audit_throughput_{}", std::process::id());
    let mut admin = PgConnection::connect_with(&options).await?;
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut admin)
        .await?;
    let result = compare(&url, &options.database(&name), &name).await;
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)")))
        .execute(&mut admin)
        .await?;
    result
}

async fn compare(url: &str, options: &PgConnectOptions, name: &str) -> Result<(), Box<dyn Error>> {
    let (head, query) = url.split_once('?').unwrap_or((url, ""));
    let (server, _) = head.rsplit_once('/').ok_or("the URL names no database")?;
    let config = DatabaseAuditConfig::server("env:AGENTS_TEST_POSTGRES".parse()?);
    let audit = DatabaseAudit::new(config, Some(&format!("{server}/{name}?{query}")))?;
    // Makes the table.
    audit.emit(event()).await?;

    let mut raw = PgConnection::connect_with(options).await?;
    for table in ["raw_insert", "raw_copy"] {
        let create = format!("CREATE TABLE {table} (LIKE audit_events INCLUDING ALL)");
        sqlx::query(sqlx::AssertSqlSafe(create)).execute(&mut raw).await?;
    }

    let mut seconds = [0.0; 3];
    // By turns, so that what else the machine does meets all of them.
    for _ in 0..ROUNDS {
        let batches: Vec<Vec<AuditEvent>> = (0..ROUND).map(|_| (0..BATCH).map(|_| event()).collect()).collect();

        let start = Instant::now();
        for batch in &batches {
            insert(&mut raw, batch).await?;
        }
        seconds[0] += start.elapsed().as_secs_f64();

        let start = Instant::now();
        for batch in &batches {
            copy(&mut raw, batch).await?;
        }
        seconds[1] += start.elapsed().as_secs_f64();

        let start = Instant::now();
        for batch in batches {
            for result in audit.emit_batch(batch).await? {
                result?;
            }
        }
        seconds[2] += start.elapsed().as_secs_f64();
    }
    audit.shutdown().await?;

    let rate = |seconds: f64| (ROUNDS * ROUND * BATCH) as f64 / seconds;
    let [insert, copy, sink] = seconds.map(rate);
    println!("raw multi-row INSERT {insert:10.0} rows/s");
    println!("raw COPY             {copy:10.0} rows/s");
    println!(
        "the sink             {sink:10.0} events/s  {:.2} x INSERT  {:.2} x COPY",
        sink / insert,
        sink / copy
    );
    Ok(())
}

/// The cells of a row, as anybody would write them.
fn cells(event: &AuditEvent) -> (String, String, String, i16, String) {
    (
        event.event_id.clone(),
        event.event_type.to_string(),
        event.timestamp.to_string(),
        1,
        serde_json::to_string(event).unwrap_or_default(),
    )
}

async fn insert(raw: &mut PgConnection, batch: &[AuditEvent]) -> Result<(), sqlx::Error> {
    let mut statement =
        QueryBuilder::new("INSERT INTO raw_insert (event_id, event_type, timestamp, session_id, severity, record) ");
    statement.push_values(batch, |mut values, event| {
        let (id, event_type, time, severity, record) = cells(event);
        values.push_bind(id).push_bind(event_type);
        values.push_bind(time).push_unseparated("::timestamptz");
        values.push_bind(event.session_id.as_ref().map(ToString::to_string));
        values.push_bind(severity);
        values.push_bind(record).push_unseparated("::json");
    });
    statement.build().execute(raw).await?;
    Ok(())
}

async fn copy(raw: &mut PgConnection, batch: &[AuditEvent]) -> Result<(), sqlx::Error> {
    let mut text = String::new();
    for event in batch {
        let (id, event_type, time, severity, record) = cells(event);
        let session = event.session_id.as_ref().map_or("\\N", |session| session.as_str());
        let record = record.replace('\\', "\\\\");
        text.push_str(&format!(
            "{id}\t{event_type}\t{time}\t{session}\t{severity}\t{record}\n"
        ));
    }
    let mut copy = raw
        .copy_in_raw("COPY raw_copy (event_id, event_type, timestamp, session_id, severity, record) FROM STDIN")
        .await?;
    copy.send(text.as_bytes()).await?;
    copy.finish().await?;
    Ok(())
}

fn event() -> AuditEvent {
    AuditEvent::now(EventType::ContainerStarted)
        .with_session(SessionId::generate())
        .with_fact("image", "python:3.11-slim")
        .with_fact("pid", 4711)
}
