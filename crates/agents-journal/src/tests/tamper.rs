//! The verifiers find what somebody without the key does to a journal, and name the first bad record.

use std::{fs, path::PathBuf};

use agents_core::{AuditEvent, EventType, SessionId};
use agents_testkit::tamper;
use tempfile::TempDir;

use crate::{
    ChainKey, Checkpoint, CheckpointKind, EventVerifier, FaultKind, Hash, Journal, JournalOptions, Keys, Reader,
    Reading, canonical,
    folder::Folder,
    frame::{Frame, Frames, Step, push_checkpoint, push_record},
    verify, verify_events,
};

const EVENTS: u64 = 40;

/// A closed journal of some segments, and what was kept elsewhere.
struct Kept {
    folder: TempDir,
    key: ChainKey,
    known: Checkpoint,
}

impl Kept {
    async fn new(key: ChainKey, segment_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = JournalOptions::new(folder.path())
            .with_key(key.clone())
            .with_segment_bytes(segment_bytes)
            .with_checkpoint_every(7);
        let journal = Journal::open(options).await.unwrap();
        for n in 1..=EVENTS {
            let event = AuditEvent::now(EventType::AgentStarted)
                .with_session(SessionId::generate())
                .with_fact("n", n)
                .with_fact("deep", serde_json::json!({"b": [1.5, {}], "a": null}));
            journal.append_event(&event).await.unwrap();
        }
        let known = journal.checkpoint().await.unwrap();
        journal.close().await.unwrap();
        let kept = Self { folder, key, known };
        assert_eq!(kept.fault(true), None);
        kept
    }

    fn keys(&self) -> Keys {
        Keys::none().with(&self.key)
    }

    fn writer(&self) -> PathBuf {
        self.folder.path().join("0001")
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.writer()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let mut segments: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|end| end == "seg"))
            .collect();
        segments.sort();
        segments
    }

    async fn events(&self) -> Vec<AuditEvent> {
        let records = Reader::of_folder(self.writer(), 1).read(1000, 1 << 20).await.unwrap();
        records.iter().map(|record| record.event().unwrap()).collect()
    }

    /// What is found, and at which record.
    fn fault(&self, with_known: bool) -> Option<(FaultKind, Option<u64>)> {
        let known: &[_] = if with_known {
            std::slice::from_ref(&self.known)
        } else {
            &[]
        };
        let found = verify(self.folder.path(), &self.keys(), known).unwrap();
        found.first_fault().map(|fault| (fault.kind, fault.sequence))
    }
}

fn hmac() -> ChainKey {
    ChainKey::hmac(&[7; 32]).unwrap()
}

fn ed25519() -> ChainKey {
    ChainKey::ed25519(&[9; 32]).unwrap()
}

#[tokio::test]
async fn every_tampering_with_what_is_read_back_is_found() {
    let kept = Kept::new(hmac(), 1 << 20).await;
    let events = kept.events().await;
    for reading in [Reading::Ordered, Reading::Unordered] {
        let missed = tamper::missed(&events, |events| {
            let mut verifier = EventVerifier::new(kept.keys(), reading, vec![kept.known.clone()]);
            for event in events {
                // As a sink gives it back.
                let json = serde_json::to_value(event).unwrap();
                verifier.push(&serde_json::from_value(json).unwrap());
            }
            verifier.finish().fault.map(|fault| fault.sequence.unwrap())
        });
        assert_eq!(missed, [""; 0], "{reading:?}");
    }
}

#[tokio::test]
async fn every_tampering_with_the_records_of_the_file_is_found() {
    let kept = Kept::new(hmac(), 1 << 20).await;
    let [segment] = &kept.segments()[..] else {
        panic!("more than one segment");
    };
    let mut checkpoints = Vec::new();
    let folder = Folder {
        disk: std::sync::Arc::new(crate::disk::RealDisk),
        path: kept.writer(),
    };
    let (mut frames, begin) = folder.open_segment(1).unwrap();
    while let Step::Frame(frame) = frames.next().unwrap() {
        if let Frame::Checkpoint(point) = frame {
            checkpoints.push(point);
        }
    }
    let missed = tamper::missed(&kept.events().await, |events| {
        let mut bytes = Vec::new();
        push_checkpoint(&mut bytes, &begin);
        for event in events {
            let link = event.chain.as_ref().unwrap();
            let hash: Hash = link.hash.parse().unwrap();
            push_record(&mut bytes, link.sequence, link.sequence - 1, &hash, &canonical(event));
            for point in checkpoints.iter().filter(|point| point.sequence == link.sequence) {
                push_checkpoint(&mut bytes, point);
            }
        }
        fs::write(segment, &bytes).unwrap();
        kept.fault(true).map(|(_, sequence)| sequence.unwrap())
    });
    assert_eq!(missed, [""; 0]);
}

