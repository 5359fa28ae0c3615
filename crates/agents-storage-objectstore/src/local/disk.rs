//! Blocking access to the base folder. Every step opens one component and never follows a link.

use std::{
    fs::{DirBuilder, File},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use agents_core::{ArtifactInfo, ArtifactName, Error, ErrorKind, Result, SessionId};
use bytes::Bytes;
use cap_std::fs::Dir;
use jiff::Timestamp;
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::layout::{self, LOCK, Place, SIDECAR, TMP, TRASH, UPLOAD};
use crate::digest::{Hasher, check_announced, check_range};

/// A sidecar holds at most 2 KiB of metadata, a name of 900 bytes and a media type; JSON may escape each byte as six.
const SIDECAR_MAX: u64 = 64 << 10;

/// What is kept beside the content. What the path says (session, version) is not repeated, so that a store can be moved.
#[derive(Debug, Serialize, Deserialize)]
struct Sidecar {
    name: ArtifactName,
    size: u64,
    sha256: String,
    created_at: Timestamp,
    content_type: Option<String>,
    metadata: std::collections::BTreeMap<String, String>,
}

/// The base folder's path and how to open it.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) path: Arc<Path>,
    pub(crate) create_dirs: bool,
}

impl Base {
    /// Opens the base for reading; `None` when nothing was ever stored.
    fn open(&self) -> Result<Option<Dir>> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&*self.path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Dir::from_std_file(File::from(fd)))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.fault("cannot open the storage folder", error)),
        }
    }

    /// Opens the base for writing, and makes it when that is wanted.
    fn open_or_create(&self) -> Result<Dir> {
        if let Some(dir) = self.open()? {
            return Ok(dir);
        }
        if !self.create_dirs {
            return Err(
                Error::not_found("the storage folder does not exist; create it, or set create_dirs to true")
                    .with_context("base_path", self.path.display()),
            );
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|error| Error::io("cannot create the storage folder", error))
            .map_err(|error| error.with_context("base_path", self.path.display()))?;
        if let Some(parent) = self.path.parent() {
            File::open(parent)
                .and_then(|parent| parent.sync_all())
                .map_err(|error| Error::io("cannot sync the folder above the storage folder", error))?;
        }
        self.open()?.ok_or_else(|| {
            Error::not_found("the storage folder vanished").with_context("base_path", self.path.display())
        })
    }

    fn fault(&self, message: &str, error: impl Into<io::Error>) -> Error {
        Error::io(message, error.into()).with_context("base_path", self.path.display())
    }

    /// Writes and removes a probe file, and tells how many bytes are free.
    pub(crate) fn probe(&self) -> Result<u64> {
        let base = self.open_or_create()?;
        let tmp = make_dir(&base, TMP)?.0;
        let name = format!("{UPLOAD}{}", uuid::Uuid::now_v7().simple());
        let fault = |error| self.fault("cannot write to the storage folder", error);
        make_dir(&tmp, &name)?;
        let probe = open_dir(&tmp, &name).map_err(fault)?;
        let written = create_file(&probe, SIDECAR).and_then(|mut file| file.write_all(b"\n"));
        let removed = tmp.remove_dir_all(&name);
        written.and(removed).map_err(fault)?;
        let space = rustix::fs::fstatvfs(&base).map_err(|error| fault(error.into()))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// The sessions that have artifacts, in order. What a person put beside them is no session.
    pub(crate) fn sessions(&self) -> Result<Vec<SessionId>> {
        let Some(base) = self.open()? else {
            return Ok(Vec::new());
        };
        let mut sessions = Vec::new();
        for name in names_in(&base)? {
            if let Ok(session) = SessionId::new(name)
                && !self.artifacts(&session)?.is_empty()
            {
                sessions.push(session);
            }
        }
        sessions.sort_unstable();
        Ok(sessions)
    }

    /// The folders of a session's artifacts, ordered by the artifacts' names.
    pub(crate) fn artifacts(&self, session: &SessionId) -> Result<Vec<(ArtifactName, String)>> {
        let Some(dir) = self.open_session(session)? else {
            return Ok(Vec::new());
        };
        let mut artifacts = Vec::new();
        for folder in names_in(&dir)? {
            let name = match layout::name_of(&folder) {
                Ok(Some(name)) => Some(name),
                Ok(None) => self.name_from_sidecars(&dir, &folder)?,
                // Something that a person put there; it is no artifact.
                Err(_) => None,
            };
            artifacts.extend(name.map(|name| (name, folder)));
        }
        artifacts.sort_unstable();
        Ok(artifacts)
    }

    fn name_from_sidecars(&self, session: &Dir, folder: &str) -> Result<Option<ArtifactName>> {
        let Some(dir) = absent(open_dir(session, folder)).map_err(|error| broken(folder, error))? else {
            return Ok(None);
        };
        for version in versions_in(&dir)? {
            if let Some(version) =
                absent(open_dir(&dir, &version.to_string())).map_err(|error| broken(folder, error))?
                && let Ok(Some(sidecar)) = read_sidecar(&version)
                && layout::folder_of(&sidecar.name) == folder
            {
                return Ok(Some(sidecar.name));
            }
        }
        Ok(None)
    }

    /// Every version of an artifact, in order.
    pub(crate) fn versions(&self, session: &SessionId, folder: &str) -> Result<Vec<Result<ArtifactInfo>>> {
        let Some(dir) = self.open_session(session)? else {
            return Ok(Vec::new());
        };
        match absent(open_dir(&dir, folder)).map_err(|error| broken(folder, error))? {
            Some(dir) => self.infos(session, folder, &dir),
            None => Ok(Vec::new()),
        }
    }

    fn infos(&self, session: &SessionId, folder: &str, dir: &Dir) -> Result<Vec<Result<ArtifactInfo>>> {
        let infos = versions_in(dir)?.into_iter().filter_map(|version| {
            let found = absent(open_dir(dir, &version.to_string()))
                .map_err(|error| broken(folder, error))
                .and_then(|found| found.map_or(Ok(None), |found| self.info(session, folder, version, &found)));
            found.transpose()
        });
        Ok(infos.collect())
    }

    /// What is known of a version; `None` when it is not whole.
    fn info(&self, session: &SessionId, folder: &str, version: u64, dir: &Dir) -> Result<Option<ArtifactInfo>> {
        let Some(sidecar) = read_sidecar(dir)? else {
            return Ok(None);
        };
        let place = Place {
            session: session.clone(),
            folder: folder.to_owned(),
            version,
            file: layout::file_of(&sidecar.name).into_owned(),
        };
        if layout::folder_of(&sidecar.name) != folder {
            return Err(damaged("the sidecar belongs to another artifact").with_context("uri", place.uri(&self.path)));
        }
        if rustix::fs::accessat(dir, &place.file, rustix::fs::Access::EXISTS, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return Ok(None);
        }
        let uri = place.uri(&self.path);
        Ok(Some(sidecar.into_info(place, uri)))
    }

    fn open_session(&self, session: &SessionId) -> Result<Option<Dir>> {
        let Some(base) = self.open()? else {
            return Ok(None);
        };
        absent(open_dir(&base, session.as_str())).map_err(|error| broken(session.as_str(), error))
    }

    /// Opens an artifact to read a range of it.
    pub(crate) fn reader(&self, place: &Place, range: Option<Range<u64>>) -> Result<(ArtifactInfo, Reader)> {
        let uri = place.uri(&self.path);
        let missing = || Error::not_found("there is no such artifact").with_context("uri", &uri);
        let mut dir = self.open_session(&place.session)?.ok_or_else(missing)?;
        for component in [&place.folder, &place.version.to_string()] {
            dir = absent(open_dir(&dir, component))
                .map_err(|error| broken(component, error))?
                .ok_or_else(missing)?;
        }
        let info = self
            .info(&place.session, &place.folder, place.version, &dir)?
            .filter(|info| *layout::file_of(&info.name) == *place.file)
            .ok_or_else(missing)?;
        let mut file = absent(open_file(&dir, &place.file))
            .map_err(|error| broken(&place.file, error))?
            .ok_or_else(missing)?;
        let fault = |error| Error::io("cannot read the artifact", error).with_context("uri", &uri);
        let size = file.metadata().map_err(fault)?.len();
        if size != info.size {
            return Err(damaged(format!("it has {size} bytes and {} were stored", info.size)).with_context("uri", &uri));
        }
        let range = check_range(range, info.size)?;
        let whole = range == (0..info.size);
        if range.start > 0 {
            file.seek(SeekFrom::Start(range.start)).map_err(fault)?;
        }
        let reader = Reader {
            file,
            left: range.end - range.start,
            check: whole.then(|| (Hasher::new(), info.sha256.clone())),
            uri,
        };
        Ok((info, reader))
    }

    /// Moves what is to be deleted aside at once, then removes it, and says what it was.
    pub(crate) fn delete(&self, session: &SessionId, name: Option<&ArtifactName>) -> Result<Vec<ArtifactInfo>> {
        let fault = |error: Errno| self.fault("cannot delete the artifacts", error);
        let Some(base) = self.open()? else {
            return Ok(Vec::new());
        };
        let tmp = make_dir(&base, TMP)?.0;
        let trash = format!("{TRASH}{}", uuid::Uuid::now_v7().simple());
        {
            let _lock = lock(&base)?;
            let moved = match name {
                None => rustix::fs::renameat(&base, session.as_str(), &tmp, &trash),
                Some(name) => match open_dir(&base, session.as_str()) {
                    Ok(dir) => rustix::fs::renameat(&dir, layout::folder_of(name), &tmp, &trash).and_then(|()| {
                        // The last artifact takes the session's folder with it.
                        let _ = rustix::fs::unlinkat(&base, session.as_str(), AtFlags::REMOVEDIR);
                        rustix::fs::fsync(&dir)
                    }),
                    Err(error) => {
                        return absent(Err(error))
                            .map(|_: Option<()>| Vec::new())
                            .map_err(|error| broken(session.as_str(), error));
                    }
                },
            };
            if absent(moved.map_err(io::Error::from))
                .map_err(|error| self.fault("cannot delete the artifacts", error))?
                .is_none()
            {
                return Ok(Vec::new());
            }
            rustix::fs::fsync(&base).map_err(fault)?;
        }
        let mut gone = Vec::new();
        // A link that somebody planted is removed itself, and was no artifact. Neither can anything be said of a damaged
        // version, which is deleted all the same.
        if let Ok(removed) = open_dir(&tmp, &trash) {
            let mut note = |folder: &str, dir: &Dir| -> Result<()> {
                gone.extend(self.infos(session, folder, dir)?.into_iter().flatten());
                Ok(())
            };
            match name {
                Some(name) => note(&layout::folder_of(name), &removed)?,
                None => {
                    for folder in names_in(&removed)? {
                        if let Ok(dir) = open_dir(&removed, &folder) {
                            note(&folder, &dir)?;
                        }
                    }
                }
            }
        }
        gone.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        remove_all(&tmp, &trash).map_err(|error| self.fault("cannot remove the deleted artifacts", error))?;
        Ok(gone)
    }

    /// Removes the uploads of dead writers and unfinished deletions.
    pub(crate) fn reap(&self) -> Result<Vec<String>> {
        let Some(base) = self.open()? else {
            return Ok(Vec::new());
        };
        let Some(tmp) = absent(open_dir(&base, TMP)).map_err(|error| broken(TMP, error))? else {
            return Ok(Vec::new());
        };
        let mut removed = Vec::new();
        for name in names_in(&tmp)? {
            let gone = if name.starts_with(UPLOAD) {
                reap_upload(&tmp, &name)
            } else {
                remove_all(&tmp, &name)
            };
            if gone.map_err(|error| self.fault("cannot remove what an interrupted upload left", error))? {
                removed.push(self.path.join(TMP).join(name).display().to_string());
            }
        }
        Ok(removed)
    }
}

