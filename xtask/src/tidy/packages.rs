//! Packages of others that may not be pulled in.

/// Never, by none of our crates: C libraries that we have replacements for, and unmaintained crates.
const NOWHERE: &[&str] = &[
    "aws-lc-sys",
    "native-tls",
    "openssl-sys",
    "serde_yaml",
    "serde_yml",
    "tokio-tar",
];

/// Versions before these have known holes.
const MINIMUM: &[(&str, [u64; 3])] = &[("rustls-webpki", [0, 103, 13])];

/// Not below core, whose users compile nothing that they do not use.
const NOT_IN_CORE: &[&str] = &["clap", "figment", "hyper", "object_store", "reqwest"];

/// Features of tokio that would start a runtime or open a socket.
const NOT_IN_CORES_TOKIO: &[&str] = &["full", "net", "rt", "rt-multi-thread"];

/// Checks the name and version of everything that is pulled in.
pub(super) fn check_all(packages: &[(String, String)]) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, version) in packages {
        if NOWHERE.contains(&name.as_str()) {
            findings.push(format!(
                "{name} {version} is pulled in, which is forbidden; `cargo tree --workspace --all-features -i {name}` says by whom"
            ));
        }
        if let Some((_, least)) = MINIMUM.iter().find(|(other, _)| other == name)
            && number(version) < *least
        {
            let least = least.map(|part| part.to_string()).join(".");
            findings.push(format!(
                "{name} {version} is pulled in; {least} is the first without known holes: `cargo update -p {name}`"
            ));
        }
    }
    findings
}

/// Checks the tree of agents-core: a `name vVERSION (origin)|features` a line.
pub(super) fn check_core(tree: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for line in tree.lines() {
        let (package, features) = line.split_once('|').unwrap_or((line, ""));
        let Some(name) = package.split_whitespace().next() else {
            continue;
        };
        if NOT_IN_CORE.contains(&name) || name.starts_with("aws-") {
            findings.push(format!("agents-core pulls in {name}, which is forbidden"));
        }
        if name == "tokio" {
            for feature in features.split(',') {
                if NOT_IN_CORES_TOKIO.contains(&feature) {
                    findings.push(format!("agents-core enables tokio's `{feature}`, which is forbidden"));
                }
            }
        }
    }
    findings.sort();
    findings.dedup();
    findings
}

fn number(version: &str) -> [u64; 3] {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(name: &str, version: &str) -> Vec<String> {
        check_all(&[(name.to_owned(), version.to_owned())])
    }

    #[test]
    fn forbidden_packages_are_findings() {
        for name in NOWHERE {
            assert_eq!(all(name, "1.0.0").len(), 1, "{name}");
        }
        assert!(all("serde", "1.0.0").is_empty());
    }

    #[test]
    fn old_versions_are_findings() {
        assert_eq!(all("rustls-webpki", "0.103.9").len(), 1);
        assert_eq!(all("rustls-webpki", "0.102.99").len(), 1);
        assert!(all("rustls-webpki", "0.103.13").is_empty());
        assert!(all("rustls-webpki", "0.104.0-alpha.1").is_empty());
    }

    #[test]
    fn core_stays_small() {
        for line in [
            "figment v0.10.19|env",
            "aws-sigv4 v1.0.0|",
            "hyper v1.0.0|client",
            "tokio v1.54.0|default,net,sync",
            "tokio v1.54.0|rt",
        ] {
            assert_eq!(check_core(line).len(), 1, "{line}");
        }
        let fine = "agents-core v0.1.0 (/w/crates/agents-core)|\ntokio v1.54.0|default,sync\nserde v1.0.0|derive\n";
        assert!(check_core(fine).is_empty());
    }
}