/// Where a frame starts, and what it is.
fn frames(path: &std::path::Path) -> Vec<(usize, Frame)> {
    let mut frames = Frames::new(Box::new(fs::File::open(path).unwrap()));
    let mut found = Vec::new();
    loop {
        let offset = frames.offset() as usize;
        match frames.next().unwrap() {
            Step::Frame(frame) => found.push((offset, frame)),
            Step::End | Step::Bad => return found,
        }
    }
}

#[tokio::test]
async fn every_tampering_with_files_is_found() {
    type Tamper = fn(&Kept, &[PathBuf]);
    let remove: Tamper = |_, segments| fs::remove_file(&segments[2]).unwrap();
    let table: &[(&str, Tamper, &[FaultKind])] = &[
        ("a segment is removed", remove, &[FaultKind::MissingSegment]),
        (
            "the first segment is removed",
            |_, segments| fs::remove_file(&segments[0]).unwrap(),
            &[FaultKind::MissingSegment],
        ),
        (
            "the last segment is removed",
            |_, segments| fs::remove_file(segments.last().unwrap()).unwrap(),
            &[FaultKind::CutTail],
        ),
        (
            "all segments are removed",
            |_, segments| segments.iter().for_each(|path| fs::remove_file(path).unwrap()),
            &[FaultKind::MissingWriter],
        ),
        (
            "a segment has the name of another",
            |_, segments| {
                fs::copy(&segments[2], &segments[1]).unwrap();
            },
            &[FaultKind::Damaged],
        ),
        (
            "a segment is cut off in a record",
            |_, segments| {
                let bytes = fs::read(&segments[1]).unwrap();
                fs::write(&segments[1], &bytes[..bytes.len() - 500]).unwrap();
            },
            &[FaultKind::Damaged, FaultKind::MissingCheckpoint],
        ),
        (
            "a segment is cut off behind a record",
            |_, segments| {
                let bytes = fs::read(&segments[1]).unwrap();
                let records = frames(&segments[1]);
                let last = records.iter().rfind(|(_, frame)| matches!(frame, Frame::Record(_)));
                fs::write(&segments[1], &bytes[..last.unwrap().0]).unwrap();
            },
            &[FaultKind::MissingCheckpoint],
        ),
        (
            "the last segment is cut off behind a record",
            |_, segments| {
                let last = segments.last().unwrap();
                let bytes = fs::read(last).unwrap();
                fs::write(last, &bytes[..frames(last)[2].0]).unwrap();
            },
            &[FaultKind::CutTail],
        ),
        (
            "the last segment is cut off in a record",
            |_, segments| {
                let last = segments.last().unwrap();
                let bytes = fs::read(last).unwrap();
                fs::write(last, &bytes[..frames(last)[1].0 + 70]).unwrap();
            },
            &[FaultKind::CutTail],
        ),
        (
            "the last record is damaged, in a journal that was closed",
            |_, segments| {
                let last = segments.last().unwrap();
                let mut bytes = fs::read(last).unwrap();
                let records = frames(last);
                let record = records.iter().rfind(|(_, frame)| matches!(frame, Frame::Record(_)));
                bytes[record.unwrap().0 + 100] ^= 1;
                fs::write(last, bytes).unwrap();
            },
            &[FaultKind::Damaged],
        ),
        (
            "a checkpoint is removed",
            |_, segments| {
                let path = &segments[1];
                let mut bytes = fs::read(path).unwrap();
                let all = frames(path);
                let (at, _) = all[1..]
                    .iter()
                    .find(|(_, frame)| matches!(frame, Frame::Checkpoint(_)))
                    .unwrap();
                let next = all.iter().map(|(start, _)| *start).find(|start| start > at);
                bytes.drain(at..&next.unwrap_or(bytes.len()));
                fs::write(path, bytes).unwrap();
            },
            &[FaultKind::MissingCheckpoint],
        ),
        (
            "bytes are made zero",
            |_, segments| {
                let mut bytes = fs::read(&segments[1]).unwrap();
                bytes[700..900].fill(0);
                fs::write(&segments[1], bytes).unwrap();
            },
            &[FaultKind::Damaged],
        ),
        (
            "a cut is forged",
            |kept, segments| {
                fs::remove_file(&segments[0]).unwrap();
                let (_, Frame::Checkpoint(begin)) = &frames(&segments[1])[0] else {
                    panic!("no begin");
                };
                let mut cut = begin.clone();
                cut.kind = CheckpointKind::Cut;
                let mut bytes = Vec::new();
                push_checkpoint(&mut bytes, &cut);
                fs::write(kept.writer().join("cut"), bytes).unwrap();
            },
            &[FaultKind::ForgedCheckpoint],
        ),
        (
            "a segment begins with the proof of another checkpoint",
            |_, segments| {
                let (_, Frame::Checkpoint(mut begin)) = frames(&segments[1]).swap_remove(0) else {
                    panic!("no begin");
                };
                begin.every = 1 << 20;
                let rest = frames(&segments[1])[1].0;
                let mut bytes = Vec::new();
                push_checkpoint(&mut bytes, &begin);
                bytes.extend_from_slice(&fs::read(&segments[1]).unwrap()[rest..]);
                fs::write(&segments[1], bytes).unwrap();
            },
            &[FaultKind::ForgedCheckpoint],
        ),
        (
            "the writer's folder is removed",
            |kept, _| fs::remove_dir_all(kept.writer()).unwrap(),
            &[FaultKind::MissingWriter],
        ),
        (
            "the lock is removed, and a segment",
            |kept, segments| {
                fs::remove_file(kept.writer().join("lock")).unwrap();
                fs::remove_file(&segments[1]).unwrap();
            },
            &[FaultKind::MissingSegment],
        ),
    ];
    for key in [hmac(), ed25519()] {
        for (name, tamper, kinds) in table {
            let kept = Kept::new(key.clone(), 3000).await;
            assert!(kept.segments().len() > 4);
            tamper(&kept, &kept.segments());
            let (kind, _) = kept.fault(true).unwrap_or_else(|| panic!("{name}, {key:?}: not found"));
            assert!(kinds.contains(&kind), "{name}, {key:?}: {kind}");
        }
    }
}

