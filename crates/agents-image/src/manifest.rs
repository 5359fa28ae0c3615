//! The documents of an image: manifests, indexes and configurations.

use agents_core::error::{Error, ErrorKind, Result};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    digest::Digest,
    resolved::{ImageConfig, null_as_default},
};

/// No real manifest or configuration comes near.
pub(crate) const MAX_DOCUMENT: usize = 8 << 20;

/// A pointer to content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn digest(&self) -> Result<Digest> {
        Digest::parse(&self.digest)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A manifest or an index.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) manifests: Vec<Descriptor>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            #[serde(default)]
            schema_version: u32,
            #[serde(default)]
            config: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = parse(bytes, "manifest")?;
        match (probe.schema_version, probe.config, probe.manifests) {
            (1, ..) => Err(Error::unsupported(
                "the image has a schema 1 manifest, which is obsolete; push it again with a current tool",
            )),
            // A document that is both could be read as two different images.
            (_, Some(_), Some(_)) => Err(invalid("the manifest has both config and manifests")),
            (_, Some(_), None) => parse(bytes, "manifest").map(Self::Manifest),
            (_, None, Some(_)) => parse(bytes, "index").map(Self::Index),
            (_, None, None) => Err(invalid("the manifest has neither config nor manifests")),
        }
    }
}

impl Index {
    /// The manifest for this machine.
    pub(crate) fn choose(&self) -> Result<&Descriptor> {
        let machine = machine();
        let mut offered = Vec::new();
        let mut unmarked = Vec::new();
        for descriptor in &self.manifests {
            // BuildKit adds attestations as manifests for the platform unknown/unknown.
            if descriptor.annotations.contains_key("vnd.docker.reference.type") {
                continue;
            }
            match &descriptor.platform {
                Some(platform) if platform.runs_on(&machine) => return Ok(descriptor),
                Some(platform) => offered.push(platform.to_string()),
                None => unmarked.push(descriptor),
            }
        }
        match unmarked.as_slice() {
            [only] if offered.is_empty() => Ok(only),
            _ => Err(Error::unsupported(format!(
                "the image is not made for {machine}; it is made for {}",
                if offered.is_empty() {
                    "no platform by name".to_owned()
                } else {
                    offered.join(", ")
                }
            ))),
        }
    }
}

impl Platform {
    fn runs_on(&self, machine: &Platform) -> bool {
        self.os == machine.os
            && self.architecture == machine.architecture
            && match (self.variant.as_deref(), machine.variant.as_deref()) {
                (None | Some(""), _) => true,
                // x86-64-v2 and later need not run here.
                (Some(variant), None) => variant == "v1",
                (Some(variant), Some(machine)) => variant == machine,
            }
    }
}

/// The platform of this machine, in the words of OCI, which are Go's.
pub(crate) fn machine() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "x86" => ("386", None),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
        other => (other, None),
    };
    Platform {
        architecture: architecture.into(),
        os: "linux".into(),
        variant: variant.map(str::to_owned),
    }
}

/// The configuration of an image, as far as it is of use here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RootFs,
}

#[derive(Clone, Debug, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_as_default")]
    diff_ids: Vec<Digest>,
}

impl ConfigFile {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        parse(bytes, "configuration")
    }

    /// The digests of the uncompressed layers, lowest first.
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }

    pub(crate) fn into_image_config(self) -> ImageConfig {
        self.config.unwrap_or_default()
    }

    /// Refuses an image that this machine cannot run.
    pub(crate) fn check(&self, layers: usize, max_layers: usize) -> Result<()> {
        let machine = machine();
        let foreign = |mine: &str, theirs: &str| !theirs.is_empty() && mine != theirs;
        if foreign(&machine.os, &self.os) || foreign(&machine.architecture, &self.architecture) {
            return Err(Error::unsupported(format!(
                "the image is made for {}/{}, and this machine is {}/{}",
                self.os, self.architecture, machine.os, machine.architecture
            )));
        }
        let ids = self.diff_ids().len();
        if ids != layers {
            return Err(invalid(&format!(
                "the manifest has {layers} layers, and the configuration {ids}; the image is damaged"
            )));
        }
        if ids == 0 {
            return Err(invalid("the image has no layers"));
        }
        if ids > max_layers {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!("the image has {ids} layers, and {max_layers} are allowed"),
            ));
        }
        Ok(())
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::DataInvalid, message)
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(too_large(what));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| invalid(&format!("the {what} of the image cannot be read")).with_source(error))
}

pub(crate) fn too_large(what: &str) -> Error {
    invalid(&format!(
        "the {what} of the image is larger than {} MiB",
        MAX_DOCUMENT >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &str) -> Index {
        match Document::parse(format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#).as_bytes()).unwrap() {
            Document::Index(index) => index,
            Document::Manifest(_) => panic!("a manifest"),
        }
    }

    #[test]
    fn the_platform_of_this_machine_is_chosen() {
        let arch = machine().architecture;
        let index_ = index(&format!(
            r#"{{"digest":"a","platform":{{"os":"windows","architecture":"{arch}"}}}},
               {{"digest":"b","platform":{{"os":"linux","architecture":"mips"}}}},
               {{"digest":"c","platform":{{"os":"linux","architecture":"{arch}","variant":"v99"}}}},
               {{"digest":"d","platform":{{"os":"linux","architecture":"{arch}"}},"annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}},
               {{"digest":"e","platform":{{"os":"linux","architecture":"{arch}"}}}}"#
        ));
        assert_eq!(index_.choose().unwrap().digest, "e");
        let foreign = index(r#"{"digest":"b","platform":{"os":"linux","architecture":"mips"}}"#);
        let error = foreign.choose().unwrap_err();
        assert!(
            error.message().contains("linux/mips") && error.message().contains(&arch),
            "{error}"
        );
        assert_eq!(index(r#"{"digest":"x"}"#).choose().unwrap().digest, "x");
        assert!(index(r#"{"digest":"x"},{"digest":"y"}"#).choose().is_err());
    }

    #[test]
    fn ambiguous_and_old_documents_are_refused() {
        for bad in [
            r#"{"schemaVersion":1,"config":{}}"#,
            r#"{"schemaVersion":2,"config":{"digest":"x"},"manifests":[]}"#,
            r#"{"schemaVersion":2}"#,
            "[]",
            "",
        ] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn nulls_and_absent_fields_are_defaults() {
        let config = ConfigFile::parse(
            br#"{"rootfs":{"type":"layers","diff_ids":null},"config":{"Env":null,"Cmd":["sh"],"User":"","Labels":null,"Volumes":{}}}"#,
        )
        .unwrap();
        assert!(config.diff_ids().is_empty());
        let config = config.into_image_config();
        assert_eq!(config.cmd, ["sh"]);
        assert_eq!(config.user, None);
        assert!(ConfigFile::parse(br#"{"rootfs":{"diff_ids":["sha256:../x"]}}"#).is_err());
    }
}
