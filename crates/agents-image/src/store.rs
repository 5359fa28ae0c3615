//! The content-addressed store on disk.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agents_core::error::{Error, ErrorKind, Result};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    digest::Digest,
    manifest::{ConfigFile, MAX_DOCUMENT},
    options::ResolveOptions,
    reference::{ImageRef, quoted},
    resolved::Resolved,
    tree, unpack,
};

/// A store of image layers in one folder, shared safely by any number of processes of one user.
///
/// ```text
/// blobs/sha256/HEX   manifests and configurations
/// layers/HEX/        unpacked layers, named by the digest of their uncompressed tar file
/// layers/HEX.json    what each cost
/// refs/HEX.json      which image a name, an archive or a layout stands for
/// locks/             who uses or pulls what
/// tmp/               unfinished work, locked by whoever does it
/// ```
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: Arc<Path>,
}

/// An image in the store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredImage {
    /// The reference in its full form, as [`ImageStore::remove`] takes it.
    pub source: String,
    /// The digest of the manifest, when the source has one.
    pub digest: Option<String>,
    /// The digest of the configuration.
    pub image_id: String,
    /// How many layers it has.
    pub layers: usize,
    /// The bytes of its files. Layers that several images share count in each.
    pub size: u64,
    /// When it was pulled or unpacked.
    pub created: SystemTime,
}

/// What [`ImageStore::gc`] has removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcReport {
    /// References whose archive or layout is gone or has changed, or whose image is damaged.
    pub references: usize,
    /// Layers that no image needs.
    pub layers: usize,
    /// Manifests and configurations that no image needs.
    pub blobs: usize,
    /// Leftovers of pulls that did not end.
    pub leftovers: usize,
    /// The bytes of the files in the removed layers.
    pub bytes: u64,
    /// Images that no reference leads to, kept because they are in use.
    pub in_use: usize,
}

/// What a reference stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RefRecord {
    /// The full key, because the file name is only its hash.
    pub(crate) key: String,
    /// The reference as shown to people.
    pub(crate) source: String,
    pub(crate) config: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifest: Option<Digest>,
    /// Set for archives and layouts: the record holds for this state of the file only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<Fingerprint>,
    /// Seconds since 1970.
    pub(crate) created: u64,
}

