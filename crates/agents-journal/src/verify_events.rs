//! Verifies what is read back from a sink.

use std::collections::BTreeMap;

use agents_core::{AuditEvent, ChainLink};
use serde::Serialize;

use crate::{
    event::canonical,
    fault::{Fault, FaultKind},
    hash::Hash,
    keys::{Keys, genesis},
    statement::{Checkpoint, CheckpointKind},
    verify::{check_known, missing_writer},
};

/// What the events that are verified are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reading {
    /// Everything of each writer, in the order of writing, each once: a file.
    #[default]
    Ordered,
    /// Everything of each writer, each once, in any order: what a sink that sorts by time gives. Needs about 100 bytes of
    /// memory for each event.
    Unordered,
    /// As `Unordered`, but an event may come again, as it was: a sink that cannot tell repeated deliveries.
    Repeated,
    /// What a query selected, in any order. What is missing cannot be told from what was not selected.
    Excerpt,
}

/// What a verification of events found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EventVerification {
    /// How many events were sound.
    pub events: u64,
    /// How many came again.
    pub repeats: u64,
    /// How many came before the first one that has a place in a chain: an older trail.
    pub unlinked: u64,
    /// Each writer.
    pub writers: Vec<EventWriter>,
    /// The first thing that is wrong.
    pub fault: Option<Fault>,
}

/// A writer whose events were verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EventWriter {
    /// The writer, a UUID.
    pub writer: String,
    /// The first event.
    pub first: u64,
    /// The last event.
    pub last: u64,
    /// The hash of the last event.
    pub hash: Hash,
    /// Everything up to here is proven by a secret key, or by a checkpoint that was kept elsewhere.
    pub proven: u64,
}

impl EventVerification {
    /// Whether nothing is wrong.
    pub fn is_intact(&self) -> bool {
        self.fault.is_none()
    }
}

/// Verifies everything that was read back from a sink, in the order of writing: as [`EventVerifier`] with
/// [`Reading::Ordered`].
pub fn verify_events(
    events: impl IntoIterator<Item = AuditEvent>,
    keys: &Keys,
    known: &[Checkpoint],
) -> EventVerification {
    let mut verifier = EventVerifier::new(keys.clone(), Reading::Ordered, known.to_vec());
    for event in events {
        verifier.push(&event);
    }
    verifier.finish()
}

/// Verifies events one after the other.
///
/// `known` are checkpoints that were kept elsewhere. They find a tail that was cut off, they are what signs the chain of an
/// Ed25519 key, and one of them is where a trail may begin whose first part was removed. One of kind
/// [`CheckpointKind::Cut`] says that it was.
#[derive(Debug)]
pub struct EventVerifier {
    keys: Keys,
    reading: Reading,
    known: Vec<Checkpoint>,
    chains: BTreeMap<String, Chain>,
    result: EventVerification,
}

#[derive(Debug, Default)]
struct Chain {
    /// Those that are not linked yet, by sequence. In order, there is at most one.
    links: BTreeMap<u64, Link>,
    end: Option<(u64, Link)>,
    /// The first event that no key has sealed, nor any after it.
    unkeyed: Option<(u64, String)>,
    first: u64,
    proven: u64,
}

impl Chain {
    /// What is wrong with a chain that has a secret key, and whose end no key has sealed.
    fn unkeyed_fault(&self, writer: &str, keys: &Keys) -> Option<Box<Fault>> {
        let (first, event_id) = self.unkeyed.as_ref().filter(|_| keys.has_secret())?;
        let detail = "no key has sealed it, nor any event after it";
        let mut fault = Fault::new(FaultKind::Unkeyed, writer, Some(*first), detail);
        fault.event_id = Some(event_id.clone());
        Some(Box::new(fault))
    }
}

#[derive(Clone, Debug)]
struct Link {
    previous: Hash,
    hash: Hash,
    /// No key has sealed it.
    plain: bool,
    event_id: String,
}

