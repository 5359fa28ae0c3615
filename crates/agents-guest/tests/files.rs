//! Files in and out, and connections, with the program as an ordinary process of the host.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use agents_core::{ByteStream, ErrorKind, Result};
use bytes::Bytes;
use common::*;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

async fn read(path: &Path) -> Result<Vec<u8>> {
    let (connection, _child) = guest(&["read", "--", path.to_str().unwrap()]);
    let chunks: Vec<Bytes> = connection.read().await?.try_collect().await?;
    Ok(chunks.concat())
}

async fn write(path: &Path, archive: Vec<u8>) -> Result<()> {
    let (connection, _child) = guest(&["write", "--", path.to_str().unwrap()]);
    connection.write(chunks(archive)).await
}

fn chunks(archive: Vec<u8>) -> ByteStream {
    let chunks: Vec<_> = archive.chunks(100_003).map(Bytes::copy_from_slice).map(Ok).collect();
    stream::iter(chunks).boxed()
}

/// Names, with their types and contents.
fn entries(archive: &[u8]) -> BTreeMap<String, (tar::EntryType, Vec<u8>)> {
    let mut entries = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        entries.insert(
            name.trim_end_matches('/').to_owned(),
            (entry.header().entry_type(), content),
        );
    }
    entries
}

fn archive(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        // Any name, also one that the library would not take.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn a_file_and_a_folder_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    fs::create_dir_all(output.join("d/e")).unwrap();
    fs::create_dir(output.join("empty")).unwrap();
    fs::write(output.join("a"), "a\n").unwrap();
    fs::write(output.join("d/e/b"), b"\xff\0").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", output.join("link")).unwrap();
    let long = "x".repeat(255);
    fs::write(output.join(&long), "long").unwrap();
    let file = entries(&read(&output.join("a")).await.unwrap());
    assert_eq!(
        file,
        [("a".to_owned(), (tar::EntryType::Regular, b"a\n".to_vec()))].into()
    );
    let all = entries(&read(&output).await.unwrap());
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    let long = format!("output/{long}");
    let expected = [
        "output",
        "output/a",
        "output/d",
        "output/d/e",
        "output/d/e/b",
        "output/empty",
        "output/link",
        &long,
    ];
    assert_eq!(names, expected);
    assert_eq!(all["output/d/e/b"].1, b"\xff\0");
    assert_eq!(all["output/link"], (tar::EntryType::Symlink, vec![]));
    for missing in ["none", "a/b"] {
        let error = read(&output.join(missing)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    let option = read(Path::new("--quiesce")).await.unwrap_err();
    assert_eq!(option.kind(), ErrorKind::NotFound, "{option}");
}

#[tokio::test]
async fn odd_files_are_told_and_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::process::Command::new("mkfifo")
        .arg(path.join("fifo"))
        .status()
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap();
    let closed = path.join("closed");
    fs::write(&closed, "x").unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let read = tokio::time::timeout(SOON, read(path)).await.unwrap().unwrap();
    let all = entries(&read);
    let top = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(all[&format!("{top}/fifo")].0, tar::EntryType::Fifo);
    assert_eq!(all[&format!("{top}/socket")].0, tar::EntryType::Fifo);
    assert_eq!(all[&format!("{top}/closed")].1, b"x");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&closed).unwrap().permissions()) & 0o777,
        0
    );
}

#[tokio::test]
async fn much_is_read_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let big: Vec<u8> = (0..30_000_000_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    fs::write(folder.path().join("big"), &big).unwrap();
    let (connection, _child) = guest(&["read", "--", folder.path().to_str().unwrap()]);
    let mut stream = connection.read().await.unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        assert!(chunk.len() <= 64 << 10);
        all.extend_from_slice(&chunk);
    }
    assert!(entries(&all).values().any(|(_, content)| *content == big));
    // Who lets the stream go ends the program.
    let (connection, mut child) = guest(&["read", "--", folder.path().to_str().unwrap()]);
    drop(connection.read().await.unwrap());
    tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_archive_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let big: Vec<u8> = (0..3_000_000_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let given = archive(&[
        ("a", b"content", 0o644),
        ("d/run", b"#!/bin/sh\necho ran\n", 0o6755),
        ("d/big", &big, 0o600),
        ("deep/er/x", b"x", 0o644),
    ]);
    write(folder.path(), given).await.unwrap();
    assert!(fs::read(folder.path().join("d/big")).unwrap() == big);
    assert_eq!(fs::read(folder.path().join("deep/er/x")).unwrap(), b"x");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(folder.path().join("d/run")).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o755);
    // Over what is there.
    write(folder.path(), archive(&[("a", b"other", 0o644)])).await.unwrap();
    assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"other");
    for missing in ["none", "a"] {
        let error = write(&folder.path().join(missing), archive(&[("x", b"x", 0o644)]))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}

