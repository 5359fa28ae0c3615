//! What a writer says about its chain, with a proof.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    hash::{Hash, from_hex, to_hex},
    keys::{ChainKey, KeyId, Keys},
};

/// What a writer said about its chain at some point, with a proof. As JSON it can be kept elsewhere: whoever has it can
/// show later that nothing up to this point was changed, and that the tail is not cut off before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Checkpoint {
    /// What it says.
    pub kind: CheckpointKind,
    /// The writer.
    pub writer: String,
    /// The last record that it covers; 0 before the first one.
    pub sequence: u64,
    /// The hash of that record.
    pub hash: Hash,
    /// When it was said.
    pub time: Timestamp,
    /// At least every so many records this writer makes a checkpoint; 0 when it makes none of itself.
    pub every: u32,
    /// The key of the proof.
    pub key: KeyId,
    /// In hexadecimal: an Ed25519 signature, an HMAC, or without a key a hash.
    pub proof: String,
}

/// What a [`Checkpoint`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    /// "Here a segment begins": everything up to the sequence is before it.
    Begin,
    /// "So far I have come."
    Point,
    /// "So far I have come, and I closed the journal."
    Close,
    /// "I removed everything up to here."
    Cut,
}

impl CheckpointKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Point => "point",
            Self::Close => "close",
            Self::Cut => "cut",
        }
    }
}

impl Checkpoint {
    /// Says something about a chain.
    pub(crate) fn new(
        kind: CheckpointKind,
        writer: &str,
        (sequence, hash): (u64, Hash),
        every: u32,
        key: &ChainKey,
    ) -> Self {
        let mut checkpoint = Self {
            kind,
            writer: writer.to_owned(),
            sequence,
            hash,
            time: Timestamp::now(),
            every,
            key: key.id(),
            proof: String::new(),
        };
        checkpoint.proof = to_hex(&key.prove(&checkpoint.text()));
        checkpoint
    }

    /// Whether the proof is good; `None` when its key is not among these.
    pub fn check(&self, keys: &Keys) -> Option<bool> {
        let proof = from_hex(&self.proof).unwrap_or_default();
        keys.check(&self.key, &self.text(), &proof)
    }

    /// Covers every field. None but the key holds free text, and that is at the end.
    fn text(&self) -> Vec<u8> {
        format!(
            "agents-journal/1 {} {:?} {} {} {} {} {}",
            self.kind.as_str(),
            self.writer,
            self.sequence,
            self.hash,
            self.time,
            self.every,
            self.key.as_str()
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_json_and_no_field_can_be_changed() {
        let key = ChainKey::ed25519(&[9; 32]).unwrap();
        let keys = Keys::none().with(&key);
        let point = Checkpoint::new(CheckpointKind::Point, "w", (7, Hash::from([1; 32])), 10, &key);
        let json = serde_json::to_string(&point).unwrap();
        let read: Checkpoint = serde_json::from_str(&json).unwrap();
        assert_eq!((read.check(&keys), &read), (Some(true), &point));
        let changes: [fn(&mut Checkpoint); 7] = [
            |point| point.kind = CheckpointKind::Cut,
            |point| point.writer.push('x'),
            |point| point.sequence += 1,
            |point| point.hash = Hash::from([2; 32]),
            |point| point.time += jiff::SignedDuration::from_nanos(1),
            |point| point.every += 1,
            |point| point.proof.replace_range(..1, "z"),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut changed = point.clone();
            change(&mut changed);
            assert_eq!(changed.check(&keys), Some(false), "change {n}");
        }
        assert_eq!(point.check(&Keys::none()), None);
    }
}
