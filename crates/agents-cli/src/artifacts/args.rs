//! What can be written after `agents artifacts`.

use std::path::PathBuf;

use agents_sdk::core::{Error, Result};
use clap::{Args, Subcommand};
use jiff::Timestamp;

use crate::units::{Limit, parse_seconds, parse_time};

#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactsCommand {
    /// List a session's artifacts, or the sessions that have any
    Ls(LsArgs),
    /// Read an artifact into a file
    Get(GetArgs),
    /// Store a file as a new version of an artifact
    Put(PutArgs),
    /// Print a URL that gives access to one artifact for a while, to anyone who has it
    Url(UrlArgs),
    /// Delete one artifact in all its versions, or all of a session
    Rm(RmArgs),
    /// Copy sessions to another place; a copy that was interrupted is continued
    Copy(CopyArgs),
    /// Read artifacts again and compare them with their SHA-256
    Verify(VerifyArgs),
    /// Delete the artifacts of all sessions that are old
    Prune(PruneArgs),
    /// Copy everything to another place and read it back there; one that was interrupted is continued
    Backup(BackupArgs),
    /// Copy everything back from another place and read it back here
    Restore(RestoreArgs),
}

/// The storage of one command.
#[derive(Args, Debug)]
pub(crate) struct Storage {
    /// Keep artifacts there: a type of storage, such as local
    #[arg(long, value_name = "TYPE")]
    pub(crate) storage: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// The session's id, or the beginning of it [default: list the sessions]
    pub(crate) session: Option<String>,
    #[command(flatten)]
    pub(crate) storage: Storage,
}

#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    /// The session's id, or the beginning of it
    pub(crate) session: String,
    /// The artifact's name
    pub(crate) name: String,
    /// The version [default: the newest]
    #[arg(long, value_name = "N")]
    pub(crate) version: Option<u64>,
    /// The file or the folder to write to; - is standard output [default: the name, here]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) storage: Storage,
}

/// What an artifact has beside its content.
#[derive(Args, Debug)]
pub(crate) struct About {
    /// The media type, such as text/csv
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    /// Metadata; may be given several times
    #[arg(long, value_name = "K=V", value_parser = parse_pair)]
    pub(crate) metadata: Vec<(String, String)>,
}

#[derive(Args, Debug)]
pub(crate) struct PutArgs {
    /// The session's id
    pub(crate) session: String,
    /// The file
    pub(crate) file: PathBuf,
    /// The artifact's name [default: the file's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) about: About,
    #[command(flatten)]
    pub(crate) storage: Storage,
}

#[derive(Args, Debug)]
pub(crate) struct UrlArgs {
    /// The session's id, or the beginning of it
    pub(crate) session: String,
    /// The artifact's name
    pub(crate) name: String,
    /// The version [default: the newest]
    #[arg(long, value_name = "N", conflicts_with = "put")]
    pub(crate) version: Option<u64>,
    /// How long it works: 30 (seconds), 30s, 5m, 1h, 1d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_expiry, allow_negative_numbers = true)]
    pub(crate) expires: std::time::Duration,
    /// Let it store the artifact instead: the SHA-256 of the content to come, as sha256sum prints it
    #[arg(long, value_name = "SHA256", value_parser = parse_sha256)]
    pub(crate) put: Option<String>,
    #[command(flatten)]
    pub(crate) about: UrlAbout,
    #[command(flatten)]
    pub(crate) storage: Storage,
}

/// [`About`] for an upload.
#[derive(Args, Debug)]
pub(crate) struct UrlAbout {
    /// With --put: the media type, such as text/csv
    #[arg(long, value_name = "TYPE", requires = "put")]
    pub(crate) content_type: Option<String>,
    /// With --put: metadata; may be given several times
    #[arg(long, value_name = "K=V", value_parser = parse_pair, requires = "put")]
    pub(crate) metadata: Vec<(String, String)>,
}

#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// The session's id, or the beginning of it
    pub(crate) session: String,
    /// The artifact's name
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub(crate) name: Option<String>,
    /// All of the session's artifacts
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) storage: Storage,
}

#[derive(Args, Debug)]
pub(crate) struct CopyArgs {
    /// The sessions' ids, or the beginnings of them
    #[arg(required = true, value_name = "SESSION")]
    pub(crate) sessions: Vec<String>,
    /// Copy to there: a configuration file, a URL such as s3://bucket/prefix, or a type of storage
    /// [default: the configured storage]
    #[arg(long, value_name = "PLACE", required_unless_present = "from")]
    pub(crate) to: Option<String>,
    /// Copy from there, in the same words [default: the configured storage]
    #[arg(long, value_name = "PLACE")]
    pub(crate) from: Option<String>,
    /// Read each copy back and compare it
    #[arg(long)]
    pub(crate) verify: bool,
    #[command(flatten)]
    pub(crate) parallel: Parallel,
}

/// How much is done at once.
#[derive(Args, Debug)]
pub(crate) struct Parallel {
    /// How many artifacts at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = parse_parallel)]
    pub(crate) parallel: usize,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// The sessions' ids, or the beginnings of them [default: every session]
    #[arg(value_name = "SESSION")]
    pub(crate) sessions: Vec<String>,
    #[command(flatten)]
    pub(crate) parallel: Parallel,
    #[command(flatten)]
    pub(crate) storage: Storage,
}

#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// Those whose newest version is older: 30d, or a time such as 2026-01-31
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) older_than: Timestamp,
    /// Only print what would be deleted
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) storage: Storage,
}

#[derive(Args, Debug)]
pub(crate) struct BackupArgs {
    /// A configuration file, a URL such as s3://bucket/prefix, or a type of storage
    #[arg(long, value_name = "PLACE")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) parallel: Parallel,
}

#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// A configuration file, a URL such as s3://bucket/prefix, or a type of storage
    #[arg(long, value_name = "PLACE")]
    pub(crate) from: String,
    #[command(flatten)]
    pub(crate) parallel: Parallel,
}

fn parse_pair(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Error::invalid("write K=V")),
    }
}

fn parse_sha256(text: &str) -> Result<String> {
    let text = text.to_ascii_lowercase();
    match text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit()) {
        true => Ok(text),
        false => Err(Error::invalid("write 64 hexadecimal digits, as sha256sum prints them")),
    }
}

fn parse_expiry(text: &str) -> Result<std::time::Duration> {
    let bad = || Error::invalid("write seconds such as 30, or a time such as 30s, 5m, 1h or 1d; at least one second");
    match parse_seconds(text) {
        Ok(Limit::Of(seconds)) if seconds >= 1.0 => {
            std::time::Duration::try_from_secs_f64(seconds.trunc()).map_err(|_| bad())
        }
        _ => Err(bad()),
    }
}

fn parse_parallel(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(parallel @ 1..=256) => Ok(parallel),
        _ => Err(Error::invalid("write a number from 1 to 256")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_before_anything_is_touched() {
        assert_eq!(parse_pair("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(parse_pair("a=").unwrap().1, "");
        for bad in ["", "a", "=b"] {
            assert!(parse_pair(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_sha256(&"AB".repeat(32)).unwrap(), "ab".repeat(32));
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(65)] {
            assert!(parse_sha256(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_expiry("1.5h").unwrap().as_secs(), 5400);
        for bad in ["", "0", "-1", "100ms", "unlimited", "x"] {
            assert!(parse_expiry(bad).is_err(), "{bad}");
        }
        assert!(parse_parallel("0").is_err() && parse_parallel("257").is_err() && parse_parallel("8").is_ok());
    }
}
