//! The hardened extractor: what comes out of a container is hostile.
//!
//! [`Extractor`] decides which members of an archive are taken, under which name, and says why the others are not.
//! Where the content goes is its caller's business: into the store, or through an [`ExportDir`] into a folder of the host.

use std::{
    collections::HashMap,
    io::Write as _,
    path::{Path, PathBuf},
};

use agents_core::{ArtifactName, ByteStream, Error, ErrorKind, Result};
use bytes::Bytes;
use cap_std::{
    ambient_authority,
    fs::{Dir, OpenOptions, OpenOptionsExt as _},
};

use crate::{
    RefusedArtifact,
    archive::{Archive, Member, MemberKind},
    blocking,
};

/// How deep folders may be.
const MAX_DEPTH: usize = 64;
/// The most refusals that are kept one by one.
const MAX_REFUSALS: usize = 1000;

/// How much is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The most members that are taken; ten times as many are read.
    pub(crate) entries: u64,
    /// The policy's `max_output_bytes`: what comes after the first file that does not fit is refused.
    pub(crate) output_bytes: Option<u64>,
    /// The most bytes of files, holes included, that can be real. A file that does not fit is refused.
    pub(crate) plausible_bytes: u64,
}

/// A regular file to be taken; its content follows by [`Extractor::chunk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) name: ArtifactName,
    pub(crate) size: u64,
    pub(crate) executable: bool,
}

/// What was not taken.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    list: Vec<RefusedArtifact>,
    more: u64,
}

