//! Images in files: `docker save` archives, OCI archives and OCI layouts.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use agents_core::error::{Error, ErrorKind, Result};
use serde::Deserialize;

use crate::{
    digest::Digest,
    layer::{Compression, Job, LayerSpec, Limited, decompress, mismatch},
    manifest::{ConfigFile, Descriptor, Document, Index, MAX_DOCUMENT, Manifest, parse, too_large},
    options::Progress,
    reference::{ArchiveFormat, ArchiveRef, RegistryRef, quoted},
    resolved::null_as_default,
    store::TempFolder,
    tarball::{Kind, Skip, TarReader, read_error},
};

/// No real archive has more, for layers count as one.
const MAX_ENTRIES: usize = 200_000;

/// The documents of an image, verified, and its layers.
pub(crate) struct Image {
    pub(crate) manifest: Option<(Digest, Vec<u8>)>,
    pub(crate) config: Digest,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) layers: Vec<LayerSpec>,
    /// Where each layer's bytes are; empty for a registry.
    pub(crate) files: Vec<String>,
}

/// A folder or an archive, as a set of named files.
pub(crate) enum Source {
    Folder(PathBuf),
    Tar {
        file: Arc<File>,
        members: HashMap<String, Member>,
        _temp: Option<TempFolder>,
    },
}

pub(crate) enum Member {
    Data {
        offset: u64,
        size: u64,
    },
    /// `docker save` writes a layer that it has written before as a link to it.
    Link(String),
}

impl Source {
    /// Opens an OCI layout.
    pub(crate) fn folder(path: &Path) -> Self {
        Self::Folder(path.to_owned())
    }

    /// Reads the table of contents of an archive. A compressed archive is first decompressed into the store's temporary folder,
    /// for it cannot be read in any order, nor be held in memory.
    pub(crate) fn archive(job: &Job, path: &Path) -> Result<Self> {
        let mut file = open_regular(path).map_err(|error| cannot_read(path, error))?;
        let mut magic = [0; 6];
        let n = file.read_at(&mut magic, 0).map_err(|error| cannot_read(path, error))?;
        let mut temp = None;
        if Compression::of(&magic[..n])? != Compression::None {
            let folder = job
                .store
                .temp_folder()
                .map_err(|error| job.store.failed("write", error))?;
            file = expand(job, path, file, folder.path())?;
            temp = Some(folder);
        }
        let length = file.metadata().map_err(|error| cannot_read(path, error))?.len();
        let mut members = HashMap::new();
        let mut reader = TarReader::new(Seekable(file));
        while let Some(entry) = reader.next_entry()? {
            let Ok(name) = std::str::from_utf8(&entry.path) else {
                continue;
            };
            let member = match entry.kind {
                Kind::File => {
                    let offset = reader.position();
                    if offset + entry.size > length {
                        return Err(invalid("the archive ends too early; it is truncated"));
                    }
                    Member::Data {
                        offset,
                        size: entry.size,
                    }
                }
                Kind::Symlink | Kind::HardLink => {
                    let Ok(link) = String::from_utf8(entry.link) else {
                        continue;
                    };
                    let base = if entry.kind == Kind::Symlink {
                        parent_of(name)
                    } else {
                        ""
                    };
                    Member::Link(clean(&format!("{base}/{link}")))
                }
                Kind::Folder | Kind::Special(_) => continue,
            };
            members.insert(clean(name), member);
            if members.len() > MAX_ENTRIES {
                return Err(invalid("the archive has too many entries to be one of an image"));
            }
        }
        let file = Arc::new(reader.into_inner().0);
        Ok(Self::Tar {
            file,
            members,
            _temp: temp,
        })
    }

    /// Opens a file in the source; its size comes with it.
    pub(crate) fn open(&self, name: &str) -> Result<Option<(FileRange, u64)>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                match open_regular(&path) {
                    Ok(file) => {
                        let size = file.metadata().map_err(|error| cannot_read(&path, error))?.len();
                        Ok(Some((
                            FileRange {
                                file: Arc::new(file),
                                position: 0,
                                end: size,
                            },
                            size,
                        )))
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(cannot_read(&path, error)),
                }
            }
            Self::Tar { file, members, .. } => {
                let mut name = name;
                for _ in 0..8 {
                    match members.get(name) {
                        Some(Member::Data { offset, size }) => {
                            let range = FileRange {
                                file: Arc::clone(file),
                                position: *offset,
                                end: *offset + *size,
                            };
                            return Ok(Some((range, *size)));
                        }
                        Some(Member::Link(target)) => name = target,
                        None => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }

    fn read(&self, name: &str, what: &str) -> Result<Option<Vec<u8>>> {
        let Some((file, size)) = self.open(name)? else {
            return Ok(None);
        };
        if size > MAX_DOCUMENT as u64 {
            return Err(too_large(what));
        }
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT as u64)
            .read_to_end(&mut bytes)
            .map_err(read_error)?;
        Ok(Some(bytes))
    }

    fn read_blob(&self, descriptor: &Descriptor, what: &str) -> Result<(Digest, Vec<u8>)> {
        let digest = descriptor.digest()?;
        let bytes = self
            .read(&blob(&digest), what)?
            .ok_or_else(|| invalid(&format!("the {what} {digest} is missing from the image")))?;
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(mismatch(&format!("the {what}"), &digest, &found));
        }
        Ok((digest, bytes))
    }

