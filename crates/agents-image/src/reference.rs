//! What a user may write for an image.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use agents_core::error::{Error, Result};

use crate::digest::Digest;

/// Where an image comes from.
///
/// | written | meaning |
/// |---|---|
/// | `host` | the root of this machine |
/// | `/path`, `./path`, `../path` | a folder, an OCI layout (a folder with an `oci-layout` file), or an archive |
/// | `dir:PATH` | a folder, whatever it holds |
/// | `oci:PATH[:TAG]` | an OCI layout |
/// | `docker-archive:PATH[:NAME]` | an archive written by `docker save` |
/// | `oci-archive:PATH[:TAG]` | an OCI layout in a tar file |
/// | `docker://NAME`, `NAME` | an image in a registry, with Docker's defaults |
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageRef {
    /// The root of this machine.
    Host,
    /// A folder that is a root file system.
    Folder(PathBuf),
    /// A tar file, plain or compressed, with one or more images.
    Archive(ArchiveRef),
    /// An OCI image layout, and the tag in it.
    Layout(PathBuf, Option<String>),
    /// An image in a registry.
    Registry(RegistryRef),
}

/// An image in a tar file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArchiveRef {
    /// The absolute path of the file.
    pub path: PathBuf,
    /// The format that it must have.
    pub format: ArchiveFormat,
    /// Which image, when the archive holds several.
    pub name: Option<String>,
}

/// The format of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ArchiveFormat {
    /// Whichever it is.
    #[default]
    Auto,
    /// As `docker save` writes it.
    Docker,
    /// An OCI image layout in a tar file.
    Oci,
}

/// An image in a registry, with Docker's defaults filled in.
///
/// The name of a tagged image that is pinned by digest keeps its tag for display, and the digest decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Reads what a user wrote. Paths are looked up, and made absolute.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid(
                "the image is empty; write host, a path or the name of an image",
            ));
        }
        if text.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "the image {} has a control character in it",
                quoted(text)
            )));
        }
        if text.starts_with('-') {
            return Err(Error::invalid(format!(
                "the image {} starts with a hyphen; put a path behind ./",
                quoted(text)
            )));
        }
        if text.starts_with('~') {
            return Err(Error::invalid(format!(
                "the image {} starts with ~, which only a shell expands; write the whole path",
                quoted(text)
            )));
        }
        if text.trim() != text {
            return Err(Error::invalid(format!(
                "the image {} starts or ends with a space",
                quoted(text)
            )));
        }
        if text == "host" {
            return Ok(Self::Host);
        }
        if let Some(path) = text.strip_prefix("dir:") {
            let path = existing(path)?;
            if !path.is_dir() {
                return Err(Error::invalid(format!("{} is not a folder", quoted(&path))));
            }
            return Ok(Self::Folder(path));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, tag) = path_and_name(rest)?;
            if !is_layout(&path) {
                return Err(Error::invalid(format!(
                    "{} is not an OCI layout, for it has no file oci-layout",
                    quoted(&path)
                )));
            }
            return Ok(Self::Layout(path, tag));
        }
        for (prefix, format) in [
            ("docker-archive:", ArchiveFormat::Docker),
            ("oci-archive:", ArchiveFormat::Oci),
        ] {
            if let Some(rest) = text.strip_prefix(prefix) {
                let (path, name) = path_and_name(rest)?;
                if !path.is_file() {
                    return Err(Error::invalid(format!("{} is not a file", quoted(&path))));
                }
                return Ok(Self::Archive(ArchiveRef { path, format, name }));
            }
        }
        if let Some(name) = text.strip_prefix("docker://") {
            return RegistryRef::parse(name).map(Self::Registry);
        }
        for transport in ["containers-storage:", "docker-daemon:", "ostree:", "sif:", "tarball:"] {
            if text.starts_with(transport) {
                return Err(Error::unsupported(format!(
                    "the image {} cannot be read; save it to a file, for example with `podman save` or `docker save`, and give its path",
                    quoted(text)
                )));
            }
        }
        if text.starts_with('/') || text == "." || text == ".." || text.starts_with("./") || text.starts_with("../") {
            return Self::from_path(existing(text)?);
        }
        RegistryRef::parse(text).map(Self::Registry).map_err(|error| {
            if Path::new(text).exists() {
                Error::invalid(format!(
                    "{}; if you mean the file or folder of that name, write ./{text}",
                    error.message()
                ))
            } else {
                error
            }
        })
    }

    /// The kind of image that the path is: a folder, an OCI layout or an archive.
    pub fn from_path(path: impl Into<PathBuf>) -> Result<Self> {
        let path = existing(path.into())?;
        let metadata = path
            .metadata()
            .map_err(|error| Error::io(format!("cannot look at {}", quoted(&path)), error))?;
        if metadata.is_dir() {
            return Ok(if is_layout(&path) {
                Self::Layout(path, None)
            } else {
                Self::Folder(path)
            });
        }
        if metadata.is_file() {
            return Ok(Self::Archive(ArchiveRef {
                path,
                format: ArchiveFormat::Auto,
                name: None,
            }));
        }
        Err(Error::invalid(format!(
            "{} is neither a folder nor a file",
            quoted(&path)
        )))
    }
}

