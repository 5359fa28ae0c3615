//! Alone in its program, since it counts what the whole process writes.

use std::{fs, sync::Arc};

use agents_audit_file::{FileAudit, FileAuditConfig};
use agents_core::{AuditEvent, AuditLogger, EventType};

/// The `write` calls of this process so far, proc(5).
fn writes() -> usize {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("syscw: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn one_event_is_one_write_and_concurrent_ones_share_them() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Arc::new(FileAudit::new(FileAuditConfig::folder(folder.path())).unwrap());
    let emit = |audit: Arc<FileAudit>, count: usize| async move {
        for _ in 0..count {
            audit.emit(AuditEvent::now(EventType::SystemWarning)).await.unwrap();
        }
    };
    // Without drivers, so that the runtimes write nothing themselves.
    let one = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let before = writes();
    one.block_on(emit(Arc::clone(&audit), 50));
    assert_eq!(writes() - before, 50);

    let many = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let before = writes();
    let tasks: Vec<_> = (0..64).map(|_| many.spawn(emit(Arc::clone(&audit), 50))).collect();
    for task in tasks {
        one.block_on(task).unwrap();
    }
    let shared = writes() - before;
    assert!(shared < 64 * 50 / 4, "{shared} writes for 3200 events of 64 tasks");
}
