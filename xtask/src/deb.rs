//! Debian packages unpacked into the cache, without installing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result, fail};
use crate::{install, lock, random, sh};

/// Part of every folder name: a change of the steps below makes new folders.
const RECIPE: &str = "apt-get download; dpkg-deb -x; 1";

/// Downloads `package` and unpacks it below `folder`, once per version; returns where its files are.
pub(crate) fn unpack(folder: &Path, package: &str) -> Result<PathBuf> {
    let version = candidate(package)?;
    let name = format!(
        "{}-{}",
        version.replace([':', '/'], "_"),
        random::digest(&format!("{RECIPE}; {package}"))
    );
    let wanted = folder.join(name);
    if wanted.is_dir() {
        return Ok(wanted);
    }
    let _lock = lock::exclusive(folder)?;
    if wanted.is_dir() {
        return Ok(wanted);
    }
    let building = folder.join(".building");
    if building.exists() {
        fs::remove_dir_all(&building).context(|| format!("cannot remove {}", building.display()))?;
    }
    let files = building.join("files");
    fs::create_dir_all(&files).context(|| format!("cannot create {}", files.display()))?;
    println!("downloading {package} {version}");
    let exact = format!("{package}={version}");
    if download(&building, &exact).is_err() {
        install::update()?;
        download(&building, &exact)?;
    }
    let archive = fs::read_dir(&building)
        .context(|| format!("cannot read {}", building.display()))?
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| Error::new(format!("apt-get downloaded nothing for {exact}")))?;
    sh::run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&files))?;
    fs::rename(&files, &wanted).context(|| format!("cannot create {}", wanted.display()))?;
    fs::remove_dir_all(&building).context(|| format!("cannot remove {}", building.display()))?;
    Ok(wanted)
}

/// The version that apt would install.
pub(crate) fn candidate(package: &str) -> Result<String> {
    if let Some(version) = policy(package)? {
        return Ok(version);
    }
    install::update()?;
    match policy(package)? {
        Some(version) => Ok(version),
        None => fail(format!("apt knows no package `{package}`; is this Debian on amd64?")),
    }
}

/// The first package that `package` depends on whose name starts with `prefix`.
pub(crate) fn dependency(package: &str, prefix: &str) -> Result<String> {
    let version = candidate(package)?;
    let shown = sh::output(apt_cache().args(["show", &format!("{package}={version}")]))?;
    find_dependency(&shown, prefix)
        .ok_or_else(|| Error::new(format!("{package} {version} depends on no package called {prefix}…")))
}

fn find_dependency(shown: &str, prefix: &str) -> Option<String> {
    shown
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?
        .split([',', '|'])
        .filter_map(|item| item.split_whitespace().next())
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

fn policy(package: &str) -> Result<Option<String>> {
    let text = sh::output(apt_cache().args(["policy", package]))?;
    Ok(find_candidate(&text))
}

fn find_candidate(policy: &str) -> Option<String> {
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))
        .map(str::trim)
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
}

fn apt_cache() -> Command {
    let mut command = Command::new("apt-cache");
    command.env("LC_ALL", "C");
    command
}

fn download(folder: &Path, exact: &str) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "download", exact])
        .current_dir(folder)
        .env("LC_ALL", "C");
    // Root's cache folder is closed to the user that apt would download as.
    if rustix::process::geteuid().is_root() {
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    sh::output(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_answers_are_understood() {
        let policy = "docker-registry:\n  Installed: (none)\n  Candidate: 2.8.2+ds1-1\n";
        assert_eq!(find_candidate(policy).as_deref(), Some("2.8.2+ds1-1"));
        assert_eq!(find_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(find_candidate(""), None);
        let shown = "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(
            find_dependency(shown, "linux-image-").as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
    }
}
