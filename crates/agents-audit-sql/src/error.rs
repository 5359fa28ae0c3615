//! What databases say, in our terms. Pure functions from codes.

use agents_core::{Error, ErrorKind};
use sqlx::{error::DatabaseError, migrate::MigrateError};

/// What a code of a database means, and whether the same statement may succeed later.
pub(crate) type Class = (ErrorKind, bool);

pub(crate) const UNKNOWN: Class = (ErrorKind::Unexpected, false);

/// An error of sqlx as ours. `class` reads the codes of this database.
pub(crate) fn map(error: sqlx::Error, class: fn(&dyn DatabaseError) -> Class) -> Error {
    let (kind, temporary) = class_of(&error, class);
    let mapped = Error::new(kind, message(kind, &error));
    let mapped = if temporary { mapped.temporary(None) } else { mapped };
    match error {
        // Its text may quote the URL.
        sqlx::Error::Configuration(_) => mapped,
        error => mapped.with_source(error),
    }
}

fn class_of(error: &sqlx::Error, class: fn(&dyn DatabaseError) -> Class) -> Class {
    match error {
        sqlx::Error::Database(error) => class(&**error),
        error if is_tls(error) => (ErrorKind::Unauthenticated, false),
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => (ErrorKind::Unavailable, true),
        // What is left of an answer when a connection breaks.
        sqlx::Error::Protocol(_) | sqlx::Error::BeginFailed => (ErrorKind::Unavailable, true),
        sqlx::Error::PoolTimedOut => (ErrorKind::Timeout, true),
        sqlx::Error::PoolClosed => (ErrorKind::Conflict, false),
        sqlx::Error::Configuration(_) => (ErrorKind::ConfigInvalid, false),
        sqlx::Error::RowNotFound => (ErrorKind::NotFound, false),
        sqlx::Error::Encode(_) => (ErrorKind::DataInvalid, false),
        sqlx::Error::Migrate(error) => match &**error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => class_of(error, class),
            // Another process may be in the middle of it.
            MigrateError::Dirty(_) => (ErrorKind::Conflict, true),
            _ => (ErrorKind::Conflict, false),
        },
        _ => UNKNOWN,
    }
}

/// Whether there is no TLS, or none that is trusted: rustls tells of a certificate as of invalid data.
fn is_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

fn message(kind: ErrorKind, error: &sqlx::Error) -> &'static str {
    match (kind, error) {
        (_, error) if is_tls(error) => {
            "the audit database offers no TLS, or its certificate is not trusted; set tls_ca_file to the authority that \
             signed it and use the name that it holds in url"
        }
        (_, sqlx::Error::PoolClosed) => "the audit database was shut down; build a new one",
        (_, sqlx::Error::Migrate(_)) if kind == ErrorKind::Conflict => {
            "the audit tables are not as this version left them; see the table audit_events_migrations"
        }
        (ErrorKind::Timeout, _) => {
            "the audit database gave no connection in time; see whether it runs and is reachable, or raise max_connections"
        }
        (ErrorKind::Unavailable, _) => "the audit database cannot be reached now; see whether it runs and url names it",
        (ErrorKind::Unauthenticated, _) => {
            "the audit database does not know this user and password; check the value that url refers to"
        }
        (ErrorKind::PermissionDenied, _) => {
            "the audit database does not let this user write; grant INSERT and SELECT on audit_events, and CREATE unless \
             create_tables is false"
        }
        (ErrorKind::NotFound, _) => {
            "the audit database or its tables do not exist; create the database, and the tables with create_tables: true"
        }
        (ErrorKind::ResourceExhausted, _) => "the audit database is full; make room on its disk",
        (ErrorKind::ConfigInvalid, _) => {
            "the audit database cannot be used with this configuration; check url and tls (passwords of MySQL need TLS)"
        }
        (ErrorKind::DataInvalid, _) => "the audit database cannot hold this event",
        (ErrorKind::Conflict, _) => "another transaction was in the way of this one",
        _ => "the audit database failed",
    }
}

/// An SQLSTATE of PostgreSQL.
#[cfg(feature = "postgres")]
pub(crate) fn postgres(code: &str) -> Class {
    match code {
        "28P01" | "28000" => (ErrorKind::Unauthenticated, false),
        "3D000" | "3F000" | "42P01" => (ErrorKind::NotFound, false),
        "42501" => (ErrorKind::PermissionDenied, false),
        // Read-only, as a standby is until it takes over.
        "25006" => (ErrorKind::Unavailable, true),
        "57014" => (ErrorKind::Timeout, true),
        "53300" => (ErrorKind::Unavailable, true),
        "55P03" => (ErrorKind::Conflict, true),
        // Two that create the same table at once.
        "42P07" | "23505" => (ErrorKind::Conflict, true),
        _ => match code.get(..2) {
            Some("08" | "57" | "58") => (ErrorKind::Unavailable, true),
            Some("40") => (ErrorKind::Conflict, true),
            Some("53") => (ErrorKind::ResourceExhausted, true),
            Some("22" | "23" | "54") => (ErrorKind::DataInvalid, false),
            _ => UNKNOWN,
        },
    }
}

