//! Names on disk, and the URIs that stand for them.
//!
//! ```text
//! <base>/.lock                                    held while something is published or deleted
//! <base>/.tmp/t-<id>/                             an upload, whose sidecar is locked by its writer
//! <base>/.tmp/d-<id>/                             what is being deleted
//! <base>/<session>/<name>/<version>/<file>        the content, under the last component of the artifact's name
//! <base>/<session>/<name>/<version>/.artifact.json    its sidecar
//! ```
//!
//! `<name>` is the artifact's name as one component: `~` becomes `~0` and `/` becomes `~1`, as in a JSON pointer
//! (RFC 6901), so that an artifact `a` and an artifact `a/b` can both exist.

use std::{
    borrow::Cow,
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
};

use agents_core::{ArtifactName, Error, Result, SessionId};

use crate::digest::Hasher;

pub(crate) const LOCK: &str = ".lock";
pub(crate) const TMP: &str = ".tmp";
pub(crate) const SIDECAR: &str = ".artifact.json";
pub(crate) const UPLOAD: &str = "t-";
pub(crate) const TRASH: &str = "d-";

/// The most bytes of a file name on every file system that matters.
const NAME_MAX: usize = 255;

/// Marks a name that was too long and ends with its digest. `~-` occurs in no other name.
const DIGEST_MARK: &str = "~-";

/// An artifact's version on disk, relative to the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) session: SessionId,
    pub(crate) folder: String,
    pub(crate) version: u64,
    pub(crate) file: String,
}

impl Place {
    pub(crate) fn new(session: SessionId, name: &ArtifactName, version: u64) -> Self {
        Self {
            session,
            folder: folder_of(name),
            version,
            file: file_of(name).into_owned(),
        }
    }

    pub(crate) fn uri(&self, base: &Path) -> String {
        let mut uri = "file://".to_owned();
        percent_encode(base.as_os_str().as_bytes(), &mut uri);
        for component in [
            self.session.as_str(),
            &self.folder,
            &self.version.to_string(),
            &self.file,
        ] {
            if !uri.ends_with('/') {
                uri.push('/');
            }
            percent_encode(component.as_bytes(), &mut uri);
        }
        uri
    }

    /// Reads a URI, without any I/O.
    pub(crate) fn parse(base: &Path, uri: &str) -> Result<Self> {
        let foreign = |why: &str| {
            Error::invalid(format!(
                "{uri:?} is not an artifact of this store: {why}; use a URI that storing or listing gave"
            ))
            .with_context("base", base.display())
        };
        let path = uri
            .strip_prefix("file://")
            .ok_or_else(|| foreign("it is no file:// URI"))?;
        let path = percent_decode(path).ok_or_else(|| foreign("it is not percent-encoded"))?;
        let rest = Path::new(std::ffi::OsStr::from_bytes(&path))
            .strip_prefix(base)
            .map_err(|_| foreign("it is outside of the base folder"))?;
        let parts = rest
            .components()
            .map(|component| match component {
                Component::Normal(part) => part.to_str(),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| foreign("it has a component '..' or one that is not UTF-8"))?;
        let [session, folder, version, file] = parts.as_slice() else {
            return Err(foreign("it does not name a session, an artifact, a version and a file"));
        };
        let place = Self {
            session: SessionId::new(*session)?,
            folder: (*folder).to_owned(),
            version: parse_version(version).ok_or_else(|| foreign("its version is not a number"))?,
            file: (*file).to_owned(),
        };
        // Path drops empty and '.' components, so compare: a version has exactly one URI path.
        if percent_decode(&place.uri(base)["file://".len()..]) != Some(path) {
            return Err(foreign("it is not in its plain form"));
        }
        Ok(place)
    }
}

/// The artifact's name as one component of a path.
pub(crate) fn folder_of(name: &ArtifactName) -> String {
    let escaped = name.as_str().replace('~', "~0").replace('/', "~1");
    if escaped.len() <= NAME_MAX {
        return escaped;
    }
    let mut hasher = Hasher::new();
    hasher.update(name.as_str().as_bytes());
    let mut end = 160;
    while !escaped.is_char_boundary(end) {
        end -= 1;
    }
    let head = escaped[..end].trim_end_matches('~');
    format!("{head}{DIGEST_MARK}{}", hasher.finish())
}

/// The name that a folder stands for; `None` when the folder holds a digest, so that only the sidecar knows the name.
pub(crate) fn name_of(folder: &str) -> Result<Option<ArtifactName>> {
    if folder.contains(DIGEST_MARK) {
        return Ok(None);
    }
    ArtifactName::new(folder.replace("~1", "/").replace("~0", "~")).map(Some)
}

/// The content's file name: the last component of the artifact's name, so that a person finds the expected extension.
pub(crate) fn file_of(name: &ArtifactName) -> Cow<'_, str> {
    match name.components().last() {
        Some(SIDECAR) | None => Cow::Borrowed("content"),
        Some(last) => Cow::Borrowed(last),
    }
}

