//! An event as a line.

use agents_core::{AuditEvent, ChainLink, Error, Result};
use agents_journal::{Chain, canonical};
use bytes::Bytes;

use crate::reader::MAX_LINE;

/// More than a link of ours takes in a line.
const LINK: usize = 512;

/// An event that is to become a line.
#[derive(Debug)]
pub(crate) struct Line {
    /// The event in the form that is hashed: an object.
    content: Bytes,
    /// The link that it came with, which it keeps.
    link: Option<ChainLink>,
}

impl Line {
    /// Takes an event that is not too large.
    pub(crate) fn new(event: &AuditEvent) -> Result<Self> {
        let content = canonical(event);
        if content.len() + LINK > MAX_LINE {
            return Err(Error::invalid(format!(
                "the {} event has {} bytes, and a record has at most {}; put large data into an artifact",
                event.event_type,
                content.len(),
                MAX_LINE - LINK
            )));
        }
        Ok(Self {
            content,
            link: event.chain.clone(),
        })
    }

    pub(crate) fn size(&self) -> usize {
        self.content.len() + LINK
    }

    /// Appends it, as the next of the chain unless it has a link.
    pub(crate) fn push(&self, chain: &mut Chain, lines: &mut Vec<u8>) {
        let link = match &self.link {
            Some(link) => link.clone(),
            None => chain.append(&self.content).link(),
        };
        lines.extend_from_slice(self.content.strip_suffix(b"}").unwrap_or(&self.content));
        lines.extend_from_slice(b",\"chain\":");
        // Of strings and a number, this cannot fail; a `Vec` takes everything.
        let _ = serde_json::to_writer(&mut *lines, &link);
        lines.extend_from_slice(b"}\n");
    }
}