impl Refusals {
    pub(crate) fn push(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        if self.list.len() < MAX_REFUSALS {
            let (name, reason) = (name.into(), reason.into());
            self.list.push(RefusedArtifact { name, reason });
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn finish(mut self) -> Vec<RefusedArtifact> {
        if self.more > 0 {
            self.list.push(RefusedArtifact {
                name: "*".to_owned(),
                reason: format!("{} more entries were refused", self.more),
            });
        }
        self.list
    }
}

/// Decides what is taken of an archive.
pub(crate) struct Extractor {
    archive: Archive,
    root: String,
    keep_root: bool,
    limits: Limits,
    seen: HashMap<String, MemberKind>,
    entries: u64,
    bytes: u64,
    pub(crate) refusals: Refusals,
    /// Whether `output_bytes` was exceeded.
    pub(crate) output_limit: bool,
}

impl Extractor {
    /// Reads an archive whose members all lie below `root`. Names leave the root out unless `keep_root` is set.
    pub(crate) fn new(stream: ByteStream, root: &str, keep_root: bool, limits: Limits) -> Self {
        Self {
            archive: Archive::new(stream),
            root: root.to_owned(),
            keep_root,
            limits,
            seen: HashMap::new(),
            entries: 0,
            bytes: 0,
            refusals: Refusals::default(),
            output_limit: false,
        }
    }

    /// The next file to be taken.
    ///
    /// # Errors
    ///
    /// When the archive is damaged or its stream fails. What was taken before is whole.
    pub(crate) async fn next(&mut self) -> Result<Option<File>> {
        while let Some(member) = self.archive.next().await? {
            self.entries += 1;
            match self.judge(&member) {
                Ok(Some(file)) => {
                    self.bytes += file.size;
                    if member.mode & 0o6000 != 0 {
                        let note = "taken, but without its set-user-id and set-group-id bits";
                        self.refusals.push(file.name.as_str(), note);
                    }
                    return Ok(Some(file));
                }
                Ok(None) => {}
                Err(reason) => self.refusals.push(self.display(&member.path), reason),
            }
            // Skipping the content of a sparse file of a terabyte, or the heads of millions of files, would take too long.
            if member.stored > self.limits.plausible_bytes || self.entries >= self.limits.entries.saturating_mul(10) {
                self.refusals
                    .push("*", "the rest of the output folder was not read: it is too large");
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// The next piece of the current file's content.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        self.archive.chunk().await
    }

    fn display(&self, path: &[u8]) -> String {
        let path = path.strip_prefix(b"./").unwrap_or(path);
        let below = path
            .strip_prefix(self.root.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"/"))
            .filter(|rest| !self.keep_root && !rest.is_empty());
        printable(below.unwrap_or(path))
    }

    fn judge(&mut self, member: &Member) -> Result<Option<File>, String> {
        let name = match self.name(&member.path)? {
            Some(name) => name,
            None if member.kind == MemberKind::Directory => return Ok(None),
            None => return Err("the output folder itself is not a folder".to_owned()),
        };
        match member.kind {
            MemberKind::File | MemberKind::Directory => {}
            MemberKind::Symlink => return Err("a symbolic link".to_owned()),
            MemberKind::HardLink => {
                return Err("a hard link; its content was taken under another name, if at all".to_owned());
            }
            MemberKind::CharDevice | MemberKind::BlockDevice => return Err("a device".to_owned()),
            MemberKind::Fifo => return Err("a named pipe".to_owned()),
            MemberKind::Other(b'S') => return Err("a sparse file in a form that is not supported".to_owned()),
            MemberKind::Other(flag) => return Err(format!("neither a file nor a folder (type {flag:#04x})")),
        }
        if self.entries > self.limits.entries {
            return Err(format!("beyond the {} entries that are taken", self.limits.entries));
        }
        for (end, _) in name.as_str().match_indices('/') {
            if self.seen.get(&name.as_str()[..end]) == Some(&MemberKind::File) {
                return Err("below something that is a file".to_owned());
            }
        }
        match self.seen.get(name.as_str()) {
            None => {}
            Some(MemberKind::Directory) if member.kind == MemberKind::Directory => return Ok(None),
            Some(_) => return Err("the name is there twice".to_owned()),
        }
        if member.kind == MemberKind::Directory {
            self.seen.insert(name.as_str().to_owned(), member.kind);
            return Ok(None);
        }
        let sum = self.bytes.saturating_add(member.size);
        if sum > self.limits.plausible_bytes {
            return Err(format!(
                "{} bytes, holes included, are more than the writable space can hold",
                member.size
            ));
        }
        if self.output_limit || self.limits.output_bytes.is_some_and(|limit| sum > limit) {
            self.output_limit = true;
            return Err("beyond max_output_bytes".to_owned());
        }
        self.seen.insert(name.as_str().to_owned(), member.kind);
        Ok(Some(File {
            name,
            size: member.size,
            executable: member.mode & 0o111 != 0,
        }))
    }

    /// The name below the root; `None` for the root itself.
    fn name(&self, path: &[u8]) -> Result<Option<ArtifactName>, String> {
        let path = std::str::from_utf8(path).map_err(|_| "its name is not UTF-8".to_owned())?;
        let path = path.strip_prefix("./").unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        // Judged with the root, so that nothing is lost by leaving it out.
        if path.len() <= ArtifactName::MAX_LEN
            && let Some(fault) = ArtifactName::fault(path)
        {
            return Err(format!("its name {fault}"));
        }
        let below = if path == self.root {
            None
        } else {
            let rest = path
                .strip_prefix(self.root.as_str())
                .and_then(|rest| rest.strip_prefix('/'));
            Some(rest.ok_or("outside of what was asked for")?)
        };
        let Some(name) = (if self.keep_root { Some(path) } else { below }) else {
            return Ok(None);
        };
        if name.split('/').count() > MAX_DEPTH {
            return Err(format!("deeper than {MAX_DEPTH} folders"));
        }
        match ArtifactName::new(name) {
            Ok(name) => Ok(Some(name)),
            Err(_) => Err(format!(
                "its name {}",
                ArtifactName::fault(name).unwrap_or("is not allowed")
            )),
        }
    }
}

/// Text that is safe to show: as it is, or percent-encoded when it is not UTF-8 or holds control characters.
pub(crate) fn printable(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.chars().any(char::is_control)
    {
        return shorten(text.to_owned());
    }
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '%' {
                let mut buffer = [0; 4];
                for byte in c.encode_utf8(&mut buffer).bytes() {
                    let _ = write!(text, "%{byte:02X}");
                }
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    shorten(text)
}

fn shorten(mut text: String) -> String {
    if text.len() > 1024 {
        text.truncate(text.floor_char_boundary(1024));
        text.push('…');
    }
    text
}

/// A folder of the host that files are put into. The handle is opened before the agent runs, so nothing that the agent
/// does to the path matters, and nothing outside of it can be reached through it.
#[derive(Debug)]
pub(crate) struct ExportDir {
    dir: Dir,
    path: PathBuf,
}

impl ExportDir {
    /// Opens the folder, and makes it when it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let opened = std::fs::create_dir_all(path).and_then(|()| Dir::open_ambient_dir(path, ambient_authority()));
        let dir = opened.map_err(|error| {
            Error::io(
                "cannot open the folder for the artifacts; name one that can be written to",
                error,
            )
            .with_context("path", path.display())
        })?;
        Ok(Self {
            dir,
            path: path.to_owned(),
        })
    }

    fn fault(&self, name: &ArtifactName, error: std::io::Error) -> Error {
        Error::io("cannot write the file", error)
            .with_context("folder", self.path.display())
            .with_context("name", name)
    }

    /// The folder of a name, made when it is missing. A link on the way is refused.
    fn parent(&self, name: &ArtifactName) -> Result<Dir> {
        let fault = |error| self.fault(name, error);
        let mut dir = self.dir.try_clone().map_err(fault)?;
        let mut components: Vec<_> = name.components().collect();
        components.pop();
        for component in components {
            match dir.create_dir(component) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(fault(error)),
                _ => {}
            }
            let metadata = dir.symlink_metadata(component).map_err(fault)?;
            if !metadata.is_dir() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{component:?} is in the way: it is not a folder, and links are not followed"),
                )
                .with_context("folder", self.path.display())
                .with_context("name", name));
            }
            dir = dir.open_dir(component).map_err(fault)?;
        }
        Ok(dir)
    }

    /// Writes a whole file.
    pub(crate) fn put(&self, file: &File, content: &[u8]) -> Result<()> {
        let mut export = self.create(file)?;
        export.append(content)?;
        export.finish()
    }

    fn create(&self, file: &File) -> Result<Export> {
        let dir = self.parent(&file.name)?;
        let temporary = format!(".agents-{}.tmp", uuid::Uuid::now_v7().simple());
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .mode(if file.executable { 0o755 } else { 0o644 });
        let created = dir
            .open_with(&temporary, &options)
            .map_err(|error| self.fault(&file.name, error))?;
        Ok(Export {
            dir,
            temporary: Some(temporary),
            file: created,
            name: file.name.clone(),
        })
    }
}