    /// The image in an archive of either format.
    pub(crate) fn find(&self, archive: &ArchiveRef) -> Result<Image> {
        let name = archive.name.as_deref();
        let docker = match archive.format {
            ArchiveFormat::Oci => None,
            // Docker 25 and later write both formats at once; its own needs no choice of platform.
            ArchiveFormat::Auto | ArchiveFormat::Docker => self.read("manifest.json", "manifest")?,
        };
        match docker {
            Some(manifest) => self.find_docker(&manifest, name),
            None if archive.format == ArchiveFormat::Docker => Err(invalid(
                "the archive has no manifest.json, so it is none of `docker save`",
            )),
            None => self.find_oci(name),
        }
    }

    fn find_docker(&self, manifest: &[u8], name: Option<&str>) -> Result<Image> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Item {
            config: String,
            #[serde(default, deserialize_with = "null_as_default")]
            repo_tags: Vec<String>,
            #[serde(default, deserialize_with = "null_as_default")]
            layers: Vec<String>,
        }
        let items: Vec<Item> = parse(manifest, "manifest")?;
        let key = |name: &str| RegistryRef::parse(name).map_or_else(|_| name.to_owned(), |name| name.key());
        let item = match (name, items.as_slice()) {
            (None, [only]) => only,
            (Some(name), _) => items
                .iter()
                .find(|item| item.repo_tags.iter().any(|tag| key(tag) == key(name)))
                .ok_or_else(|| none_of(name, items.iter().flat_map(|item| &item.repo_tags)))?,
            (None, _) => return Err(several(items.iter().flat_map(|item| &item.repo_tags))),
        };
        let config_bytes = self
            .read(&clean(&item.config), "configuration")?
            .ok_or_else(|| invalid("the configuration is missing from the archive"))?;
        let config = Digest::of(&config_bytes);
        let file_name = item.config.rsplit('/').next().unwrap_or_default();
        if let Some(promised) = Digest::from_hex(file_name.strip_suffix(".json").unwrap_or(file_name))
            && promised != config
        {
            return Err(mismatch("the configuration", &promised, &config));
        }
        let diff_ids = ConfigFile::parse(&config_bytes)?.diff_ids().to_vec();
        let files: Vec<_> = item.layers.iter().map(|name| clean(name)).collect();
        let layers = diff_ids
            .into_iter()
            .map(|diff_id| LayerSpec {
                label: diff_id.to_string(),
                diff_id,
                compressed: None,
                size: None,
            })
            .collect();
        Ok(Image {
            manifest: None,
            config,
            config_bytes,
            layers,
            files,
        })
    }

    /// The image in an OCI layout.
    pub(crate) fn find_oci(&self, tag: Option<&str>) -> Result<Image> {
        let index = self.read("index.json", "index")?.ok_or_else(|| {
            invalid("there is neither a manifest.json nor an index.json, so this is no image; for a plain root file system use its folder")
        })?;
        let index: Index = parse(&index, "index")?;
        let names = |descriptor: &Descriptor| -> Vec<String> {
            ["org.opencontainers.image.ref.name", "io.containerd.image.name"]
                .iter()
                .filter_map(|key| descriptor.annotations.get(*key).cloned())
                .collect()
        };
        let chosen = match (tag, index.manifests.as_slice()) {
            (None, [only]) => only,
            (Some(tag), _) => index
                .manifests
                .iter()
                .find(|descriptor| names(descriptor).iter().any(|name| name == tag))
                .ok_or_else(|| none_of(tag, index.manifests.iter().flat_map(names)))?,
            // One image for several platforms may stand in the index itself.
            (None, several_) => match index.choose() {
                Ok(descriptor) if several_.iter().all(|other| other.platform.is_some()) => descriptor,
                _ => return Err(several(index.manifests.iter().flat_map(names))),
            },
        };
        let (manifest_digest, manifest_bytes, manifest) = self.manifest_of(chosen, 0)?;
        let (config, config_bytes) = self.read_blob(&manifest.config, "configuration")?;
        let layers = layer_specs(&manifest, &ConfigFile::parse(&config_bytes)?)?;
        let files = layers
            .iter()
            .filter_map(|layer| layer.compressed.as_ref().map(blob))
            .collect();
        Ok(Image {
            manifest: Some((manifest_digest, manifest_bytes)),
            config,
            config_bytes,
            layers,
            files,
        })
    }

    fn manifest_of(&self, descriptor: &Descriptor, depth: u8) -> Result<(Digest, Vec<u8>, Manifest)> {
        let (digest, bytes) = self.read_blob(descriptor, "manifest")?;
        match Document::parse(&bytes)? {
            Document::Manifest(manifest) => Ok((digest, bytes, manifest)),
            Document::Index(_) if depth > 3 => Err(invalid("the indexes of the image are nested too deep")),
            Document::Index(index) => self.manifest_of(index.choose()?, depth + 1),
        }
    }
}

