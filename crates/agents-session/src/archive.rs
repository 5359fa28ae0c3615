//! An incremental reader of tar archives that trusts nothing.
//!
//! It reads ustar, PAX (`path`, `linkpath`, `size`), GNU long names and GNU sparse members from an asynchronous stream,
//! with memory that does not depend on the archive, and touches no file. What a member may be is decided by its caller.

use std::collections::VecDeque;

use agents_core::{ByteStream, Error, ErrorKind, Result};
use bytes::Bytes;
use futures_util::StreamExt;

/// The most bytes of a chunk of content.
const CHUNK: usize = 256 << 10;
/// The most bytes of an extended header or a long name, and so of what is held in memory for a member.
const EXTENDED_LIMIT: u64 = 1 << 20;
/// The most pieces of a sparse member.
const PIECES_LIMIT: usize = 64 << 10;
const BLOCK: usize = 512;
static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberKind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
    /// Anything else, by its type flag.
    Other(u8),
}

/// A member's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: MemberKind,
    pub(crate) mode: u32,
    /// The size of the content as it would be on a disk: holes count.
    pub(crate) size: u64,
    /// The size of the content in the archive.
    pub(crate) stored: u64,
}

/// The reader.
pub(crate) struct Archive {
    input: Input,
    content: Content,
    done: bool,
}

impl Archive {
    pub(crate) fn new(stream: ByteStream) -> Self {
        Self {
            input: Input {
                stream,
                buffer: Bytes::new(),
            },
            content: Content::default(),
            done: false,
        }
    }

    /// The next member; what is left of the last one's content is skipped. `None` after the end marker.
    pub(crate) async fn next(&mut self) -> Result<Option<Member>> {
        if self.done {
            return Ok(None);
        }
        let rest = self.content.stored + self.content.padding;
        self.content = Content::default();
        self.input.skip(rest).await?;
        let mut long_path = None;
        let mut pax = Pax::default();
        loop {
            let Some(header) = self.input.block().await? else {
                return Err(damaged("it ends without its end marker"));
            };
            if header.iter().all(|byte| *byte == 0) {
                self.done = true;
                // The source may have more to say, such as a late error.
                self.input.drain(EXTENDED_LIMIT).await?;
                return Ok(None);
            }
            let header = Header(header);
            header.check()?;
            let size = header.number(124..136)?;
            match header.0[156] {
                b'L' => {
                    let mut name = self.input.extended(size).await?;
                    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                    long_path = Some(name);
                }
                // The target of a link is never used, and a global header has nothing that we use.
                b'K' | b'g' => {
                    self.input.extended(size).await?;
                }
                b'x' => pax = Pax::parse(&self.input.extended(size).await?)?,
                flag => {
                    let path = pax.path.or(long_path).unwrap_or_else(|| header.path());
                    return self
                        .begin(&header, flag, path, pax.size.unwrap_or(size), pax.sparse)
                        .await;
                }
            }
        }
    }

    async fn begin(
        &mut self,
        header: &Header,
        flag: u8,
        path: Vec<u8>,
        stored: u64,
        pax_sparse: bool,
    ) -> Result<Option<Member>> {
        let kind = match flag {
            b'0' | b'7' | 0 if pax_sparse => MemberKind::Other(b'S'),
            // Before ustar, a folder was a file whose name ends with a slash.
            b'0' | 0 if path.ends_with(b"/") => MemberKind::Directory,
            b'0' | b'7' | 0 | b'S' => MemberKind::File,
            b'1' => MemberKind::HardLink,
            b'2' => MemberKind::Symlink,
            b'3' => MemberKind::CharDevice,
            b'4' => MemberKind::BlockDevice,
            b'5' => MemberKind::Directory,
            b'6' => MemberKind::Fifo,
            other => MemberKind::Other(other),
        };
        // Links, folders and devices have no content, whatever their size says: POSIX.1-2017, pax, "ustar Interchange
        // Format". (PAX archives may have hard links with content, which nobody that we read from writes.)
        let stored = match kind {
            MemberKind::File | MemberKind::Other(_) => stored,
            _ => 0,
        };
        let mut size = stored;
        let mut pieces = VecDeque::new();
        if flag == b'S' {
            (size, pieces) = self.sparse_map(header, stored).await?;
        } else {
            pieces.push_back((0, stored));
        }
        self.content = Content {
            position: 0,
            size,
            pieces,
            stored,
            padding: stored.next_multiple_of(BLOCK as u64) - stored,
        };
        Ok(Some(Member {
            path,
            kind,
            mode: u32::try_from(header.number(100..108)?).unwrap_or(0),
            size,
            stored,
        }))
    }

