//! Reading tar streams that may be hostile.
//!
//! The headers are those of the `tar` crate; its entry iterator is not used, because it keeps extension headers of any size in memory.
//! Where tar readers differ, this one does as Go's `archive/tar`, with which Docker, containerd and podman read layers.

use std::io::{self, Read};

use agents_core::error::{Error, ErrorKind, Result};
use tar::Header;

const BLOCK: u64 = 512;
const MAX_PAX: u64 = 1 << 20;
const MAX_LONG_NAME: u64 = 64 << 10;

/// A stream that can skip ahead, by seeking where that is possible.
pub(crate) trait Skip: Read {
    fn skip(&mut self, count: u64) -> io::Result<()>;
}

/// Skips by reading.
pub(crate) struct Streamed<R>(pub(crate) R);

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Skip for Streamed<R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let copied = io::copy(&mut (&mut self.0).take(count), &mut io::sink())?;
        if copied < count {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(())
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Folder,
    /// A device, FIFO or the like, by its name for people.
    Special(&'static str),
}

/// One entry. Names are as written: nothing about them is checked but the absence of NUL.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) size: u64,
}

pub(crate) struct TarReader<R> {
    inner: R,
    remaining: u64,
    padding: u64,
    /// The offset of the next byte to read.
    position: u64,
    ended: bool,
}

