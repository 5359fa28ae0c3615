//! What is kept of an artifact besides its content: in the object's own metadata, or in a manifest.

use std::{borrow::Cow, collections::BTreeMap};

use agents_core::{ArtifactInfo, ArtifactName, Error, ErrorKind, Result};
use jiff::Timestamp;
use object_store::{Attribute, Attributes, ObjectMeta};
use serde::{Deserialize, Serialize};

use super::layout::{self, Place};

/// The most that an object's metadata may hold, keys and values together: S3 allows the least.
const METADATA_MAX: usize = 2048;

/// A manifest holds 2 KiB of metadata, a name of 900 bytes and little else; JSON may escape each byte as six.
pub(crate) const MANIFEST_MAX: u64 = 64 << 10;

const SHA256: &str = "sha256";
const CREATED: &str = "created";
const UPLOAD: &str = "upload";
const NAME: &str = "name";
const TYPED: &str = "typed";
const MORE: &str = "meta";
const MANIFEST: &str = "manifest";

/// What an object without a media type gets, by us or by the service.
const UNTYPED: [&str; 2] = ["application/octet-stream", "binary/octet-stream"];

/// An artifact without its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: ArtifactName,
    pub(crate) size: u64,
    pub(crate) sha256: String,
    pub(crate) created_at: Timestamp,
    pub(crate) content_type: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Record {
    pub(crate) fn into_info(self, place: &Place, uri: String) -> ArtifactInfo {
        ArtifactInfo::new(
            place.session.clone(),
            self.name,
            uri,
            self.size,
            self.sha256,
            place.version,
            self.created_at,
        )
        .with_content_type(self.content_type)
        .with_metadata(self.metadata)
    }
}

/// How one service writes the keys of metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    /// `-`, or `_` where keys are identifiers.
    pub(crate) separator: char,
}

impl Keys {
    fn ours(self, key: &str) -> Attribute {
        Attribute::Metadata(Cow::Owned(format!("agents{}{key}", self.separator)))
    }