#[tokio::test]
async fn every_flipped_bit_before_the_last_checkpoint_is_found() {
    for key in [ChainKey::none(), hmac(), ed25519()] {
        let kept = Kept::new(key, 3000).await;
        let segment = &kept.segments()[1];
        let bytes = fs::read(segment).unwrap();
        for at in (0..bytes.len()).step_by(3) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(segment, flipped).unwrap();
            assert!(kept.fault(false).is_some(), "byte {at}, {:?}", kept.key);
        }
    }
}

#[tokio::test]
async fn a_journal_is_not_verified_with_other_keys_and_a_plain_one_not_with_keys() {
    let keyed = Kept::new(hmac(), 1 << 20).await;
    let found = |kept: &Kept, keys: &Keys| {
        let found = verify(kept.folder.path(), keys, &[]).unwrap();
        found.first_fault().map(|fault| fault.kind)
    };
    let other = Keys::none().with(&ChainKey::hmac(&[8; 32]).unwrap());
    assert_eq!(found(&keyed, &Keys::none()), Some(FaultKind::UnknownKey));
    assert_eq!(found(&keyed, &other), Some(FaultKind::UnknownKey));
    assert_eq!(found(&keyed, &other.clone().with(&hmac())), None);
    let plain = Kept::new(ChainKey::none(), 1 << 20).await;
    assert_eq!(found(&plain, &Keys::none()), None);
    assert_eq!(found(&plain, &other), Some(FaultKind::Unkeyed));
    let events = plain.events().await;
    let found = |keys: &Keys| verify_events(events.clone(), keys, &[]).fault.map(|fault| fault.kind);
    assert_eq!((found(&Keys::none()), found(&other)), (None, Some(FaultKind::Unkeyed)));
}

