//! Names of objects, and the URIs that stand for them.
//!
//! ```text
//! <prefix>/<session>/<name>/<version>/<file>          a version: its content, or a manifest that names the content
//! <prefix>/<session>/<name>/<version>.<id>/<file>     the content of a version that has a manifest
//! <prefix>/.uploads/<id>                              an upload or a deletion under way: the contents it may leave behind
//! ```
//!
//! `<name>` is the artifact's name as one component: ASCII letters and digits, `-`, `_` and `.` stand for themselves, and
//! every other byte is `~` and two hexadecimal digits. These characters are the unreserved ones of RFC 3986, so a key is
//! its own form in a URL, and no service, gateway, client or signature treats it in a way of its own. `<file>` is the last
//! component of the name, so that a download gets its extension.

use agents_core::{ArtifactName, Error, Result, SessionId};
use object_store::path::Path;

use crate::digest::Hasher;

/// The folder of what is under way. No session can have this name.
const UPLOADS: &str = ".uploads";

/// The longest component: gateways over a file system allow no more.
const COMPONENT_MAX: usize = 255;

/// How much of a longer name is kept before its digest.
const HEAD_MAX: usize = 160;

/// The longest `<file>` that is kept; a longer one would not leave room in the 1024 bytes of a key.
const FILE_MAX: usize = 200;

/// The longest prefix that leaves room for the rest.
const PREFIX_MAX: usize = 300;

/// Marks a name that was too long and ends with its digest. `~-` occurs in no other name.
const DIGEST_MARK: &str = "~-";

/// Where artifacts are: `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    scheme: &'static str,
    container: String,
    /// Without slashes around; empty for the whole bucket.
    prefix: String,
}

/// A version, or the content of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) session: SessionId,
    /// The artifact's name as one component.
    pub(crate) folder: String,
    pub(crate) version: u64,
    /// Of the content of a version that has a manifest. Then `version` is what was free when the upload began: the version
    /// has this number unless somebody else took it meanwhile.
    pub(crate) id: Option<String>,
    pub(crate) file: String,
}

impl Place {
    pub(crate) fn new(session: SessionId, name: &ArtifactName, version: u64) -> Self {
        Self {
            session,
            folder: folder_of(name),
            version,
            id: None,
            file: file_of(name),
        }
    }

    pub(crate) fn with_id(mut self, id: Option<String>) -> Self {
        self.id = id;
        self
    }

    /// The key below the prefix.
    pub(crate) fn key(&self) -> String {
        let Self {
            session,
            folder,
            version,
            id,
            file,
        } = self;
        match id {
            None => format!("{session}/{folder}/{version}/{file}"),
            Some(id) => format!("{session}/{folder}/{version}.{id}/{file}"),
        }
    }

    /// Reads a key below the prefix; `None` for an object that is not ours.
    pub(crate) fn parse(key: &str) -> Option<Self> {
        let parts: Vec<_> = key.split('/').collect();
        let [session, folder, version, file] = parts[..] else {
            return None;
        };
        let (version, id) = match version.split_once('.') {
            None => (version, None),
            Some((version, id)) => (version, Some(id)),
        };
        let number: u64 = version.parse().ok()?;
        let place = Self {
            session: SessionId::new(session).ok()?,
            folder: folder.to_owned(),
            version: number,
            id: id.map(str::to_owned),
            file: file.to_owned(),
        };
        let well_formed = number > 0
            && number.to_string() == version
            && id.is_none_or(is_id)
            && match name_of(folder)? {
                Some(name) => file == file_of(&name),
                None => is_component(file),
            };
        well_formed.then_some(place)
    }
}

impl Root {
    /// # Errors
    ///
    /// `ConfigInvalid` for a prefix that could not be part of every key.
    pub(crate) fn new(scheme: &'static str, container: &str, prefix: &str) -> Result<Self> {
        let trimmed = prefix.trim_matches('/');
        let bad = trimmed.len() > PREFIX_MAX
            || !trimmed.chars().all(|c| c.is_ascii_alphanumeric() || "-_.~=+@,!/".contains(c))
            || (!trimmed.is_empty() && trimmed.split('/').any(|part| matches!(part, "" | "." | "..")))
            // Azure drops a dot at the end of a component.
            || trimmed.split('/').any(|part| part.ends_with('.'));
        if bad {
            return Err(Error::invalid(format!(
                "prefix {prefix:?} must be a path of at most {PREFIX_MAX} bytes: components of letters, digits and '-_.~=+@,!' \
                 that are not empty and do not end with a dot"
            )));
        }
        Ok(Self {
            scheme,
            container: container.to_owned(),
            prefix: trimmed.to_owned(),
        })
    }