/// A version's number in its only form.
pub(crate) fn parse_version(text: &str) -> Option<u64> {
    let version: u64 = text.parse().ok()?;
    (version > 0 && version.to_string() == text).then_some(version)
}

fn percent_encode(bytes: &[u8], out: &mut String) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/@:+=,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match byte {
            b'%' => {
                let [high, low, tail @ ..] = rest else { return None };
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push((digit(high)? * 16 + digit(low)?) as u8);
                rest = tail;
            }
            b'?' | b'#' => return None,
            byte => bytes.push(*byte),
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names() -> Vec<ArtifactName> {
        let mut names: Vec<String> = [
            "a",
            "a/b",
            "a~1b",
            "a~b",
            "A",
            "a b",
            "späße/ü",
            ".artifact.json",
            ".env",
            "...",
            "100%",
            "a?b#c",
            "~-x",
            "-rf",
            "x/.artifact.json",
            "~",
            "~0",
            "~1",
        ]
        .map(str::to_owned)
        .to_vec();
        names.push("x".repeat(255));
        names.push("~".repeat(255));
        names.push(["ü".repeat(120), "ä".repeat(120), "ö".repeat(120)].join("/"));
        names.push(["ü".repeat(120), "ä".repeat(120), "ö".repeat(119)].join("/"));
        names.push(vec!["a"; 450].join("/"));
        names.into_iter().map(|name| ArtifactName::new(name).unwrap()).collect()
    }

    #[test]
    fn every_name_has_a_folder_of_its_own_and_comes_back() {
        let mut folders = BTreeSet::new();
        for name in names() {
            let folder = folder_of(&name);
            assert!(folder.len() <= NAME_MAX, "{name}: {}", folder.len());
            assert!(!folder.contains('/') && folder != "." && folder != "..");
            match name_of(&folder).unwrap() {
                Some(back) => assert_eq!(back, name),
                None => assert!(folder.len() > 160),
            }
            assert!(folders.insert(folder), "{name} shares its folder");
        }
    }

    #[test]
    fn a_uri_comes_back() {
        for base in ["/", "/var/lib/store", "/a b/ü%"] {
            for name in names() {
                let place = Place::new(SessionId::generate(), &name, 12);
                let uri = place.uri(Path::new(base));
                assert_eq!(Place::parse(Path::new(base), &uri).unwrap(), place, "{uri}");
            }
        }
        let place = Place::new(
            SessionId::new("s1").unwrap(),
            &ArtifactName::new("plots/a.png").unwrap(),
            1,
        );
        assert_eq!(place.uri(Path::new("/data")), "file:///data/s1/plots~1a.png/1/a.png");
    }

    #[test]
    fn uris_of_others_are_refused() {
        for bad in [
            "",
            "/data/s1/a/1/a",
            "s3://bucket/s1/a",
            "file://data/s1/a/1/a",
            "file:///etc/passwd",
            "file:///data",
            "file:///data/s1/a/1",
            "file:///data/s1/a/1/a/b",
            "file:///data/../etc/a/1/a",
            "file:///data/s1/../a/1/a",
            "file:///data/s1/%2e%2e/1/a",
            "file:///data/s1/a/1/..",
            "file:///data/s1/a/1/%2e%2e%2f%2e%2e",
            "file:///data//s1/a/1/a",
            "file:///data/./s1/a/1/a",
            "file:///data/s1/a/01/a",
            "file:///data/s1/a/0/a",
            "file:///data/s1/a/+1/a",
            "file:///data/.tmp/a/1/a",
            "file:///data/s1/a/1/a?x",
            "file:///data/s1/a/1/a#x",
            "file:///data/s1/a/1/%zz",
            "file:///data/s1/a/1/a%",
            "file:///data2/s1/a/1/a",
        ] {
            let error = Place::parse(Path::new("/data"), bad).unwrap_err();
            assert_eq!(error.kind(), agents_core::ErrorKind::ConfigInvalid, "{bad}");
        }
    }
}
