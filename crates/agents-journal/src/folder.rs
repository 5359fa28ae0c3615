//! What is in the folder of a writer.
//!
//! `NNNNNNNNNNNNNNNNNNNN.seg` is a segment, named by its first record; `cut` says what was removed; `NAME.cursor` says how
//! far a cursor has come; `lock` is locked as long as the writer lives; `*.tmp` is what a crash left behind.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use agents_core::Result;

use crate::{
    disk::{Access, Disk, DiskFile, RealDisk},
    error::{damaged, file_error},
    frame::{Frame, Frames, Step},
    statement::{Checkpoint, CheckpointKind},
};

/// The folder of a writer on a disk.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
}

impl Folder {
    /// A folder of this machine.
    pub(crate) fn of(path: impl Into<PathBuf>) -> Self {
        Self {
            disk: Arc::new(RealDisk),
            path: path.into(),
        }
    }

    /// The path of the segment that begins with this record.
    pub(crate) fn segment(&self, first: u64) -> PathBuf {
        self.path.join(format!("{first:020}.seg"))
    }

    pub(crate) fn cut(&self) -> PathBuf {
        self.path.join("cut")
    }

    pub(crate) fn cursor(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.cursor"))
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }

    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let names = self.disk.list(&self.path);
        names.map_err(|error| file_error("look into", &self.path, &error))
    }

    /// The size of a file that is here.
    pub(crate) fn length(&self, name: &str) -> Result<u64> {
        let path = self.path.join(name);
        let length = self.disk.open(&path, Access::Read).and_then(|file| file.length());
        length.map_err(|error| file_error("read", &path, &error))
    }

    /// The first records of the segments, in their order.
    pub(crate) fn segments(&self) -> Result<Vec<u64>> {
        let mut firsts: Vec<_> = self.names()?.iter().filter_map(|name| segment_of(name)).collect();
        firsts.sort_unstable();
        Ok(firsts)
    }

    /// How far each cursor has come.
    pub(crate) fn positions(&self) -> Result<Vec<u64>> {
        let names = self.names()?;
        let cursors = names.iter().filter_map(|name| name.strip_suffix(".cursor"));
        cursors
            .map(|name| self.position(name).map(Option::unwrap_or_default))
            .collect()
    }

    /// How far a cursor has come; none when there is no such cursor.
    pub(crate) fn position(&self, name: &str) -> Result<Option<u64>> {
        match self.only_frame(&self.cursor(name))? {
            None => Ok(None),
            Some(Frame::Position(sequence)) => Ok(Some(sequence)),
            Some(_) => Err(damaged(&self.cursor(name), "it holds no position")),
        }
    }

    /// What was removed, as the writer says.
    pub(crate) fn read_cut(&self) -> Result<Option<Checkpoint>> {
        match self.only_frame(&self.cut())? {
            None => Ok(None),
            Some(Frame::Checkpoint(cut)) if cut.kind == CheckpointKind::Cut => Ok(Some(cut)),
            Some(_) => Err(damaged(&self.cut(), "it holds no cut")),
        }
    }

    /// The frame of a file that holds one; none when there is no such file.
    fn only_frame(&self, path: &Path) -> Result<Option<Frame>> {
        let file = match self.disk.open(path, Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| file_error("open", path, &error))?,
        };
        let step = Frames::new(file).next();
        match step.map_err(|error| file_error("read", path, &error))? {
            Step::Frame(frame) => Ok(Some(frame)),
            Step::End | Step::Bad => Err(damaged(path, "it holds no whole frame")),
        }
    }

    /// Opens a segment and reads how it begins.
    pub(crate) fn open_segment(&self, first: u64) -> Result<(Frames, Checkpoint)> {
        let path = self.segment(first);
        let fail = |what| {
            let path = &path;
            move |error: io::Error| file_error(what, path, &error)
        };
        let file: Box<dyn DiskFile> = self.disk.open(&path, Access::Read).map_err(fail("open"))?;
        let mut frames = Frames::new(file);
        match frames.next().map_err(fail("read"))? {
            Step::Frame(Frame::Checkpoint(begin))
                if begin.kind == CheckpointKind::Begin && begin.sequence.checked_add(1) == Some(first) =>
            {
                Ok((frames, begin))
            }
            _ => Err(damaged(&path, "it does not begin as its name says")),
        }
    }
}

/// The first record of the segment with this name.
pub(crate) fn segment_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let first: u64 = digits.parse().ok()?;
    (first > 0 && format!("{first:020}") == digits).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_twenty_digits_are_segments() {
        assert_eq!(segment_of("00000000000000000012.seg"), Some(12));
        for name in [
            "12.seg",
            "00000000000000000000.seg",
            "00000000000000000012.tmp",
            "cut",
            "+0000000000000000012.seg",
        ] {
            assert_eq!(segment_of(name), None, "{name}");
        }
    }
}