    /// `s3://bucket/prefix`.
    pub(crate) fn uri(&self) -> String {
        match self.prefix.as_str() {
            "" => format!("{}://{}", self.scheme, self.container),
            prefix => format!("{}://{}/{prefix}", self.scheme, self.container),
        }
    }

    /// The URI of an artifact: the scheme, the bucket, and the key of its content as it is.
    pub(crate) fn uri_of(&self, place: &Place) -> String {
        format!("{}/{}", self.uri(), place.key())
    }

    /// Reads a URI, without any I/O.
    pub(crate) fn parse_uri(&self, uri: &str) -> Result<Place> {
        uri.strip_prefix(&self.uri())
            .and_then(|rest| rest.strip_prefix('/'))
            .and_then(Place::parse)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{uri:?} is not an artifact of {}; use a URI that storing or listing gave",
                    self.uri()
                ))
            })
    }

    /// The whole key of what is at this place below the prefix.
    pub(crate) fn path(&self, key: &str) -> Path {
        // Neither the prefix nor our keys hold what `parse` refuses.
        let whole = match self.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        };
        Path::parse(&whole).unwrap_or_else(|_| Path::from(whole))
    }

    /// The part of a key below the prefix.
    pub(crate) fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self.prefix.as_str() {
            "" => Some(path),
            prefix => path.strip_prefix(prefix)?.strip_prefix('/'),
        }
    }

    /// The key of an upload under way.
    pub(crate) fn upload(&self, id: &str) -> Path {
        self.path(&format!("{UPLOADS}/{id}"))
    }

    /// What all keys of uploads under way begin with, with the slash at the end.
    pub(crate) fn uploads(&self) -> String {
        format!("{}/", self.path(UPLOADS))
    }

    /// What all keys of all sessions begin with, if anything.
    pub(crate) fn sessions(&self) -> String {
        match self.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        }
    }

    /// What all keys of a session, or of an artifact, begin with.
    pub(crate) fn versions(&self, session: &SessionId, folder: Option<&str>) -> String {
        match folder {
            None => format!("{}/", self.path(session.as_str())),
            Some(folder) => format!("{}/", self.path(&format!("{session}/{folder}"))),
        }
    }
}

/// A new id, which sorts by time.
pub(crate) fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The artifact's name as one component.
pub(crate) fn folder_of(name: &ArtifactName) -> String {
    let escaped = escape(name.as_str());
    if escaped.len() <= COMPONENT_MAX {
        return escaped;
    }
    let mut hasher = Hasher::new();
    hasher.update(name.as_str().as_bytes());
    let mut head = String::new();
    for c in name.as_str().chars() {
        let next = escape_char(c);
        if head.len() + next.len() > HEAD_MAX {
            break;
        }
        head.push_str(&next);
    }
    format!("{head}{DIGEST_MARK}{}", hasher.finish())
}

/// The name that a component stands for; `Some(None)` when it holds a digest, so that only the version knows the name.
pub(crate) fn name_of(folder: &str) -> Option<Option<ArtifactName>> {
    if let Some((head, digest)) = folder.split_once(DIGEST_MARK) {
        let hexadecimal = digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        // The head goes on, so a dot at its end is not that of a component.
        return (digest.len() == 64 && hexadecimal && is_component(&format!("{head}x"))).then_some(None);
    }
    let name = ArtifactName::new(unescape(folder)?).ok()?;
    (folder_of(&name) == folder).then_some(Some(name))
}

fn file_of(name: &ArtifactName) -> String {
    let last = name.components().last().map(escape).unwrap_or_default();
    if last.is_empty() || last.len() > FILE_MAX {
        return "content".to_owned();
    }
    last
}

fn is_component(text: &str) -> bool {
    !text.is_empty() && unescape(text).is_some_and(|plain| escape(&plain) == text)
}

fn escape(text: &str) -> String {
    let mut out: String = text.chars().map(escape_char).collect();
    // Azure drops a dot at the end of a component.
    if out.ends_with('.') {
        out.pop();
        out.push_str("~2E");
    }
    out
}

