//! What every manifest must say.

use std::path::Path;

use super::arrows;
use crate::metadata::Member;

/// Checks one crate's manifest, whose text is `manifest`.
pub(super) fn check(root: &Path, member: &Member, manifest: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let published = member.folder().starts_with(root.join("crates"));
    if published && !member.folder().join("README.md").is_file() {
        findings.push(format!("{}: README.md is missing", member.name));
    }
    if !states(manifest, "lints", "workspace") {
        findings.push(format!(
            "{}: the manifest lacks `[lints] workspace = true`",
            member.name
        ));
    }
    if !states(manifest, "package", "publish") {
        findings.push(format!(
            "{}: the manifest does not say whether to `publish`",
            member.name
        ));
    }
    for dependency in &member.dependencies {
        // A version here would make publishing a circle: testkit needs core, core's tests need testkit.
        if dependency.kind == "dev"
            && dependency.is_path
            && dependency.name.starts_with("agents-")
            && dependency.requirement != "*"
        {
            findings.push(format!(
                "{}: the dev-dependency {name} must be path-only: `{name} = {{ path = \"../{name}\" }}`",
                member.name,
                name = dependency.name
            ));
        }
    }
    if member.name == "agents-sdk" {
        findings.extend(check_facade(member));
    }
    findings
}

/// Nobody compiles an adapter that they do not use.
fn check_facade(member: &Member) -> Vec<String> {
    let mut findings = Vec::new();
    for dependency in &member.dependencies {
        if dependency.kind == "dev" || !arrows::is_adapter(&dependency.name) {
            continue;
        }
        let enabler = format!("dep:{}", dependency.name);
        let behind_feature = member.features.iter().any(|(_, enables)| enables.contains(&enabler));
        if !dependency.optional || !behind_feature {
            findings.push(format!(
                "{}: {} must be optional, with a feature that enables `{enabler}`",
                member.name, dependency.name
            ));
        }
    }
    findings
}

/// True when `section` has a line for `key`, in any of TOML's spellings that we use.
fn states(manifest: &str, section: &str, key: &str) -> bool {
    let header = format!("[{section}]");
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == header;
        } else if inside
            && line
                .strip_prefix(key)
                .is_some_and(|rest| rest.trim_start().starts_with(['=', '.']))
        {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    const FINE: &str = "[package]\nname = \"x\"\npublish.workspace = true\n[lints]\nworkspace = true\n";

    fn member(name: &str) -> (tempfile::TempDir, Member) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("crates").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("README.md"), "x").unwrap();
        let member = Member {
            name: name.to_owned(),
            manifest: folder.join("Cargo.toml"),
            ..Member::default()
        };
        (root, member)
    }

    #[test]
    fn a_good_manifest_has_no_finding() {
        let (root, member) = member("agents-core");
        assert!(check(root.path(), &member, FINE).is_empty());
    }

    #[test]
    fn missing_lines_and_files_are_findings() {
        let (root, member) = member("agents-core");
        for without in ["publish.workspace = true\n", "[lints]\nworkspace = true\n"] {
            let findings = check(root.path(), &member, &FINE.replace(without, ""));
            assert_eq!(findings.len(), 1, "{without}");
        }
        std::fs::remove_file(member.folder().join("README.md")).unwrap();
        assert_eq!(check(root.path(), &member, FINE).len(), 1);
    }

    #[test]
    fn a_dev_dependency_of_ours_has_no_version() {
        let (root, mut member) = member("agents-core");
        let mut dependency = Dependency {
            name: "agents-testkit".to_owned(),
            kind: "dev".to_owned(),
            requirement: "=0.1.0".to_owned(),
            is_path: true,
            ..Dependency::default()
        };
        member.dependencies = vec![dependency.clone()];
        assert_eq!(check(root.path(), &member, FINE).len(), 1);
        dependency.requirement = "*".to_owned();
        member.dependencies = vec![dependency];
        assert!(check(root.path(), &member, FINE).is_empty());
    }

    #[test]
    fn the_facade_has_adapters_behind_features() {
        let (root, mut member) = member("agents-sdk");
        let mut dependency = Dependency {
            name: "agents-audit-file".to_owned(),
            kind: "normal".to_owned(),
            ..Dependency::default()
        };
        member.dependencies = vec![dependency.clone()];
        assert_eq!(check(root.path(), &member, FINE).len(), 1);
        dependency.optional = true;
        member.dependencies = vec![dependency];
        assert_eq!(check(root.path(), &member, FINE).len(), 1);
        member.features = vec![("audit-file".to_owned(), vec!["dep:agents-audit-file".to_owned()])];
        assert!(check(root.path(), &member, FINE).is_empty());
    }
}