/// Removes an upload unless its writer lives, which holds a lock on the sidecar.
fn reap_upload(tmp: &Dir, name: &str) -> io::Result<bool> {
    let Some(dir) = absent(open_dir(tmp, name))? else {
        return Ok(false);
    };
    match absent(open_file(&dir, SIDECAR))? {
        Some(sidecar) => match rustix::fs::flock(&sidecar, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => remove_all(tmp, name),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        },
        // Its writer is about to create the sidecar, and then starts again, or died before it could.
        None => match rustix::fs::unlinkat(tmp, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(false),
            Err(error) => Err(error.into()),
        },
    }
}

/// Removes a folder with everything in it, or a file, or a link itself.
fn remove_all(dir: &Dir, name: &str) -> io::Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        // POSIX says EPERM for a folder, and Linux EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => Ok(absent(dir.remove_dir_all(name))?.is_some()),
        Err(error) => Err(error.into()),
    }
}

impl Sidecar {
    fn into_info(self, place: Place, uri: String) -> ArtifactInfo {
        ArtifactInfo::new(
            place.session,
            self.name,
            uri,
            self.size,
            self.sha256,
            place.version,
            self.created_at,
        )
        .with_content_type(self.content_type)
        .with_metadata(self.metadata)
    }
}

/// What a store request says besides the content.
#[derive(Debug)]
pub(crate) struct Label {
    pub(crate) session: SessionId,
    pub(crate) name: ArtifactName,
    pub(crate) content_type: Option<String>,
    pub(crate) metadata: std::collections::BTreeMap<String, String>,
    pub(crate) announced: Option<u64>,
}

