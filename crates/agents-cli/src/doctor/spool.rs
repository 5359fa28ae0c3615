//! What waits in the spools of this machine.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use agents_sdk::{
    config::Setting,
    core::{Availability, Problem, Result},
    layers::spool::{SpoolReport, inspect, inspect_all},
};
use jiff::Timestamp;
use serde_json::Value;

use super::{Finding, finding};
use crate::units;

/// Where spools may be: the folder of those that are nowhere else, and those that the configuration names.
#[derive(Debug)]
pub(super) struct Folders {
    all: PathBuf,
    named: BTreeSet<PathBuf>,
}

pub(super) fn folders(state: &Path, settings: &[Setting]) -> Folders {
    let mut named = BTreeSet::new();
    for setting in settings {
        match setting.key.strip_prefix("adapters.audit_logger.config.") {
            Some("spool") => named.extend(folder(&setting.value)),
            Some("sinks") => within(&setting.value, &mut named),
            _ => {}
        }
    }
    Folders {
        all: state.join("audit/spool"),
        named,
    }
}

/// The folders of the spools in a list of sinks, each of which may have a list of its own.
fn within(sinks: &Value, named: &mut BTreeSet<PathBuf>) {
    for sink in sinks.as_array().into_iter().flatten() {
        named.extend(folder(&sink["config"]["spool"]));
        within(&sink["config"]["sinks"], named);
    }
}

fn folder(spool: &Value) -> Option<PathBuf> {
    spool["folder"].as_str().map(PathBuf::from)
}

/// Looks at each spool, and tells what is wrong with it.
pub(super) async fn look(folders: &Folders, configured: &str, findings: &mut Vec<Finding>) -> Vec<SpoolReport> {
    let mut reports = Vec::new();
    let mut keep = |found: Result<Vec<SpoolReport>>| match found {
        Ok(found) => reports.extend(found),
        Err(error) => findings.push(finding("spool".to_owned(), Err(error))),
    };
    keep(inspect_all(&folders.all).await);
    for folder in &folders.named {
        keep(inspect(folder).await.map(|found| found.into_iter().collect()));
    }
    for report in &reports {
        let judged = judge(report, configured.contains(&report.location), Timestamp::now());
        findings.push(finding(
            format!("spool of {} at {}", report.sink, report.location),
            Ok(judged),
        ));
    }
    reports
}

fn judge(report: &SpoolReport, configured: bool, now: Timestamp) -> Availability {
    let folder = report.folder.display();
    let mut answer = Availability::ready()
        .with_fact(folder.to_string())
        .with_fact(format!(
            "{} events wait, {} of them of processes that have ended",
            report.events(),
            report.left()
        ))
        .with_fact(format!(
            "{} on disk, {} writers",
            units::bytes(report.bytes()),
            report.writers.len()
        ));
    if let Some(oldest) = report.oldest() {
        let age = now.duration_since(oldest).as_secs().max(0);
        answer = answer.with_fact(format!("the oldest is from {oldest}, {age} s ago"));
    }
    let mut wrong = |reason: String, remedy: String| {
        answer.available = false;
        answer.problems.push(Problem::new(reason, remedy));
    };
    if let Some(failing) = report.failing() {
        wrong(
            format!(
                "the sink has not taken events since {} ({} attempts): {}",
                failing.since, failing.attempts, failing.error
            ),
            "see to what the message names; the events are safe, and delivered once the sink takes them".to_owned(),
        );
    }
    if report.lost() > 0 {
        wrong(
            format!("the sink has refused {} events for good", report.lost()),
            format!("read {folder}/*/lost.jsonl, see to what it says, and move the file away"),
        );
    }
    if report.events() > 0 && !configured {
        wrong(
            "events wait for a sink that is no longer configured".to_owned(),
            format!("configure it once more to deliver them, or remove {folder}"),
        );
    }
    answer
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(events: u64, lost: u64, failing: bool) -> SpoolReport {
        let failing = failing.then(|| json!({"since": "2026-01-02T03:04:05Z", "attempts": 7, "error": "away"}));
        let writer = json!({
            "name": "0001", "live": false, "events": events, "bytes": 2048, "lost": lost, "failing": failing,
            "oldest": (events > 0).then_some("2026-01-02T03:04:05Z"),
        });
        let report = json!({"folder": "/s", "sink": "acme", "location": "there", "writers": [writer]});
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn each_fault_is_told_with_its_remedy() {
        let now = "2026-01-02T03:05:05Z".parse().unwrap();
        let good = judge(&report(0, 0, true), false, now);
        assert!(good.available && good.problems.is_empty(), "{good:?}");
        let waiting = judge(&report(3, 0, false), true, now);
        assert!(waiting.available && waiting.facts[1].starts_with("3 events wait, 3 of them"));
        assert!(waiting.facts[3].ends_with("60 s ago"), "{waiting:?}");
        for (report, configured, word) in [
            (report(3, 0, true), true, "(7 attempts): away"),
            (report(0, 2, false), true, "refused 2 events"),
            (report(1, 0, false), false, "no longer configured"),
        ] {
            let bad = judge(&report, configured, now);
            assert!(!bad.available && bad.problems[0].reason.contains(word), "{bad:?}");
            assert!(!bad.problems[0].remedy.is_empty());
        }
    }

    #[test]
    fn folders_are_found_in_the_configuration() {
        let setting = |key: &str, value: Value| -> Setting {
            serde_json::from_value(json!({"key": key, "value": value, "source": "code"})).unwrap()
        };
        let inner = json!([{"type": "acme", "config": {"spool": {"folder": "/three"}}}]);
        let found = folders(
            Path::new("/state"),
            &[
                setting(
                    "adapters.audit_logger.config.spool",
                    json!({"folder": "/one", "max_mb": 1}),
                ),
                setting(
                    "adapters.audit_logger.config.sinks",
                    json!([
                        {"type": "acme", "config": {"spool": {"folder": "/two"}}},
                        {"type": "acme", "config": {"spool": false}},
                        {"type": "composite", "config": {"sinks": inner}},
                    ]),
                ),
            ],
        );
        assert_eq!(found.all, Path::new("/state/audit/spool"));
        let named: Vec<_> = found.named.iter().map(|folder| folder.to_str().unwrap()).collect();
        assert_eq!(named, ["/one", "/three", "/two"]);
    }
}
