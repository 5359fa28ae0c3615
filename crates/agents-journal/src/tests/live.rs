//! Readers, cursors, cuts and several writers.

use std::{sync::Arc, time::Duration};

use agents_core::ErrorKind;
use bytes::Bytes;

use crate::{
    ChainKey, Durability, FaultKind, Journal, JournalOptions, Keys, Reader, Retention, fake::FakeDisk,
    journal::find_writers, verify, writers,
};

fn options(folder: &tempfile::TempDir) -> JournalOptions {
    JournalOptions::new(folder.path())
        .with_segment_bytes(2000)
        .with_checkpoint_every(10)
        .with_key(ChainKey::hmac(&[7; 32]).unwrap())
}

fn keys() -> Keys {
    Keys::none().with(&ChainKey::hmac(&[7; 32]).unwrap())
}

async fn fill(journal: &Journal, range: std::ops::Range<u64>) {
    for n in range {
        let receipt = journal.append(n.to_string()).await.unwrap();
        assert_eq!(receipt.sequence, n);
    }
}

fn numbers(records: &[crate::Record]) -> Vec<u64> {
    let read = |record: &crate::Record| str::from_utf8(&record.payload).unwrap().parse().unwrap();
    for record in records {
        assert_eq!(record.sequence, read(record));
    }
    records.iter().map(read).collect()
}

#[tokio::test]
async fn a_cursor_goes_on_after_a_restart_and_what_is_acknowledged_can_go() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(options(&folder)).await.unwrap();
    fill(&journal, 1..101).await;
    let mut cursor = journal.cursor("a").await.unwrap();
    assert_eq!((cursor.name(), cursor.acknowledged(), cursor.depth()), ("a", 0, 100));
    let records = cursor.next(30, 1 << 20).await.unwrap();
    assert_eq!(numbers(&records), (1..31).collect::<Vec<_>>());
    assert_eq!(
        cursor.acknowledge(31).await.unwrap_err().kind(),
        ErrorKind::ConfigInvalid
    );
    cursor.acknowledge(25).await.unwrap();
    // At most so many bytes: one of two digits, and another.
    assert_eq!(numbers(&cursor.next(30, 5).await.unwrap()), [31, 32]);
    assert_eq!(numbers(&cursor.next(1, 0).await.unwrap()), [33]);
    cursor.rewind();
    assert_eq!(numbers(&cursor.next(2, 100).await.unwrap()), [26, 27]);
    journal.close().await.unwrap();

    let journal = Journal::open(options(&folder)).await.unwrap();
    let mut cursor = journal.cursor("a").await.unwrap();
    assert_eq!((cursor.acknowledged(), cursor.depth()), (25, 75));
    assert_eq!(numbers(&cursor.next(3, 1 << 20).await.unwrap()), [26, 27, 28]);
    let before = journal.status();
    // Another cursor that is not as far keeps what it needs.
    let slow = journal.cursor("slow").await.unwrap();
    journal.reclaim().await.unwrap();
    assert_eq!(journal.status(), before);
    drop(slow);
    std::fs::remove_file(before.folder.join("slow.cursor")).unwrap();
    journal.reclaim().await.unwrap();
    let after = journal.status();
    assert!(
        after.first > 1 && after.first <= 26 && after.bytes < before.bytes,
        "{after:?}"
    );
    assert_eq!(numbers(&cursor.next(1, 1 << 20).await.unwrap()), [29]);
    let error = journal.reader(1).read(1, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    // A cursor that is new begins at what is there.
    assert_eq!(journal.cursor("new").await.unwrap().acknowledged(), after.first - 1);
    journal.close().await.unwrap();

    let found = verify(folder.path(), &keys(), &[]).unwrap();
    assert_eq!(found.first_fault(), None);
    assert_eq!(
        (found.writers[0].first, found.writers[0].cut, found.writers[0].last),
        (after.first, after.first - 1, 100)
    );
    assert!(found.writers[0].closed);
    std::fs::remove_file(before.folder.join("cut")).unwrap();
    let found = verify(folder.path(), &keys(), &[]).unwrap();
    assert_eq!(found.first_fault().unwrap().kind, FaultKind::MissingSegment);
}