/// Whether an upload may still be published. Dropping the `store` future forbids it.
#[derive(Debug, Default)]
pub(crate) struct Permit(Mutex<bool>);

impl Permit {
    pub(crate) fn revoke(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// An upload: a folder in `.tmp` that becomes a version by one rename. Dropping it removes the folder.
pub(crate) struct Upload {
    base: Dir,
    tmp: Dir,
    /// The folder's name in `.tmp`; `None` once it is published.
    name: Option<String>,
    dir: Dir,
    sidecar: File,
    content: BufWriter<File>,
    hasher: Hasher,
}

impl Upload {
    pub(crate) fn begin(base: &Base, label: &Label) -> Result<Self> {
        let fault = |error: io::Error| {
            base.fault("cannot begin to store", error)
                .with_context("artifact", &label.name)
        };
        let root = base.open_or_create()?;
        let tmp = make_dir(&root, TMP)?.0;
        // A reaper may remove the folder before the sidecar is locked; then begin again.
        for _ in 0..100 {
            let name = format!("{UPLOAD}{}", uuid::Uuid::now_v7().simple());
            make_dir(&tmp, &name)?;
            let Some(dir) = absent(open_dir(&tmp, &name)).map_err(fault)? else {
                continue;
            };
            let Some(sidecar) = absent(create_file(&dir, SIDECAR)).map_err(fault)? else {
                continue;
            };
            let locked = rustix::fs::flock(&sidecar, FlockOperation::NonBlockingLockExclusive);
            let linked = || rustix::fs::fstat(&sidecar).is_ok_and(|stat| stat.st_nlink > 0);
            match locked {
                Ok(()) if linked() => {}
                Ok(()) | Err(Errno::WOULDBLOCK) => continue,
                Err(error) => {
                    let _ = tmp.remove_dir_all(&name);
                    return Err(fault(error.into()));
                }
            }
            let content = match create_file(&dir, &layout::file_of(&label.name)) {
                Ok(content) => content,
                Err(error) => {
                    let _ = tmp.remove_dir_all(&name);
                    return Err(fault(error));
                }
            };
            return Ok(Self {
                base: root,
                tmp,
                name: Some(name),
                dir,
                sidecar,
                content: BufWriter::with_capacity(64 << 10, content),
                hasher: Hasher::new(),
            });
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "cannot begin to store: each new upload is reaped at once",
        ))
    }

    pub(crate) fn write(&mut self, chunks: &[Bytes], label: &Label) -> Result<()> {
        for chunk in chunks {
            self.hasher.update(chunk);
            self.content
                .write_all(chunk)
                .map_err(|error| Error::io("cannot store the artifact", error).with_context("artifact", &label.name))?;
        }
        // An endless stream with an announced size is not written until the disk is full.
        if label.announced.is_some_and(|announced| self.hasher.size() > announced) {
            check_announced(label.announced, self.hasher.size())?;
        }
        Ok(())
    }

    /// Makes the upload durable, then visible, then makes that durable.
    pub(crate) fn publish(mut self, base: &Base, label: &Label, permit: &Permit) -> Result<ArtifactInfo> {
        let fault = |error: io::Error| {
            base.fault("cannot store the artifact", error)
                .with_context("artifact", &label.name)
        };
        check_announced(label.announced, self.hasher.size())?;
        self.content.flush().map_err(fault)?;
        let sidecar = Sidecar {
            name: label.name.clone(),
            size: self.hasher.size(),
            sha256: std::mem::replace(&mut self.hasher, Hasher::new()).finish(),
            created_at: Timestamp::now(),
            content_type: label.content_type.clone(),
            metadata: label.metadata.clone(),
        };
        let mut json = serde_json::to_vec(&sidecar).map_err(|error| fault(error.into()))?;
        json.push(b'\n');
        (&self.sidecar).write_all(&json).map_err(fault)?;
        // The folders come first, so that one commit of the file system's journal covers them and the files.
        let folder = layout::folder_of(&label.name);
        let made = {
            let _lock = lock(&self.base)?;
            make_artifact_dir(&self.base, &label.session, &folder)?
        };
        let published = self
            .sync_and_rename(&made, &label.session, &folder, permit)
            .and_then(|version| version.map_err(fault));
        if published.is_err() {
            // Only empty folders can be removed like this.
            let _ = rustix::fs::unlinkat(&made.session, &folder, AtFlags::REMOVEDIR);
            let _ = rustix::fs::unlinkat(&self.base, label.session.as_str(), AtFlags::REMOVEDIR);
        }
        let version = published?;
        let place = Place::new(label.session.clone(), &label.name, version);
        let uri = place.uri(&base.path);
        Ok(sidecar.into_info(place, uri))
    }

    fn sync_and_rename(
        &mut self,
        made: &ArtifactDir,
        session: &SessionId,
        folder: &str,
        permit: &Permit,
    ) -> Result<io::Result<u64>> {
        // All at once, since a file system commits what waits together in one go.
        let sync = || -> io::Result<()> {
            std::thread::scope(|scope| {
                let mut tasks = vec![
                    scope.spawn(|| self.sidecar.sync_data()),
                    scope.spawn(|| Ok(rustix::fs::fsync(&self.dir)?)),
                ];
                if made.new_session {
                    tasks.push(scope.spawn(|| Ok(rustix::fs::fsync(&self.base)?)));
                }
                if made.new_folder {
                    tasks.push(scope.spawn(|| Ok(rustix::fs::fsync(&made.session)?)));
                }
                let mut result = self.content.get_ref().sync_data();
                for task in tasks {
                    let other = task
                        .join()
                        .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
                    result = result.and(other);
                }
                result
            })
        };
        if let Err(error) = sync() {
            return Ok(Err(error));
        }
        let (artifact, version) = {
            let _lock = lock(&self.base)?;
            // Somebody may have deleted the artifact meanwhile, so look again.
            let again = make_artifact_dir(&self.base, session, folder)?;
            if again.new_folder {
                rustix::fs::fsync(&again.session)
                    .and_then(|()| rustix::fs::fsync(&self.base))
                    .map_err(|error| broken(folder, error.into()))?;
            }
            let version = versions_in(&again.artifact)?.last().map_or(1, |last| last + 1);
            let revoked = permit.0.lock().unwrap_or_else(PoisonError::into_inner);
            if *revoked {
                return Err(Error::new(ErrorKind::Cancelled, "storing was cancelled"));
            }
            let Some(name) = &self.name else {
                return Err(Error::unexpected("the upload was published already"));
            };
            if let Err(error) = rustix::fs::renameat(&self.tmp, name, &again.artifact, version.to_string()) {
                return Ok(Err(error.into()));
            }
            self.name = None;
            (again.artifact, version)
        };
        Ok(rustix::fs::fsync(&artifact).map(|()| version).map_err(io::Error::from))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // What cannot be removed now is reaped later.
            let _ = self.tmp.remove_dir_all(name);
        }
    }
}

