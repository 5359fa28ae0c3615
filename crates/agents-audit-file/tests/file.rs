//! What files are made, shared, damaged and read.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use agents_audit_file::{FileAudit, FileAuditConfig, FileAuditFactory, SyncMode};
use agents_core::{
    AuditEvent, AuditLogger, AuditQuery, BuildContext, Error, ErrorKind, EventType, Factory, SecretBytes, SecretRef,
    SecretResolver, SessionId, Severity,
};
use jiff::Timestamp;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn daily(folder: &Path) -> FileAudit {
    FileAudit::new(FileAuditConfig::folder(folder)).unwrap()
}

fn event(n: usize) -> AuditEvent {
    AuditEvent::now(EventType::SystemWarning).with_fact("n", n)
}

async fn emit(audit: &FileAudit, numbers: std::ops::Range<usize>) {
    for n in numbers {
        audit.emit(event(n)).await.unwrap();
    }
}

async fn numbers(audit: &FileAudit, query: AuditQuery) -> Vec<u64> {
    let page = audit.query(query).await.unwrap();
    page.events
        .iter()
        .map(|event| event.payload["n"].as_u64().unwrap())
        .collect()
}

fn only_file(folder: &Path) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn nothing_is_there_before_the_first_event_and_then_it_is_private() {
    let folder = folder();
    let path = folder.path().join("a/b");
    let audit = daily(&path);
    assert_eq!(audit.query(AuditQuery::new()).await.unwrap().events, []);
    audit.flush().await.unwrap();
    assert!(!folder.path().join("a").exists());
    assert_eq!(audit.info().name, path.display().to_string());

    emit(&audit, 0..3).await;
    let file = only_file(&path);
    assert_eq!(audit.location(), file.display().to_string());
    assert_eq!(file, path.join(format!("{:.10}.jsonl", Timestamp::now().to_string())));
    assert_eq!(
        (mode(&folder.path().join("a")), mode(&path), mode(&file)),
        (0o700, 0o700, 0o600)
    );
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("{\"event_id\":") && text.ends_with("}\n"));
    assert_eq!(text.lines().count(), 3);
}