#[tokio::test]
async fn nothing_is_written_outside_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
    fs::create_dir_all(inside.join("deep")).unwrap();
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
    std::os::unix::fs::symlink("../out", inside.join("up")).unwrap();
    std::os::unix::fs::symlink(outside.join("new"), inside.join("new")).unwrap();
    let absolute = format!("{}/evil", outside.display());
    for name in [
        "link/evil",
        "up/evil",
        "new",
        "../out/evil",
        "deep/../../out/evil",
        &absolute,
    ] {
        // It may be refused or put where it does no harm.
        let _ = write(&inside, archive(&[(name, b"evil", 0o644)])).await;
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!folder.path().join("evil").exists());
}

#[tokio::test]
async fn what_is_no_archive_or_is_cut_off_fails() {
    let folder = tempfile::tempdir().unwrap();
    let whole = archive(&[("a", &[7; 100_000], 0o644)]);
    for broken in [b"nonsense".repeat(200), whole[..50_000].to_vec()] {
        assert!(write(folder.path(), broken).await.is_err());
    }
    // A source that never ends does not hold the verdict up.
    let (connection, _child) = guest(&["write", "--", "/no/such/folder"]);
    let endless = stream::repeat_with(|| Ok(Bytes::from(vec![0; 60_000]))).boxed();
    let written = tokio::time::timeout(SOON, connection.write(endless)).await.unwrap();
    assert_eq!(written.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_port_is_reached_from_outside() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let (connection, mut child) = guest(&["connect", &port]);
    let (mut stream, mut inner) = {
        let (connected, accepted) = tokio::join!(connection.connect(), listener.accept());
        (connected.unwrap(), accepted.unwrap().0)
    };
    let sent: Vec<u8> = (0..500_000_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let echo = tokio::spawn(async move {
        let mut all = Vec::new();
        // The caller's half-closed side is read as the end, and the answer still comes.
        inner.read_to_end(&mut all).await.unwrap();
        inner.write_all(&all).await.unwrap();
    });
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert!(got == sent, "{} bytes", got.len());
    echo.await.unwrap();
    tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
    drop(listener);
    let (connection, _child) = guest(&["connect", &port]);
    assert_eq!(connection.connect().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_connection_that_is_dropped_is_closed_inside() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let (connection, mut child) = guest(&["connect", &port]);
    let (connected, accepted) = tokio::join!(connection.connect(), listener.accept());
    let mut inner = accepted.unwrap().0;
    drop(connected.unwrap());
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, inner.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    drop(inner);
    tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_file_is_not_read_on_for_a_host_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sparse");
    std::fs::File::create(&file).unwrap().set_len(1 << 42).unwrap();
    let mut child = tokio::process::Command::new(program())
        .args(["read", "--", file.to_str().unwrap()])
        .stdin(std::process::Stdio::piped())
        // As an engine that takes everything for nobody.
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        child.try_wait().unwrap().is_none(),
        "it does not read while the host listens"
    );
    drop(child.stdin.take());
    tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
}

#[test]
fn the_program_says_what_it_is_when_it_is_started_by_hand() {
    for arguments in [&[][..], &["init", "--nofile=x"], &["read", "/x"], &["connect", "99999"]] {
        let output = std::process::Command::new(program()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    let mut child = std::process::Command::new(program())
        .arg("exec")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Nonsense from the host ends it.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_some());
}