    /// The map of an old GNU sparse member (GNU tar manual, "Old GNU Format"): four pieces in the header, 21 in each
    /// extension block.
    async fn sparse_map(&mut self, header: &Header, stored: u64) -> Result<(u64, VecDeque<(u64, u64)>)> {
        let size = header.number(483..495)?;
        let mut pieces = VecDeque::new();
        let (mut end, mut sum) = (0, 0);
        let mut take = |block: &Header, start: usize, count: usize| -> Result<()> {
            for at in (0..count).map(|i| start + i * 24) {
                let (offset, length) = (block.number(at..at + 12)?, block.number(at + 12..at + 24)?);
                if length == 0 {
                    continue;
                }
                let piece_end = offset.checked_add(length);
                if offset < end || piece_end.is_none_or(|piece_end| piece_end > size) || pieces.len() == PIECES_LIMIT {
                    return Err(damaged("the map of a sparse member makes no sense"));
                }
                end = offset + length;
                sum += length;
                pieces.push_back((offset, length));
            }
            Ok(())
        };
        take(header, 386, 4)?;
        let mut extended = header.0[482] != 0;
        let mut blocks = 0;
        while extended {
            let block = self.input.block().await?.map(Header);
            blocks += 1;
            let Some(block) = block.filter(|_| blocks <= PIECES_LIMIT) else {
                return Err(damaged("the map of a sparse member is cut or endless"));
            };
            take(&block, 0, 21)?;
            extended = block.0[504] != 0;
        }
        if sum != stored {
            return Err(damaged("the map of a sparse member does not fit its size"));
        }
        Ok((size, pieces))
    }

    /// The next piece of the current member's content, holes filled with zeros; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let content = &mut self.content;
        if content.position == content.size {
            return Ok(None);
        }
        let (offset, length) = content.pieces.front().copied().unwrap_or((content.size, 0));
        if content.position < offset {
            let zeros = (offset - content.position).min(CHUNK as u64);
            content.position += zeros;
            return Ok(Some(Bytes::from_static(&ZEROS[..zeros as usize])));
        }
        let left = offset + length - content.position;
        let Some(bytes) = self.input.take(left.min(CHUNK as u64) as usize).await? else {
            return Err(damaged("it ends in the middle of a member"));
        };
        content.position += bytes.len() as u64;
        content.stored -= bytes.len() as u64;
        if content.position == offset + length {
            content.pieces.pop_front();
        }
        Ok(Some(bytes))
    }
}

#[derive(Debug, Default)]
struct Content {
    position: u64,
    size: u64,
    /// What is stored, as offset and length, ascending; the rest is holes.
    pieces: VecDeque<(u64, u64)>,
    /// How much of the stored content has not been read.
    stored: u64,
    padding: u64,
}

struct Header([u8; BLOCK]);

impl Header {
    fn check(&self) -> Result<()> {
        let stored = self.number(148..156)?;
        let field = 148..156;
        let sum: u64 = (0..BLOCK)
            .map(|i| u64::from(if field.contains(&i) { b' ' } else { self.0[i] }))
            .sum();
        if sum == stored {
            return Ok(());
        }
        Err(damaged("a header's checksum is wrong"))
    }

    fn path(&self) -> Vec<u8> {
        let text = |range: std::ops::Range<usize>| {
            let field = &self.0[range];
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            field[..end].to_vec()
        };
        let name = text(0..100);
        // Only POSIX has the prefix: the GNU format, "ustar  \0", has times there.
        let prefix = if &self.0[257..263] == b"ustar\0" {
            text(345..500)
        } else {
            Vec::new()
        };
        if prefix.is_empty() {
            return name;
        }
        [prefix, name].join(&b'/')
    }

