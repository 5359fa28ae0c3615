//! What `cargo metadata` says about our crates, reduced to what xtask asks.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::{paths, sh};

/// The machine that the rules about packages are checked for.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The workspace.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) root: PathBuf,
    pub(crate) members: Vec<Member>,
    /// Name and version of every package that any member pulls in on Linux with all features.
    pub(crate) packages: Vec<(String, String)>,
}

/// One of our crates.
#[derive(Debug, Default, Clone)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) manifest: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
    /// Feature name and what it enables.
    pub(crate) features: Vec<(String, Vec<String>)>,
}

impl Member {
    pub(crate) fn folder(&self) -> &Path {
        self.manifest.parent().unwrap_or(&self.manifest)
    }

    pub(crate) fn target(&self, kind: &str, name: &str) -> Option<&Target> {
        self.targets
            .iter()
            .find(|target| target.kind == kind && target.name == name)
    }
}

/// A line of a `[dependencies]` section.
#[derive(Debug, Default, Clone)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `normal`, `build` or `dev`.
    pub(crate) kind: String,
    pub(crate) requirement: String,
    pub(crate) is_path: bool,
    pub(crate) optional: bool,
}

/// A library, binary, integration test, example or benchmark.
#[derive(Debug, Default, Clone)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    pub(crate) test: bool,
    pub(crate) doctest: bool,
}

/// Asks cargo.
pub(crate) fn load() -> Result<Metadata> {
    let root = paths::workspace()?;
    let text = sh::output(sh::cargo().current_dir(&root).args([
        "metadata",
        "--format-version=1",
        "--all-features",
        "--filter-platform",
        PLATFORM,
    ]))?;
    let value: Value = serde_json::from_str(&text).context(|| "cannot parse `cargo metadata`".to_owned())?;
    parse(&value).ok_or_else(|| Error::new("`cargo metadata` has another shape than expected"))
}

pub(crate) fn parse(value: &Value) -> Option<Metadata> {
    let ids = strings(&value["workspace_members"]);
    let packages = value["packages"].as_array()?;
    let find = |id: &str| packages.iter().find(|package| package["id"] == id);
    let mut members = ids.iter().map(|id| member(find(id)?)).collect::<Option<Vec<_>>>()?;
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let mut all = value["resolve"]["nodes"]
        .as_array()?
        .iter()
        .map(|node| {
            let package = find(node["id"].as_str()?)?;
            Some((text(&package["name"])?, text(&package["version"])?))
        })
        .collect::<Option<Vec<_>>>()?;
    all.sort();
    Some(Metadata {
        root: text(&value["workspace_root"])?.into(),
        members,
        packages: all,
    })
}

fn member(package: &Value) -> Option<Member> {
    let dependencies = package["dependencies"]
        .as_array()?
        .iter()
        .map(|dependency| {
            Some(Dependency {
                name: text(&dependency["name"])?,
                kind: text(&dependency["kind"]).unwrap_or_else(|| "normal".to_owned()),
                requirement: text(&dependency["req"])?,
                is_path: dependency["path"].is_string(),
                optional: dependency["optional"].as_bool()?,
            })
        })
        .collect::<Option<_>>()?;
    let targets = package["targets"]
        .as_array()?
        .iter()
        .map(|target| {
            Some(Target {
                name: text(&target["name"])?,
                kind: strings(&target["kind"]).into_iter().next()?,
                source: text(&target["src_path"])?.into(),
                test: target["test"].as_bool()?,
                doctest: target["doctest"].as_bool()?,
            })
        })
        .collect::<Option<_>>()?;
    let features = package["features"]
        .as_object()?
        .iter()
        .map(|(name, enables)| (name.clone(), strings(enables)))
        .collect();
    Some(Member {
        id: text(&package["id"])?,
        name: text(&package["name"])?,
        manifest: text(&package["manifest_path"])?.into(),
        dependencies,
        targets,
        features,
    })
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_workspace_is_understood() {
        let value = json!({
            "workspace_root": "/w",
            "workspace_members": ["id-a"],
            "packages": [{
                "id": "id-a", "name": "a", "version": "0.1.0", "manifest_path": "/w/a/Cargo.toml",
                "dependencies": [
                    { "name": "b", "kind": null, "req": "=0.1.0", "path": "/w/b", "optional": true },
                    { "name": "c", "kind": "dev", "req": "^1", "optional": false },
                ],
                "targets": [{ "name": "a", "kind": ["lib"], "src_path": "/w/a/src/lib.rs", "test": true, "doctest": true }],
                "features": { "x": ["dep:b"] },
            }],
            "resolve": { "nodes": [{ "id": "id-a" }] },
        });
        let metadata = parse(&value).unwrap();
        let member = &metadata.members[0];
        assert_eq!(member.dependencies[0].kind, "normal");
        assert!(member.dependencies[0].is_path && member.dependencies[0].optional);
        assert_eq!(member.dependencies[1].kind, "dev");
        assert!(member.target("lib", "a").unwrap().doctest);
        assert_eq!(member.features, [("x".to_owned(), vec!["dep:b".to_owned()])]);
        assert_eq!(metadata.packages, [("a".to_owned(), "0.1.0".to_owned())]);
    }

    #[test]
    fn our_own_workspace_loads() {
        let metadata = load().unwrap();
        assert!(metadata.members.iter().any(|member| member.name == "xtask"));
    }
}