/// A file that is being written; what is not committed is removed.
#[derive(Debug)]
pub(crate) struct Export {
    dir: Dir,
    temporary: Option<String>,
    file: cap_std::fs::File,
    name: ArtifactName,
}

impl Export {
    /// Begins a file.
    pub(crate) async fn begin(target: &std::sync::Arc<ExportDir>, file: &File) -> Result<Self> {
        let (target, file) = (target.clone(), file.clone());
        blocking(move || target.create(&file)).await
    }

    /// Writes more of it.
    pub(crate) async fn write(mut self, bytes: Bytes) -> Result<Self> {
        blocking(move || self.append(&bytes).map(|()| self)).await
    }

    /// Puts it in its place, at once; whatever regular file or link is there is replaced.
    pub(crate) async fn commit(mut self) -> Result<()> {
        blocking(move || self.finish()).await
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let fault = |error| Error::io("cannot write the file", error).with_context("name", &self.name);
        self.file.write_all(bytes).map_err(fault)
    }

    fn finish(&mut self) -> Result<()> {
        let last = self.name.components().last().unwrap_or_default();
        if let Some(temporary) = &self.temporary {
            let fault = |error| Error::io("cannot put the file in its place", error).with_context("name", &self.name);
            self.dir.rename(temporary, &self.dir, last).map_err(fault)?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error that led here is what counts.
            let _ = self.dir.remove_file(temporary);
        }
    }
}
