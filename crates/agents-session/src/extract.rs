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
const MAX_DEPTH: usize = 128;
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

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        entries: 100,
        output_bytes: None,
        plausible_bytes: 1 << 20,
    };

    /// A header with a right checksum, whatever the name.
    fn header(name: &[u8], kind: u8, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn member(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, kind, content.len() as u64).as_bytes().to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn end() -> Vec<u8> {
        vec![0; 1024]
    }

    fn stream(bytes: &[u8], piece: usize) -> ByteStream {
        let pieces: Vec<_> = bytes
            .chunks(piece)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        futures_util::stream::iter(pieces).boxed()
    }

    #[derive(Debug, Default, PartialEq)]
    struct Taken {
        files: Vec<(String, Vec<u8>, bool)>,
        refused: Vec<RefusedArtifact>,
        output_limit: bool,
        error: Option<String>,
    }

    fn take(bytes: &[u8], piece: usize, limits: Limits) -> Taken {
        let mut extractor = Extractor::new(stream(bytes, piece), "output", false, limits);
        let mut taken = Taken::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let result = runtime.block_on(async {
            while let Some(file) = extractor.next().await? {
                let mut content = Vec::new();
                while let Some(chunk) = extractor.chunk().await? {
                    assert!(!chunk.is_empty() && chunk.len() <= 256 << 10);
                    content.extend_from_slice(&chunk);
                }
                assert_eq!(content.len() as u64, file.size);
                taken.files.push((file.name.to_string(), content, file.executable));
            }
            Result::Ok(())
        });
        taken.error = result.err().map(|error: Error| error.to_string());
        taken.output_limit = extractor.output_limit;
        taken.refused = extractor.refusals.finish();
        taken
    }

    /// Takes the members, in pieces of several sizes that must make no difference.
    fn taken(members: &[Vec<u8>]) -> Taken {
        let bytes = members.concat();
        let whole = take(&bytes, bytes.len(), LIMITS);
        for piece in [1, 511, 700] {
            assert_eq!(take(&bytes, piece, LIMITS), whole, "in pieces of {piece}");
        }
        whole
    }

    fn names(taken: &Taken) -> Vec<&str> {
        taken.files.iter().map(|(name, ..)| name.as_str()).collect()
    }

    #[test]
    fn ordinary_folders_are_taken() {
        let mut executable = header(b"output/run.sh", b'0', 0);
        executable.set_mode(0o755);
        executable.set_cksum();
        let taken = taken(&[
            member(b"output/", b'5', b""),
            member(b"./output/a", b'0', b"content"),
            member(b"output/sub/", b'5', b""),
            member("output/sub/späße".as_bytes(), b'0', &[7; 1000]),
            executable.as_bytes().to_vec(),
            end(),
        ]);
        assert_eq!(names(&taken), ["a", "sub/späße", "run.sh"]);
        assert_eq!(taken.files[0].1, b"content");
        assert_eq!(
            taken.files.iter().map(|file| file.2).collect::<Vec<_>>(),
            [false, false, true]
        );
        assert!(taken.refused.is_empty() && taken.error.is_none());
    }

    #[test]
    fn every_hostile_member_is_refused_by_name_and_reason() {
        let hostile: [(&[u8], u8, &str, &str); 18] = [
            (b"/etc/passwd", b'0', "/etc/passwd", "absolute"),
            (b"output/../../etc/passwd", b'0', "../../etc/passwd", "'..'"),
            (b"../output/x", b'0', "../output/x", "'..'"),
            (b"output/./x", b'0', "./x", "'.'"),
            (b"output//x", b'0', "/x", "empty component"),
            (b"outputs/x", b'0', "outputs/x", "outside"),
            (b"other", b'0', "other", "outside"),
            (b"", b'0', "", "empty"),
            (b"output", b'2', "output", "not a folder"),
            (b"output/link", b'2', "link", "symbolic link"),
            (b"output/hard", b'1', "hard", "hard link"),
            (b"output/null", b'3', "null", "device"),
            (b"output/sda", b'4', "sda", "device"),
            (b"output/pipe", b'6', "pipe", "named pipe"),
            (b"output/odd", b'Z', "odd", "neither"),
            (b"output/new\nline", b'0', "new%0Aline", "control"),
            (b"output/bell\x07", b'0', "bell%07", "control"),
            (b"output/bad\xff%", b'0', "bad%FF%25", "UTF-8"),
        ];
        for (name, kind, shown, reason) in hostile {
            let taken = taken(&[member(name, kind, b""), member(b"output/good", b'0', b"good"), end()]);
            assert_eq!(names(&taken), ["good"], "{shown}");
            assert_eq!(taken.refused.len(), 1, "{shown}");
            assert_eq!(taken.refused[0].name, shown);
            assert!(
                taken.refused[0].reason.contains(reason),
                "{shown}: {}",
                taken.refused[0].reason
            );
        }
    }

    #[test]
    fn what_is_there_twice_or_below_a_file_is_refused() {
        let taken = taken(&[
            member(b"output/a", b'0', b"first"),
            member(b"output/a", b'0', b"second"),
            member(b"output/a/b", b'0', b"below"),
            member(b"output/d/", b'5', b""),
            member(b"output/d", b'0', b"file"),
            member(b"output/d/", b'5', b""),
            member(b"output/d/e", b'0', b"fine"),
            end(),
        ]);
        assert_eq!(names(&taken), ["a", "d/e"]);
        assert_eq!(taken.files[0].1, b"first");
        let reasons: Vec<_> = taken.refused.iter().map(|refused| refused.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "the name is there twice",
                "below something that is a file",
                "the name is there twice"
            ]
        );
    }

    #[test]
    fn set_user_id_bits_are_dropped_with_a_note() {
        let mut file = header(b"output/su", b'0', 0);
        file.set_mode(0o4755);
        file.set_cksum();
        let taken = taken(&[file.as_bytes().to_vec(), end()]);
        assert_eq!(names(&taken), ["su"]);
        assert!(taken.refused[0].reason.contains("set-user-id"));
    }

    #[test]
    fn long_names_come_whole_or_not_at_all() {
        let long = format!("output/{}/x", "d".repeat(200));
        let pax = |path: &str| {
            let body = |length: usize| format!("{length} path={path}\n");
            let mut length = path.len() + 8;
            while body(length).len() != length {
                length = body(length).len();
            }
            member(b"pax", b'x', body(length).as_bytes())
        };
        let too_long = format!("output/{}", "e".repeat(300));
        let deep = format!("output{}", "/f".repeat(200));
        let taken = taken(&[
            member(b"././@LongLink", b'L', format!("{long}1\0").as_bytes()),
            member(b"output/cut", b'0', b"gnu"),
            pax(&format!("{long}2")),
            member(b"output/cut", b'0', b"pax"),
            pax(&too_long),
            member(b"output/cut", b'0', b""),
            pax(&deep),
            member(b"output/cut", b'0', b""),
            pax("output/../escape"),
            member(b"output/innocent", b'0', b""),
            end(),
        ]);
        assert_eq!(
            names(&taken),
            [&long[7..].replace("/x", "/x1"), &long[7..].replace("/x", "/x2")]
        );
        let reasons: Vec<_> = taken.refused.iter().map(|refused| refused.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "its name has a component longer than 255 bytes",
                "deeper than 128 folders",
                "its name has a component '.' or '..'"
            ]
        );
    }

    /// An old GNU sparse member.
    fn sparse(name: &[u8], size: u64, pieces: &[(u64, &[u8])]) -> Vec<u8> {
        let content: Vec<u8> = pieces.iter().flat_map(|(_, content)| content.to_vec()).collect();
        let mut header = header(name, b'S', content.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(size);
        for (slot, (offset, content)) in gnu.sparse.iter_mut().zip(pieces) {
            slot.set_offset(*offset);
            slot.set_length(content.len() as u64);
        }
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    #[test]
    fn holes_are_filled_and_bombs_are_refused_without_losing_the_rest() {
        let taken = taken(&[
            sparse(b"output/holes", 2000, &[(100, b"abc"), (1000, b"de")]),
            sparse(b"output/bomb", 1 << 40, &[(0, b"boom")]),
            member(b"output/after", b'0', b"after"),
            end(),
        ]);
        assert_eq!(names(&taken), ["holes", "after"]);
        let mut expected = vec![0; 2000];
        expected[100..103].copy_from_slice(b"abc");
        expected[1000..1002].copy_from_slice(b"de");
        assert_eq!(taken.files[0].1, expected);
        assert!(taken.refused[0].reason.contains("1099511627776 bytes, holes included"));
        for pieces in [
            &[(1000, &b"abc"[..]), (100, b"de")][..],
            &[(1999, b"abc")],
            &[(u64::MAX / 4, b"x")],
        ] {
            let taken = take(&[sparse(b"output/bad", 2000, pieces), end()].concat(), 512, LIMITS);
            assert!(taken.files.is_empty() && taken.error.is_some());
        }
    }

    #[test]
    fn a_sparse_archive_of_the_tar_crate_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let file = std::fs::File::create(&path).unwrap();
        for i in 0..40_u64 {
            std::os::unix::fs::FileExt::write_all_at(&file, b"data", i * 16384).unwrap();
        }
        file.set_len(700_000).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_path_with_name(&path, "output/sparse").unwrap();
        let bytes = builder.into_inner().unwrap();
        let taken = take(&bytes, 999, LIMITS);
        assert_eq!(taken.files[0].1, std::fs::read(&path).unwrap(), "{taken:?}");
    }

    #[test]
    fn a_terabyte_that_is_really_sent_ends_the_reading() {
        let bytes = [
            member(b"output/first", b'0', b"first"),
            header(b"output/bomb", b'0', 1 << 40).as_bytes().to_vec(),
            vec![0; 4096],
        ];
        let taken = take(&bytes.concat(), 512, LIMITS);
        assert_eq!(names(&taken), ["first"]);
        assert_eq!(taken.error, None);
        assert!(
            taken.refused[1]
                .reason
                .contains("the rest of the output folder was not read")
        );
    }

    #[test]
    fn too_many_entries_are_counted_and_not_taken() {
        let members: Vec<_> = (0..2000)
            .map(|i| member(format!("output/{i}").as_bytes(), b'0', b"x"))
            .collect();
        let taken = take(&[members.concat(), end()].concat(), 4096, LIMITS);
        assert_eq!(taken.files.len(), 100);
        assert_eq!(taken.refused.len(), 901, "{:?}", taken.refused.last());
        assert!(taken.refused.last().unwrap().reason.contains("was not read"));
        let limits = Limits { entries: 500, ..LIMITS };
        let taken = take(&[members.concat(), end()].concat(), 4096, limits);
        assert_eq!((taken.files.len(), taken.refused.len()), (500, 1001));
        assert_eq!(taken.refused[1000].reason, "500 more entries were refused");
    }

    #[test]
    fn bytes_are_counted_before_they_are_taken() {
        let members = [
            member(b"output/a", b'0', &[1; 600]),
            member(b"output/b", b'0', &[2; 600]),
            member(b"output/c", b'0', b"c"),
            end(),
        ];
        let limits = Limits {
            output_bytes: Some(1000),
            ..LIMITS
        };
        let taken = take(&members.concat(), 512, limits);
        assert_eq!((names(&taken), taken.output_limit), (vec!["a"], true));
        assert_eq!(taken.refused.len(), 2);
        let limits = Limits {
            plausible_bytes: 1000,
            ..LIMITS
        };
        let taken = take(&members.concat(), 512, limits);
        assert_eq!((names(&taken), taken.output_limit), (vec!["a", "c"], false));
    }

    #[test]
    fn damage_is_an_error_and_what_came_before_is_whole() {
        let good = member(b"output/good", b'0', b"good");
        let mut wrong_sum = member(b"output/bad", b'0', b"");
        wrong_sum[0] ^= 1;
        let mut negative = header(b"output/bad", b'0', 0);
        negative.as_old_mut().size = [0xff; 12];
        negative.set_cksum();
        let cases = [
            (vec![], "end marker"),
            (
                member(b"output/cut", b'0', &[1; 600])[..700].to_vec(),
                "middle of a member",
            ),
            (good[..100].to_vec(), "middle of a header"),
            (wrong_sum, "checksum"),
            (negative.as_bytes().to_vec(), "out of range"),
            (header(b"x", b'x', 2 << 20).as_bytes().to_vec(), "larger than 1 MiB"),
            (member(b"x", b'x', b"999 path=x\n"), "makes no sense"),
            (member(b"x", b'x', b"0 \n"), "makes no sense"),
            (member(b"x", b'x', b"8 path\n\n"), "without a value"),
            (member(b"x", b'x', b"11 size=-1\n"), "no number"),
        ];
        for (bytes, reason) in cases {
            let bytes = [good.clone(), bytes].concat();
            let taken = take(&bytes, 300, LIMITS);
            assert_eq!(taken.files[0].1, b"good", "{reason}");
            assert!(
                taken.error.as_ref().is_some_and(|error| error.contains(reason)),
                "{reason}: {:?}",
                taken.error
            );
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..3000), piece in 1usize..600) {
            take(&bytes, piece, LIMITS);
        }

        /// Damage in a well-formed archive, with the checksum made right, so that it reaches deeper.
        #[test]
        fn damaged_archives_never_panic(
            changes in prop::collection::vec((0usize..3072, any::<u8>()), 1..8),
            piece in 1usize..600,
        ) {
            let mut bytes = [
                sparse(b"output/s", 2000, &[(100, b"abc")]),
                member(b"x", b'x', b"20 path=output/long\n"),
                member(b"output/a", b'0', b"content"),
            ].concat();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            for block in bytes.chunks_mut(512).step_by(2) {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
            let taken = take(&bytes, piece, LIMITS);
            for (name, ..) in taken.files {
                prop_assert!(ArtifactName::fault(&name).is_none());
            }
        }

        #[test]
        fn what_is_shown_is_printable(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!printable(&bytes).chars().any(char::is_control));
        }
    }
}