struct ArtifactDir {
    session: Dir,
    artifact: Dir,
    new_session: bool,
    new_folder: bool,
}

fn make_artifact_dir(base: &Dir, session: &SessionId, folder: &str) -> Result<ArtifactDir> {
    let (dir, new_session) = make_dir(base, session.as_str())?;
    let (artifact, new_folder) = make_dir(&dir, folder)?;
    Ok(ArtifactDir {
        session: dir,
        artifact,
        new_session,
        new_folder,
    })
}

/// Reads an artifact in pieces.
pub(crate) struct Reader {
    file: File,
    left: u64,
    /// Of a read of the whole: the hash so far and the expected one.
    check: Option<(Hasher, String)>,
    uri: String,
}

impl Reader {
    pub(crate) const CHUNK: u64 = 1 << 20;

    /// The next piece; `None` at the end. Bytes that differ from what was stored give an error in place of the end.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>> {
        let size = self.left.min(Self::CHUNK);
        let mut chunk = Vec::with_capacity(size as usize);
        (&self.file)
            .take(size)
            .read_to_end(&mut chunk)
            .map_err(|error| Error::io("cannot read the artifact", error).with_context("uri", &self.uri))?;
        if (chunk.len() as u64) < size {
            return Err(damaged("it became shorter while it was read").with_context("uri", &self.uri));
        }
        self.left -= size;
        if let Some((hasher, _)) = &mut self.check {
            hasher.update(&chunk);
        }
        if self.left == 0
            && let Some((hasher, expected)) = self.check.take()
            && hasher.finish() != expected
        {
            return Err(damaged("its SHA-256 differs from that of the stored content").with_context("uri", &self.uri));
        }
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.left == 0
    }
}