    /// An octal number, or GNU's binary one.
    fn number(&self, range: std::ops::Range<usize>) -> Result<u64> {
        let field = &self.0[range];
        if field[0] & 0x80 != 0 {
            let first = u64::from(field[0] & 0x7f);
            let value = field[1..].iter().try_fold(first, |value, byte| {
                (value < 1 << 55).then_some(value << 8 | u64::from(*byte))
            });
            return value.ok_or_else(|| damaged("a number in a header is out of range"));
        }
        let digits: Vec<u8> = field
            .iter()
            .copied()
            .skip_while(|byte| *byte == b' ')
            .take_while(|byte| !matches!(byte, b' ' | 0))
            .collect();
        digits.iter().try_fold(0_u64, |value, digit| match digit {
            b'0'..=b'7' if value < 1 << 59 => Ok(value << 3 | u64::from(digit - b'0')),
            _ => Err(damaged("a number in a header is not octal")),
        })
    }
}

/// What we use of a PAX extended header.
#[derive(Debug, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Pax {
    fn parse(mut records: &[u8]) -> Result<Self> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let record = Self::record(records).ok_or_else(|| damaged("an extended header makes no sense"))?;
            records = &records[record.len()..];
            let space = record.iter().position(|byte| *byte == b' ').unwrap_or(0);
            let pair = &record[space + 1..record.len() - 1];
            let equals = pair
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(|| damaged("an extended header has a record without a value"))?;
            let (key, value) = (&pair[..equals], &pair[equals + 1..]);
            match key {
                b"path" => pax.path = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    pax.size = Some(
                        size.filter(|size| *size <= i64::MAX as u64)
                            .ok_or_else(|| damaged("an extended header has a size that is no number"))?,
                    );
                }
                _ if key.starts_with(b"GNU.sparse.") => pax.sparse = true,
                _ => {}
            }
        }
        Ok(pax)
    }

    /// The first record, `LENGTH KEY=VALUE\n`, whose length counts itself.
    fn record(records: &[u8]) -> Option<&[u8]> {
        let space = records.iter().take(20).position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(..length)?;
        (length > space + 1 && record.ends_with(b"\n")).then_some(record)
    }
}

struct Input {
    stream: ByteStream,
    buffer: Bytes,
}

impl Input {
    /// The next bytes, at most `limit`, at least one; `None` at the end.
    async fn take(&mut self, limit: usize) -> Result<Option<Bytes>> {
        while self.buffer.is_empty() {
            match self.stream.next().await {
                Some(bytes) => self.buffer = bytes?,
                None => return Ok(None),
            }
        }
        let length = self.buffer.len().min(limit);
        Ok(Some(self.buffer.split_to(length)))
    }

    /// The next block; `None` at the end.
    async fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.take(BLOCK - filled).await? {
                Some(bytes) => {
                    block[filled..filled + bytes.len()].copy_from_slice(&bytes);
                    filled += bytes.len();
                }
                None if filled == 0 => return Ok(None),
                None => return Err(damaged("it ends in the middle of a header")),
            }
        }
        Ok(Some(block))
    }

    async fn extended(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > EXTENDED_LIMIT {
            return Err(damaged("an extended header is larger than 1 MiB"));
        }
        let mut content = Vec::new();
        while (content.len() as u64) < size {
            match self.take((size - content.len() as u64) as usize).await? {
                Some(bytes) => content.extend_from_slice(&bytes),
                None => return Err(damaged("it ends in the middle of an extended header")),
            }
        }
        self.skip(size.next_multiple_of(BLOCK as u64) - size).await?;
        Ok(content)
    }

    async fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            match self.take(usize::try_from(count).unwrap_or(usize::MAX)).await? {
                Some(bytes) => count -= bytes.len() as u64,
                None => return Err(damaged("it ends in the middle of a member")),
            }
        }
        Ok(())
    }

    async fn drain(&mut self, limit: u64) -> Result<()> {
        let mut count = 0;
        while count < limit {
            match self.take(CHUNK).await? {
                Some(bytes) => count += bytes.len() as u64,
                None => break,
            }
        }
        Ok(())
    }
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::DataInvalid, format!("the archive is damaged: {what}")).with_operation("extract")
}
