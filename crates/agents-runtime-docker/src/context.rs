//! A folder as the archive that a builder takes.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use agents_core::{ByteStream, Error, Result};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::ignore::Ignored;

/// How much of an archive is sent at once.
const CHUNK: usize = 256 << 10;

/// How many chunks are made ahead of the engine.
const AHEAD: usize = 4;

/// The recipe's path, relative to the folder.
pub(crate) fn recipe(context: &Path, chosen: Option<&Path>) -> Result<String> {
    let metadata = fs::metadata(context)
        .map_err(|error| Error::io(format!("context: {} cannot be read", context.display()), error))?;
    if !metadata.is_dir() {
        return Err(Error::invalid(format!("context: {} is no folder", context.display())));
    }
    let candidates = match chosen {
        Some(path) => vec![path.to_owned()],
        None => vec![PathBuf::from("Containerfile"), PathBuf::from("Dockerfile")],
    };
    for path in &candidates {
        let plain = path
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
        if !plain {
            return Err(Error::invalid(format!(
                "containerfile: {} leaves the folder; give a path below it",
                path.display()
            )));
        }
        if context.join(path).is_file() {
            return path
                .to_str()
                .map(str::to_owned)
                .ok_or_else(|| Error::invalid(format!("containerfile: {} is not UTF-8; rename it", path.display())));
        }
    }
    let names: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
    Err(Error::invalid(format!(
        "context: there is no {} in {}",
        names.join(" and no "),
        context.display()
    )))
}

/// The folder as a tar stream, made while it is sent.
pub(crate) fn archive(context: PathBuf, recipe: String, ignored: Ignored) -> ByteStream {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut builder = tar::Builder::new(Chunks {
            sender: sender.clone(),
            buffer: Vec::with_capacity(CHUNK),
        });
        builder.follow_symlinks(false);
        let written = add(&mut builder, &context, "", &recipe, &ignored)
            .and_then(|()| builder.into_inner())
            .and_then(|mut chunks| chunks.flush());
        if let Err(error) = written {
            let error = Error::io(format!("context: cannot read {}", context.display()), error);
            let _ = sender.blocking_send(Err(error));
        }
    });
    stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    })
    .boxed()
}

fn add(
    builder: &mut tar::Builder<Chunks>,
    context: &Path,
    below: &str,
    recipe: &str,
    ignored: &Ignored,
) -> io::Result<()> {
    let mut names: Vec<_> = fs::read_dir(context.join(below))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()?;
    // The same folder gives the same archive, and so the same cached layers.
    names.sort();
    for name in names {
        let Some(name) = name.to_str() else {
            return Err(io::Error::other(format!("{} is not UTF-8", name.display())));
        };
        let path = if below.is_empty() {
            name.to_owned()
        } else {
            format!("{below}/{name}")
        };
        let full = context.join(&path);
        let kind = fs::symlink_metadata(&full)?.file_type();
        // What is left out may have something below that is not.
        if kind.is_dir() {
            if !ignored.leaves_out(&path) {
                builder.append_dir(&path, &full)?;
            }
            if !ignored.leaves_out(&path) || ignored.has_exceptions() {
                add(builder, context, &path, recipe, ignored)?;
            }
        } else if (kind.is_file() || kind.is_symlink()) && (!ignored.leaves_out(&path) || path == recipe) {
            if kind.is_file() {
                builder.append_file(&path, &mut File::open(&full)?)?;
            } else {
                builder.append_path_with_name(&full, &path)?;
            }
        }
    }
    Ok(())
}

/// Writes into the channel.
struct Chunks {
    sender: mpsc::Sender<Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.sender
            .blocking_send(Ok(chunk))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use futures_util::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn the_archive_has_what_is_not_left_out_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("target/keep")).unwrap();
        for (path, content) in [
            ("Containerfile", "FROM x"),
            ("a/b/c", "c"),
            ("a/secret.key", "k"),
            ("target/big", "b"),
            ("target/keep/me", "m"),
            (".containerignore", "**/*.key\ntarget\n!target/keep\nContainerfile\n"),
        ] {
            fs::write(root.join(path), content).unwrap();
        }
        symlink("/etc/shadow", root.join("link")).unwrap();
        let ignored = Ignored::read(root).unwrap();
        let chunks: Vec<Bytes> = archive(root.to_owned(), "Containerfile".to_owned(), ignored)
            .try_collect()
            .await
            .unwrap();
        let bytes = chunks.concat();
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let link = entry.header().entry_type().is_symlink();
                format!("{}{}", entry.path().unwrap().display(), if link { "@" } else { "" })
            })
            .collect();
        assert_eq!(
            names,
            [
                ".containerignore",
                "Containerfile",
                "a",
                "a/b",
                "a/b/c",
                "link@",
                "target/keep",
                "target/keep/me"
            ]
        );
    }

    #[test]
    fn a_recipe_is_below_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            recipe(folder.path(), None)
                .unwrap_err()
                .message()
                .contains("Containerfile and no Dockerfile")
        );
        fs::write(folder.path().join("Dockerfile"), "FROM x").unwrap();
        assert_eq!(recipe(folder.path(), None).unwrap(), "Dockerfile");
        for bad in ["../x", "/etc/passwd", "missing"] {
            assert!(recipe(folder.path(), Some(Path::new(bad))).is_err(), "{bad}");
        }
        assert!(recipe(&folder.path().join("none"), None).is_err());
    }
}
