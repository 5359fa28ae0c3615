//! Which test suites there are, so that one that silently did not run is noticed.

use std::collections::HashMap;

use serde_json::Value;

use super::results::Suite;
use crate::metadata::{Member, Metadata, Target};

/// File names of test executables and the suite of each, from cargo's JSON messages.
pub(super) fn executables(metadata: &Metadata, messages: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    for message in messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let Some(path) = message["executable"].as_str() else {
            continue;
        };
        if message["profile"]["test"] != true {
            continue;
        }
        let Some(member) = metadata
            .members
            .iter()
            .find(|member| message["package_id"] == member.id.as_str())
        else {
            continue;
        };
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let name = message["target"]["name"].as_str().unwrap_or_default();
        if let (Some(target), Some(file)) = (member.target(kind, name), path.rsplit('/').next()) {
            found.insert(file.to_owned(), suite_name(member, target));
        }
    }
    found
}

/// The names of all suites that `cargo test --workspace` should run.
pub(super) fn required(metadata: &Metadata) -> Vec<String> {
    let mut names = Vec::new();
    for member in &metadata.members {
        for target in &member.targets {
            if target.test && matches!(target.kind.as_str(), "lib" | "bin" | "test" | "proc-macro") {
                names.push(suite_name(member, target));
            }
            if target.doctest && target.kind == "lib" {
                names.push(format!("{} doc", target.name.replace('_', "-")));
            }
        }
    }
    names
}

/// Those of `required` that did not even start; one that started and died is counted as a failure by itself.
pub(super) fn missing(required: &[String], ran: &[Suite]) -> Vec<String> {
    required
        .iter()
        .filter(|name| !ran.iter().any(|suite| suite.name == **name))
        .cloned()
        .collect()
}

fn suite_name(member: &Member, target: &Target) -> String {
    match target.kind.as_str() {
        "lib" => format!("{} lib", member.name),
        kind => format!("{} {kind} {}", member.name, target.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let target = |kind: &str, name: &str, doctest| Target {
            name: name.to_owned(),
            kind: kind.to_owned(),
            test: kind != "example",
            doctest,
            ..Target::default()
        };
        Metadata {
            members: vec![Member {
                id: "id-a".to_owned(),
                name: "agents-a".to_owned(),
                targets: vec![
                    target("lib", "agents_a", true),
                    target("test", "conformance", false),
                    target("example", "toy", false),
                ],
                ..Member::default()
            }],
            ..Metadata::default()
        }
    }

    #[test]
    fn every_tested_target_is_required() {
        let required = required(&metadata());
        assert_eq!(required, ["agents-a lib", "agents-a doc", "agents-a test conformance"]);
        let ran = [Suite::new("agents-a lib"), Suite::new("agents-a doc")];
        assert_eq!(missing(&required, &ran), ["agents-a test conformance"]);
    }

    #[test]
    fn executables_are_named_after_their_crate() {
        let messages = r#"
not json
{"reason":"compiler-artifact","package_id":"id-a","target":{"kind":["test"],"name":"conformance"},"profile":{"test":true},"executable":"/t/debug/deps/conformance-12"}
{"reason":"compiler-artifact","package_id":"id-a","target":{"kind":["lib"],"name":"agents_a"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","package_id":"id-other","target":{"kind":["test"],"name":"x"},"profile":{"test":true},"executable":"/t/x"}
"#;
        let found = executables(&metadata(), messages);
        assert_eq!(
            found,
            HashMap::from([("conformance-12".to_owned(), "agents-a test conformance".to_owned())])
        );
    }
}
