//! One HTML page of a session.

mod curves;
mod events;
mod html;
mod sections;
mod timeline;

use agents_core::{AuditEvent, EventType, SessionId};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::html::Html;

const STYLE: &str = include_str!("report/style.css");
const SCRIPT: &str = include_str!("report/script.js");

/// All that is known of a session, to be made into a page.
///
/// The events are what is on record. Everything else is optional: where a session ran elsewhere, the page says less.
#[derive(Clone, Debug)]
pub struct SessionReport {
    session_id: SessionId,
    events: Vec<AuditEvent>,
    info: Value,
    result: Value,
    output: Vec<OutputPiece>,
    omitted: u64,
    chain: Option<ChainCheck>,
    location: String,
    made_at: Timestamp,
}

/// A piece of what the agent printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputPiece {
    /// Whether it is of standard error.
    pub stderr: bool,
    /// The bytes, as text.
    pub text: String,
    /// Whether output is left out before this piece.
    pub after_gap: bool,
}

/// What a verification of the trail found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainCheck {
    /// In a word.
    pub verdict: ChainVerdict,
    /// In a sentence.
    pub summary: String,
}

/// What a verification of the trail found, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainVerdict {
    /// Everything is as it was written.
    Intact,
    /// Something is not.
    Broken,
    /// It could not be told.
    Unknown,
}

impl SessionReport {
    /// A session, and what is on record of it, oldest first.
    pub fn new(session_id: SessionId, events: Vec<AuditEvent>) -> Self {
        Self {
            session_id,
            events,
            info: Value::Null,
            result: Value::Null,
            output: Vec::new(),
            omitted: 0,
            chain: None,
            location: String::new(),
            made_at: Timestamp::now(),
        }
    }

    /// Sets what `agents inspect --json` says, its `result` included.
    #[must_use]
    pub fn with_inspection(mut self, mut inspection: Value) -> Self {
        self.result = inspection.get_mut("result").map(Value::take).unwrap_or_default();
        self.info = inspection;
        self
    }

    /// Sets what the agent printed, and how many bytes of it are left out.
    #[must_use]
    pub fn with_output(mut self, pieces: Vec<OutputPiece>, omitted: u64) -> Self {
        self.output = pieces;
        self.omitted = omitted;
        self
    }

    /// Sets what a verification of the trail found.
    #[must_use]
    pub fn with_chain(mut self, chain: ChainCheck) -> Self {
        self.chain = Some(chain);
        self
    }

    /// Sets where the trail is.
    #[must_use]
    pub fn with_location(mut self, location: impl Into<String>) -> Self {
        self.location = location.into();
        self
    }

    /// The page.
    pub fn to_html(&self) -> String {
        let mut page = Html::new();
        page.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
            .raw("<meta http-equiv=\"Content-Security-Policy\" content=\"")
            .text(&policy())
            .raw("\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n")
            .raw("<meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n")
            .raw("<title>")
            .text(&format!("Session {}", self.session_id))
            .raw("</title>\n<style>")
            .raw(STYLE)
            .raw("</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#events\">Skip to the events</a>\n");
        self.header(&mut page);
        page.raw("<main>\n");
        self.timeline(&mut page);
        self.resources(&mut page);
        self.decisions(&mut page);
        self.artifacts(&mut page);
        self.printed(&mut page);
        self.event_list(&mut page);
        page.raw("</main>\n");
        self.footer(&mut page);
        page.raw("<script>").raw(SCRIPT).raw("</script>\n</body>\n</html>\n");
        page.finish()
    }

    fn first(&self, event_type: EventType) -> Option<&AuditEvent> {
        self.events.iter().find(|event| event.event_type == event_type)
    }

    fn last(&self, event_type: EventType) -> Option<&AuditEvent> {
        self.events.iter().rfind(|event| event.event_type == event_type)
    }

    fn all(&self, event_type: EventType) -> impl Iterator<Item = &AuditEvent> {
        self.events.iter().filter(move |event| event.event_type == event_type)
    }

    /// Where the result is not at hand, the event that closes the session has the most of it.
    fn of_result(&self, key: &str) -> Option<&Value> {
        let closing = || self.last(EventType::SessionClosed)?.payload.get(key);
        self.result.get(key).filter(|value| !value.is_null()).or_else(closing)
    }

    fn started(&self) -> Option<Timestamp> {
        let noted = || self.info.get("started_at")?.as_str()?.parse().ok();
        let earliest = self.events.iter().map(|event| event.timestamp).min();
        // What was recorded first began the session, whatever the clock of another record says.
        earliest.or_else(noted)
    }

    fn ended(&self) -> Option<Timestamp> {
        let noted = || self.info.get("ended_at")?.as_str()?.parse().ok();
        self.last(EventType::SessionClosed)
            .map(|event| event.timestamp)
            .or_else(noted)
    }
}

/// Nothing but this style and this script; nothing from anywhere, and nothing to anywhere.
fn policy() -> String {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
}

#[cfg(test)]
mod tests;
