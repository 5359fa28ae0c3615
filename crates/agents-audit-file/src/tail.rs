//! Finds the end of the chain in the files of a trail.

use std::{fs::File, io, os::unix::fs::FileExt};

use agents_core::{AuditEvent, ChainLink};

/// What the names of the writers of trails begin with. An event that came with a link of another writer, such as that of
/// a journal, is not one that this chain goes on from.
pub(crate) const WRITER: &str = "file-";

/// How much is read at once.
const CHUNK: u64 = 1 << 16;

/// The link of the last whole line that has one of this kind of trail.
pub(crate) fn last_link(file: &File, length: u64) -> io::Result<Option<ChainLink>> {
    // What of the file is not judged yet, from `start` on.
    let mut rest = Vec::new();
    let mut start = length;
    loop {
        while let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') {
            rest.truncate(end);
            match rest.iter().rposition(|byte| *byte == b'\n') {
                Some(before) => {
                    if let Some(link) = link_of(&rest[before + 1..]) {
                        return Ok(Some(link));
                    }
                    rest.truncate(before + 1);
                }
                None if start == 0 => return Ok(link_of(&rest)),
                None => {
                    // The line begins before what was read.
                    rest.push(b'\n');
                    break;
                }
            }
        }
        if start == 0 {
            return Ok(None);
        }
        let from = start.saturating_sub(CHUNK);
        // At most `CHUNK`, which fits.
        let mut part = vec![0; usize::try_from(start - from).unwrap_or_default()];
        file.read_exact_at(&mut part, from)?;
        part.append(&mut rest);
        (rest, start) = (part, from);
    }
}

fn link_of(line: &[u8]) -> Option<ChainLink> {
    let event: AuditEvent = serde_json::from_slice(line).ok()?;
    event.chain.filter(|link| link.writer.starts_with(WRITER))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use agents_core::EventType;

    use super::*;

    fn line(writer: &str, sequence: u64, padding: usize) -> String {
        let event = AuditEvent::now(EventType::SystemWarning)
            .with_fact("x", "x".repeat(padding))
            .with_chain(Some(ChainLink::new(writer, sequence, "", "")));
        serde_json::to_string(&event).unwrap() + "\n"
    }

    #[test]
    fn it_is_the_last_whole_line_of_ours() {
        let ours = |n, padding| line("file-x", n, padding);
        let cases = [
            (String::new(), None),
            ("no event".to_owned(), None),
            (ours(1, 0), Some(1)),
            (ours(1, 0).trim_end().to_owned(), None),
            (ours(1, 0) + &ours(2, 200_000), Some(2)),
            (ours(1, 0) + ours(2, 200_000).trim_end(), Some(1)),
            (ours(1, 200_000) + "torn\n" + &"y".repeat(300_000), Some(1)),
            (ours(1, 0) + &line("other", 9, 100_000) + "\n\n", Some(1)),
            ("\n".to_owned() + &ours(7, (CHUNK as usize) * 2), Some(7)),
        ];
        for (n, (text, expected)) in cases.into_iter().enumerate() {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let found = last_link(&file, text.len() as u64).unwrap();
            assert_eq!(found.map(|link| link.sequence), expected, "case {n}");
        }
    }
}