impl FromStr for ImageRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, path, name) = match self {
            Self::Host => return f.write_str("host"),
            Self::Registry(reference) => return reference.fmt(f),
            Self::Folder(path) => ("dir:", path, &None),
            Self::Layout(path, tag) => ("oci:", path, tag),
            Self::Archive(archive) => {
                let prefix = match archive.format {
                    ArchiveFormat::Auto => "",
                    ArchiveFormat::Docker => "docker-archive:",
                    ArchiveFormat::Oci => "oci-archive:",
                };
                (prefix, &archive.path, &archive.name)
            }
        };
        write!(f, "{prefix}{}", path.display())?;
        if let Some(name) = name {
            write!(f, ":{name}")?;
        }
        Ok(())
    }
}

impl RegistryRef {
    /// Reads a name as Docker does: `alpine` is `docker.io/library/alpine:latest`.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid(format!("{} is not the name of an image: {why}", quoted(text)));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest).map_err(|error| bad(error.message()))?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let name_start = rest.rfind('/').map_or(0, |i| i + 1);
        let (name, tag) = match rest[name_start..].split_once(':') {
            Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            let first = tag
                .bytes()
                .next()
                .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
            let valid = tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
            if !first || !valid || tag.len() > 128 {
                return Err(bad(
                    "a tag has up to 128 letters, digits, underscores, full stops and hyphens",
                ));
            }
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest))
                if first == "localhost"
                    || first.contains(['.', ':'])
                    || first.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                (first, rest)
            }
            _ => ("docker.io", name),
        };
        let registry = if registry == "index.docker.io" {
            "docker.io"
        } else {
            registry
        };
        if !valid_registry(registry) {
            return Err(bad(
                "the registry must be a host name or address, with a port if need be",
            ));
        }
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("a repository is written in lower case"));
        }
        if repository.len() > 255 || !repository.split('/').all(valid_component) {
            return Err(bad(
                "a repository has up to 255 lower-case letters and digits, with single full stops, underscores, hyphens and slashes between them",
            ));
        }
        let repository = if registry == "docker.io" && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self {
            registry: registry.to_ascii_lowercase(),
            repository,
            tag,
            digest,
        })
    }

    /// The registry, as `host` or `host:port`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest, when the image is pinned.
    pub fn digest(&self) -> Option<String> {
        self.digest.as_ref().map(Digest::to_string)
    }

    /// Whether the registry is on this machine, and so is spoken to over plain HTTP.
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.registry.split(':').next().unwrap_or_default(),
        };
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    pub(crate) fn pinned(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same for all spellings of the same image.
    pub(crate) fn key(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}/{}@{digest}", self.registry, self.repository),
            (None, Some(tag)) => format!("{}/{}:{tag}", self.registry, self.repository),
            (None, None) => format!("{}/{}", self.registry, self.repository),
        }
    }
}

impl fmt::Display for RegistryRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for RegistryRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

