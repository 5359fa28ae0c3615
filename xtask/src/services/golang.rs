//! Go programs, built at an exact version into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache;
use crate::error::{Context, Error, Result, fail};
use crate::sh;

/// A change of the steps below makes new folders.
const RECIPE: &str = "go install; 1";

/// One program of one Go module.
pub(super) struct Program {
    name: &'static str,
    package: &'static str,
    version: &'static str,
    tags: &'static str,
    cgo: bool,
}

impl Program {
    /// The program that `package` builds, in the cache as `<name>/<version>-<hash>/bin/<name>`.
    pub(super) const fn new(name: &'static str, package: &'static str, version: &'static str) -> Self {
        Self {
            name,
            package,
            version,
            tags: "",
            cgo: false,
        }
    }

    /// Build tags, separated by commas.
    pub(super) const fn tags(mut self, tags: &'static str) -> Self {
        self.tags = tags;
        self
    }

    /// Links against C libraries of this machine.
    pub(super) const fn cgo(mut self) -> Self {
        self.cgo = true;
        self
    }

    /// Builds it, unless it is there, and returns its folder, in which it is `bin/<name>`.
    pub(super) fn install(&self, cache: &Path) -> Result<PathBuf> {
        cache::once(&cache.join(self.name), self.version, &self.recipe(), |building| {
            println!("building {} {} (once; this takes minutes)", self.name, self.version);
            let kept = building.join("kept");
            let bin = kept.join("bin");
            sh::output(go(building, self.cgo)?.env("GOBIN", &bin).args(self.arguments()))?;
            let built = only_file(&bin)?;
            let named = bin.join(self.name);
            fs::rename(&built, &named).context(|| format!("cannot create {}", named.display()))?;
            Ok(kept)
        })
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["install".to_owned()];
        if !self.tags.is_empty() {
            arguments.push(format!("-tags={}", self.tags));
        }
        // Debug symbols double the size.
        arguments.push("-ldflags=-s -w".to_owned());
        arguments.push(format!("{}@{}", self.package, self.version));
        arguments
    }

    fn recipe(&self) -> String {
        format!("{RECIPE}; cgo {}; {}", self.cgo, self.arguments().join(" "))
    }
}

/// The `go` command with module and build caches of its own in `folder`, which go with it: they reach gigabytes.
pub(super) fn go(folder: &Path, cgo: bool) -> Result<Command> {
    let program = sh::find("go").ok_or_else(|| {
        Error::new("`go` is missing; install Go 1.26 or newer from https://go.dev/dl and put it into PATH")
    })?;
    let temporary = folder.join("tmp");
    fs::create_dir_all(&temporary).context(|| format!("cannot create {}", temporary.display()))?;
    let mut command = Command::new(program);
    command
        .env("GOPATH", folder.join("path"))
        .env("GOCACHE", folder.join("cache"))
        .env("GOTMPDIR", temporary)
        .env("CGO_ENABLED", if cgo { "1" } else { "0" })
        .env("GOTOOLCHAIN", "local")
        // Writable modules, or the folder could only be removed by root.
        .env("GOFLAGS", "-buildvcs=false -trimpath -modcacherw")
        .env("GOWORK", "off")
        .current_dir(folder);
    for variable in ["GOBIN", "GOMODCACHE", "GOOS", "GOARCH", "GOEXPERIMENT"] {
        command.env_remove(variable);
    }
    Ok(command)
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let files: Vec<_> = fs::read_dir(folder)
        .context(|| format!("cannot read {}", folder.display()))?
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.path())
        .collect();
    match files.as_slice() {
        [file] => Ok(file.clone()),
        files => fail(format!(
            "go built {} programs instead of one; name a package with `main` in it",
            files.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_program_changes_the_folder() {
        let plain = Program::new("a", "example.org/a", "v1");
        assert_eq!(plain.arguments(), ["install", "-ldflags=-s -w", "example.org/a@v1"]);
        let recipes = [
            plain.recipe(),
            Program::new("a", "example.org/a", "v1").cgo().recipe(),
            Program::new("a", "example.org/a", "v1").tags("seccomp").recipe(),
        ];
        for (index, recipe) in recipes.iter().enumerate() {
            assert!(!recipes[..index].contains(recipe), "{recipe}");
        }
    }

    #[test]
    fn only_one_program_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        assert!(only_file(folder.path()).is_err());
        fs::write(folder.path().join("a"), "").unwrap();
        assert_eq!(only_file(folder.path()).unwrap(), folder.path().join("a"));
        fs::write(folder.path().join("b"), "").unwrap();
        assert!(only_file(folder.path()).is_err());
    }
}
