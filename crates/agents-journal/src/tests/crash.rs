//! The promises, on a disk that fails at any call and a machine that stops at any call.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use agents_core::{ErrorKind, Result};
use bytes::Bytes;

use crate::{
    ChainKey, Checkpoint, Durability, JournalOptions, Keys,
    fake::{EIO, ENOSPC, FakeDisk, Fault, Random},
    folder::Folder,
    frame::{Frame, Step},
    group::Sink,
    store::Store,
    verify::verify_writer,
};

/// What was done, and what must therefore be there.
struct Model {
    disk: FakeDisk,
    options: JournalOptions,
    random: Random,
    /// The payloads that were acknowledged, with their places.
    acknowledged: Vec<(u64, Bytes)>,
    known: Vec<Checkpoint>,
    /// How much of what was acknowledged is durable.
    durable: usize,
    cut: u64,
    attempts: u64,
}

impl Model {
    fn new(seed: u64, key: &ChainKey, durability: Durability) -> Self {
        let options = JournalOptions::new("/journal")
            .with_writer("w")
            .with_key(key.clone())
            .with_durability(durability)
            .with_segment_bytes(3000)
            .with_checkpoint_every(5);
        Self {
            disk: FakeDisk::new(seed),
            options,
            random: Random(seed),
            acknowledged: Vec::new(),
            known: Vec::new(),
            durable: 0,
            cut: 0,
            attempts: 0,
        }
    }

    fn folder(&self) -> Folder {
        Folder {
            disk: Arc::new(self.disk.clone()),
            path: "/journal/w".into(),
        }
    }

    /// Opens the journal, whatever goes wrong on the way but damage.
    fn open(&mut self) -> Store {
        for _ in 0..1000 {
            if self.disk.stopped() {
                self.disk.crash();
                self.after_crash();
            }
            match Store::open(Arc::new(self.disk.clone()), self.options.clone()) {
                Ok(store) => return store,
                Err(error) => assert_ne!(error.kind(), ErrorKind::DataInvalid, "{error:?}"),
            }
        }
        panic!("it never opens");
    }

    /// Does what writers do, and goes on after everything that goes wrong.
    fn work(&mut self, steps: u64) {
        let mut store = self.open();
        for _ in 0..steps {
            if self.disk.stopped() {
                // First what still has the files.
                drop(store);
                self.disk.crash();
                self.after_crash();
                store = self.open();
            }
            match self.random.below(20) {
                0 => {
                    if store.flush().is_ok() {
                        self.durable = self.acknowledged.len();
                    }
                }
                1 => {
                    if let Ok(point) = store.checkpoint() {
                        self.durable = self.acknowledged.len();
                        self.known.push(point);
                    }
                }
                2 => {
                    if store.close().is_ok() {
                        self.durable = self.acknowledged.len();
                    }
                    drop(store);
                    store = self.open();
                }
                // The process is killed: what the kernel has stays.
                3 => {
                    drop(store);
                    store = self.open();
                }
                4 => {
                    let through = self.random.below(store.at.sequence + 1);
                    // Also when it fails, the cut may be on record.
                    let _: Result<()> = store.cut(through);
                    self.cut = self.cut.max(through);
                }
                5 => {
                    store.options.durability = self.options.durability;
                    store.idle();
                }
                _ => self.commit(&mut store),
            }
        }
    }

    fn commit(&mut self, store: &mut Store) {
        let mut batches = Vec::new();
        for _ in 0..=self.random.below(4) {
            let mut batch = Vec::new();
            for _ in 0..=self.random.below(3) {
                self.attempts += 1;
                let padding = self.random.below(300) as usize;
                batch.push(Bytes::from(format!("{:08}{}", self.attempts, "x".repeat(padding))));
            }
            batches.push(batch);
        }
        let outcomes = store.commit(batches.clone());
        assert_eq!(outcomes.len(), batches.len());
        for (batch, outcome) in batches.into_iter().zip(outcomes) {
            let Ok(receipts) = outcome else { continue };
            for (payload, receipt) in batch.into_iter().zip(receipts) {
                self.acknowledged.push((receipt.sequence, payload));
            }
        }
        if self.options.durability == Durability::EveryCommit {
            self.durable = self.acknowledged.len();
        }
    }

    /// What was not durable may be gone. What is there of it goes on as if nothing had happened.
    fn after_crash(&mut self) {
        self.acknowledged.truncate(self.durable);
    }

