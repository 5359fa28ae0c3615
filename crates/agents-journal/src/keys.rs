//! What a chain is sealed with, and what it is verified with.

use std::fmt;

use agents_core::{Error, Result};
use ring::{
    digest, hmac,
    signature::{self, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};

use crate::hash::{Hash, to_hex};

/// The shortest secret that is taken as an HMAC key.
const MIN_SECRET: usize = 16;

/// Goes into every hash, so that one of ours means nothing elsewhere.
const DOMAIN: &[u8] = b"agents-journal/1";

/// What a writer seals its chain with.
///
/// - [`ChainKey::none`]: a plain SHA-256 chain. It finds damage, and tampering by somebody who does not compute the chain
///   anew; against somebody who does, keep checkpoints elsewhere.
/// - [`ChainKey::hmac`]: each record is sealed with a secret. Nobody without it can change, insert, remove or reorder a
///   record; whoever verifies needs the secret.
/// - [`ChainKey::ed25519`]: a SHA-256 chain with signed checkpoints. Whoever verifies needs the public key only, and what
///   comes after the last checkpoint is not proven yet.
#[derive(Clone)]
pub struct ChainKey(Kind);

#[derive(Clone)]
enum Kind {
    None,
    Hmac(hmac::Key),
    Ed25519(std::sync::Arc<Ed25519KeyPair>),
}

/// Names a key without giving it away: 16 hexadecimal digits, or nothing for no key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyId(String);

impl KeyId {
    fn of(kind: &str, hash: &[u8]) -> Self {
        Self(format!("{kind}:{}", to_hex(hash.get(..8).unwrap_or_default())))
    }

    /// Whether it names no key.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.is_none() { "no key" } else { &self.0 })
    }
}

impl ChainKey {
    /// No key: a plain SHA-256 chain.
    pub fn none() -> Self {
        Self(Kind::None)
    }

    /// A secret for HMAC-SHA-256.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` when it is shorter than 16 bytes.
    pub fn hmac(secret: &[u8]) -> Result<Self> {
        if secret.len() < MIN_SECRET {
            return Err(Error::invalid(format!(
                "the chain key has {} bytes; use at least {MIN_SECRET} random ones, better 32",
                secret.len()
            )));
        }
        Ok(Self(Kind::Hmac(hmac::Key::new(hmac::HMAC_SHA256, secret))))
    }

    /// A private key for Ed25519: 32 bytes of seed, or PKCS#8 as `openssl genpkey -algorithm ed25519 -outform DER` makes it.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` when it is neither.
    pub fn ed25519(private: &[u8]) -> Result<Self> {
        let pair = if private.len() == 32 {
            Ed25519KeyPair::from_seed_unchecked(private)
        } else {
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(private)
        };
        let pair = pair.map_err(|_| {
            Error::invalid("the chain key is no Ed25519 private key; use 32 bytes of seed, or PKCS#8 in DER")
        })?;
        Ok(Self(Kind::Ed25519(std::sync::Arc::new(pair))))
    }

    /// The name of the key.
    pub fn id(&self) -> KeyId {
        match &self.0 {
            Kind::None => KeyId::default(),
            Kind::Hmac(key) => hmac_id(key),
            Kind::Ed25519(pair) => ed25519_id(pair.public_key().as_ref()),
        }
    }

    /// The public key, 32 bytes, of an Ed25519 key.
    pub fn public_key(&self) -> Option<&[u8]> {
        match &self.0 {
            Kind::Ed25519(pair) => Some(pair.public_key().as_ref()),
            _ => None,
        }
    }

    /// The hash of a record, which covers everything before it.
    pub(crate) fn link(&self, previous: &Hash, sequence: u64, payload: &[u8]) -> Hash {
        match &self.0 {
            Kind::Hmac(key) => hmac_link(key, previous, sequence, payload),
            _ => plain_link(previous, sequence, payload),
        }
    }

