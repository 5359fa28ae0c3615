//! Names of images: nothing but a name reaches the engine, which would also read archives and folders of its host by
//! `transport:path`.

use agents_core::{Error, Result};

/// A name that an image is asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// As the caller wrote it; the engine knows what short names mean of the images that it has.
    written: String,
    registry: String,
    repository: String,
    suffix: String,
}

impl Reference {
    /// Reads `[registry/]name[:tag][@digest]`, and the identifier of an image.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let fault = |what: &str| {
            Error::invalid(format!(
                "image: {text:?} {what}; write [registry/]name[:tag] or [registry/]name@sha256:digest"
            ))
        };
        if text.is_empty() || text.len() > 1024 {
            return Err(fault("is empty or too long"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        if let Some(digest) = digest {
            let fits = digest.split_once(':').is_some_and(|(algorithm, hex)| {
                matches!((algorithm, hex.len()), ("sha256", 64) | ("sha512", 128))
                    && hex
                        .bytes()
                        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
            });
            if !fits {
                return Err(fault("has a damaged digest"));
            }
        }
        // A colon after the last slash begins a tag, one before it a port.
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].split_once(':') {
            Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
            None => (name, None),
        };
        if let Some(tag) = tag {
            let fits = tag.len() <= 128
                && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            if !fits {
                return Err(fault("has a damaged tag"));
            }
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        let host = registry.split_once(':').map_or(registry, |(host, _)| host);
        let port = registry.split_once(':').map(|(_, port)| port);
        let host_fits = !host.is_empty()
            && host.starts_with(|c: char| c.is_ascii_alphanumeric())
            && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
        if !host_fits || port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(fault("names no registry"));
        }
        let component = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && part.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
        };
        if !path.split('/').all(component) {
            return Err(fault(
                "has a name of other than small letters, digits, '.', '_' and '-'",
            ));
        }
        let suffix = match (tag, digest) {
            (_, Some(digest)) => format!("@{digest}"),
            (Some(tag), None) => format!(":{tag}"),
            (None, None) => ":latest".to_owned(),
        };
        Ok(Self {
            // Engines take either a tag or a digest, and the digest decides.
            written: match (tag, digest) {
                (Some(_), Some(digest)) => format!("{name}@{digest}"),
                _ => text.to_owned(),
            },
            registry: registry.to_owned(),
            repository: path,
            suffix,
        })
    }

    /// The name to look among the engine's images for.
    pub(crate) fn local(&self) -> &str {
        &self.written
    }

    /// The name to pull by: short names are Docker's.
    pub(crate) fn remote(&self) -> String {
        format!("{}/{}{}", self.registry, self.repository, self.suffix)
    }

    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// The digest that the caller insists on.
    pub(crate) fn digest(&self) -> Option<&str> {
        self.suffix.strip_prefix('@')
    }

    /// The keys of credentials that apply, most specific first, as podman has it.
    pub(crate) fn scopes(&self) -> Vec<String> {
        let mut scope = format!("{}/{}", self.registry, self.repository);
        let mut scopes = vec![scope.clone()];
        while let Some(slash) = scope.rfind('/') {
            scope.truncate(slash);
            scopes.push(scope.clone());
        }
        scopes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn short_names_are_dockers() {
        for (text, remote) in [
            ("python:3.11-slim", "docker.io/library/python:3.11-slim"),
            ("team/tool", "docker.io/team/tool:latest"),
            ("localhost/a:b", "localhost/a:b"),
            ("registry.example:5000/a/b/c", "registry.example:5000/a/b/c:latest"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.local(), reference.remote()), (text, remote.to_owned()));
        }
        let pinned = Reference::parse(&format!("quay.io/a:1@{DIGEST}")).unwrap();
        assert_eq!(pinned.local(), format!("quay.io/a@{DIGEST}"));
        assert_eq!(pinned.remote(), format!("quay.io/a@{DIGEST}"));
        assert_eq!(pinned.digest(), Some(DIGEST));
    }

    #[test]
    fn nothing_but_a_name_is_a_name() {
        for bad in [
            "",
            "--privileged",
            "/no/such/image",
            "oci:/tmp/layout",
            "docker-archive:/etc/passwd",
            "dir:/etc",
            "a b",
            "a?b",
            "a//b",
            "a/../b",
            "A",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a@md5:9f86d081884c7d659a2feaa0c55ad015",
            "r:x/a",
            "a\nb",
            "späße",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn scopes_go_from_the_repository_to_the_registry() {
        let reference = Reference::parse("r.example/a/b:1").unwrap();
        assert_eq!(reference.scopes(), ["r.example/a/b", "r.example/a", "r.example"]);
    }
}