    /// Whether everything is there: in order, once, and the chain verifies.
    fn check(&mut self, keys: &Keys, crash: bool) {
        self.disk.fail_one_in(0);
        if crash || self.disk.stopped() {
            self.disk.crash();
            self.after_crash();
        }
        let before = verify_writer(&self.folder(), keys, &self.known).unwrap();
        if let Some(fault) = before.and_then(|found| found.fault) {
            panic!("before recovery: {fault}");
        }
        let store = self.open();
        let found = verify_writer(&self.folder(), keys, &self.known).unwrap().unwrap();
        assert_eq!(found.fault, None, "after recovery");
        assert_eq!((found.last, found.torn_bytes), (store.at.sequence, 0));
        assert!(found.cut <= self.cut && found.first <= self.cut + 1);
        drop(store);

        let there = records(&self.folder());
        let sequences: Vec<_> = there.iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(sequences, (found.first..=found.last).collect::<Vec<_>>(), "gap-free");
        let distinct: BTreeSet<_> = there.iter().map(|(_, payload)| payload).collect();
        assert_eq!(distinct.len(), there.len(), "each once");
        let expected = self
            .acknowledged
            .iter()
            .filter(|(sequence, _)| *sequence >= found.first);
        for (sequence, payload) in expected {
            let at = usize::try_from(sequence - found.first).unwrap();
            assert_eq!(
                there.get(at).map(|(_, payload)| payload),
                Some(payload),
                "record {sequence} of {} acknowledged is not there",
                self.acknowledged.len()
            );
        }
        assert!(
            self.acknowledged.is_sorted_by_key(|(sequence, _)| *sequence),
            "in order"
        );
    }
}

fn records(folder: &Folder) -> Vec<(u64, Bytes)> {
    let mut records = Vec::new();
    for first in folder.segments().unwrap() {
        let (mut frames, _) = folder.open_segment(first).unwrap();
        loop {
            match frames.next().unwrap() {
                Step::Frame(Frame::Record(record)) => records.push((record.sequence, record.payload)),
                Step::Frame(_) => {}
                Step::End => break,
                Step::Bad => panic!("a torn record after recovery"),
            }
        }
    }
    records
}

fn keys() -> [ChainKey; 3] {
    [
        ChainKey::none(),
        ChainKey::hmac(&[7; 32]).unwrap(),
        ChainKey::ed25519(&[9; 32]).unwrap(),
    ]
}

#[test]
fn every_call_may_fail_and_the_machine_may_stop_in_it() {
    let mut runs = 0;
    for (n, key) in keys().iter().enumerate() {
        let keys = Keys::none().with(key);
        for seed in 0..=(n as u64 % 2) {
            let seed = seed * 100 + n as u64;
            let calls = {
                let mut model = Model::new(seed, key, Durability::EveryCommit);
                model.work(25);
                let calls = model.disk.calls();
                model.check(&keys, true);
                assert!(model.acknowledged.len() > 20, "{}", model.acknowledged.len());
                calls
            };
            for call in 1..=calls {
                for fault in [Fault::Error(EIO), Fault::Error(ENOSPC), Fault::Stop] {
                    let mut model = Model::new(seed, key, Durability::EveryCommit);
                    model.disk.fail(call, fault);
                    model.work(25);
                    model.check(&keys, call % 3 > 0);
                    runs += 1;
                }
            }
        }
    }
    assert!(runs > 1000, "{runs}");
}

#[test]
fn faults_upon_faults_lose_nothing() {
    let key = ChainKey::hmac(&[7; 32]).unwrap();
    let keys = Keys::none().with(&key);
    for seed in 0..400 {
        let mut model = Model::new(seed, &key, Durability::EveryCommit);
        model.disk.fail_one_in(20 + seed % 60);
        model.work(60);
        model.check(&keys, seed % 2 == 0);
    }
}

#[test]
fn without_durability_what_was_flushed_is_there_and_the_rest_is_a_sound_tail() {
    let key = ChainKey::hmac(&[7; 32]).unwrap();
    let keys = Keys::none().with(&key);
    for seed in 0..300 {
        let durability = match seed % 2 {
            0 => Durability::None,
            _ => Durability::Interval(Duration::from_micros(20)),
        };
        let mut model = Model::new(seed, &key, durability);
        model.disk.fail_one_in([0, 30, 80][seed as usize % 3]);
        model.work(60);
        model.check(&keys, seed % 4 > 0);
    }
}