#[tokio::test]
async fn a_chain_goes_on_under_another_key_and_proves_what_was_before() {
    let kept = Kept::new(ChainKey::none(), 1 << 20).await;
    let keys = [ed25519(), hmac()];
    for key in &keys {
        let options = JournalOptions::new(kept.folder.path()).with_key(key.clone());
        let journal = Journal::open(options).await.unwrap();
        journal.append("more").await.unwrap();
        // It crashes.
        drop(journal);
        while crate::journal::find_writers(kept.folder.path()).unwrap()[0].live {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    let all = Keys::none().with(&keys[0]).with(&keys[1]);
    let found = verify(kept.folder.path(), &all, std::slice::from_ref(&kept.known)).unwrap();
    assert!(!found.is_intact(), "the checkpoint has no key");
    let found = verify(kept.folder.path(), &all, &[]).unwrap();
    assert_eq!(found.first_fault(), None);
    assert_eq!((found.records(), found.writers[0].proven), (EVENTS + 2, EVENTS + 2));
}

#[tokio::test]
async fn what_a_query_selects_comes_in_any_order_and_maybe_again() {
    let kept = Kept::new(hmac(), 1 << 20).await;
    let events = kept.events().await;
    let found = |events: &[AuditEvent], reading: Reading| {
        let mut verifier = EventVerifier::new(kept.keys(), reading, vec![kept.known.clone()]);
        for event in events {
            verifier.push(event);
        }
        let found = verifier.finish();
        (found.fault.map(|fault| fault.kind), found.events, found.repeats)
    };
    let mut shuffled = events.clone();
    shuffled.reverse();
    shuffled.swap(3, 30);
    assert_eq!(found(&shuffled, Reading::Unordered), (None, EVENTS, 0));
    assert_eq!(found(&shuffled, Reading::Ordered).0, Some(FaultKind::MissingRecord));
    let selected: Vec<_> = shuffled.iter().step_by(3).cloned().collect();
    assert_eq!(found(&selected, Reading::Excerpt), (None, 14, 0));
    assert_eq!(found(&selected, Reading::Unordered).0, Some(FaultKind::MissingRecord));
    shuffled.push(events[5].clone());
    assert_eq!(found(&shuffled, Reading::Repeated), (None, EVENTS, 1));
    assert_eq!(found(&shuffled, Reading::Unordered).0, Some(FaultKind::OutOfOrder));
    let mut edited = selected;
    edited[4].tags.push("x".to_owned());
    assert_eq!(found(&edited, Reading::Excerpt).0, Some(FaultKind::Edited));
    let mut bare = events.clone();
    bare[3].chain = None;
    assert_eq!(found(&bare, Reading::Ordered).0, Some(FaultKind::Unlinked));
}

#[tokio::test]
async fn a_trail_without_its_first_part_begins_behind_a_checkpoint() {
    let kept = Kept::new(ed25519(), 3000).await;
    let events = kept.events().await;
    let rest = || events[10..].iter().cloned();
    assert_eq!(
        verify_events(rest(), &kept.keys(), &[]).fault.map(|fault| fault.kind),
        Some(FaultKind::MissingRecord)
    );
    let link = events[9].chain.as_ref().unwrap();
    let end = (link.sequence, link.hash.parse().unwrap());
    let cut = Checkpoint::new(CheckpointKind::Cut, &link.writer, end, 7, &kept.key);
    let found = verify_events(rest(), &kept.keys(), &[cut.clone(), kept.known.clone()]);
    assert_eq!(found.fault, None);
    assert_eq!((found.writers[0].first, found.writers[0].proven), (11, EVENTS));
    let mut forged = cut;
    forged.sequence += 1;
    assert_eq!(
        verify_events(rest(), &kept.keys(), &[forged])
            .fault
            .map(|fault| fault.kind),
        Some(FaultKind::ForgedCheckpoint)
    );
}
