//! A resolved image: folders to stack, and the configuration to run with.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer};

/// An image whose layers are on disk.
///
/// While a value or a clone of it lives, [`ImageStore::gc`](crate::ImageStore::gc) of any process leaves its layers alone.
/// Keep it until the root file system is unmounted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resolved {
    /// The read-only layer folders, lowest first; never empty, and no folder appears twice.
    ///
    /// For [`ImageRef::Host`](crate::ImageRef::Host) this is `/`, and for a folder that folder.
    /// Layers of the store keep whiteouts in overlayfs form (character device 0:0) and opaque folders as
    /// `user.overlay.opaque`: mount them with `userxattr`.
    pub layers: Vec<PathBuf>,
    /// What the image says about how to run it.
    pub config: ImageConfig,
    /// The digest of the manifest, when the source has one (`docker save` archives have none).
    pub digest: Option<String>,
    /// The digest of the configuration, which Docker calls the image ID.
    pub image_id: Option<String>,
    /// The reference in its full form, for records and messages.
    pub source: String,
    /// What was left out while unpacking, for example device nodes. Empty when the image was in the store already.
    pub warnings: Vec<String>,
    /// Whether the image was in the store already, so that nothing was read or pulled.
    pub cached: bool,
    pub(crate) lock: Option<Arc<File>>,
}

impl Resolved {
    pub(crate) fn folder(path: &Path, source: String) -> Self {
        Self {
            layers: vec![path.to_owned()],
            config: ImageConfig::default(),
            digest: None,
            image_id: None,
            source,
            warnings: Vec::new(),
            cached: true,
            lock: None,
        }
    }

    /// Whether the layers belong to the store, and are kept from garbage collection by this value.
    pub fn is_stored(&self) -> bool {
        self.lock.is_some()
    }
}

/// What an image says about how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ImageConfig {
    /// Environment, each as `NAME=value`.
    #[serde(rename = "Env", deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// The program that is always run, before the command.
    #[serde(rename = "Entrypoint", deserialize_with = "null_as_default")]
    pub entrypoint: Vec<String>,
    /// The default command, or the default arguments of the entry point.
    #[serde(rename = "Cmd", deserialize_with = "null_as_default")]
    pub cmd: Vec<String>,
    /// The user, as `name`, `uid`, `name:group` or `uid:gid`.
    #[serde(rename = "User", deserialize_with = "empty_as_none")]
    pub user: Option<String>,
    /// The working folder.
    #[serde(rename = "WorkingDir", deserialize_with = "empty_as_none")]
    pub working_dir: Option<String>,
    /// Labels.
    #[serde(rename = "Labels", deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the program to end.
    #[serde(rename = "StopSignal", deserialize_with = "empty_as_none")]
    pub stop_signal: Option<String>,
}

pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn empty_as_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()))
}
