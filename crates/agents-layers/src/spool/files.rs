//! Small files of a spool, beside those of the journal.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use agents_core::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};

/// Says which sink a spool is for, in its folder.
pub(super) const SINK: &str = "sink.json";

/// Says that the sink does not take events, in the folder of a writer.
pub(super) const FAILING: &str = "failing.json";

/// Has the events that the sink will never take, in the folder of a writer.
pub(super) const LOST: &str = "lost.jsonl";

/// Does blocking work beside the runtime.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let answer = tokio::task::spawn_blocking(work).await;
    answer.map_err(|error| Error::unexpected("file work ended before it was done").with_source(error))?
}

/// An error with the file that it is about.
pub(super) fn file_error(what: &str, path: &Path, error: io::Error) -> Error {
    Error::io(
        format!("cannot {what} {} of the audit spool; see to its folder", path.display()),
        error,
    )
}

/// Creates a folder, for this user alone, unless it is there.
pub(super) fn create_dir(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| file_error("create", path, error))
}

/// Opens a file to append to; it is made when it is not there.
pub(super) fn append_to(path: &Path) -> io::Result<fs::File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Puts a file with this content in the place of another, at once and durably. Several processes may do so together.
pub(super) fn write_json(path: &Path, content: &impl Serialize) -> Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let written = || -> io::Result<()> {
        let (process, count) = (process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed));
        let fresh = path.with_extension(format!("{process}-{count}.tmp"));
        // Of a process with the same number, which was killed.
        let _ = fs::remove_file(&fresh);
        let mut file = append_to(&fresh)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        file.sync_data()?;
        fs::rename(&fresh, path)?;
        path.parent().map_or(Ok(()), sync_dir)
    };
    written().map_err(|error| file_error("write", path, error))
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// What a file says; none when there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error("read", path, error)),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| file_error("read", path, error.into())),
    }
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error("remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_finds_one_of_the_contents_that_many_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SINK);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || (0..50).for_each(|_| write_json(path, &vec![writer; 100 * writer + 1]).unwrap()));
            }
            for _ in 0..500 {
                if let Some(found) = read_json::<Vec<usize>>(&path).unwrap() {
                    assert_eq!(found, vec![found[0]; 100 * found[0] + 1]);
                }
            }
        });
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "nothing is left beside the file");
    }
}