fn read_sidecar(version: &Dir) -> Result<Option<Sidecar>> {
    let Some(file) = absent(open_file(version, SIDECAR)).map_err(|error| broken(SIDECAR, error))? else {
        return Ok(None);
    };
    let mut json = Vec::new();
    file.take(SIDECAR_MAX)
        .read_to_end(&mut json)
        .map_err(|error| broken(SIDECAR, error))?;
    serde_json::from_slice(&json)
        .map(Some)
        .map_err(|error| damaged("the sidecar is not readable").with_source(error))
}

fn damaged(what: impl Into<String>) -> Error {
    Error::new(
        ErrorKind::DataInvalid,
        format!("the stored artifact is damaged: {}", what.into()),
    )
}

/// A link or something else that we never make is where a folder or a file of ours should be.
fn broken(name: &str, error: io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::LOOP | Errno::NOTDIR | Errno::ISDIR) => {
            damaged(format!("{name:?} is a link or of another type than expected")).with_source(error)
        }
        _ => Error::io(format!("cannot open {name:?} in the storage folder"), error),
    }
}

/// Turns "not found" into `None`.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_dir(dir: &Dir, name: &str) -> io::Result<Dir> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    Ok(Dir::from_std_file(File::from(fd)))
}

/// Opens a folder, making it when it is not there; says whether it is new.
fn make_dir(dir: &Dir, name: &str) -> Result<(Dir, bool)> {
    let new = match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => {
            return Err(Error::io(
                format!("cannot create {name:?} in the storage folder"),
                error.into(),
            ));
        }
    };
    let made = open_dir(dir, name).map_err(|error| broken(name, error))?;
    Ok((made, new))
}