/// An error number of MySQL and MariaDB, and the SQLSTATE beside it.
#[cfg(feature = "mysql")]
pub(crate) fn mysql(number: u16, state: Option<&str>) -> Class {
    match number {
        1045 | 1698 | 1862 | 4151 => (ErrorKind::Unauthenticated, false),
        3159 => (ErrorKind::ConfigInvalid, false),
        1044 | 1142 | 1143 | 1227 | 1370 => (ErrorKind::PermissionDenied, false),
        1049 | 1146 => (ErrorKind::NotFound, false),
        1021 | 1041 | 1114 | 1037 | 1038 => (ErrorKind::ResourceExhausted, true),
        // Too many connections, a shutdown, a lost connection, a killed one, and read-only as a replica is.
        1040
        | 1203
        | 1226
        | 1053
        | 1077
        | 1080
        | 1152
        | 1158..=1161
        | 1184
        | 1290
        | 1792
        | 1836
        | 1927
        | 2006
        | 2013 => (ErrorKind::Unavailable, true),
        1205 | 1213 | 1050 | 1061 => (ErrorKind::Conflict, true),
        1317 | 1969 | 3024 => (ErrorKind::Timeout, true),
        1153 | 1301 => (ErrorKind::DataInvalid, false),
        _ => match state.and_then(|state| state.get(..2)) {
            Some("08") => (ErrorKind::Unavailable, true),
            Some("40") => (ErrorKind::Conflict, true),
            Some("22" | "23") => (ErrorKind::DataInvalid, false),
            _ => UNKNOWN,
        },
    }
}

/// A result code of SQLite, extended or not.
#[cfg(feature = "sqlite")]
pub(crate) fn sqlite(code: &str) -> Class {
    // Of an extended code, the low byte is the primary one.
    match code.parse::<u32>().map(|code| code & 0xff) {
        // BUSY, LOCKED, PROTOCOL, SCHEMA: another process was in the way.
        Ok(5 | 6 | 15 | 17) => (ErrorKind::Conflict, true),
        Ok(3 | 8 | 23) => (ErrorKind::PermissionDenied, false),
        Ok(9) => (ErrorKind::Timeout, true),
        Ok(7 | 13) => (ErrorKind::ResourceExhausted, true),
        Ok(10) => (ErrorKind::Unavailable, true),
        Ok(14) => (ErrorKind::NotFound, false),
        Ok(18..=20) => (ErrorKind::DataInvalid, false),
        // ERROR: a missing table is one, and so is anything else in the statement.
        Ok(1) => (ErrorKind::NotFound, false),
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_meaning() {
        #[cfg(feature = "postgres")]
        for (code, expected) in [
            ("28P01", (ErrorKind::Unauthenticated, false)),
            ("57P03", (ErrorKind::Unavailable, true)),
            ("57014", (ErrorKind::Timeout, true)),
            ("08006", (ErrorKind::Unavailable, true)),
            ("40P01", (ErrorKind::Conflict, true)),
            ("53100", (ErrorKind::ResourceExhausted, true)),
            ("22P05", (ErrorKind::DataInvalid, false)),
            ("42501", (ErrorKind::PermissionDenied, false)),
            ("42P01", (ErrorKind::NotFound, false)),
            ("XX000", UNKNOWN),
            ("", UNKNOWN),
        ] {
            assert_eq!(postgres(code), expected, "{code}");
        }
        #[cfg(feature = "mysql")]
        for (number, state, expected) in [
            (1045, Some("28000"), (ErrorKind::Unauthenticated, false)),
            (1040, Some("08004"), (ErrorKind::Unavailable, true)),
            (1213, Some("40001"), (ErrorKind::Conflict, true)),
            (1205, Some("HY000"), (ErrorKind::Conflict, true)),
            (1114, Some("HY000"), (ErrorKind::ResourceExhausted, true)),
            (1406, Some("22001"), (ErrorKind::DataInvalid, false)),
            (1146, Some("42S02"), (ErrorKind::NotFound, false)),
            (1064, Some("42000"), UNKNOWN),
            (9999, None, UNKNOWN),
        ] {
            assert_eq!(mysql(number, state), expected, "{number}");
        }
        #[cfg(feature = "sqlite")]
        for (code, expected) in [
            ("5", (ErrorKind::Conflict, true)),
            ("261", (ErrorKind::Conflict, true)),
            ("13", (ErrorKind::ResourceExhausted, true)),
            ("14", (ErrorKind::NotFound, false)),
            ("8", (ErrorKind::PermissionDenied, false)),
            ("26", UNKNOWN),
            ("x", UNKNOWN),
        ] {
            assert_eq!(sqlite(code), expected, "{code}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_told_as_such() {
        let io = |kind| sqlx::Error::Io(std::io::Error::new(kind, "x"));
        let mapped = map(io(std::io::ErrorKind::InvalidData), |_| UNKNOWN);
        assert_eq!(
            (mapped.kind(), mapped.is_temporary()),
            (ErrorKind::Unauthenticated, false)
        );
        assert!(mapped.message().contains("tls_ca_file"));
        assert!(map(io(std::io::ErrorKind::ConnectionReset), |_| UNKNOWN).is_temporary());
    }

    #[test]
    fn a_url_is_not_quoted() {
        let error = sqlx::Error::Configuration("cannot parse postgres://u:hunter2@h".into());
        let mapped = map(error, |_| UNKNOWN);
        assert_eq!(mapped.kind(), ErrorKind::ConfigInvalid);
        assert!(!format!("{mapped:?} {}", mapped.report()).contains("hunter2"));
    }
}
