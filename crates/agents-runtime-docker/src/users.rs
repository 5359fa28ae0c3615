//! Users that an image names. A user by number gets no further groups, and one by name gets those of the image, so the
//! name is looked up in the image's own files first.

use std::{io::Read, sync::Arc};

use agents_core::{Error, Result, User};

use crate::{engine::Engine, inspect::Image, program};

/// The most of one file that is read.
const LARGEST: u64 = 1 << 20;

/// Instead of root.
const DEFAULT: User = User { uid: 1000, gid: 1000 };

/// The user of an image that has a name, or a group with one; `None` when numbers alone say it all.
pub(crate) async fn of_image(engine: &Arc<Engine>, image: &Image) -> Result<Option<User>> {
    let text = image.config.user.as_str();
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let number = |word: &str| word.parse::<u32>().is_ok();
    if user.is_empty() || user == "root" || number(user) && group.is_none_or(number) {
        return Ok(None);
    }
    // In a task of its own, which is not left in the middle when nobody waits any more.
    let reading = read(Arc::clone(engine), image.id.clone());
    let (passwd, groups) = tokio::spawn(reading)
        .await
        .unwrap_or_else(|_| Err(Error::unexpected("the look at the image was shut down")))?;
    let found = look_up(user, group, &passwd, &groups).ok_or_else(|| {
        Error::invalid(format!(
            "container_user: the image's user {text:?} is not in its /etc/passwd and /etc/group; set container_user to uid:gid"
        ))
    })?;
    // Root by another name is not what an agent is by default.
    Ok(Some(if found.uid == 0 || found.gid == 0 {
        DEFAULT
    } else {
        found
    }))
}

/// The two files, by way of a container that is never started.
async fn read(engine: Arc<Engine>, image: String) -> Result<(String, String)> {
    let id = engine.create(None, program::never_started(&image)).await?;
    let files = async {
        let passwd = file(&engine, &id, "/etc/passwd").await?;
        let groups = file(&engine, &id, "/etc/group").await?;
        Ok((passwd, groups))
    };
    let files = files.await;
    engine.remove(&id).await?;
    files
}

/// A file of a container; one that is not there is empty.
async fn file(engine: &Engine, id: &str, path: &str) -> Result<String> {
    let Some(archive) = engine.download(id, path).await? else {
        return Ok(String::new());
    };
    let mut archive = tar::Archive::new(&archive[..]);
    let mut text = Vec::new();
    let mut read = || -> std::io::Result<()> {
        for entry in archive.entries()? {
            let entry = entry?;
            if entry.header().entry_type().is_file() {
                entry.take(LARGEST).read_to_end(&mut text)?;
                break;
            }
        }
        Ok(())
    };
    read().map_err(|error| Error::io(format!("cannot read {path} of the image"), error))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// passwd(5) and group(5).
fn look_up(user: &str, group: Option<&str>, passwd: &str, groups: &str) -> Option<User> {
    let entry = |text: &str, name: &str, fields: &[usize]| -> Option<Vec<u32>> {
        let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
        let all: Vec<_> = line.split(':').collect();
        fields
            .iter()
            .map(|field| all.get(*field)?.trim().parse().ok())
            .collect()
    };
    let (uid, own) = match user.parse() {
        Ok(uid) => (uid, None),
        Err(_) => match entry(passwd, user, &[2, 3])?[..] {
            [uid, gid] => (uid, Some(gid)),
            _ => return None,
        },
    };
    let gid = match group {
        None => own?,
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => *entry(groups, group, &[2])?.first()?,
        },
    };
    Some(User { uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_in_the_images_files() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nagent:x:1234:2345::/:/bin/sh\nbroken:x\n";
        let groups = "root:x:0:\nstaff:x:50:agent\n";
        let user = |user, group| look_up(user, group, passwd, groups).map(|user| (user.uid, user.gid));
        assert_eq!(user("agent", None), Some((1234, 2345)));
        assert_eq!(user("agent", Some("staff")), Some((1234, 50)));
        assert_eq!(user("agent", Some("7")), Some((1234, 7)));
        assert_eq!(user("5", Some("staff")), Some((5, 50)));
        for (name, group) in [("nobody", None), ("broken", None), ("agent", Some("none")), ("5", None)] {
            assert_eq!(user(name, group), None, "{name}");
        }
    }
}
