//! What `agents audit` takes.

use std::path::PathBuf;

use agents_sdk::core::{AgentId, AuditQuery, EventType, Result, SecretRef, SessionId, Severity};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;

use crate::units::parse_time;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Print the last events
    Tail(TailArgs),
    /// Print the events that match, oldest first
    Query(QueryArgs),
    /// Look for what was edited, put in, removed or moved, and name the first bad record
    Verify(VerifyArgs),
    /// Print a statement of how far the trail goes; kept elsewhere, it lets verify find a tail that was cut off
    Checkpoint(CheckpointArgs),
    /// Print all events that match, in a form that other tools read
    Export(ExportArgs),
    /// Make one HTML page of all that is known of a session
    Report(ReportArgs),
}

/// Which events.
#[derive(Args, Debug)]
pub(crate) struct Selection {
    /// Of this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Of this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Asked for by this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Of this type; may be given several times
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<EventType>,
    /// At least this grave: debug, info, warning, error or critical
    #[arg(long, value_name = "LEVEL")]
    severity: Option<Severity>,
    /// Read from there: a type of logger, such as file
    #[arg(long, value_name = "TYPE")]
    pub(crate) audit: Option<String>,
}

impl Selection {
    pub(crate) fn query(&self) -> Result<AuditQuery> {
        Ok(AuditQuery::new()
            .with_session(self.session.as_deref().map(SessionId::new).transpose()?)
            .with_agent(self.agent.as_deref().map(AgentId::new).transpose()?)
            .with_user(self.user.clone())
            .with_event_types(self.types.clone())
            .with_severity(self.severity))
    }
}

/// From when to when.
#[derive(Args, Debug)]
pub(crate) struct Period {
    /// At this time or later: 2026-01-31T12:00:00Z, 2026-01-31, or 1h for an hour ago
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
}

impl Period {
    pub(crate) fn narrow(&self, query: AuditQuery) -> AuditQuery {
        query.with_start_time(self.since).with_end_time(self.until)
    }
}

#[derive(Args, Debug)]
pub(crate) struct TailArgs {
    /// How many
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
    pub(crate) lines: usize,
    /// Go on with new ones
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) selection: Selection,
}

#[derive(Args, Debug)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) period: Period,
    /// The most events
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) limit: usize,
    /// Where the last page ended
    #[arg(long, value_name = "CURSOR")]
    pub(crate) cursor: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// A folder of daily files, a file of events, or a journal's folder [default: where the configuration puts the trail]
    #[arg(value_name = "PATH", conflicts_with_all = ["session", "audit"])]
    pub(crate) path: Option<PathBuf>,
    /// A checkpoint that was kept elsewhere; may be given several times, and a file may hold several
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Vec<PathBuf>,
    /// The secret that sealed the chain, env:NAME or file:PATH; may be given several times
    /// [default: the configuration's chain_key]
    #[arg(long, value_name = "REF")]
    pub(crate) key: Vec<SecretRef>,
    /// The public key of an Ed25519 chain, 32 bytes, env:NAME or file:PATH; may be given several times
    #[arg(long, value_name = "REF")]
    pub(crate) public_key: Vec<SecretRef>,
    /// The events of this session only; what is missing cannot be told then
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// Read from there: a type of logger, such as file
    #[arg(long, value_name = "TYPE")]
    pub(crate) audit: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct CheckpointArgs {
    /// Put it there, at the end of what is there already [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Of that trail: a type of logger, such as file
    #[arg(long, value_name = "TYPE")]
    pub(crate) audit: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The form, an event a line
    #[arg(long, value_name = "FORMAT", default_value = "jsonl")]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) period: Period,
    /// Put them there; the file appears once it is whole [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The records as they are
    Jsonl,
    /// The Open Cybersecurity Schema Framework, 1.6.0
    Ocsf,
    /// CloudEvents 1.0 in JSON
    Cloudevents,
}

#[derive(Args, Debug)]
pub(crate) struct ReportArgs {
    /// The session's id, or the beginning of it
    pub(crate) session: String,
    /// Put it there [default: SESSION.html in the working directory]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Show it in the browser
    #[arg(long, value_name = "WHETHER", default_value = "no")]
    pub(crate) open: Open,
    /// Read from there: a type of logger, such as file
    #[arg(long, value_name = "TYPE")]
    pub(crate) audit: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Open {
    /// Show it
    Yes,
    /// Only write it
    No,
}
