//! A user of this machine for servers that refuse root, or are about not being root.
//!
//! Only where root starts them: anybody else starts them as themselves.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Place, leftovers};
use crate::error::{Context, Error, Result};
use crate::{proc, random, sh};

pub(super) const NAME: &str = "agents-test";

const HOME: &str = "/var/lib/agents-test";

/// The numbers of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ids {
    uid: u32,
    gid: u32,
}

/// Makes the user, unless it is there, with a range of subordinate ids.
pub(super) fn create() -> Result<()> {
    if !is_root() || ids().is_ok() {
        return Ok(());
    }
    println!("creating the user {NAME}");
    sh::output(
        Command::new(sh::need("useradd")?)
            .args(["--create-home", "--home-dir", HOME, "--shell", "/bin/sh"])
            .args(["--comment", "runs servers for tests", NAME]),
    )?;
    Ok(())
}

/// Where a server keeps its data: the user cannot get into a folder below root's home.
pub(super) fn folder(place: &Place) -> PathBuf {
    if is_root() {
        Path::new(HOME).join(digest(place))
    } else {
        place.data.clone()
    }
}

/// Makes the folder, which belongs to the user alone.
pub(super) fn make_folder(place: &Place) -> Result<PathBuf> {
    let folder = folder(place);
    fs::create_dir_all(&folder).context(|| format!("cannot create {}", folder.display()))?;
    hand_over(&folder)?;
    Ok(folder)
}

/// Gives a file, or a folder with all in it, to the user, and closes it to others.
pub(super) fn hand_over(path: &Path) -> Result<()> {
    let doing = || format!("cannot hand {} over to {NAME}", path.display());
    let folder = path.is_dir();
    fs::set_permissions(path, Permissions::from_mode(if folder { 0o700 } else { 0o600 })).context(doing)?;
    if is_root() {
        let Ids { uid, gid } = ids()?;
        chown(path, Some(uid), Some(gid)).context(doing)?;
    }
    if folder {
        for entry in fs::read_dir(path).context(doing)? {
            hand_over(&entry.context(doing)?.path())?;
        }
    }
    Ok(())
}

/// Ends what is left in the folder, and removes it.
pub(super) fn remove_folder(place: &Place) -> Result<()> {
    leftovers::remove(&folder(place))
}

/// A name of its own for each server and state folder.
pub(super) fn digest(place: &Place) -> String {
    random::digest(&place.data.to_string_lossy())
}

/// The beginning of a command that runs as the user, with little of our environment. What follows is variables
/// (`NAME=value`) and then the program.
pub(super) fn command() -> Result<Command> {
    if !is_root() {
        return Ok(Command::new("env"));
    }
    let Ids { uid, gid } = ids()?;
    let mut command = Command::new(sh::need("setpriv")?);
    command
        .args(["--reuid", &uid.to_string(), "--regid", &gid.to_string()])
        .args(["--init-groups", "--reset-env", "env", "--chdir", HOME]);
    Ok(command)
}

/// Kills the user's processes that have this in their environment, with all below them.
pub(super) fn kill_those_with(variable: &str) {
    let (Ok(Ids { uid, .. }), Ok(entries)) = (ids(), fs::read_dir("/proc")) else {
        return;
    };
    for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()) {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let owned = real_uid(&String::from_utf8_lossy(&read("status"))) == Some(uid);
        if owned
            && read("environ")
                .split(|&byte| byte == 0)
                .any(|entry| entry == variable.as_bytes())
        {
            proc::kill_tree(pid);
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn ids() -> Result<Ids> {
    let table = fs::read_to_string("/etc/passwd").context(|| "cannot read /etc/passwd".to_owned())?;
    find(&table, NAME).ok_or_else(|| Error::new(format!("there is no user {NAME}")))
}

/// `name:password:uid:gid:…`
fn find(table: &str, name: &str) -> Option<Ids> {
    let line = table.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(Ids {
        uid: fields.next()?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
    })
}

fn real_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let table = "agents:x:1:2::/:/bin/sh\nagents-test:x:1001:1002:who:/home:/bin/sh\n";
        assert_eq!(find(table, "agents-test"), Some(Ids { uid: 1001, gid: 1002 }));
        assert_eq!(find(table, "agent"), None);
    }

    #[test]
    fn the_real_user_counts() {
        assert_eq!(real_uid("Name:\tsh\nUid:\t1001\t0\t0\t0\n"), Some(1001));
        assert_eq!(real_uid("Name:\tsh\n"), None);
    }
}
