//! The hash chain of the trail.

use std::{fs, path::Path, sync::Arc};

use agents_audit_file::{FileAudit, FileAuditConfig, FileAuditFactory};
use agents_core::{
    AuditEvent, AuditLogger, AuditQuery, BuildContext, ErrorKind, EventType, Factory, SecretBytes, SecretRef,
    SecretResolver,
};
use agents_journal::{ChainKey, Checkpoint, EventVerification, FaultKind, Keys, verify_events};
use agents_testkit::tamper;

fn key() -> ChainKey {
    ChainKey::hmac(&[7; 32]).unwrap()
}

fn keys() -> Keys {
    Keys::none().with(&key())
}

fn open(folder: &Path) -> FileAudit {
    FileAudit::with_key(FileAuditConfig::folder(folder), key()).unwrap()
}

fn event(n: usize) -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning).with_fact("n", n)
}

async fn emit(audit: &FileAudit, numbers: std::ops::Range<usize>) {
    for n in numbers {
        audit.emit(event(n)).await.unwrap();
    }
}

async fn verify(folder: &Path, known: &[Checkpoint]) -> EventVerification {
    open(folder).verify(&keys(), known).await.unwrap()
}

async fn fault(folder: &Path, known: &[Checkpoint]) -> Option<FaultKind> {
    verify(folder, known).await.fault.map(|fault| fault.kind)
}

fn today(folder: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.pop().unwrap()
}