/// The state of a file, so that a change is noticed without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    #[serde(with = "path_text")]
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Paths need not be UTF-8, and JSON must be: such a path is kept as bytes.
mod path_text {
    use std::{
        ffi::OsString,
        os::unix::ffi::{OsStrExt, OsStringExt},
        path::{Path, PathBuf},
    };

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Text {
        Utf8(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => Text::Utf8(text.to_owned()),
            None => Text::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
        .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Text::deserialize(deserializer)? {
            Text::Utf8(text) => text.into(),
            Text::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

impl Fingerprint {
    /// The canonical path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let m = path.metadata()?;
        Ok(Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
            path,
        })
    }

    fn holds(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerState {
    Missing,
    Present,
    Opaque,
}

/// What a layer cost, for `list` and `gc`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// A folder under `tmp/` that is removed on drop, and by anybody once its owner is dead.
#[derive(Debug)]
pub(crate) struct TempFolder {
    path: PathBuf,
    _lock: File,
}

impl TempFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Err(error) = tree::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary folder");
        }
    }
}

impl ImageStore {
    /// Opens the store in the folder, which is made with mode 0700 when it does not exist, and clears leftovers of dead processes.
    ///
    /// Refuses a store of another user: its layers would belong to that user.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let root = std::path::absolute(&root)
            .map_err(|error| Error::io(format!("cannot find the image store {}", quoted(&root)), error))?;
        let failed = |error| Error::io(format!("cannot open the image store {}", quoted(&root)), error);
        for folder in ["blobs/sha256", "layers", "refs", "locks", "tmp"] {
            let path = root.join(folder);
            if !path.is_dir() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(failed)?;
            }
        }
        let metadata = fs::symlink_metadata(&root).map_err(failed)?;
        let euid = rustix::process::geteuid().as_raw();
        if metadata.uid() != euid {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!(
                    "the image store {} belongs to user {}, and this is user {euid}; use a store of your own (XDG_DATA_HOME decides where it is)",
                    quoted(&root),
                    metadata.uid()
                ),
            ));
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        let store = Self {
            root: Arc::from(root.as_path()),
        };
        store.sweep_tmp().map_err(|error| store.failed("clean", error))?;
        Ok(store)
    }

    /// The folder that the store is in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the image available on disk, pulling or unpacking what is missing, and says which folders to stack.
    ///
    /// Must be called in a tokio runtime with I/O and time. Dropping the future stops the work and removes what is unfinished;
    /// layers that are complete stay, so that trying again continues there.
    #[tracing::instrument(name = "resolve_image", skip_all, fields(image = %image))]
    pub async fn resolve(&self, image: &ImageRef, options: &ResolveOptions) -> Result<Resolved> {
        crate::resolve::resolve(self, image, options)
            .await
            .map_err(|e| e.with_operation("resolve_image"))
    }

    /// The images that references lead to, by reference.
    pub fn list(&self) -> Result<Vec<StoredImage>> {
        let mut images = Vec::new();
        for (_, record) in self.ref_records().map_err(|error| self.failed("list", error))? {
            let Some(record) = record else { continue };
            let Some(config) = self.read_config(&record.config)? else {
                continue;
            };
            let size = config
                .diff_ids()
                .iter()
                .map(|id| self.layer_record(id).map_or(0, |layer| layer.bytes))
                .sum();
            images.push(StoredImage {
                source: record.source,
                digest: record.manifest.map(|digest| digest.to_string()),
                image_id: record.config.to_string(),
                layers: config.diff_ids().len(),
                size,
                created: UNIX_EPOCH + Duration::from_secs(record.created),
            });
        }
        images.sort_by(|a, b| a.source.cmp(&b.source));
        Ok(images)
    }

    /// Forgets a reference, as [`StoredImage::source`] has it, and says whether there was one. [`ImageStore::gc`] then frees the space.
    pub fn remove(&self, source: &str) -> Result<bool> {
        let _guard = self.exclusive()?;
        let mut found = false;
        for (path, record) in self.ref_records().map_err(|error| self.failed("change", error))? {
            if record.is_some_and(|record| record.source == source) {
                remove_file(&path).map_err(|error| self.failed("change", error))?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Removes layers and documents that no reference leads to and nobody uses, references to archives that are gone or have
    /// changed, and leftovers of pulls that did not end. Safe while other processes pull and run images.
    pub fn gc(&self) -> Result<GcReport> {
        self.collect_garbage().map_err(|error| self.failed("clean", error))
    }

    fn collect_garbage(&self) -> io::Result<GcReport> {
        let mut report = GcReport::default();
        let mut trash = Vec::new();
        {
            let guard = self.open_lock("store")?;
            guard.lock()?;

            let mut configs = HashSet::new();
            let mut blobs = HashSet::new();
            for (path, record) in self.ref_records()? {
                let alive = record.filter(|record| {
                    record.file.as_ref().is_none_or(Fingerprint::holds)
                        && self.read_config(&record.config).is_ok_and(|config| config.is_some())
                });
                match alive {
                    Some(record) => {
                        blobs.extend(record.manifest);
                        configs.insert(record.config);
                    }
                    None => {
                        remove_file(&path)?;
                        report.references += 1;
                    }
                }
            }
            for (name, path) in entries(&self.root.join("locks"))? {
                if name == "store" {
                    continue;
                }
                let image = name.strip_prefix("image-").and_then(Digest::from_hex);
                let file = match OpenOptions::new().read(true).open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                match file.try_lock() {
                    // Whoever opens a lock file holds the store's lock shared meanwhile, so that nobody
                    // is left with a lock on a removed file.
                    Ok(()) => remove_file(&path)?,
                    Err(TryLockError::WouldBlock) => {
                        if let Some(image) = image
                            && configs.insert(image)
                        {
                            report.in_use += 1;
                        }
                    }
                    Err(TryLockError::Error(error)) => return Err(error),
                }
            }
            let mut layers = HashSet::new();
            for config in &configs {
                if let Ok(Some(file)) = self.read_config(config) {
                    layers.extend(file.diff_ids().iter().map(|id| id.hex().to_owned()));
                }
            }
            blobs.extend(configs);
            for (name, path) in entries(&self.root.join("blobs/sha256"))? {
                if !Digest::from_hex(&name).is_some_and(|digest| blobs.contains(&digest)) {
                    remove_file(&path)?;
                    report.blobs += 1;
                }
            }
            for (name, path) in entries(&self.root.join("layers"))? {
                let hex = name.strip_suffix(".json").unwrap_or(&name);
                if layers.contains(hex) {
                    continue;
                }
                if name != hex {
                    // The record goes with its folder, or alone when there is no folder.
                    if !self.root.join("layers").join(hex).exists() {
                        remove_file(&path)?;
                    }
                    continue;
                }
                if let Some(record) = Digest::from_hex(hex).and_then(|id| self.layer_record(&id)) {
                    report.bytes += record.bytes;
                }
                let temp = self.temp_folder_unguarded()?;
                fs::rename(&path, temp.path().join("layer"))?;
                remove_file(&path.with_extension("json"))?;
                trash.push(temp);
                report.layers += 1;
            }
            report.leftovers = self.take_leftovers(&mut trash)?;
        }
        // Deleting takes long and needs no lock: nobody can find these any more.
        drop(trash);
        Ok(report)
    }

    /// Removes leftovers of dead processes, unless somebody else is at it.
    fn sweep_tmp(&self) -> io::Result<()> {
        if fs::read_dir(self.root.join("tmp"))?.next().is_none() {
            return Ok(());
        }
        let mut trash = Vec::new();
        let guard = self.open_lock("store")?;
        match guard.try_lock() {
            Ok(()) => {
                self.take_leftovers(&mut trash)?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        drop(guard);
        Ok(())
    }

    fn take_leftovers(&self, trash: &mut Vec<TempFolder>) -> io::Result<usize> {
        let mut taken = 0;
        for (_, path) in entries(&self.root.join("tmp"))? {
            let lock = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if lock.try_lock().is_ok() {
                trash.push(TempFolder { path, _lock: lock });
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// Makes a temporary folder that this process holds locked.
    pub(crate) fn temp_folder(&self) -> io::Result<TempFolder> {
        let guard = self.open_lock("store")?;
        guard.lock_shared()?;
        self.temp_folder_unguarded()
    }

    fn temp_folder_unguarded(&self) -> io::Result<TempFolder> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join(format!("tmp/{}-{nanos:x}-{count}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    let lock = File::open(&path)?;
                    lock.lock()?;
                    return Ok(TempFolder { path, _lock: lock });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Opens a lock file. Hold the store's lock shared meanwhile, for `gc` removes lock files that nobody holds.
    pub(crate) fn open_lock(&self, name: &str) -> io::Result<File> {
        let path = self.root.join("locks").join(name);
        match OpenOptions::new().read(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path),
            other => other,
        }
    }

    /// The store's lock, shared: `gc` waits while it is held. Held for microseconds only.
    pub(crate) async fn shared_async(&self) -> Result<File> {
        let file = self.open_lock("store").map_err(|error| self.failed("lock", error))?;
        loop {
            match file.try_lock_shared() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(2)).await,
                Err(TryLockError::Error(error)) => return Err(self.failed("lock", error)),
            }
        }
    }

    fn exclusive(&self) -> Result<File> {
        let file = self.open_lock("store").map_err(|error| self.failed("lock", error))?;
        file.lock().map_err(|error| self.failed("lock", error))?;
        Ok(file)
    }

    /// Marks the image as used by this process until the file is closed. The store's lock must be held.
    pub(crate) fn use_image(&self, config: &Digest) -> Result<Arc<File>> {
        let file = self
            .open_lock(&format!("image-{}", config.hex()))
            .map_err(|error| self.failed("lock", error))?;
        file.lock_shared().map_err(|error| self.failed("lock", error))?;
        Ok(Arc::new(file))
    }

    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_state(diff_id) != LayerState::Missing
    }

    /// One system call says whether the layer is there and whether it hides all below it.
    pub(crate) fn layer_state(&self, diff_id: &Digest) -> LayerState {
        let mut value = [0; 1];
        match rustix::fs::getxattr(self.layer_path(diff_id), unpack::OPAQUE, &mut value) {
            Ok(1) if value == *b"y" => LayerState::Opaque,
            Err(Errno::NOENT | Errno::NOTDIR) => LayerState::Missing,
            _ => LayerState::Present,
        }
    }

    /// Moves an unpacked layer into place; losing a race to another process is fine.
    pub(crate) fn publish_layer(&self, diff_id: &Digest, folder: &Path, record: LayerRecord) -> Result<()> {
        let target = self.layer_path(diff_id);
        self.write_atomically(&target.with_extension("json"), &json(&record)?)?;
        match fs::rename(folder, &target) {
            Ok(()) => sync_folder(&self.root.join("layers")).map_err(|error| self.failed("write", error)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(self.failed("write", error)),
        }
    }

    fn layer_record(&self, diff_id: &Digest) -> Option<LayerRecord> {
        let bytes = fs::read(self.layer_path(diff_id).with_extension("json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Stores a manifest or configuration, whose digest the caller has verified.
    pub(crate) fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let path = self.blob_path(digest);
        if path.exists() {
            return Ok(());
        }
        self.write_atomically(&path, bytes)
    }

    pub(crate) fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        match fs::read(self.blob_path(digest)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    pub(crate) fn read_config(&self, digest: &Digest) -> Result<Option<ConfigFile>> {
        self.read_blob(digest)?
            .map(|bytes| ConfigFile::parse(&bytes))
            .transpose()
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn read_ref(&self, key: &str) -> Result<Option<RefRecord>> {
        match fs::read(self.ref_path(key)) {
            // A damaged record is as good as none: the image is looked up again.
            Ok(bytes) => Ok(parse::<RefRecord>(&bytes).filter(|record| record.key == key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    pub(crate) fn write_ref(&self, record: &RefRecord) -> Result<()> {
        self.write_atomically(&self.ref_path(&record.key), &json(record)?)
    }

    fn ref_path(&self, key: &str) -> PathBuf {
        self.root
            .join("refs")
            .join(format!("{}.json", Digest::of(key.as_bytes()).hex()))
    }

    fn ref_records(&self) -> io::Result<Vec<(PathBuf, Option<RefRecord>)>> {
        let mut records = Vec::new();
        for (_, path) in entries(&self.root.join("refs"))? {
            match fs::read(&path) {
                Ok(bytes) => records.push((path, parse(&bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let write = || {
            let temp = self.temp_folder()?;
            let file_path = temp.path().join("file");
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&file_path)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            fs::rename(&file_path, path)?;
            path.parent().map_or(Ok(()), sync_folder)
        };
        write().map_err(|error| self.failed("write", error))
    }

    pub(crate) fn failed(&self, verb: &str, error: io::Error) -> Error {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let advice = if full {
            "; make room on its disk or remove images"
        } else {
            ""
        };
        Error::io(
            format!("cannot {verb} the image store {}{advice}", quoted(&*self.root)),
            error,
        )
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::unexpected("cannot write a record as JSON").with_source(error))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    if bytes.len() > MAX_DOCUMENT {
        return None;
    }
    serde_json::from_slice(bytes).ok()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The entries of a folder whose names are UTF-8, as all of ours are.
fn entries(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string() {
            list.push((name, entry.path()));
        }
    }
    Ok(list)
}