    /// Proves that the holder of the key has said this.
    pub(crate) fn prove(&self, text: &[u8]) -> Vec<u8> {
        match &self.0 {
            Kind::None => digest::digest(&digest::SHA256, text).as_ref().to_vec(),
            Kind::Hmac(key) => hmac::sign(key, text).as_ref().to_vec(),
            Kind::Ed25519(pair) => pair.sign(text).as_ref().to_vec(),
        }
    }
}

impl Default for ChainKey {
    fn default() -> Self {
        Self::none()
    }
}

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainKey({})", self.id())
    }
}

/// What chains are verified with: any number of keys, for keys change.
#[derive(Clone, Default)]
pub struct Keys(Vec<(KeyId, Check)>);

#[derive(Clone)]
enum Check {
    Hmac(hmac::Key),
    Ed25519(Vec<u8>),
}

impl Keys {
    /// No keys: only plain chains can be verified.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds what verifies the chains of this key.
    #[must_use]
    pub fn with(mut self, key: &ChainKey) -> Self {
        let check = match &key.0 {
            Kind::None => return self,
            Kind::Hmac(secret) => Check::Hmac(secret.clone()),
            Kind::Ed25519(pair) => Check::Ed25519(pair.public_key().as_ref().to_vec()),
        };
        self.0.push((key.id(), check));
        self
    }

    /// Adds the public key, 32 bytes, of an Ed25519 key.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` when it has another length.
    pub fn with_ed25519_public(mut self, public: &[u8]) -> Result<Self> {
        if public.len() != signature::ED25519_PUBLIC_KEY_LEN {
            return Err(Error::invalid(format!(
                "the public key has {} bytes; an Ed25519 public key has {}",
                public.len(),
                signature::ED25519_PUBLIC_KEY_LEN
            )));
        }
        self.0.push((ed25519_id(public), Check::Ed25519(public.to_vec())));
        Ok(self)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them seals each record.
    pub(crate) fn has_secret(&self) -> bool {
        self.0.iter().any(|(_, check)| matches!(check, Check::Hmac(_)))
    }

    fn find(&self, id: &KeyId) -> Option<&Check> {
        self.0.iter().find(|(known, _)| known == id).map(|(_, check)| check)
    }

    /// How records that this key has sealed are hashed; `None` when the key is not known.
    pub(crate) fn linker(&self, id: &KeyId) -> Option<Linker<'_>> {
        if id.is_none() {
            return Some(Linker(None));
        }
        Some(Linker(match self.find(id)? {
            Check::Hmac(key) => Some(key),
            Check::Ed25519(_) => None,
        }))
    }

    /// All ways in which records may be hashed, the plain one last.
    pub(crate) fn linkers(&self) -> impl Iterator<Item = Linker<'_>> {
        let secret = self.0.iter().filter_map(|(_, check)| match check {
            Check::Hmac(key) => Some(Linker(Some(key))),
            Check::Ed25519(_) => None,
        });
        secret.chain([Linker(None)])
    }

    /// Whether the proof is good; `None` when the key is not known.
    pub(crate) fn check(&self, id: &KeyId, text: &[u8], proof: &[u8]) -> Option<bool> {
        if id.is_none() {
            return Some(digest::digest(&digest::SHA256, text).as_ref() == proof);
        }
        Some(match self.find(id)? {
            Check::Hmac(key) => hmac::verify(key, text, proof).is_ok(),
            Check::Ed25519(public) => UnparsedPublicKey::new(&signature::ED25519, public)
                .verify(text, proof)
                .is_ok(),
        })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(id, _)| id)).finish()
    }
}

/// One way to hash records.
#[derive(Clone, Copy)]
pub(crate) struct Linker<'a>(Option<&'a hmac::Key>);

impl Linker<'_> {
    pub(crate) fn is_plain(self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn link(self, previous: &Hash, sequence: u64, payload: &[u8]) -> Hash {
        match self.0 {
            Some(key) => hmac_link(key, previous, sequence, payload),
            None => plain_link(previous, sequence, payload),
        }
    }
}

/// The hash before the first record of a writer.
pub(crate) fn genesis(writer: &str) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(DOMAIN);
    context.update(b" genesis ");
    context.update(writer.as_bytes());
    to_hash(context.finish().as_ref())
}

