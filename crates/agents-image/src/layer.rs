//! From a compressed stream to a layer in the store.

use std::{
    fs::{self, File},
    io::{self, BufReader, Cursor, Read},
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use agents_core::error::{Error, ErrorKind, Result};

use crate::{
    digest::{Digest, HashState, HashingReader},
    options::{Limits, Progress, ProgressFn},
    store::{ImageStore, LayerRecord},
    tarball::read_error,
    unpack::{Unpacked, unpack},
};

const BUFFER: usize = 128 << 10;
const REPORT_EVERY: u64 = 256 << 10;

/// What all layers of one image share.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) store: ImageStore,
    pub(crate) limits: Limits,
    pub(crate) progress: Option<ProgressFn>,
    /// How many uncompressed bytes are left to the image.
    budget: Arc<AtomicU64>,
    cancelled: Arc<AtomicBool>,
}

impl Job {
    pub(crate) fn new(store: &ImageStore, limits: Limits, progress: Option<ProgressFn>) -> Self {
        Self {
            store: store.clone(),
            limits,
            progress,
            budget: Arc::new(AtomicU64::new(limits.max_bytes)),
            cancelled: Arc::default(),
        }
    }

    /// Stops the blocking work of the job when it is dropped before its time.
    pub(crate) fn cancel_on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(Arc::clone(&self.cancelled))
    }

    pub(crate) fn report(&self, progress: Progress) {
        if let Some(callback) = &self.progress {
            callback(progress);
        }
    }

    /// Fails once the job is cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "the image is no longer wanted"));
        }
        Ok(())
    }
}

pub(crate) struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A layer as its manifest has it.
#[derive(Clone, Debug)]
pub(crate) struct LayerSpec {
    pub(crate) diff_id: Digest,
    /// How it is called in progress and messages.
    pub(crate) label: String,
    /// The digest of the compressed bytes, when the source names one.
    pub(crate) compressed: Option<Digest>,
    pub(crate) size: Option<u64>,
}

/// Unpacks a layer into the store. Blocking; `_lock` is the lock of the layer, and another process waits for it.
pub(crate) fn store_layer(job: &Job, spec: &LayerSpec, source: impl Read, _lock: File) -> Result<Vec<String>> {
    let name = |error: Error| error.with_context("layer", &spec.label);
    let failed = |error| job.store.failed("write", error);
    let temp = job.store.temp_folder().map_err(failed)?;
    let (folder, trash) = (temp.path().join("layer"), temp.path().join("trash"));
    for path in [&folder, &trash] {
        fs::create_dir(path).map_err(failed)?;
        // Whatever the umask says, the agent's user must get into the root of the image.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }

    let mut compressed = HashState::default();
    let mut uncompressed = HashState::default();
    let source = HashingReader::new(Watched::new(job, spec, source), &mut compressed);
    let tar = HashingReader::new(
        Limited {
            inner: decompress(source).map_err(name)?,
            job,
        },
        &mut uncompressed,
    );
    let keep_owner = rustix::process::geteuid().is_root();
    let unpacked = unpack(
        BufReader::with_capacity(BUFFER, tar),
        &folder,
        &trash,
        keep_owner,
        &job.limits,
    );
    let Unpacked {
        entries,
        bytes,
        warnings,
    } = unpacked.map_err(name)?;

    let (compressed, uncompressed) = (compressed.finish(), uncompressed.finish());
    if let Some(expected) = &spec.compressed
        && *expected != compressed
    {
        return Err(name(mismatch("the layer", expected, &compressed)));
    }
    if spec.diff_id != uncompressed {
        return Err(name(mismatch("the uncompressed layer", &spec.diff_id, &uncompressed)));
    }
    // The layer appears only once all of it is on disk, for its name promises its content.
    File::open(&folder)
        .and_then(|folder| rustix::fs::syncfs(&folder).map_err(io::Error::from))
        .map_err(failed)?;
    job.store
        .publish_layer(&spec.diff_id, &folder, LayerRecord { bytes, entries })?;
    Ok(warnings)
}

pub(crate) fn mismatch(what: &str, expected: &Digest, found: &Digest) -> Error {
    Error::new(
        ErrorKind::DataInvalid,
        format!("{what} is not what its digest promises: expected {expected}, found {found}"),
    )
}

/// Decompresses by what the first bytes say, for media types are not to be trusted.
pub(crate) fn decompress<'a>(mut source: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 6];
    let mut filled = 0;
    while filled < magic.len() {
        match source.read(&mut magic[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_error(error)),
        }
    }
    let compression = Compression::of(&magic[..filled])?;
    let source = BufReader::with_capacity(BUFFER, Cursor::new(magic).take(filled as u64).chain(source));
    Ok(match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source).map_err(read_error)?),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of(magic: &[u8]) -> Result<Self> {
        Ok(match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(unknown("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => return Err(unknown("bzip2")),
            _ => Self::None,
        })
    }
}

fn unknown(name: &str) -> Error {
    Error::unsupported(format!("{name} compression is not supported; use gzip, zstd or none"))
}

/// Reports progress, and fails once the job is cancelled.
struct Watched<'a, R> {
    inner: R,
    job: &'a Job,
    spec: &'a LayerSpec,
    done: u64,
    reported: u64,
    ended: bool,
}

impl<'a, R: Read> Watched<'a, R> {
    fn new(job: &'a Job, spec: &'a LayerSpec, inner: R) -> Self {
        let watched = Self {
            inner,
            job,
            spec,
            done: 0,
            reported: 0,
            ended: false,
        };
        watched.report();
        watched
    }

    fn report(&self) {
        self.job.report(Progress::Layer {
            digest: self.spec.label.clone(),
            total: self.spec.size,
            done: self.done,
        });
    }
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.job.check().map_err(io::Error::other)?;
        let n = self.inner.read(buf)?;
        self.done += n as u64;
        if n == 0 && !buf.is_empty() && !self.ended {
            self.ended = true;
            self.report();
            self.job.report(Progress::Unpacking {
                digest: self.spec.label.clone(),
            });
        } else if self.done - self.reported >= REPORT_EVERY {
            self.reported = self.done;
            self.report();
        }
        Ok(n)
    }
}

/// Takes what is read from the budget of the image.
pub(crate) struct Limited<'a, R> {
    pub(crate) inner: R,
    pub(crate) job: &'a Job,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        let take = |left: u64| left.checked_sub(n as u64);
        if self
            .job
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_err()
        {
            return Err(io::Error::other(Error::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "the image unpacks to more than {} bytes, the limit for one",
                    self.job.limits.max_bytes
                ),
            )));
        }
        Ok(n)
    }
}
