//! Which of our crates may depend on which: the table of `docs/architecture.md` as code.

use crate::metadata::Member;

const FACADE: &str = "agents-sdk";

/// All forbidden arrows between our crates.
pub(super) fn check(members: &[Member]) -> Vec<String> {
    let ours = |name: &str| members.iter().any(|member| member.name == name);
    let mut findings = Vec::new();
    for member in members {
        if !known(&member.name) {
            findings.push(format!(
                "{}: the table of arrows has no row for this crate; add one to xtask/src/tidy/arrows.rs",
                member.name
            ));
            continue;
        }
        for dependency in &member.dependencies {
            if !ours(&dependency.name) {
                continue;
            }
            let fine = if dependency.kind == "dev" {
                dependency.name != FACADE || sees_facade(&member.name)
            } else {
                allowed(&member.name, &dependency.name)
            };
            if !fine {
                findings.push(format!(
                    "{}: may not depend on {} ({} dependency)",
                    member.name, dependency.name, dependency.kind
                ));
            }
        }
    }
    findings
}

/// True for what an application is made of beside the facade: adapters of one of the four kinds.
pub(super) fn is_adapter(name: &str) -> bool {
    ["agents-runtime-", "agents-storage-", "agents-audit-", "agents-policy-"]
        .iter()
        .any(|kind| name.starts_with(kind))
}

fn known(name: &str) -> bool {
    is_adapter(name)
        || sees_facade(name)
        || matches!(
            name,
            "agents-core"
                | "agents-guest"
                | "agents-image"
                | "agents-layers"
                | "agents-journal"
                | "agents-egress"
                | "agents-config"
                | "agents-session"
                | "agents-testkit"
                | FACADE
        )
}

fn sees_facade(name: &str) -> bool {
    matches!(name, "agents-cli" | "agents-tests" | "xtask") || name.starts_with("agents-example")
}

/// May `from` have `to` among its normal or build dependencies?
fn allowed(from: &str, to: &str) -> bool {
    let targets: &[&str] = match from {
        "agents-core" => &[],
        "agents-runtime-native" | "agents-runtime-docker" | "agents-runtime-podman" => {
            &["agents-core", "agents-guest", "agents-image"]
        }
        "agents-runtime-k8s" => &["agents-core", "agents-guest"],
        "agents-audit-file" => &["agents-core", "agents-journal"],
        "agents-audit-sql"
        | "agents-audit-elasticsearch"
        | "agents-audit-datadog"
        | "agents-audit-cloudwatch"
        | "agents-audit-otlp" => &["agents-core", "agents-audit-remote"],
        "agents-layers" => &["agents-core", "agents-journal"],
        "agents-session" => &["agents-core", "agents-egress", "agents-layers"],
        FACADE => return !sees_facade(to) && to != "agents-testkit",
        "agents-cli" => &[FACADE],
        _ if sees_facade(from) => return true,
        _ => &["agents-core"],
    };
    targets.contains(&to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    fn member(name: &str, dependencies: &[(&str, &str)]) -> Member {
        Member {
            name: name.to_owned(),
            dependencies: dependencies
                .iter()
                .map(|&(name, kind)| Dependency {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                    ..Dependency::default()
                })
                .collect(),
            ..Member::default()
        }
    }

    /// Whether one arrow is allowed in a workspace that has all of these crates.
    fn arrow(from: &str, to: &str, kind: &str) -> bool {
        let others = [
            "agents-core",
            "agents-image",
            "agents-journal",
            "agents-layers",
            "agents-egress",
            "agents-session",
            "agents-testkit",
            "agents-config",
            "agents-sdk",
            "agents-audit-file",
            "agents-cli",
        ];
        let mut members = vec![member(from, &[(to, kind)])];
        members.extend(
            others
                .iter()
                .filter(|name| **name != from)
                .map(|name| member(name, &[])),
        );
        check(&members).is_empty()
    }

    #[test]
    fn the_table_is_followed() {
        for (from, to) in [
            ("agents-image", "agents-core"),
            ("agents-layers", "agents-journal"),
            ("agents-runtime-native", "agents-image"),
            ("agents-audit-file", "agents-journal"),
            ("agents-session", "agents-egress"),
            ("agents-session", "agents-layers"),
            ("agents-sdk", "agents-audit-file"),
            ("agents-cli", "agents-sdk"),
            ("agents-tests", "agents-session"),
            ("xtask", "agents-core"),
        ] {
            assert!(arrow(from, to, "normal"), "{from} -> {to}");
        }
    }

    #[test]
    fn other_arrows_are_findings() {
        for (from, to) in [
            ("agents-core", "agents-image"),
            ("agents-runtime-k8s", "agents-image"),
            ("agents-audit-sql", "agents-journal"),
            ("agents-storage-objectstore", "agents-audit-file"),
            ("agents-config", "agents-session"),
            ("agents-session", "agents-sdk"),
            ("agents-policy-default", "agents-config"),
            ("agents-testkit", "agents-session"),
            ("agents-sdk", "agents-cli"),
            ("agents-cli", "agents-core"),
        ] {
            assert!(!arrow(from, to, "normal"), "{from} -> {to}");
            assert!(!arrow(from, to, "build"), "{from} -> {to}");
        }
    }

    #[test]
    fn tests_may_use_all_but_the_facade() {
        assert!(arrow("agents-core", "agents-testkit", "dev"));
        assert!(arrow("agents-cli", "agents-sdk", "dev"));
        assert!(!arrow("agents-session", "agents-sdk", "dev"));
    }

    #[test]
    fn a_crate_without_a_row_is_a_finding() {
        let findings = check(&[member("agents-surprise", &[])]);
        assert!(findings[0].contains("agents-surprise"), "{findings:?}");
    }
}