fn plain_link(previous: &Hash, sequence: u64, payload: &[u8]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&prefix(previous, sequence));
    context.update(payload);
    to_hash(context.finish().as_ref())
}

fn hmac_link(key: &hmac::Key, previous: &Hash, sequence: u64, payload: &[u8]) -> Hash {
    let mut context = hmac::Context::with_key(key);
    context.update(&prefix(previous, sequence));
    context.update(payload);
    to_hash(context.sign().as_ref())
}

/// Of one length, so that no payload can pass for a part of it.
fn prefix(previous: &Hash, sequence: u64) -> [u8; 56] {
    let mut prefix = [0; 56];
    prefix[..16].copy_from_slice(DOMAIN);
    prefix[16..48].copy_from_slice(previous.as_bytes());
    prefix[48..].copy_from_slice(&sequence.to_be_bytes());
    prefix
}

/// SHA-256 has 32 bytes.
fn to_hash(bytes: &[u8]) -> Hash {
    Hash::from_slice(bytes).unwrap_or_else(|| Hash::from([0; 32]))
}

fn hmac_id(key: &hmac::Key) -> KeyId {
    KeyId::of("hmac", hmac::sign(key, b"agents-journal/1 key id").as_ref())
}

fn ed25519_id(public: &[u8]) -> KeyId {
    KeyId::of("ed25519", digest::digest(&digest::SHA256, public).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [ChainKey; 3] {
        [
            ChainKey::none(),
            ChainKey::hmac(&[7; 32]).unwrap(),
            ChainKey::ed25519(&[9; 32]).unwrap(),
        ]
    }

    #[test]
    fn a_proof_is_good_for_its_text_and_key_only() {
        for key in keys() {
            let all = Keys::none().with(&key);
            let proof = key.prove(b"text");
            assert_eq!(all.check(&key.id(), b"text", &proof), Some(true), "{key:?}");
            assert_eq!(all.check(&key.id(), b"test", &proof), Some(false), "{key:?}");
            assert_eq!(all.check(&key.id(), b"text", &proof[1..]), Some(false), "{key:?}");
            let other = ChainKey::hmac(&[8; 32]).unwrap();
            assert_eq!(all.check(&other.id(), b"text", &proof), None);
        }
        let public = Keys::none()
            .with_ed25519_public(keys()[2].public_key().unwrap())
            .unwrap();
        assert_eq!(
            public.check(&keys()[2].id(), b"text", &keys()[2].prove(b"text")),
            Some(true)
        );
    }

    #[test]
    fn a_hash_depends_on_everything() {
        let zero = Hash::from([0; 32]);
        for key in keys() {
            let hash = key.link(&zero, 1, b"a");
            assert_eq!(
                hash,
                Keys::none().with(&key).linker(&key.id()).unwrap().link(&zero, 1, b"a")
            );
            for other in [
                key.link(&hash, 1, b"a"),
                key.link(&zero, 2, b"a"),
                key.link(&zero, 1, b"b"),
            ] {
                assert_ne!(other, hash);
            }
        }
        assert_ne!(keys()[0].link(&zero, 1, b"a"), keys()[1].link(&zero, 1, b"a"));
        assert_eq!(keys()[0].link(&zero, 1, b"a"), keys()[2].link(&zero, 1, b"a"));
        assert_ne!(genesis("a"), genesis("b"));
    }

    #[test]
    fn no_secret_is_shown_and_bad_keys_are_refused() {
        let secret = [b'S'; 32];
        let key = ChainKey::hmac(&secret).unwrap();
        let shown = format!("{key:?} {:?} {}", Keys::none().with(&key), key.id());
        assert!(
            shown.contains("hmac:") && !shown.contains("SSS") && !shown.contains("83, 83"),
            "{shown}"
        );
        assert!(ChainKey::hmac(b"short").is_err());
        assert!(ChainKey::ed25519(b"neither").is_err());
        assert!(Keys::none().with_ed25519_public(&[0; 31]).is_err());
    }
}