fn valid_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => match port.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return false;
    }
    if registry.starts_with('[') {
        return host.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, without the cost of a regular expression.
fn valid_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(alphanumeric) || !bytes.last().copied().is_some_and(alphanumeric) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_layout(path: &Path) -> bool {
    path.join("oci-layout").is_file()
}

fn existing(path: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path.as_ref();
    if path.as_os_str().is_empty() {
        return Err(Error::invalid("the path of the image is empty"));
    }
    match path.try_exists() {
        Ok(true) => {
            std::path::absolute(path).map_err(|error| Error::io(format!("cannot look at {}", quoted(path)), error))
        }
        Ok(false) => Err(Error::not_found(format!(
            "no such folder or file {}; an image is host, a path or the name of an image",
            quoted(path)
        ))),
        Err(error) => Err(Error::io(format!("cannot look at {}", quoted(path)), error)),
    }
}

/// Splits `PATH[:NAME]` where the path exists, for both may contain colons.
fn path_and_name(text: &str) -> Result<(PathBuf, Option<String>)> {
    if Path::new(text).exists() {
        return Ok((existing(text)?, None));
    }
    for (i, _) in text.match_indices(':') {
        let (path, name) = (&text[..i], &text[i + 1..]);
        if !path.is_empty() && !name.is_empty() && Path::new(path).exists() {
            return Ok((existing(path)?, Some(name.to_owned())));
        }
    }
    existing(text).map(|path| (path, None))
}

/// A name from outside, safe to print on one line.
pub(crate) fn quoted(text: impl AsRef<std::ffi::OsStr>) -> String {
    format!("{:?}", text.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use agents_core::error::ErrorKind;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_filled_in_like_docker_does() {
        let pinned = format!("alpine:3@sha256:{HEX}");
        let pinned_full = format!("docker.io/library/alpine:3@sha256:{HEX}");
        let only_digest = format!("ghcr.io/a/b@sha256:{HEX}");
        for (written, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/image", "docker.io/user/image:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
            ("docker://alpine:3", "docker.io/library/alpine:3"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("Registry.Example:443/a__b/c-.d", ""),
            ("quay.io/a_b/c--d.e", "quay.io/a_b/c--d.e:latest"),
            (&pinned, &pinned_full),
            (&only_digest, &only_digest),
        ] {
            match ImageRef::parse(written) {
                Ok(reference) => assert_eq!(reference.to_string(), full, "{written}"),
                Err(error) => assert!(full.is_empty(), "{written}: {error}"),
            }
        }
    }

    #[test]
    fn a_pinned_name_has_the_same_key_with_and_without_tag() {
        let with = RegistryRef::parse(&format!("a:1@sha256:{HEX}")).unwrap();
        let without = RegistryRef::parse(&format!("a@sha256:{HEX}")).unwrap();
        assert_eq!(with.key(), without.key());
        assert_ne!(with.key(), RegistryRef::parse("a:1").unwrap().key());
    }

    #[test]
    fn loopback_is_seen_in_all_its_forms() {
        for (name, loopback) in [
            ("localhost/x", true),
            ("localhost:5000/x", true),
            ("127.0.0.1:5000/x", true),
            ("127.3.2.1/x", true),
            ("[::1]:80/x", true),
            ("127.0.0.1.example.com/x", false),
            ("localhost.example.com/x", false),
            ("10.0.0.1:5000/x", false),
            ("x", false),
        ] {
            assert_eq!(RegistryRef::parse(name).unwrap().is_loopback(), loopback, "{name}");
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_name() {
        for bad in [
            "Alpine",
            "a:",
            "a:-x",
            "a@md5:00",
            "a@sha256:00",
            "/",
            "a//b",
            "a/",
            ".a",
            "a..b",
            "a___b",
            "host name",
            "x:y:z",
            "ex_ample.com/a",
            "a.b:99999/c",
            "a.b:+1/c",
            "é",
            "[::1/a",
            "[zz]/a",
            "http://x/y",
            "a b",
        ] {
            if bad == "/" {
                continue;
            }
            let error = RegistryRef::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{bad}");
            assert!(error.message().contains(&format!("{bad:?}")), "{error}");
        }
        for bad in [
            "",
            "-x",
            "~/x",
            "a\nb",
            " a",
            "a\0",
            "./nowhere",
            "docker-daemon:x",
            "oci:/nowhere:a",
            "dir:",
        ] {
            assert!(ImageRef::parse(bad).is_err(), "{bad:?}");
        }
        let error = ImageRef::parse("./nowhere").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(
            error.message().contains("no such folder or file \"./nowhere\""),
            "{error}"
        );
    }

    #[test]
    fn paths_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(ImageRef::parse(path).unwrap(), ImageRef::Folder(path.into()));
        assert_eq!(
            ImageRef::parse(&format!("dir:{path}")).unwrap(),
            ImageRef::Folder(path.into())
        );
        assert!(ImageRef::parse(&format!("oci:{path}")).is_err());
        std::fs::write(folder.path().join("oci-layout"), "{}").unwrap();
        assert_eq!(ImageRef::parse(path).unwrap(), ImageRef::Layout(path.into(), None));
        let tagged = ImageRef::parse(&format!("oci:{path}:v1:2")).unwrap();
        assert_eq!(tagged, ImageRef::Layout(path.into(), Some("v1:2".into())));
        let file = format!("{path}/a:b.tar");
        std::fs::write(&file, "").unwrap();
        let ImageRef::Archive(archive) = ImageRef::parse(&format!("docker-archive:{file}:x:1")).unwrap() else {
            panic!("not an archive");
        };
        assert_eq!(archive.path, Path::new(&file));
        assert_eq!(archive.name.as_deref(), Some("x:1"));
        assert!(matches!(ImageRef::parse(&file), Ok(ImageRef::Archive(_))));
    }
}