fn open_file(dir: &Dir, name: &str) -> io::Result<File> {
    // NONBLOCK, so that a FIFO that somebody planted does not block us.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Errno::ISDIR.into()),
    }
}

fn create_file(dir: &Dir, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(File::from(fd))
}

/// Waits for the store's lock, which is given back when the file is dropped, or by the kernel when we die.
fn lock(base: &Dir) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let locked = || -> io::Result<File> {
        let file = File::from(rustix::fs::openat(base, LOCK, flags, Mode::RUSR | Mode::WUSR)?);
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
        Ok(file)
    };
    locked().map_err(|error| Error::io("cannot lock the storage folder", error))
}

fn names_in(dir: &Dir) -> Result<Vec<String>> {
    let fault = |error| Error::io("cannot list a folder of the storage", error);
    let mut names = Vec::new();
    for entry in dir.entries().map_err(fault)? {
        // We make only names that are UTF-8.
        if let Ok(name) = entry.map_err(fault)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

fn versions_in(artifact: &Dir) -> Result<Vec<u64>> {
    let mut versions: Vec<_> = names_in(artifact)?
        .iter()
        .filter_map(|name| layout::parse_version(name))
        .collect();
    versions.sort_unstable();
    Ok(versions)
}

/// The base folder as an absolute path without `.` and `..`.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let invalid = |why: &str| Error::invalid(format!("base_path {path:?} {why}"));
    if path.as_os_str().is_empty() {
        return Err(invalid("is empty"));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(invalid("has a component '..'; write it without"));
    }
    let absolute = std::path::absolute(path).map_err(|error| invalid("cannot be made absolute").with_source(error))?;
    Ok(absolute.components().collect())
}