    /// Whether an entry of the user can be written as it is, so that other programs can read it.
    fn is_native(self, key: &str, value: &str) -> bool {
        let key_works = key.starts_with(|c: char| c.is_ascii_lowercase())
            && !key.starts_with("agents")
            && key
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == self.separator);
        // Proxies and servers trim and join spaces, and some change quotes.
        let value_works = !value.is_empty()
            && value.trim() == value
            && !value.contains("  ")
            && value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || " -_.:/+=@,;#()".contains(c));
        key_works && value_works
    }

    /// What the object's own metadata says of an artifact; `None` when it does not fit. The size is the object's.
    pub(crate) fn write(self, record: &Record, place: &Place) -> Option<Attributes> {
        let mut attributes = Attributes::new();
        let mut size = 0;
        let mut put = |key: Attribute, value: String| {
            if let Attribute::Metadata(key) = &key {
                size += key.len() + value.len();
            }
            attributes.insert(key, value.into());
        };
        put(self.ours(SHA256), record.sha256.clone());
        put(self.ours(CREATED), record.created_at.to_string());
        if layout::name_of(&place.folder) == Some(None) {
            put(self.ours(NAME), encode([("", record.name.as_str())]));
        }
        match record.content_type.as_deref() {
            Some(content_type) => {
                if UNTYPED.contains(&content_type) {
                    put(self.ours(TYPED), "1".to_owned());
                }
                put(Attribute::ContentType, content_type.to_owned());
            }
            None => put(Attribute::ContentType, UNTYPED[0].to_owned()),
        }
        let mut more = Vec::new();
        for (key, value) in &record.metadata {
            if self.is_native(key, value) {
                put(Attribute::Metadata(Cow::Owned(key.clone())), value.clone());
            } else {
                more.push((key.as_str(), value.as_str()));
            }
        }
        if !more.is_empty() {
            put(self.ours(MORE), encode(more));
        }
        (size <= METADATA_MAX).then_some(attributes)
    }

    /// Reads what `write` wrote.
    pub(crate) fn read(self, attributes: &Attributes, meta: &ObjectMeta, place: &Place) -> Result<Record> {
        let ours = |key: &str| attributes.get(&self.ours(key)).map(|value| value.as_ref());
        let damaged = |why: &str| Error::new(ErrorKind::DataInvalid, format!("the object is no artifact: {why}"));
        let sha256 = ours(SHA256)
            .filter(|text| is_sha256(text))
            .ok_or_else(|| damaged("its metadata hold no SHA-256; delete it, or store it through the SDK"))?;
        let name = match layout::name_of(&place.folder) {
            Some(Some(name)) => name,
            _ => ours(NAME)
                .and_then(|text| decode(text).pop())
                .and_then(|(_, name)| ArtifactName::new(name).ok())
                .filter(|name| layout::folder_of(name) == place.folder)
                .ok_or_else(|| damaged("its metadata hold no name that fits its key"))?,
        };
        let stored_at = || {
            let modified = meta.last_modified;
            let nanos = i32::try_from(modified.timestamp_subsec_nanos()).unwrap_or_default();
            Timestamp::new(modified.timestamp(), nanos).map_err(|_| damaged("its time cannot be"))
        };
        let created_at = match ours(CREATED) {
            Some(text) => text.parse().map_err(|_| damaged("its time cannot be read"))?,
            None => stored_at()?,
        };
        let mut metadata: BTreeMap<_, _> = attributes
            .iter()
            .filter_map(|(key, value)| match key {
                Attribute::Metadata(key) if !key.starts_with("agents") => Some((key.to_string(), value.to_string())),
                _ => None,
            })
            .collect();
        metadata.extend(ours(MORE).map(decode).unwrap_or_default());
        let content_type = attributes
            .get(&Attribute::ContentType)
            .map(|value| value.to_string())
            .filter(|value| ours(TYPED).is_some() || !UNTYPED.contains(&value.as_str()));
        Ok(Record {
            name,
            size: meta.size,
            sha256: sha256.to_owned(),
            created_at,
            content_type,
            metadata,
        })
    }

    /// What the metadata of a manifest say.
    pub(crate) fn manifest(self, upload: &str) -> Attributes {
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::ContentType, "application/json".into());
        attributes.insert(self.ours(MANIFEST), "1".into());
        attributes.insert(self.ours(UPLOAD), upload.to_owned().into());
        attributes
    }

    pub(crate) fn is_manifest(self, attributes: &Attributes) -> bool {
        attributes.get(&self.ours(MANIFEST)).is_some()
    }

    /// Whether both are of the same upload: its id in a manifest, else its time and its content.
    pub(crate) fn is_same(self, one: &Attributes, other: &Attributes) -> bool {
        let mut known = false;
        [UPLOAD, CREATED, SHA256].into_iter().all(|key| {
            let key = self.ours(key);
            known |= one.get(&key).is_some();
            one.get(&key) == other.get(&key)
        }) && known
    }
}

/// A version whose content is another object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The number before the dot in the content's key.
    pub(crate) expected_version: u64,
    /// The id behind it, which is also that of the upload.
    pub(crate) id: String,
    #[serde(flatten)]
    pub(crate) record: Record,
}

impl Manifest {
    pub(crate) fn parse(json: &[u8], place: &Place) -> Result<Self> {
        let damaged = |why: String| Error::new(ErrorKind::DataInvalid, format!("the manifest is damaged: {why}"));
        let manifest: Self = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        if layout::folder_of(&manifest.record.name) != place.folder {
            return Err(damaged("it belongs to another artifact".to_owned()));
        }
        if !is_sha256(&manifest.record.sha256) {
            return Err(damaged("it holds no SHA-256".to_owned()));
        }
        Ok(manifest)
    }

    /// Where the content of the version at `place` is.
    pub(crate) fn content(&self, place: &Place) -> Place {
        let content = Place {
            version: self.expected_version,
            ..place.clone()
        };
        content.with_id(Some(self.id.clone()))
    }
}

pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Pairs in the form of a query string, which is printable ASCII without spaces.
fn encode<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs)
        .finish()
}