impl EventVerifier {
    /// Begins a verification.
    pub fn new(keys: Keys, reading: Reading, known: Vec<Checkpoint>) -> Self {
        let result = EventVerification {
            fault: check_known(&keys, &known).into_iter().next(),
            ..EventVerification::default()
        };
        Self {
            keys,
            reading,
            known,
            chains: BTreeMap::new(),
            result,
        }
    }

    /// Takes the next event. After the first fault, nothing is looked at any more.
    pub fn push(&mut self, event: &AuditEvent) {
        if self.result.fault.is_some() {
            return;
        }
        if let Err(fault) = self.take(event) {
            self.result.fault = Some(*fault);
        }
    }

    /// Takes something that is no event, though it is where events are. It breaks nothing: what it was before, if it was an
    /// event, is missing in the chain.
    pub fn push_unreadable(&mut self) {
        self.result.unlinked += 1;
    }

    /// Ends the verification.
    pub fn finish(mut self) -> EventVerification {
        if self.result.fault.is_none()
            && let Err(fault) = self.end()
        {
            self.result.fault = Some(*fault);
        }
        self.result.writers = self
            .chains
            .iter()
            .filter_map(|(writer, chain)| {
                let (last, link) = chain.end.as_ref()?;
                Some(EventWriter {
                    writer: writer.clone(),
                    first: chain.first,
                    last: *last,
                    hash: link.hash,
                    proven: chain.proven,
                })
            })
            .collect();
        self.result
    }

    fn take(&mut self, event: &AuditEvent) -> Result<(), Box<Fault>> {
        let Some(link) = &event.chain else {
            if self.chains.is_empty() && self.keys.is_empty() && self.reading == Reading::Ordered {
                self.result.unlinked += 1;
                return Ok(());
            }
            let mut fault = Fault::new(FaultKind::Unlinked, "", None, "the event has no place in a chain");
            fault.event_id = Some(event.event_id.clone());
            return Err(Box::new(fault));
        };
        let sequence = link.sequence;
        let link = self.check(event, link)?;
        if sequence <= self.cut(&writer_of(event)) {
            // A crash came between the statement of the cut and the cut.
            return Ok(());
        }
        let chain = self.chains.entry(writer_of(event)).or_default();
        let before = chain.links.get(&sequence).or(match &chain.end {
            Some((end, link)) if *end == sequence => Some(link),
            _ => None,
        });
        let repeated = before.is_some_and(|before| before.hash == link.hash);
        let late = chain.end.as_ref().is_some_and(|(end, _)| sequence <= *end);
        if repeated && matches!(self.reading, Reading::Repeated | Reading::Excerpt) {
            self.result.repeats += 1;
            return Ok(());
        }
        if before.is_some() || late {
            let detail = if repeated {
                "it comes again"
            } else {
                "another one has its place, or it comes late"
            };
            return Err(fault(FaultKind::OutOfOrder, event, detail));
        }
        chain.links.insert(sequence, link);
        if self.reading == Reading::Ordered {
            self.link(&writer_of(event))?;
        }
        self.result.events += 1;
        Ok(())
    }

    /// Whether the event has the hash of its content and place.
    fn check(&self, event: &AuditEvent, link: &ChainLink) -> Result<Link, Box<Fault>> {
        let (Ok(previous), Ok(hash)) = (link.previous.parse(), link.hash.parse::<Hash>()) else {
            return Err(fault(FaultKind::Edited, event, "its hashes are no hashes"));
        };
        if link.sequence == 0 {
            return Err(fault(FaultKind::Edited, event, "there is no place 0"));
        }
        let content = canonical(event);
        let linker = self
            .keys
            .linkers()
            .find(|linker| linker.link(&previous, link.sequence, &content) == hash);
        let Some(linker) = linker else {
            let detail = "the event does not have the hash of its content and place, with any of the keys";
            return Err(fault(FaultKind::Edited, event, detail));
        };
        Ok(Link {
            previous,
            hash,
            plain: linker.is_plain(),
            event_id: event.event_id.clone(),
        })
    }