#[tokio::test]
async fn separate_writers_share_a_file() {
    let folder = folder();
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let audit = daily(folder.path());
            tokio::spawn(async move { emit(&audit, 0..50).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut found = numbers(&daily(folder.path()), AuditQuery::new().with_limit(1000)).await;
    found.sort_unstable();
    let expected: Vec<u64> = (0..50).flat_map(|n| [n; 4]).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_torn_record_is_isolated_and_skipped() {
    let folder = folder();
    let audit = daily(folder.path());
    emit(&audit, 0..2).await;
    let file = only_file(folder.path());
    append(&file, b"{\"event_id\":\"torn");

    let end = audit.end_cursor().await.unwrap();
    assert_eq!(numbers(&audit, AuditQuery::new()).await, [0, 1]);
    emit(&audit, 2..4).await;
    // What is no text at all, and a line that is longer than a record can be.
    append(&file, b"\xff\xfe\0\n");
    append(&file, &[b"x".repeat(3 << 20), b"\n".to_vec()].concat());
    emit(&audit, 4..5).await;

    assert_eq!(numbers(&audit, AuditQuery::new()).await, [0, 1, 2, 3, 4]);
    assert_eq!(
        numbers(&audit, AuditQuery::new().with_cursor(Some(end))).await,
        [2, 3, 4]
    );
    let text = fs::read(&file).unwrap();
    assert!(
        text.split(|byte| *byte == b'\n')
            .any(|line| line == b"{\"event_id\":\"torn")
    );
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_not_written_to() {
    let folder = folder();
    let audit = daily(folder.path());
    emit(&audit, 0..1).await;
    let file = only_file(folder.path());
    let moved = folder.path().join("moved");
    fs::rename(&file, &moved).unwrap();
    emit(&audit, 1..2).await;
    fs::remove_file(&file).unwrap();
    emit(&audit, 2..3).await;
    assert_eq!(numbers(&audit, AuditQuery::new()).await, [2]);
    assert_eq!(fs::read_to_string(moved).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn the_end_of_the_trail_can_be_followed() {
    let folder = folder();
    let audit = daily(folder.path());
    let start = audit.end_cursor().await.unwrap();
    emit(&audit, 0..2).await;
    let middle = audit.end_cursor().await.unwrap();
    let after = |cursor: &String| AuditQuery::new().with_cursor(Some(cursor.clone()));
    assert_eq!(numbers(&audit, after(&middle)).await, [0_u64; 0]);
    emit(&audit, 2..4).await;
    assert_eq!(numbers(&audit, after(&start)).await, [0, 1, 2, 3]);
    assert_eq!(numbers(&audit, after(&middle)).await, [2, 3]);
}

#[tokio::test]
async fn an_event_that_came_twice_is_found_once_also_on_the_next_page() {
    let folder = folder();
    let audit = daily(folder.path());
    let twice = event(0);
    for event in [twice.clone(), event(1), twice.clone(), event(2), twice] {
        audit.emit(event).await.unwrap();
    }
    assert_eq!(numbers(&audit, AuditQuery::new()).await, [0, 1, 2]);
    let first = audit.query(AuditQuery::new().with_limit(1)).await.unwrap();
    assert_eq!(numbers(&audit, AuditQuery::new().with_cursor(first.next)).await, [1, 2]);
}

/// Three days with three events each, of which every third is grave.
fn three_days(folder: &Path) -> Vec<AuditEvent> {
    let mut events = Vec::new();
    for day in ["2026-01-01", "2026-01-02", "2026-01-03"] {
        for hour in [1, 12, 23] {
            let mut event = event(events.len());
            event.timestamp = format!("{day}T{hour:02}:00:00Z").parse().unwrap();
            if hour == 23 {
                event.severity = Severity::Critical;
            }
            let line = serde_json::to_string(&event).unwrap() + "\n";
            append(&folder.join(format!("{day}.jsonl")), line.as_bytes());
            events.push(event);
        }
    }
    for name in ["notes.txt", "2026-01-02.jsonl.gz", "2026-13-01.jsonl"] {
        append(&folder.join(name), b"not a record\n");
    }
    events
}

#[tokio::test]
async fn pages_go_from_day_to_day() {
    let folder = folder();
    let events = three_days(folder.path());
    let audit = daily(folder.path());
    for limit in 1..=10 {
        let mut found = Vec::new();
        let mut query = AuditQuery::new().with_limit(limit);
        loop {
            let page = audit.query(query.clone()).await.unwrap();
            assert!(!page.events.is_empty() && page.events.len() <= limit, "limit {limit}");
            found.extend(page.events);
            match page.next {
                None => break,
                next => query.cursor = next,
            }
        }
        assert_eq!(found, events, "limit {limit}");
    }
}

#[tokio::test]
async fn days_before_the_start_are_not_read_and_late_records_are_found() {
    let folder = folder();
    three_days(folder.path());
    let audit = daily(folder.path());
    let time = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    let cases = [
        (time("2026-01-02T12:00:00Z"), None, vec![4, 5, 6, 7, 8]),
        (None, time("2026-01-02T12:00:00Z"), vec![0, 1, 2, 3]),
        (time("2026-01-01T23:00:00Z"), time("2026-01-02T02:00:00Z"), vec![2, 3]),
        (time("2027-01-01T00:00:00Z"), None, vec![]),
    ];
    for (start, end, expected) in cases {
        let query = AuditQuery::new().with_start_time(start).with_end_time(end);
        assert_eq!(numbers(&audit, query).await, expected, "{start:?} to {end:?}");
    }
    // A folder in the place of an early file fails whoever reads it.
    fs::create_dir(folder.path().join("2025-12-01.jsonl")).unwrap();
    let query = AuditQuery::new().with_start_time(time("2026-01-03T00:00:00Z"));
    assert_eq!(numbers(&audit, query).await, [6, 7, 8]);
    assert!(audit.query(AuditQuery::new()).await.is_err());
    fs::remove_dir(folder.path().join("2025-12-01.jsonl")).unwrap();
    // An event that was written long after it happened.
    let mut late = event(9);
    late.timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
    audit.emit(late).await.unwrap();
    let query = AuditQuery::new().with_end_time(time("2026-01-01T13:00:00Z"));
    assert_eq!(numbers(&audit, query).await, [0, 1, 9]);
}

#[tokio::test]
async fn severity_and_session_select_across_days() {
    let folder = folder();
    three_days(folder.path());
    let audit = daily(folder.path());
    let grave = AuditQuery::new().with_severity(Some(Severity::Error));
    assert_eq!(numbers(&audit, grave.clone()).await, [2, 5, 8]);
    let session = SessionId::generate();
    audit.emit(event(9).with_session(session.clone())).await.unwrap();
    // The text of the session alone is not enough.
    audit
        .emit(event(10).with_fact("about", session.as_str()))
        .await
        .unwrap();
    assert_eq!(
        numbers(&audit, AuditQuery::new().with_session(Some(session))).await,
        [9]
    );
    // The page is full, and nothing that matches comes after.
    assert_eq!(audit.query(grave.with_limit(3)).await.unwrap().next, None);
}

#[tokio::test]
async fn bad_cursors_and_limits_are_refused() {
    let folder = folder();
    three_days(folder.path());
    let audit = daily(folder.path());
    let size = fs::metadata(folder.path().join("2026-01-01.jsonl")).unwrap().len();
    let past = format!("2026-01-01:{}", size + 1);
    for cursor in ["2026-01-01:3", &past, "2025-01-01:10", "file:0", "x"] {
        let error = audit
            .query(AuditQuery::new().with_cursor(Some(cursor.to_owned())))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{cursor}: {error}");
    }
    let error = audit.query(AuditQuery::new().with_limit(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    let end = format!("2026-01-01:{size}");
    let page = AuditQuery::new().with_cursor(Some(end)).with_limit(1);
    assert_eq!(numbers(&audit, page).await, [3]);
}

#[tokio::test]
async fn what_cannot_be_written_is_an_error_that_says_so() {
    let folder = folder();
    append(&folder.path().join("file"), b"");
    let below_a_file = FileAuditConfig::folder(folder.path().join("file/audit"));
    let in_proc = FileAuditConfig::folder("/proc/none/audit");
    let not_there = FileAuditConfig::folder(folder.path().join("none")).with_create_dirs(false);
    let no_file = FileAuditConfig::file(folder.path());
    for (config, kind) in [
        (below_a_file, None),
        (in_proc, Some(ErrorKind::NotFound)),
        (not_there, Some(ErrorKind::NotFound)),
        (no_file, None),
    ] {
        let audit = FileAudit::new(config).unwrap();
        let error = audit.emit(event(0)).await.unwrap_err();
        assert!(error.message().contains(&audit.info().name), "{error}");
        assert!(kind.is_none_or(|kind| error.kind() == kind), "{error:?}");
        let availability = audit.check_availability().await.unwrap();
        assert!(!availability.available && !availability.problems[0].remedy.is_empty());
    }
    assert!(!folder.path().join("none").exists());
}

#[tokio::test]
async fn a_full_disk_fails_everybody_who_waits() {
    let audit = Arc::new(FileAudit::new(FileAuditConfig::file("/dev/full")).unwrap());
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let audit = Arc::clone(&audit);
            tokio::spawn(async move { audit.emit(event(n)).await })
        })
        .collect();
    for task in tasks {
        let error = task.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error:?}");
        assert!(
            error.message().contains("/dev/full") && error.message().contains("make room"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn availability_leaves_nothing_behind() {
    let folder = folder();
    let audit = daily(folder.path());
    let availability = audit.check_availability().await.unwrap();
    assert!(availability.available, "{availability:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    emit(&audit, 0..1).await;
    assert!(audit.check_availability().await.unwrap().available);
    assert_eq!(fs::read_to_string(only_file(folder.path())).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn an_event_that_is_too_large_is_refused_alone() {
    let folder = folder();
    let audit = daily(folder.path());
    let huge = || event(1).with_fact("x", "x".repeat(1 << 20));
    assert_eq!(audit.emit(huge()).await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
    assert!(audit.emit_batch(vec![huge()]).await.is_err());
    let outcomes = audit.emit_batch(vec![event(0), huge(), event(2)]).await.unwrap();
    assert_eq!(
        outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, false, true]
    );
    assert_eq!(numbers(&audit, AuditQuery::new()).await, [0, 2]);
}

#[tokio::test]
async fn without_sync_events_are_written_but_not_called_durable() {
    let folder = folder();
    let config = FileAuditConfig::folder(folder.path()).with_sync(SyncMode::None);
    let audit = FileAudit::new(config).unwrap();
    assert!(!audit.capabilities().durable && daily(folder.path()).capabilities().durable);
    emit(&audit, 0..5).await;
    audit.flush().await.unwrap();
    assert_eq!(numbers(&audit, AuditQuery::new()).await, [0, 1, 2, 3, 4]);
}

#[derive(Debug)]
struct NoSecrets;

#[async_trait::async_trait]
impl SecretResolver for NoSecrets {
    async fn resolve(&self, _: &SecretRef) -> Result<SecretBytes, Error> {
        Err(Error::unsupported("there are no secrets here"))
    }
}

#[tokio::test]
async fn the_factory_puts_the_trail_into_the_state_folder_unless_told() {
    let context = BuildContext::new("/state", "/data", Arc::new(NoSecrets));
    for (config, location) in [
        (FileAuditConfig::default(), "/state/audit"),
        (FileAuditConfig::folder("/elsewhere"), "/elsewhere"),
        (FileAuditConfig::file("/elsewhere/log"), "/elsewhere/log"),
    ] {
        FileAuditFactory::validate(&config).unwrap();
        let audit = FileAuditFactory::build(config, &context).await.unwrap();
        assert_eq!((audit.info().name.as_str(), FileAuditFactory::TYPE), (location, "file"));
    }
    assert!(FileAudit::new(FileAuditConfig::default()).is_err());
    let relative = FileAudit::new(FileAuditConfig::folder("x")).unwrap();
    assert!(Path::new(&relative.location()).is_absolute());
}