/// Pairs the layers of the manifest with the digests in the configuration.
pub(crate) fn layer_specs(manifest: &Manifest, config: &ConfigFile) -> Result<Vec<LayerSpec>> {
    let mut specs = Vec::new();
    if manifest.layers.len() != config.diff_ids().len() {
        return Err(invalid(&format!(
            "the manifest has {} layers, and the configuration {}; this is no container image, or it is damaged",
            manifest.layers.len(),
            config.diff_ids().len()
        )));
    }
    for (layer, diff_id) in manifest.layers.iter().zip(config.diff_ids()) {
        if layer.media_type.contains("encrypted") {
            return Err(Error::unsupported("the image has encrypted layers"));
        }
        let digest = layer.digest()?;
        specs.push(LayerSpec {
            diff_id: diff_id.clone(),
            label: digest.to_string(),
            compressed: Some(digest),
            size: (layer.size > 0).then_some(layer.size),
        });
    }
    Ok(specs)
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn expand(job: &Job, path: &Path, file: File, folder: &Path) -> Result<File> {
    let failed = |error| job.store.failed("write", error);
    let total = file.metadata().map_err(|error| cannot_read(path, error))?.len();
    let label = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned();
    let mut out = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(folder.join("archive.tar"))
        .map_err(failed)?;
    let source = FileRange {
        file: Arc::new(file),
        position: 0,
        end: total,
    };
    let counted = std::cell::Cell::new(0);
    let mut reader = Limited {
        inner: decompress(Counted {
            inner: source,
            count: &counted,
        })?,
        job,
    };
    let mut buf = vec![0; 1 << 20];
    loop {
        job.check()?;
        job.report(Progress::Layer {
            digest: label.clone(),
            total: Some(total),
            done: counted.get(),
        });
        let n = reader.read(&mut buf).map_err(read_error)?;
        if n == 0 {
            break;
        }
        io::Write::write_all(&mut out, &buf[..n]).map_err(failed)?;
    }
    out.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(out)
}

struct Counted<'a, R> {
    inner: R,
    count: &'a std::cell::Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}

/// Part of a file, read without moving the file's own position, so that several parts can be read at once.
pub(crate) struct FileRange {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Read for FileRange {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.end - self.position)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let n = self.file.read_at(&mut buf[..want], self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

struct Seekable(File);

impl Read for Seekable {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Skip for Seekable {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let count = i64::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.0.seek(SeekFrom::Current(count)).map(drop)
    }
}

/// Opens a regular file; a FIFO in its place must not make us wait.
fn open_regular(path: &Path) -> io::Result<File> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

fn cannot_read(path: &Path, error: io::Error) -> Error {
    Error::io(format!("cannot read {}", quoted(path)), error)
}

fn parent_of(name: &str) -> &str {
    name.trim_end_matches('/')
        .rsplit_once('/')
        .map_or("", |(parent, _)| parent)
}

/// The name without `.`, `..` and superfluous slashes; it is only looked up, never opened.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn none_of(name: &str, names: impl Iterator<Item = impl AsRef<str>>) -> Error {
    Error::not_found(format!("there is no image {}; {}", quoted(name), listed(names)))
}

fn several(names: impl Iterator<Item = impl AsRef<str>>) -> Error {
    Error::invalid(format!(
        "there is not exactly one image; say which by oci:PATH:TAG, oci-archive:PATH:TAG or docker-archive:PATH:NAME; {}",
        listed(names)
    ))
}

fn listed(names: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut names: Vec<String> = names.map(|name| name.as_ref().escape_debug().to_string()).collect();
    let more = names.len().saturating_sub(20);
    names.truncate(20);
    match (names.is_empty(), more) {
        (true, _) => "none in it has a name".into(),
        (false, 0) => format!("in it are {}", names.join(", ")),
        (false, more) => format!("in it are {} and {more} more", names.join(", ")),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::DataInvalid, message)
}
