//! A table of tamperings with a trail, each of which a verifier must find.
//!
//! They work on events with their places in a chain ([`AuditEvent::chain`]), so they can be tried on whatever a sink gives
//! back. The chain must have a secret key, and the verifier must know a checkpoint at the end of the trail, for without one
//! nobody can tell a tail that was cut off.

use std::ops::RangeInclusive;

use agents_core::{AuditEvent, EventType, SessionId, Severity};
use jiff::SignedDuration;
use ring::digest;
use serde_json::{Map, Value};

/// How many events a trail must have at least.
pub const MIN_EVENTS: usize = 12;

/// Something that somebody without the key does to a trail.
#[derive(Clone, Copy, Debug)]
pub struct Tampering {
    /// What is done.
    pub name: &'static str,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// An event in the middle is edited.
    Event(fn(&mut AuditEvent)),
    /// Anything, at the event in the middle.
    Trail(fn(&mut Vec<AuditEvent>, usize) -> RangeInclusive<u64>),
}

impl Tampering {
    /// Does it, and says which record the verifier must name as the first bad one. Where one is missing or too many, that
    /// is the place itself or the one after it.
    ///
    /// The events must be those of one writer, in their order, from the first one on, and at least [`MIN_EVENTS`].
    pub fn apply(&self, events: &mut Vec<AuditEvent>) -> RangeInclusive<u64> {
        let middle = events.len() / 2;
        match self.how {
            How::Event(edit) => {
                edit(&mut events[middle]);
                place(middle)
            }
            How::Trail(tamper) => tamper(events, middle),
        }
    }
}

/// Tries every tampering, and describes those that `first_bad` did not find where it is. `first_bad` verifies events, and
/// gives the first bad record that it found.
pub fn missed(events: &[AuditEvent], mut first_bad: impl FnMut(&[AuditEvent]) -> Option<u64>) -> Vec<String> {
    let mut missed = Vec::new();
    if events.len() < MIN_EVENTS {
        missed.push(format!("{} events are too few to try anything on", events.len()));
        return missed;
    }
    if let Some(bad) = first_bad(events) {
        missed.push(format!("record {bad} is called bad before anything was done"));
    }
    for tampering in TAMPERINGS {
        let mut events = events.to_vec();
        let wanted = tampering.apply(&mut events);
        match first_bad(&events) {
            Some(found) if wanted.contains(&found) => {}
            Some(found) => missed.push(format!("{}: at {found}, not at {wanted:?}", tampering.name)),
            None => missed.push(format!("{}: not found at all, at {wanted:?}", tampering.name)),
        }
    }
    missed
}

/// The table.
pub const TAMPERINGS: &[Tampering] = &[
    edit("a fact is changed", |event| {
        event.payload.insert("n".to_owned(), "forged".into());
    }),
    edit("a fact is added", |event| {
        event.payload.insert("approved_by".to_owned(), "root".into());
    }),
    edit("the facts are replaced", |event| {
        event.payload = Map::from_iter([("n".to_owned(), Value::Null)]);
    }),
    edit("a tag is added", |event| event.tags.push("forged".to_owned())),
    edit("the type is changed", |event| {
        event.event_type = match event.event_type {
            EventType::SystemWarning => EventType::AgentCompleted,
            _ => EventType::SystemWarning,
        };
    }),
    edit("the time is moved by a microsecond", |event| {
        event.timestamp += SignedDuration::from_micros(1);
    }),
    edit("the severity is changed", |event| {
        event.severity = match event.severity {
            Severity::Debug => Severity::Info,
            _ => Severity::Debug,
        };
    }),
    edit("the session is changed", |event| {
        event.session_id = Some(SessionId::generate());
    }),
    edit("the user is changed", |event| {
        event.user_id = Some("somebody else".to_owned());
    }),
    edit("the identifier is changed", |event| {
        event.event_id.replace_range(..1, "f");
    }),
    Tampering {
        name: "the first event is removed",
        how: How::Trail(|events, _| {
            events.remove(0);
            1..=1
        }),
    },
    Tampering {
        name: "an event is removed",
        how: How::Trail(|events, at| {
            events.remove(at);
            place(at)
        }),
    },
    Tampering {
        name: "several events are removed",
        how: How::Trail(|events, at| {
            events.drain(at..at + 3);
            place(at)
        }),
    },
    Tampering {
        name: "an event is removed and the rest renumbered",
        how: How::Trail(|events, at| {
            events.remove(at);
            renumber(events, at);
            place(at)
        }),
    },
    Tampering {
        name: "the last event is removed",
        how: How::Trail(|events, _| {
            events.pop();
            place(events.len())
        }),
    },
    Tampering {
        name: "the second half is cut off",
        how: How::Trail(|events, at| {
            events.truncate(at);
            place(at)
        }),
    },
    Tampering {
        name: "an event is put in and the rest renumbered",
        how: How::Trail(|events, at| {
            let mut forged = events[at - 1].clone();
            forged.event_id.replace_range(..1, "e");
            events.insert(at, forged);
            renumber(events, at);
            place(at)
        }),
    },
    Tampering {
        name: "an event is there twice",
        how: How::Trail(|events, at| {
            events.insert(at, events[at].clone());
            let first = at as u64 + 1;
            first..=first + 1
        }),
    },
    Tampering {
        name: "two events have changed places",
        how: How::Trail(|events, at| {
            let (before, after) = (events[at].chain.take(), events[at + 1].chain.take());
            events[at].chain = after;
            events[at + 1].chain = before;
            events.swap(at, at + 1);
            place(at)
        }),
    },
    Tampering {
        name: "an event is moved to the end",
        how: How::Trail(|events, at| {
            let moved = events.remove(at);
            events.push(moved);
            renumber(events, at);
            place(at)
        }),
    },
    Tampering {
        name: "the chain is computed anew from an edited event on, without the key",
        how: How::Trail(|events, at| {
            events[at].payload.insert("n".to_owned(), "forged".into());
            rechain(events, at);
            place(at)
        }),
    },
    Tampering {
        name: "the whole chain is computed anew, without the key",
        how: How::Trail(|events, at| {
            events.remove(at);
            renumber(events, at);
            rechain(events, 0);
            1..=1
        }),
    },
];

