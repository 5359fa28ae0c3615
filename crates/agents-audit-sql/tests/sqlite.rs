//! An SQLite file: who can read it, who shares it, and what is refused.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use agents_audit_sql::{DatabaseAudit, DatabaseAuditConfig, DatabaseAuditFactory};
use agents_core::{
    AuditEvent, AuditLogger, AuditQuery, BuildContext, Error, ErrorKind, EventType, Factory, SecretBytes, SecretRef,
    SecretResolver,
};

fn open(path: &Path) -> DatabaseAudit {
    DatabaseAudit::new(DatabaseAuditConfig::file(path), None).unwrap()
}

fn event(n: usize) -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning).with_fact("n", n)
}

#[tokio::test]
async fn the_file_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.db");
    let audit = open(&path);
    audit.emit(event(0)).await.unwrap();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.path());
    }
    audit.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_share_a_new_file_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.db");
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let audit = open(&path);
            tokio::spawn(async move {
                for n in 0..25 {
                    audit.emit(event(writer * 25 + n)).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let page = open(&path).query(AuditQuery::new().with_limit(1000)).await.unwrap();
    assert_eq!((page.events.len(), page.next), (200, None));
}

#[tokio::test]
async fn a_refused_event_takes_no_other_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(&folder.path().join("audit.db"));
    let mut events: Vec<_> = (0..3).map(event).collect();
    events[1] = event(1).with_fact("huge", "x".repeat(1 << 20));
    let outcomes = audit.emit_batch(events).await.unwrap();
    let kinds: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().map(Error::kind))
        .collect();
    assert_eq!(kinds, [None, Some(ErrorKind::DataInvalid), None]);
    let page = audit.query(AuditQuery::new()).await.unwrap();
    assert_eq!(page.events.len(), 2);

    let huge = event(3).with_fact("huge", "x".repeat(1 << 20));
    assert_eq!(
        audit.emit(huge.clone()).await.unwrap_err().kind(),
        ErrorKind::DataInvalid
    );
    assert_eq!(
        audit.emit_batch(vec![huge]).await.unwrap_err().kind(),
        ErrorKind::DataInvalid
    );
}

#[tokio::test]
async fn what_is_in_the_way_is_told_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let missing = open(&folder.path().join("no/such/folder/audit.db"));
    let availability = missing.check_availability().await.unwrap();
    assert!(!availability.available);
    assert!(
        availability.problems[0].reason.contains("no/such/folder"),
        "{availability:?}"
    );
    assert_eq!(missing.emit(event(0)).await.unwrap_err().kind(), ErrorKind::NotFound);

    let path = folder.path().join("bare.db");
    std::fs::write(&path, b"").unwrap();
    let config = DatabaseAuditConfig::file(&path).with_create_tables(false);
    let bare = DatabaseAudit::new(config, None).unwrap();
    let error = bare.emit(event(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("create_tables: true"), "{error}");
    assert!(!bare.check_availability().await.unwrap().available);

    let path = folder.path().join("other.db");
    std::fs::write(
        &path,
        "this is no database at all, but it is long enough to be looked at".repeat(99),
    )
    .unwrap();
    assert!(!open(&path).check_availability().await.unwrap().available);
    assert!(open(&path).emit(event(0)).await.is_err());
}

#[derive(Debug)]
struct OneSecret;

#[async_trait::async_trait]
impl SecretResolver for OneSecret {
    async fn resolve(&self, reference: &SecretRef) -> agents_core::Result<SecretBytes> {
        match reference.key() {
            "PG" => Ok(SecretBytes::new("postgres://user:hunter2@db.example/audit\n")),
            "MY" => Ok(SecretBytes::new("mysql://user:hunter2@db.example/audit")),
            "NONE" => Ok(SecretBytes::new("mysql://user:hunter2@db.example")),
            "ODD" => Ok(SecretBytes::new("oracle:hunter2")),
            "BROKEN" => Ok(SecretBytes::new("postgres://user:hunter2@:99999999/")),
            _ => Err(Error::not_found(format!("{reference} is not set"))),
        }
    }
}

#[tokio::test]
async fn no_secret_is_printed() {
    let context = BuildContext::new("/state", "/data", Arc::new(OneSecret));
    let config = |key: &str| DatabaseAuditConfig::server(format!("env:{key}").parse().unwrap());
    for key in ["PG", "MY"] {
        let audit = DatabaseAuditFactory::build(config(key), &context).await.unwrap();
        let printed = format!("{audit:?} {} {:?} {:?}", audit.location(), audit.info(), config(key));
        assert!(
            !printed.contains("hunter2") && printed.contains("db.example"),
            "{printed}"
        );
    }
    for key in ["ODD", "NONE", "BROKEN", "ABSENT"] {
        let error = DatabaseAuditFactory::build(config(key), &context).await.unwrap_err();
        let printed = format!("{error:?} {}", error.report());
        assert!(!printed.contains("hunter2"), "{printed}");
        let expected = if key == "ABSENT" {
            ErrorKind::NotFound
        } else {
            ErrorKind::ConfigInvalid
        };
        assert_eq!(error.kind(), expected, "{key}");
    }
    let unsafe_tls = config("MY").with_tls(agents_audit_sql::TlsMode::Disabled);
    let error = DatabaseAuditFactory::build(unsafe_tls, &context).await.unwrap_err();
    assert!(error.message().contains("tls: required"), "{error}");
    assert!(DatabaseAuditFactory::validate(&DatabaseAuditConfig::default()).is_err());
}