#[tokio::test]
async fn one_chain_goes_over_processes_restarts_and_days() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let first = open(path);
    emit(&first, 0..3).await;
    fs::rename(today(path), path.join("2026-01-01.jsonl")).unwrap();
    // Another one, and the first again, in a new file.
    let second = open(path);
    emit(&second, 3..5).await;
    emit(&first, 5..7).await;
    first
        .emit_batch((7..9).map(event).collect())
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    emit(&second, 9..10).await;
    first.shutdown().await.unwrap();
    drop(second);
    emit(&open(path), 10..12).await;

    let found = verify(path, &[]).await;
    assert_eq!(found.fault, None);
    assert_eq!((found.events, found.writers.len(), found.unlinked), (12, 1, 0));
    assert_eq!(
        (found.writers[0].first, found.writers[0].last, found.writers[0].proven),
        (1, 12, 12)
    );
    // What a query gives verifies too, and a line is what is hashed with its link at the end.
    let events = open(path).query(AuditQuery::new()).await.unwrap().events;
    assert_eq!(verify_events(events, &keys(), &[]).fault, None);
    let text = fs::read_to_string(today(path)).unwrap();
    for line in text.lines() {
        assert!(
            line.contains(r#","tags":[],"chain":{"writer":"file-"#) && line.ends_with("}}"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn writers_at_the_same_time_share_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let audit = open(folder.path());
            tokio::spawn(async move { emit(&audit, 0..50).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let found = verify(folder.path(), &[]).await;
    assert_eq!((found.fault, found.events, found.writers.len()), (None, 200, 1));
}

#[tokio::test]
async fn every_tampering_with_the_lines_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let audit = open(path);
    emit(&audit, 0..20).await;
    let known = [audit.checkpoint().await.unwrap()];
    assert_eq!(fault(path, &known).await, None);
    let events = audit.query(AuditQuery::new()).await.unwrap().events;
    let file = today(path);
    let handle = tokio::runtime::Handle::current();
    let missed = tokio::task::spawn_blocking({
        let path = path.to_owned();
        move || {
            tamper::missed(&events, |events| {
                let lines: String = events
                    .iter()
                    .map(|event| serde_json::to_string(event).unwrap() + "\n")
                    .collect();
                fs::write(&file, lines).unwrap();
                let found = handle.block_on(verify(&path, &known));
                found.fault.map(|fault| fault.sequence.unwrap())
            })
        }
    });
    assert_eq!(missed.await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_missing_file_a_cut_tail_and_stripped_links_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let audit = open(path);
    assert_eq!(audit.checkpoint().await.unwrap_err().kind(), ErrorKind::NotFound);
    emit(&audit, 0..3).await;
    fs::rename(today(path), path.join("2026-01-01.jsonl")).unwrap();
    emit(&audit, 3..6).await;
    let known = [audit.checkpoint().await.unwrap()];
    assert_eq!((known[0].sequence, fault(path, &known).await), (6, None));

    let text = fs::read_to_string(today(path)).unwrap();
    let two: String = text.split_inclusive('\n').take(2).collect();
    fs::write(today(path), two).unwrap();
    assert_eq!(
        (fault(path, &[]).await, fault(path, &known).await),
        (None, Some(FaultKind::CutTail))
    );
    let bare: String = text
        .lines()
        .map(|line| {
            let event: AuditEvent = serde_json::from_str(line).unwrap();
            serde_json::to_string(&event.with_chain(None)).unwrap() + "\n"
        })
        .collect();
    fs::write(today(path), bare).unwrap();
    assert_eq!(fault(path, &[]).await, Some(FaultKind::Unlinked));
    fs::write(today(path), text).unwrap();
    fs::remove_file(path.join("2026-01-01.jsonl")).unwrap();
    assert_eq!(fault(path, &known).await, Some(FaultKind::MissingRecord));
}

#[tokio::test]
async fn torn_lines_and_an_older_trail_are_no_tampering() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let old = serde_json::to_string(&event(0)).unwrap() + "\n";
    fs::write(path.join("2025-01-01.jsonl"), old).unwrap();
    let plain = || FileAudit::new(FileAuditConfig::folder(path)).unwrap();
    emit(&plain(), 1..3).await;
    let mut text = fs::read(today(path)).unwrap();
    text.extend_from_slice(b"{\"event_id\":\"torn");
    fs::write(today(path), text).unwrap();
    emit(&plain(), 3..5).await;
    let found = plain().verify(&Keys::none(), &[]).await.unwrap();
    assert_eq!((found.fault, found.events, found.unlinked), (None, 4, 2));
    // Whoever has a key expects to see it used.
    let found = plain().verify(&keys(), &[]).await.unwrap();
    assert_eq!(found.fault.unwrap().kind, FaultKind::Unlinked);
    // The chain goes on with a key, and then proves what was before.
    emit(&open(path), 5..7).await;
    fs::remove_file(path.join("2025-01-01.jsonl")).unwrap();
    let found = verify(path, &[]).await;
    assert_eq!(
        (found.fault, found.writers.len(), found.writers[0].proven),
        (None, 1, 6)
    );
}

#[tokio::test]
async fn old_days_go_and_the_chain_stays_provable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for (day, numbers) in [("2026-01-01", 0..3), ("2026-01-02", 3..5)] {
        emit(&open(path), numbers).await;
        fs::rename(today(path), path.join(format!("{day}.jsonl"))).unwrap();
    }
    let known = [open(path).checkpoint().await.unwrap()];
    let kept = || FileAuditConfig::folder(path).with_keep_days(Some(30));
    let audit = FileAudit::with_key(kept(), key()).unwrap();
    emit(&audit, 5..8).await;
    let names = || {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let left = names();
    assert_eq!((left.len(), left[1].as_str()), (2, "cut.json"), "{left:?}");
    let found = verify(path, &known).await;
    assert_eq!((found.fault, found.events, found.writers[0].first), (None, 3, 6));

    let cuts = fs::read_to_string(path.join("cut.json")).unwrap();
    fs::write(
        path.join("cut.json"),
        cuts.replace("\"sequence\": 5", "\"sequence\": 6"),
    )
    .unwrap();
    assert_eq!(fault(path, &[]).await, Some(FaultKind::ForgedCheckpoint));
    fs::remove_file(path.join("cut.json")).unwrap();
    assert_eq!(fault(path, &[]).await, Some(FaultKind::MissingRecord));
    assert!(!names().contains(&"cut.json".to_owned()));
}

#[derive(Debug)]
struct OneSecret;

#[async_trait::async_trait]
impl SecretResolver for OneSecret {
    async fn resolve(&self, reference: &SecretRef) -> agents_core::Result<SecretBytes> {
        Ok(SecretBytes::new(match reference.key() {
            "KEY" => vec![7; 32],
            _ => b"short".to_vec(),
        }))
    }
}

#[tokio::test]
async fn the_factory_resolves_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let context = BuildContext::new(folder.path(), folder.path(), Arc::new(OneSecret));
    let config = |key: &str| FileAuditConfig::default().with_chain_key(key.parse().ok());
    let audit = FileAuditFactory::build(config("env:KEY"), &context).await.unwrap();
    audit.emit(event(0)).await.unwrap();
    let found = verify(&folder.path().join("audit"), &[]).await;
    assert_eq!((found.fault, found.writers[0].proven), (None, 1));
    let error = FileAuditFactory::build(config("env:OTHER"), &context)
        .await
        .unwrap_err();
    assert!(
        error.report().contains("chain_key") && !error.report().contains("short\""),
        "{error:?}"
    );
    assert!(FileAudit::new(config("env:KEY")).is_err());
}