fn decode(text: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

#[cfg(test)]
mod tests {
    use agents_core::SessionId;
    use proptest::prelude::*;

    use super::*;

    fn record(name: &str) -> Record {
        Record {
            name: ArtifactName::new(name).unwrap(),
            size: 7,
            sha256: "0123456789abcdef".repeat(4),
            created_at: "2026-11-24T08:00:00.123456789Z".parse().unwrap(),
            content_type: None,
            metadata: BTreeMap::new(),
        }
    }

    fn place(name: &str) -> Place {
        Place::new(SessionId::new("s").unwrap(), &ArtifactName::new(name).unwrap(), 1)
    }

    fn meta() -> ObjectMeta {
        ObjectMeta {
            location: object_store::path::Path::from("x"),
            last_modified: Default::default(),
            size: 7,
            e_tag: None,
            version: None,
        }
    }

    #[test]
    fn entries_that_every_server_keeps_are_written_as_they_are() {
        let metadata = [
            ("kind", "a plot"),
            ("with-dash", "1"),
            ("with_low", "2"),
            ("empty", ""),
            ("agentsx", "3"),
        ];
        let mut record = record("a");
        record.metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for (separator, native) in [('-', "with-dash"), ('_', "with_low")] {
            let keys = Keys { separator };
            let attributes = keys.write(&record, &place("a")).unwrap();
            for key in ["kind", native] {
                let value = attributes.get(&Attribute::Metadata(key.into())).unwrap();
                assert_eq!(value.as_ref(), record.metadata[key]);
            }
            assert_eq!(
                attributes.len(),
                6,
                "two of ours, the media type, the rest in one, and two natives"
            );
            assert_eq!(keys.read(&attributes, &meta(), &place("a")).unwrap(), record);
            assert!(
                keys.is_same(&attributes, &attributes.clone()) && !keys.is_same(&Attributes::new(), &Attributes::new())
            );
            let later = Record {
                created_at: jiff::Timestamp::now(),
                ..record.clone()
            };
            assert!(!keys.is_same(&attributes, &keys.write(&later, &place("a")).unwrap()));
            assert!(!keys.is_same(&attributes, &keys.manifest("id")));
            assert!(!keys.is_same(&keys.manifest("id"), &keys.manifest("di")));
            assert!(!keys.is_manifest(&attributes));
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let mut record = record("a");
        record.metadata.insert("k".to_owned(), "x".repeat(1950));
        assert!(Keys { separator: '-' }.write(&record, &place("a")).is_none());
    }

    #[test]
    fn an_object_of_somebody_else_is_no_artifact() {
        let keys = Keys { separator: '-' };
        for sha256 in [None, Some("x"), Some("ABCDEF")] {
            let mut attributes = Attributes::new();
            if let Some(sha256) = sha256 {
                attributes.insert(keys.ours(SHA256), sha256.into());
            }
            let error = keys.read(&attributes, &meta(), &place("a")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DataInvalid);
        }
        // The least that another program must write.
        let mut attributes = Attributes::new();
        attributes.insert(keys.ours(SHA256), "0".repeat(64).into());
        let record = keys.read(&attributes, &meta(), &place("a")).unwrap();
        assert_eq!((record.size, record.created_at), (7, Timestamp::UNIX_EPOCH));
    }

    proptest! {
        #[test]
        fn what_fits_comes_back(
            name in "[a-zü/]{1,40}|[ü☃a]{100,125}(/[ü☃]{80,85}){1,2}",
            metadata in proptest::collection::btree_map("[a-z0-9_-]{1,12}", "[ -~]{0,40}", 0..5),
            content_type in proptest::option::of("[a-z]{1,9}/[a-z.+-]{1,9}|(application|binary)/octet-stream"),
        ) {
            let Ok(name) = ArtifactName::new(name) else { return Ok(()) };
            let record = Record { metadata, content_type, name, ..record("a") };
            let place = Place::new(SessionId::new("s").unwrap(), &record.name, 1);
            for separator in ['-', '_'] {
                let keys = Keys { separator };
                if let Some(attributes) = keys.write(&record, &place) {
                    for (key, value) in &attributes {
                        prop_assert!(value.chars().all(|c| (' '..='~').contains(&c)), "{key:?}");
                    }
                    prop_assert_eq!(&keys.read(&attributes, &meta(), &place).unwrap(), &record);
                }
            }
            let manifest = Manifest { expected_version: 3, id: layout::new_id(), record };
            let json = serde_json::to_vec(&manifest).unwrap();
            prop_assert!(json.len() as u64 <= MANIFEST_MAX);
            prop_assert_eq!(Manifest::parse(&json, &place).unwrap(), manifest);
        }
    }
}