fn escape_char(c: char) -> String {
    if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
        return c.to_string();
    }
    let mut bytes = [0; 4];
    c.encode_utf8(&mut bytes)
        .bytes()
        .map(|byte| format!("~{byte:02X}"))
        .collect()
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte != b'~' {
            bytes.push(*byte);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return None };
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        bytes.push((digit(high)? * 16 + digit(low)?) as u8);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use agents_testkit::storage::names;

    use super::*;

    fn root() -> Root {
        Root::new("s3", "bucket", "some/prefix/").unwrap()
    }

    fn good_names() -> impl Iterator<Item = ArtifactName> {
        names()
            .into_iter()
            .filter(|case| case.valid)
            .map(|case| ArtifactName::new(case.name).unwrap())
    }

    #[test]
    fn every_name_has_keys_of_its_own_and_comes_back() {
        let mut folders = BTreeSet::new();
        for name in good_names() {
            let folder = folder_of(&name);
            assert!(folder.len() <= COMPONENT_MAX, "{name}: {}", folder.len());
            assert!(!folder.contains('/') && !folder.ends_with('.'));
            match name_of(&folder).unwrap() {
                Some(back) => assert_eq!(back, name),
                None => assert!(folder.contains(DIGEST_MARK)),
            }
            assert!(folders.insert(folder), "{name} shares its folder");
            for id in [None, Some(new_id())] {
                let place = Place::new(SessionId::generate(), &name, 12).with_id(id);
                let uri = root().uri_of(&place);
                assert_eq!(root().parse_uri(&uri).unwrap(), place, "{uri}");
                let path = root().path(&place.key());
                assert_eq!(format!("s3://bucket/{path}"), uri, "the URI holds the key as it is");
                assert!(path.as_ref().len() <= 1024);
                assert_eq!(Place::parse(root().below(path.as_ref()).unwrap()), Some(place));
            }
        }
    }

    #[test]
    fn keys_read_well() {
        let place = |name: &str| Place::new(SessionId::new("s1").unwrap(), &ArtifactName::new(name).unwrap(), 1);
        assert_eq!(
            root().uri_of(&place("plots/a.png")),
            "s3://bucket/some/prefix/s1/plots~2Fa.png/1/a.png"
        );
        assert_eq!(place("ü/a b.").key(), "s1/~C3~BC~2Fa~20b~2E/1/a~20b~2E");
        let whole = Root::new("gs", "b", "/").unwrap();
        assert_eq!(whole.uri_of(&place("a")), "gs://b/s1/a/1/a");
        assert_eq!(whole.upload("x").as_ref(), ".uploads/x");
    }

    #[test]
    fn uris_of_others_are_refused() {
        for bad in [
            "",
            "s3://bucket",
            "s3://bucket/some/prefix",
            "s3://bucket/some/prefix/",
            "s3://bucket/some/prefix/s1/a/1",
            "s3://bucket/some/prefix/s1/a/1/a/b",
            "s3://bucket/some/prefix/s1/a/1/b",
            "s3://bucket/some/prefix/s1/a/0/a",
            "s3://bucket/some/prefix/s1/a/01/a",
            "s3://bucket/some/prefix/s1/a/+1/a",
            "s3://bucket/some/prefix/s1/a/1.x/a",
            "s3://bucket/some/prefix/.uploads/a/1/a",
            "s3://bucket/some/prefix/../a/1/a",
            "s3://bucket/some/prefix/s1/../1/..",
            "s3://bucket/some/prefix/s1/a~2fb/1/b",
            "s3://bucket/some/prefix/s1/~2E~2E/1/~2E~2E",
            "s3://bucket/some/prefix//s1/a/1/a",
            "s3://bucket/some/prefix2/s1/a/1/a",
            "s3://bucket/some/s1/a/1/a",
            "s3://bucket2/some/prefix/s1/a/1/a",
            "gs://bucket/some/prefix/s1/a/1/a",
            "s3://bucket/some/prefix/s1/a/1/a?x",
        ] {
            let error = root().parse_uri(bad).unwrap_err();
            assert_eq!(error.kind(), agents_core::ErrorKind::ConfigInvalid, "{bad}");
        }
    }

    #[test]
    fn bad_prefixes_are_refused() {
        for bad in [
            "a//b",
            "../a",
            "a/.",
            "a./b",
            "a b",
            "ü",
            "a%2Fb",
            "a\nb",
            "a\\b",
            &"x".repeat(301),
        ] {
            let error = Root::new("s3", "bucket", bad).unwrap_err();
            assert!(error.message().contains("prefix"), "{bad:?}");
        }
    }
}