#[tokio::test]
async fn a_reader_waits_for_more_and_ends_with_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(options(&folder)).await.unwrap());
    let mut reader = journal.reader(0);
    assert!(reader.read(10, 1000).await.unwrap().is_empty());
    let task = tokio::spawn(async move {
        let mut found = Vec::new();
        loop {
            let records = reader.next(7, 1 << 20).await.unwrap();
            if records.is_empty() {
                return found;
            }
            found.extend(numbers(&records));
        }
    });
    fill(&journal, 1..201).await;
    journal.close().await.unwrap();
    assert_eq!(task.await.unwrap(), (1..201).collect::<Vec<_>>());
    assert_eq!(journal.append("x").await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(journal.flush().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(journal.close().await.unwrap_err().kind(), ErrorKind::Conflict);
    // Without the journal, too.
    let mut reader = Reader::of_folder(folder.path().join("0001"), 190);
    assert_eq!(
        numbers(&reader.next(100, 1 << 20).await.unwrap()),
        (190..201).collect::<Vec<_>>()
    );
    assert_eq!(reader.position(), 201);
    assert!(reader.next(100, 1 << 20).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_reader_never_sees_what_was_not_acknowledged() {
    let mut all = 0;
    for seed in 0..30 {
        let disk = FakeDisk::new(seed);
        let options = JournalOptions::new("/j").with_segment_bytes(2000).with_writer("w");
        let journal = Journal::open_on(Arc::new(disk.clone()), options).await.unwrap();
        let mut reader = journal.reader(1);
        let (mut acknowledged, mut found) = (Vec::new(), Vec::new());
        for n in 0..150_u64 {
            // The disk fails while it is written to, and not while it is read.
            disk.fail_one_in(if n % 3 == 0 { 6 } else { 0 });
            let payload = Bytes::from(format!("{n} {}", "x".repeat((n % 90) as usize)));
            if journal.append(payload.clone()).await.is_ok() {
                acknowledged.push(payload);
            }
            disk.fail_one_in(0);
            if disk.stopped() {
                break;
            }
            if n % 5 == 0 {
                let records = reader.read(1000, 1 << 20).await.unwrap();
                found.extend(records.into_iter().map(|record| record.payload));
                assert_eq!(found, acknowledged, "seed {seed}");
            }
        }
        all += acknowledged.len();
    }
    assert!(all > 300, "{all}");
}

#[tokio::test]
async fn writers_have_chains_of_their_own_and_a_folder_is_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let one = Journal::open(options(&folder)).await.unwrap();
    let two = Journal::open(options(&folder)).await.unwrap();
    let named = Journal::open(options(&folder).with_writer("named")).await.unwrap();
    let taken = Journal::open(options(&folder).with_writer("named")).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict, "{taken}");
    for journal in [&one, &two, &named] {
        fill(journal, 1..4).await;
    }
    let writer = one.status().writer;
    assert_ne!(writer, two.status().writer);
    one.close().await.unwrap();
    let found = writers(folder.path()).await.unwrap();
    let lives: Vec<_> = found.iter().map(|writer| (writer.name.as_str(), writer.live)).collect();
    assert_eq!(lives, [("0001", false), ("0002", true), ("named", true)]);
    // The first that nobody has.
    let again = Journal::open(options(&folder)).await.unwrap();
    assert_eq!(again.status().writer, writer);
    fill(&again, 4..6).await;
    let found = verify(folder.path(), &keys(), &[]).unwrap();
    assert_eq!(found.first_fault(), None);
    assert_eq!((found.writers.len(), found.records()), (3, 11));
}

#[tokio::test]
async fn a_full_journal_refuses_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder).with_max_bytes(20_000);
    let journal = Journal::open(options).await.unwrap();
    let mut cursor = journal.cursor("c").await.unwrap();
    let mut taken = 0;
    let error = loop {
        match journal.append(vec![b'x'; 500]).await {
            Ok(receipt) => taken = receipt.sequence,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(error.message().contains("full") && taken > 10, "{error} after {taken}");
    assert!(!journal.status().failing && journal.status().bytes <= 20_000);
    // All or none of a batch.
    assert!(journal.append_batch(vec![Bytes::from_static(b"x"); 100]).await.is_err());
    assert_eq!(journal.status().sequence, taken);
    let records = cursor.next(1000, 1 << 20).await.unwrap();
    cursor.acknowledge(records.last().unwrap().sequence).await.unwrap();
    journal.reclaim().await.unwrap();
    assert_eq!(journal.append(vec![b'x'; 500]).await.unwrap().sequence, taken + 1);
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_refused_alone() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(options(&folder)).await.unwrap();
    let large = journal.append(vec![0; 2 << 20]);
    let after = journal.append("after");
    assert_eq!(large.await.unwrap_err().kind(), ErrorKind::ConfigInvalid);
    assert_eq!(after.await.unwrap().sequence, 1);
    assert!(journal.append(vec![0; 1 << 20]).await.is_ok());
    assert!(journal.append_batch(Vec::new()).await.unwrap().is_empty());
    journal.close().await.unwrap();
    assert_eq!(verify(folder.path(), &keys(), &[]).unwrap().records(), 2);
}

#[tokio::test]
async fn retention_removes_the_oldest_but_nothing_that_a_cursor_needs() {
    let folder = tempfile::tempdir().unwrap();
    let kept = options(&folder).with_retention(Retention::none().with_max_bytes(6000));
    let journal = Journal::open(kept).await.unwrap();
    let cursor = journal.cursor("c").await.unwrap();
    fill(&journal, 1..200).await;
    assert_eq!(journal.status().first, 1);
    std::fs::remove_file(journal.status().folder.join("c.cursor")).unwrap();
    drop(cursor);
    fill(&journal, 200..300).await;
    let status = journal.status();
    assert!(status.first > 200 && status.bytes < 9000, "{status:?}");
    journal.close().await.unwrap();

    let aged = options(&folder).with_retention(Retention::none().with_max_age(Duration::from_millis(20)));
    let journal = Journal::open(aged).await.unwrap();
    fill(&journal, 300..330).await;
    // A segment is as old as the beginning of the one after it.
    tokio::time::sleep(Duration::from_millis(30)).await;
    fill(&journal, 330..360).await;
    assert!(journal.status().first > 290, "{:?}", journal.status());
    journal.close().await.unwrap();
    let found = verify(folder.path(), &keys(), &[]).unwrap();
    assert_eq!(found.first_fault(), None);
    assert_eq!(found.writers[0].last, 359);
}

#[tokio::test]
async fn an_interval_syncs_of_itself() {
    let folder = tempfile::tempdir().unwrap();
    let disk = FakeDisk::new(1);
    let interval = options(&folder).with_durability(Durability::Interval(Duration::from_millis(5)));
    let interval = JournalOptions {
        path: "/j".into(),
        ..interval
    };
    let journal = Journal::open_on(Arc::new(disk.clone()), interval.clone())
        .await
        .unwrap();
    fill(&journal, 1..6).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    disk.crash();
    let again = Journal::open_on(Arc::new(disk), interval).await.unwrap();
    assert_eq!(again.status().sequence, 5);
    drop(journal);
}

#[tokio::test]
async fn acknowledged_records_that_are_damaged_are_not_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(options(&folder).with_segment_bytes(1 << 20))
        .await
        .unwrap();
    fill(&journal, 1..6).await;
    let path = journal.status().folder.join("00000000000000000001.seg");
    drop(journal);
    while find_writers(folder.path()).unwrap()[0].live {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let bytes = std::fs::read(&path).unwrap();
    let mut damaged = bytes.clone();
    let at = bytes.len() - 150;
    damaged[at] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let error = Journal::open(options(&folder)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataInvalid, "{error}");
    assert!(error.message().contains("was on record"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), damaged);
    assert_eq!(
        verify(folder.path(), &keys(), &[]).unwrap().first_fault().unwrap().kind,
        FaultKind::Damaged
    );
    // A record that is torn at the end is what a crash leaves.
    std::fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
    let found = verify(folder.path(), &keys(), &[]).unwrap();
    assert_eq!((found.first_fault(), found.records()), (None, 4));
    assert!(found.writers[0].torn_bytes > 0);
    assert_eq!(Journal::open(options(&folder)).await.unwrap().status().sequence, 4);
}

#[tokio::test]
async fn a_backlog_is_told_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = crate::backlog(folder.path(), "a").await.unwrap();
    assert_eq!((nothing.records, nothing.oldest, nothing.bytes), (0, None, 0));
    let journal = Journal::open(options(&folder)).await.unwrap();
    let path = journal.status().folder;
    let look = async |cursor: &str| {
        let found = crate::backlog(&path, cursor).await.unwrap();
        (found.records, found.oldest.map(|record| record.sequence))
    };
    assert_eq!(look("a").await, (0, None));
    fill(&journal, 1..101).await;
    assert_eq!(look("a").await, (100, Some(1)));
    let mut cursor = journal.cursor("a").await.unwrap();
    cursor.next(70, 1 << 20).await.unwrap();
    cursor.acknowledge(70).await.unwrap();
    journal.reclaim().await.unwrap();
    assert_eq!(look("a").await, (30, Some(71)));
    // A cursor that is not there has acknowledged nothing of what is.
    let first = journal.status().first;
    assert_eq!(look("b").await, (101 - first, Some(first)));
    let bytes = crate::backlog(&path, "a").await.unwrap().bytes;
    assert_eq!(bytes, journal.status().bytes);
    cursor.next(70, 1 << 20).await.unwrap();
    cursor.acknowledge(100).await.unwrap();
    journal.close().await.unwrap();
    assert_eq!(look("a").await, (0, None));
}