impl<R: Skip> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            remaining: 0,
            padding: 0,
            position: 0,
            ended: false,
        }
    }

    /// The offset of the current entry's data, before any of it has been read.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            let rest = self.remaining + self.padding;
            self.skip(rest)?;
            (self.remaining, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header
                .entry_size()
                .map_err(|_| invalid("the size of an entry is not a number"))?;
            match header.entry_type().as_byte() {
                b'x' | b'X' => {
                    let bytes = self.extension(size, MAX_PAX)?;
                    extensions.pax(&bytes)?;
                }
                // Global headers are ignored, as Docker does.
                b'g' => self.start(size)?,
                b'L' => extensions.gnu_path = Some(trim_nul(self.extension(size, MAX_LONG_NAME)?)),
                b'K' => extensions.gnu_link = Some(trim_nul(self.extension(size, MAX_LONG_NAME)?)),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry> {
        let path = extensions
            .path
            .or(extensions.gnu_path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions
            .link
            .or(extensions.gnu_link)
            .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
            .unwrap_or_default();
        if path.contains(&0) || link.contains(&0) {
            return Err(invalid("the name of an entry has a NUL byte in it"));
        }
        let kind = match header.entry_type().as_byte() {
            0 if path.ends_with(b"/") => Kind::Folder,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Special("character device"),
            b'4' => Kind::Special("block device"),
            b'5' => Kind::Folder,
            b'6' => Kind::Special("FIFO"),
            b'S' => return Err(sparse(&path)),
            other => {
                return Err(Error::unsupported(format!(
                    "entry {} has the unknown type {:?}",
                    shown(&path),
                    char::from(other)
                )));
            }
        };
        // Go: these kinds have no data, whatever their size field says.
        let size = if kind == Kind::File {
            extensions.size.unwrap_or(size)
        } else {
            0
        };
        self.start(size)?;
        let number = |value: io::Result<u64>| value.map_err(|_| invalid("a header has a field that is not a number"));
        Ok(Entry {
            kind,
            mode: header
                .mode()
                .map_err(|_| invalid("a header has a mode that is not a number"))?
                & 0o7777,
            uid: extensions.uid.map_or_else(|| number(header.uid()), Ok)?,
            gid: extensions.gid.map_or_else(|| number(header.gid()), Ok)?,
            mtime: extensions
                .mtime
                .unwrap_or_else(|| (header.mtime().unwrap_or(0).try_into().unwrap_or(0), 0)),
            size,
            path,
            link,
        })
    }

    /// Reads data of the current entry; 0 at its end.
    pub(crate) fn read_data(&mut self, buf: &mut [u8]) -> Result<usize> {
        let want = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let n = loop {
            match self.inner.read(&mut buf[..want]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(read_error)?,
            }
        };
        if n == 0 {
            return Err(truncated());
        }
        self.remaining -= n as u64;
        self.position += n as u64;
        Ok(n)
    }

    fn start(&mut self, size: u64) -> Result<()> {
        // Room for the padding and for sums of offsets.
        if size > i64::MAX as u64 / 4 {
            return Err(invalid("an entry claims an impossible size"));
        }
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(())
    }

    fn extension(&mut self, size: u64, limit: u64) -> Result<Vec<u8>> {
        if size > limit {
            return Err(invalid("an extension header is too large"));
        }
        self.start(size)?;
        // Not allocated at once, for the stream may be shorter than it says.
        let mut bytes = Vec::new();
        let mut buf = [0; 4096];
        loop {
            match self.read_data(&mut buf)? {
                0 => return Ok(bytes),
                n => bytes.extend_from_slice(&buf[..n]),
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            self.ended = true;
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            self.ended = true;
            let mut second = [0; BLOCK as usize];
            // One block of zeros is not the end for Go, nor for GNU tar.
            if self.block(&mut second)? && second.iter().any(|byte| *byte != 0) {
                return Err(invalid("there is data behind a block of zeros"));
            }
            return Ok(None);
        }
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(i, byte)| u32::from(if (148..156).contains(&i) { b' ' } else { *byte }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(invalid(
                "a header has a wrong checksum; this is not a tar file, or it is damaged",
            ));
        }
        Ok(Some(header))
    }

    /// Fills the block; false at a clean end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<bool> {
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(truncated()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        self.position += BLOCK;
        Ok(true)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        if count > 0 {
            self.inner.skip(count).map_err(read_error)?;
            self.position += count;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Extensions {
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
}

impl Extensions {
    /// Reads the records of a PAX header: `LENGTH KEY=VALUE\n`, the length counting all of it.
    fn pax(&mut self, mut bytes: &[u8]) -> Result<()> {
        let bad = || invalid("a PAX header is damaged");
        while !bytes.is_empty() {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length: usize = number(&bytes[..space]).ok_or_else(bad)?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            // An empty value takes the keyword back.
            let present = !value.is_empty();
            match key {
                b"path" => self.path = present.then(|| value.to_vec()),
                b"linkpath" => self.link = present.then(|| value.to_vec()),
                b"size" => self.size = optional(value).ok_or_else(bad)?,
                b"uid" => self.uid = optional(value).ok_or_else(bad)?,
                b"gid" => self.gid = optional(value).ok_or_else(bad)?,
                b"mtime" => {
                    self.mtime = if present {
                        Some(time(value).ok_or_else(bad)?)
                    } else {
                        None
                    }
                }
                _ if key.starts_with(b"GNU.sparse.") => return Err(sparse(self.path.as_deref().unwrap_or_default())),
                _ => {}
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// `Some(None)` for an empty value, `None` for a bad one.
fn optional(value: &[u8]) -> Option<Option<u64>> {
    if value.is_empty() {
        Some(None)
    } else {
        number(value).map(Some)
    }
}

fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = number(seconds.as_bytes())?;
    let mut nanos = 0;
    for i in 0..9 {
        let digit = match fraction.as_bytes().get(i) {
            Some(byte) if byte.is_ascii_digit() => u32::from(byte - b'0'),
            Some(_) => return None,
            None => 0,
        };
        nanos = nanos * 10 + digit;
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn trim_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// A name from an archive, safe to print on one line.
pub(crate) fn shown(name: &[u8]) -> String {
    const MOST: usize = 200;
    if name.len() > MOST {
        format!("\"{}…\"", name[..MOST].escape_ascii())
    } else {
        match std::str::from_utf8(name) {
            Ok(text) => format!("{text:?}"),
            Err(_) => format!("\"{}\"", name.escape_ascii()),
        }
    }
}

fn sparse(path: &[u8]) -> Error {
    Error::unsupported(format!(
        "entry {} is a sparse file, which is not supported in an image; write the archive without --sparse",
        shown(path)
    ))
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::DataInvalid, message)
}

fn truncated() -> Error {
    invalid("the data ends too early; it is truncated")
}

/// Maps an error of reading or decompressing. Our own errors travel through [`io::Error`] unchanged.
pub(crate) fn read_error(error: io::Error) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        let inner = error.into_inner().and_then(|inner| inner.downcast::<Error>().ok());
        return inner.map_or_else(|| invalid("the data cannot be read"), |inner| *inner);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(),
        // flate2 and zstd report damaged data as these.
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
            invalid("the compressed data is damaged").with_source(error)
        }
        _ => Error::io("cannot read the image", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: u8, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkflag = [kind];
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        header
    }

    fn append(out: &mut Vec<u8>, header: &Header, data: &[u8]) {
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
        let mut reader = TarReader::new(Streamed(bytes));
        let mut all = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut data = Vec::new();
            let mut buf = [0; 100];
            loop {
                match reader.read_data(&mut buf)? {
                    0 => break,
                    n => data.extend_from_slice(&buf[..n]),
                }
            }
            all.push((entry, data));
        }
        Ok(all)
    }

    fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while body + length.to_string().len() != length {
                length += 1;
            }
            out.extend_from_slice(format!("{length} {key}=").as_bytes());
            out.extend_from_slice(value);
            out.push(b'\n');
        }
        out
    }

    #[test]
    fn pax_and_gnu_names_override_the_header() {
        let mut bytes = Vec::new();
        let long = "d/".repeat(100) + "f";
        let records = pax(&[
            ("path", long.as_bytes()),
            ("size", b"3"),
            ("uid", b"70000"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.x", b"\0\n"),
        ]);
        append(&mut bytes, &header("pax", b'x', records.len() as u64), &records);
        append(&mut bytes, &header("short", b'0', 999), b"abc");
        let gnu = long.clone() + "\0";
        append(
            &mut bytes,
            &header("././@LongLink", b'L', gnu.len() as u64),
            gnu.as_bytes(),
        );
        append(&mut bytes, &header("././@LongLink", b'K', 4), b"to\xff\0");
        append(&mut bytes, &header("short", b'2', 0), b"");
        let all = read_all(&bytes).unwrap();
        assert_eq!(all[0].0.path, long.as_bytes());
        assert_eq!(
            (all[0].0.uid, all[0].0.mtime, &*all[0].1),
            (70000, (-2, 750_000_000), &b"abc"[..])
        );
        assert_eq!(all[1].0.path, long.as_bytes());
        assert_eq!(all[1].0.link, b"to\xff");
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn lies_and_damage_are_refused_without_memory() {
        let huge = header("f", b'0', 1 << 60);
        let impossible = header("f", b'0', u64::MAX / 2);
        let long_name = header("n", b'L', 1 << 40);
        let pax_header = header("x", b'x', 1 << 40);
        for header in [&huge, &impossible, &long_name, &pax_header] {
            assert_eq!(read_all(header.as_bytes()).unwrap_err().kind(), ErrorKind::DataInvalid);
        }
        let mut good = Vec::new();
        append(&mut good, &header("f", b'0', 1000), &[7; 1000]);
        assert!(read_all(&good).is_ok());
        for cut in [1, 511, 513, 1400] {
            assert_eq!(
                read_all(&good[..cut]).unwrap_err().kind(),
                ErrorKind::DataInvalid,
                "{cut}"
            );
        }
        let mut flipped = good.clone();
        flipped[0] ^= 1;
        assert!(read_all(&flipped).is_err());
        let mut resumed = vec![0; 512];
        resumed.extend_from_slice(&good);
        assert!(read_all(&resumed).is_err());
        for bad in [
            &b"5 a=b\n"[..],
            b"99 a=b\n",
            b"6 a=bc",
            b"x a=b\n",
            b"3 \n",
            b"12 size=-1a\n",
            b"99999999999999999999999 a=b\n",
        ] {
            assert!(Extensions::default().pax(bad).is_err(), "{bad:?}");
        }
        let nul = pax(&[("path", b"a\0b")]);
        let mut bytes = Vec::new();
        append(&mut bytes, &header("pax", b'x', nul.len() as u64), &nul);
        append(&mut bytes, &header("s", b'0', 0), b"");
        assert!(read_all(&bytes).is_err());
    }

    #[test]
    fn links_and_folders_have_no_data_whatever_their_size() {
        let mut bytes = Vec::new();
        append(&mut bytes, &header("d", b'5', 512), b"");
        append(&mut bytes, &header("f", b'0', 1), b"x");
        let all = read_all(&bytes).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].1, b"x");
    }
}