    /// Up to where this writer's events were removed, as a checkpoint says.
    fn cut(&self, writer: &str) -> u64 {
        let cuts = self
            .known
            .iter()
            .filter(|point| point.kind == CheckpointKind::Cut && point.writer == writer);
        cuts.map(|cut| cut.sequence).max().unwrap_or(0)
    }

    /// Links what has come of this writer.
    fn link(&mut self, writer: &str) -> Result<(), Box<Fault>> {
        let Some(chain) = self.chains.get_mut(writer) else {
            return Ok(());
        };
        while let Some((sequence, link)) = chain.links.pop_first() {
            let at = |kind, sequence, detail: &str| {
                let mut fault = Fault::new(kind, writer, Some(sequence), detail);
                fault.event_id = Some(link.event_id.clone());
                Box::new(fault)
            };
            let own = || self.known.iter().filter(|point| point.writer == writer);
            let (expected, hash) = match &chain.end {
                Some((end, before)) => (end + 1, before.hash),
                None if self.reading == Reading::Excerpt => (sequence, link.previous),
                // A trail whose first part was removed begins behind a checkpoint.
                None if own().any(|point| (point.sequence, point.hash) == (sequence - 1, link.previous)) => {
                    (sequence, link.previous)
                }
                None => (1, genesis(writer)),
            };
            let gap = sequence > expected;
            if gap && self.reading != Reading::Excerpt {
                return Err(at(
                    FaultKind::MissingRecord,
                    expected,
                    "the next event that is there comes later",
                ));
            }
            if !gap && link.previous != hash {
                return Err(at(
                    FaultKind::BrokenLink,
                    sequence,
                    "it does not continue the event before",
                ));
            }
            if !link.plain {
                chain.unkeyed = None;
            } else if chain.unkeyed.is_none() {
                chain.unkeyed = Some((sequence, link.event_id.clone()));
            }
            if own().any(|point| point.sequence == sequence && point.hash != link.hash) {
                let unkeyed = chain.unkeyed_fault(writer, &self.keys);
                let detail = "a checkpoint that was kept elsewhere has another hash";
                return Err(unkeyed.unwrap_or_else(|| at(FaultKind::Diverged, sequence, detail)));
            }
            if !link.plain || own().any(|point| point.sequence == sequence) {
                chain.proven = sequence;
            }
            if chain.end.is_none() {
                chain.first = sequence;
            }
            chain.end = Some((sequence, link));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Box<Fault>> {
        for writer in self.chains.keys().cloned().collect::<Vec<_>>() {
            self.link(&writer)?;
        }
        for (writer, chain) in &self.chains {
            if let Some(fault) = chain.unkeyed_fault(writer, &self.keys) {
                return Err(fault);
            }
        }
        if self.reading == Reading::Excerpt {
            return Ok(());
        }
        for point in self
            .known
            .iter()
            .filter(|point| point.sequence > self.cut(&point.writer))
        {
            let end = self.chains.get(&point.writer).and_then(|chain| chain.end.as_ref());
            match end {
                None => return Err(Box::new(missing_writer(point))),
                Some((end, _)) if *end < point.sequence => {
                    let detail = format!("a checkpoint that was kept elsewhere knows record {}", point.sequence);
                    let fault = Fault::new(FaultKind::CutTail, &point.writer, Some(end + 1), detail);
                    return Err(Box::new(fault));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

fn writer_of(event: &AuditEvent) -> String {
    event.chain.as_ref().map(|link| link.writer.clone()).unwrap_or_default()
}

fn fault(kind: FaultKind, event: &AuditEvent, detail: &str) -> Box<Fault> {
    let sequence = event.chain.as_ref().map(|link| link.sequence);
    let mut fault = Fault::new(kind, &writer_of(event), sequence, detail);
    fault.event_id = Some(event.event_id.clone());
    Box::new(fault)
}