const fn edit(name: &'static str, edit: fn(&mut AuditEvent)) -> Tampering {
    Tampering {
        name,
        how: How::Event(edit),
    }
}

const fn place(at: usize) -> RangeInclusive<u64> {
    at as u64 + 1..=at as u64 + 1
}

/// Gives the events from here on the places that follow each other, and leaves the hashes.
fn renumber(events: &mut [AuditEvent], from: usize) {
    for (n, event) in events.iter_mut().enumerate().skip(from) {
        if let Some(link) = &mut event.chain {
            link.sequence = n as u64 + 1;
        }
    }
}

/// Computes the hashes from here on as for a chain without a key, as everybody can.
fn rechain(events: &mut [AuditEvent], from: usize) {
    let mut before = from.checked_sub(1).and_then(|before| events[before].chain.clone());
    for event in &mut events[from..] {
        let Some(mut link) = event.chain.take() else {
            continue;
        };
        if let Some(before) = before {
            link.previous = before.hash;
        }
        let mut content = event.clone();
        sort(&mut content.payload);
        let mut hashed = b"agents-journal/1".to_vec();
        hashed.extend(link.previous.as_bytes().chunks(2).map(from_hex));
        hashed.extend(link.sequence.to_be_bytes());
        // Of an event, whose keys are strings, this cannot fail.
        hashed.extend(serde_json::to_vec(&content).unwrap_or_default());
        let hash = digest::digest(&digest::SHA256, &hashed);
        link.hash = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        before = Some(link.clone());
        event.chain = Some(link);
    }
}

fn from_hex(pair: &[u8]) -> u8 {
    let text = str::from_utf8(pair).unwrap_or_default();
    u8::from_str_radix(text, 16).unwrap_or_default()
}

fn sort(map: &mut Map<String, Value>) {
    let mut entries: Vec<_> = std::mem::take(map).into_iter().collect();
    entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    for (key, mut value) in entries {
        if let Value::Object(inside) = &mut value {
            sort(inside);
        }
        map.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_twenty_and_each_changes_something() {
        assert!(TAMPERINGS.len() >= 20);
        let event = |n: u64| {
            let hash = |n: u64| format!("{n:064x}");
            AuditEvent::now(EventType::SystemWarning)
                .with_fact("n", n)
                .with_chain(Some(agents_core::ChainLink::new("w", n, hash(n - 1), hash(n))))
        };
        let events: Vec<_> = (1..=12).map(event).collect();
        for tampering in TAMPERINGS {
            let mut changed = events.clone();
            tampering.apply(&mut changed);
            assert_ne!(changed, events, "{}", tampering.name);
        }
        assert_eq!(missed(&events, |_| None).len(), TAMPERINGS.len());
        assert_eq!(missed(&events[1..], |_| None).len(), 1);
    }
}
