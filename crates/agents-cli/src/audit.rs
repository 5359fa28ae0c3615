//! `agents audit`.

pub(crate) mod args;
mod export;
mod report;
mod trail;
mod verify;

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use agents_sdk::core::{AuditEvent, AuditLogger, AuditQuery, Result, Severity};
use jiff::Timestamp;
use owo_colors::OwoColorize;
use serde_json::json;

use self::{
    args::{AuditCommand, QueryArgs, TailArgs},
    trail::{PAGE, logger},
};
use crate::{
    context::Context,
    failure::{Failure, Outcome},
    output::{self, one_line},
};

/// A longer fact is cut; `--json` has all of it.
const LONGEST_FACT: usize = 60;
/// How often a trail is asked for new events.
const POLL: Duration = Duration::from_millis(300);

pub(crate) async fn run(context: &Context, command: AuditCommand) -> Outcome {
    match command {
        AuditCommand::Tail(args) => tail(context, &args).await,
        AuditCommand::Query(args) => query(context, args).await,
        AuditCommand::Verify(args) => verify::verify(context, args).await,
        AuditCommand::Checkpoint(args) => verify::checkpoint(context, args).await,
        AuditCommand::Export(args) => export::export(context, args).await,
        AuditCommand::Report(args) => report::report(context, args).await,
    }
}

async fn query(context: &Context, args: QueryArgs) -> Outcome {
    let logger = logger(context, args.selection.audit.as_ref()).await?;
    let query = args
        .period
        .narrow(args.selection.query()?)
        .with_limit(args.limit)
        .with_cursor(args.cursor);
    let page = logger.query(query).await?;
    if context.json() {
        output::json(&json!({"events": page.events, "next": page.next}))?;
        return Ok(0);
    }
    print(context, &page.events)?;
    match page.next {
        Some(cursor) if !context.common.quiet => output::note(&format!("there is more: --cursor {cursor}")),
        None if page.events.is_empty() && !context.common.quiet => {
            output::note(&format!("no events match in {}", one_line(&logger.location())));
        }
        _ => {}
    }
    Ok(0)
}

async fn tail(context: &Context, args: &TailArgs) -> Outcome {
    let logger = logger(context, args.selection.audit.as_ref()).await?;
    let all = args.selection.query()?.with_limit(PAGE);
    // Most often the last day has enough, and the whole trail need not be read.
    let yesterday = Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let mut follower = Follower::new(logger.as_ref(), all.clone().with_start_time(Some(yesterday)));
    let mut last = follower.last(args.lines).await?;
    if last.len() < args.lines {
        follower = Follower::new(logger.as_ref(), all);
        last = follower.last(args.lines).await?;
    }
    print(context, &last)?;
    if !args.follow {
        if last.is_empty() && args.lines > 0 && !context.json() && !context.common.quiet {
            output::note(&format!("no events in {}", one_line(&logger.location())));
        }
        return Ok(0);
    }
    loop {
        tokio::time::sleep(POLL).await;
        while let Some(events) = follower.next().await? {
            print(context, &events)?;
        }
    }
}

/// Reads a trail in the order in which it is written, which is not that of the events' times: another process may add
/// one that happened before those that are there already.
struct Follower<'a> {
    logger: &'a dyn AuditLogger,
    query: AuditQuery,
    /// The ids of events that may be read once more, the oldest first.
    recent: VecDeque<String>,
    seen: HashSet<String>,
}

impl<'a> Follower<'a> {
    fn new(logger: &'a dyn AuditLogger, query: AuditQuery) -> Self {
        Self {
            logger,
            query,
            recent: VecDeque::new(),
            seen: HashSet::new(),
        }
    }

    /// The last of the events that are there.
    async fn last(&mut self, count: usize) -> Result<Vec<AuditEvent>> {
        let mut kept = VecDeque::new();
        while let Some(events) = self.next().await? {
            kept.extend(events);
            let surplus = kept.len().saturating_sub(count);
            kept.drain(..surplus);
        }
        Ok(kept.into())
    }

    /// Further events; none when there are no more for now.
    async fn next(&mut self) -> Result<Option<Vec<AuditEvent>>> {
        let page = self.logger.query(self.query.clone()).await?;
        let (count, mut more) = (page.events.len(), page.next);
        let new: Vec<_> = page
            .events
            .into_iter()
            .filter(|event| !self.seen.contains(&event.event_id))
            .collect();
        if more.is_none() && new.is_empty() {
            return Ok(None);
        }
        // The end has no cursor. The last event has, when it is left out; it is read once more and known again.
        if more.is_none() && count > 1 {
            let but_the_last = self.query.clone().with_limit(count - 1);
            more = self.logger.query(but_the_last).await?.next;
        }
        if more.is_some() {
            // Whatever is behind a cursor is new, however long ago it happened.
            self.query = self.query.clone().with_cursor(more).with_start_time(None);
        }
        for event in &new {
            self.seen.insert(event.event_id.clone());
            self.recent.push_back(event.event_id.clone());
        }
        while self.recent.len() > 2 * PAGE {
            if let Some(forgotten) = self.recent.pop_front() {
                self.seen.remove(&forgotten);
            }
        }
        Ok(Some(new))
    }
}

fn print(context: &Context, events: &[AuditEvent]) -> Result<(), Failure> {
    for event in events {
        match context.json() {
            true => output::json(event)?,
            false => output::text(&line(event))?,
        }
    }
    Ok(())
}

fn line(event: &AuditEvent) -> String {
    let severity = format!("{:<8}", event.severity);
    let severity = match event.severity {
        Severity::Debug | Severity::Info => severity.dimmed().to_string(),
        Severity::Warning => severity.yellow().to_string(),
        Severity::Error | Severity::Critical => severity.red().to_string(),
    };
    let mut line = format!("{:.3} {severity} {:<26}", event.timestamp, event.event_type);
    if let Some(session) = &event.session_id {
        line.push_str(&format!(" {}", session.cyan()));
    }
    if let Some(agent) = &event.agent_id {
        line.push_str(&format!(" {agent}"));
    }
    for (key, value) in &event.payload {
        let value = match value.as_str() {
            Some(text) if !text.is_empty() && !text.contains(char::is_whitespace) => text.to_owned(),
            _ => value.to_string(),
        };
        let mut value = one_line(&value);
        if let Some((end, _)) = value.char_indices().nth(LONGEST_FACT) {
            value.truncate(end);
            value.push('…');
        }
        line.push_str(&format!(" {}{value}", format!("{key}=").dimmed()));
    }
    line.push('\n');
    line
}
