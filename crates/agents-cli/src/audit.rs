//! `agents audit`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use agents_sdk::core::{AgentId, AuditEvent, AuditLogger, AuditQuery, Result, SessionId, Severity};
use jiff::Timestamp;
use owo_colors::OwoColorize;
use serde_json::json;

use crate::{
    args::{Adapters, AuditQueryArgs, AuditTailArgs},
    context::Context,
    failure::{Failure, Outcome},
    output::{self, one_line},
};

/// A longer fact is cut; `--json` has all of it.
const LONGEST_FACT: usize = 60;
const PAGE: usize = 1000;
/// How often a trail is asked for new events.
const POLL: Duration = Duration::from_millis(300);

async fn logger(context: &Context, audit: Option<&String>) -> Result<Arc<dyn AuditLogger>> {
    let adapters = Adapters {
        audit: audit.cloned(),
        ..Adapters::default()
    };
    let engine = context.engine(&adapters).await?;
    Ok(Arc::clone(&engine.adapters().audit))
}

pub(crate) async fn query(context: &Context, args: AuditQueryArgs) -> Outcome {
    let logger = logger(context, args.audit.as_ref()).await?;
    let query = AuditQuery::new()
        .with_session(args.session.map(SessionId::new).transpose()?)
        .with_agent(args.agent.map(AgentId::new).transpose()?)
        .with_user(args.user)
        .with_event_types(args.types)
        .with_start_time(args.since)
        .with_end_time(args.until)
        .with_severity(args.severity)
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

pub(crate) async fn tail(context: &Context, args: &AuditTailArgs) -> Outcome {
    let logger = logger(context, args.audit.as_ref()).await?;
    let session = args.session.as_deref().map(SessionId::new).transpose()?;
    let all = AuditQuery::new().with_session(session).with_limit(PAGE);
    // Most often the last day has enough, and the whole trail need not be read.
    let yesterday = Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let mut last = last(
        logger.as_ref(),
        all.clone().with_start_time(Some(yesterday)),
        args.lines,
    )
    .await?;
    if last.len() < args.lines {
        last = self::last(logger.as_ref(), all.clone(), args.lines).await?;
    }
    print(context, &last)?;
    if !args.follow {
        return Ok(0);
    }
    // Events of the newest moment that were seen, since others of that moment may follow.
    let mut since = last.last().map_or_else(Timestamp::now, |event| event.timestamp);
    let mut seen: Vec<String> = last
        .iter()
        .filter(|event| event.timestamp == since)
        .map(|event| event.event_id.clone())
        .collect();
    loop {
        tokio::time::sleep(POLL).await;
        let mut query = all.clone().with_start_time(Some(since));
        loop {
            let page = logger.query(query.clone()).await?;
            for event in page.events {
                if seen.contains(&event.event_id) {
                    continue;
                }
                print(context, std::slice::from_ref(&event))?;
                if event.timestamp > since {
                    since = event.timestamp;
                    seen.clear();
                }
                seen.push(event.event_id);
            }
            match page.next {
                Some(cursor) => query = query.with_cursor(Some(cursor)),
                None => break,
            }
        }
    }
}

/// The last events that match.
async fn last(logger: &dyn AuditLogger, mut query: AuditQuery, count: usize) -> Result<Vec<AuditEvent>> {
    let mut kept = VecDeque::new();
    loop {
        let page = logger.query(query.clone()).await?;
        kept.extend(page.events);
        let surplus = kept.len().saturating_sub(count);
        kept.drain(..surplus);
        match page.next {
            Some(cursor) => query = query.with_cursor(Some(cursor)),
            None => return Ok(kept.into()),
        }
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
