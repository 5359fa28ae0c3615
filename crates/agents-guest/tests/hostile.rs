//! A program that lies, or is no program of ours.

mod common;

use std::{sync::Arc, time::Duration};

use agents_core::{ErrorKind, ExecEvent, Exit, Process};
use agents_guest::{
    Connection, SpawnRequest,
    protocol::{Ended, FromGuest, Started, Status},
};
use common::*;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

fn pair() -> (Connection, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(ours);
    (Connection::new(reader, writer), theirs)
}

fn bytes(messages: &[FromGuest]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        message.encode(&mut out);
    }
    out
}

fn started() -> FromGuest {
    FromGuest::Started(Started {
        pid: 1,
        stdin: true,
        tty: false,
    })
}

/// The ending of a process whose program says these bytes, after it has said that the process runs.
async fn ending(said: &[u8]) -> (Vec<u8>, Exit) {
    let (connection, mut guest) = pair();
    guest.write_all(&bytes(&[started()])).await.unwrap();
    guest.write_all(said).await.unwrap();
    let judge = Arc::new(Recorder::default());
    let session = connection
        .spawn(SpawnRequest::new(Process::new(["x"])), Arc::<Recorder>::clone(&judge))
        .await
        .unwrap();
    let ended = tokio::time::timeout(SOON, to_the_end(session)).await.unwrap();
    if matches!(ended.1, Exit::RuntimeLost { .. }) {
        assert!(judge.0.lock().unwrap()[0].starts_with("lost"));
    }
    ended
}

#[tokio::test]
async fn nonsense_is_a_lost_runtime() {
    let mut big = vec![0x44];
    big.extend(u32::MAX.to_be_bytes());
    let cases: Vec<Vec<u8>> = vec![
        big,
        vec![0x7f, 0, 0, 0, 0],
        vec![0x48, 0, 0, 0, 1, 9],
        bytes(&[FromGuest::Done]),
        bytes(&[started()]),
        bytes(&[FromGuest::InputTaken(1)]),
        bytes(&[FromGuest::InputTaken(u32::MAX)]),
        vec![0x48 | 0x80, 0, 0, 0, 0, 0x44, 0, 0, 0, 0],
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
    ];
    for case in cases {
        let (output, exit) = ending(&case).await;
        assert!(
            output.is_empty() && matches!(exit, Exit::RuntimeLost { .. }),
            "{case:?}: {exit:?}"
        );
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_is_lost_after_what_came() {
    let (connection, mut guest) = pair();
    guest
        .write_all(&bytes(&[started(), FromGuest::Stdout(b"a".to_vec())]))
        .await
        .unwrap();
    guest.write_all(&[0x44, 0, 0]).await.unwrap();
    drop(guest);
    let session = connection
        .spawn(SpawnRequest::new(Process::new(["x"])), Arc::new(agents_guest::Quiet))
        .await
        .unwrap();
    let (output, exit) = to_the_end(session).await;
    assert_eq!(output, b"a");
    assert!(matches!(exit, Exit::RuntimeLost { .. }), "{exit:?}");
}

#[tokio::test]
async fn nothing_after_the_exit_is_heard() {
    let exit = FromGuest::Exit(Ended::plain(Status::Code(3)));
    let said = bytes(&[
        FromGuest::Stdout(b"a".to_vec()),
        exit.clone(),
        FromGuest::Stdout(b"b".to_vec()),
        exit,
    ]);
    assert_eq!(ending(&said).await, (b"a".to_vec(), exited(3)));
}

#[tokio::test]
async fn what_looks_like_a_frame_in_the_output_is_output() {
    let script = r"printf '\110\000\000\000\005\000\000\000\000\000'; printf '\377' >&2; exit 4";
    let output = sh(script).await;
    assert_eq!(output.exit, exited(4));
    assert_eq!(output.stdout.head, [0o110, 0, 0, 0, 5, 0, 0, 0, 0, 0]);
}

#[tokio::test]
async fn other_requests_fail_typed() {
    let (mut connection, mut guest) = pair();
    guest.write_all(&bytes(&[FromGuest::Done])).await.unwrap();
    assert_eq!(connection.report().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let (connection, guest) = pair();
    drop(guest);
    assert_eq!(connection.status().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let (connection, mut guest) = pair();
    guest.write_all(&bytes(&[FromGuest::Data(vec![1])])).await.unwrap();
    let archive = connection.read().await.unwrap();
    drop(guest);
    let items: Vec<_> = archive.collect().await;
    assert!(items.len() == 2 && items[0].is_ok() && items[1].is_err());
}

#[tokio::test]
async fn an_archive_that_fails_is_not_taken_for_a_whole_one() {
    let (connection, mut guest) = pair();
    let chunks = vec![
        Ok(bytes::Bytes::from_static(b"x")),
        Err(agents_core::Error::unexpected("broke")),
    ];
    let writing = tokio::spawn(connection.write(stream::iter(chunks).boxed()));
    let mut said = Vec::new();
    // The connection is closed without the word that the archive is complete.
    guest.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, [3, 0, 0, 0, 1, b'x']);
    assert_eq!(writing.await.unwrap().unwrap_err().message(), "broke");
}

#[tokio::test]
async fn a_write_that_is_given_up_cuts_no_frame() {
    let (ours, mut theirs) = tokio::io::duplex(1000);
    let (reader, writer) = tokio::io::split(ours);
    theirs.write_all(&bytes(&[started()])).await.unwrap();
    let connection = Connection::new(reader, writer);
    let spawning = connection.spawn(SpawnRequest::new(Process::new(["x"])), Arc::new(agents_guest::Quiet));
    let mut session = spawning.await.unwrap();
    let mut stdin = session.take_stdin().unwrap();
    for _ in 0..8 {
        let write = stdin.write(bytes::Bytes::from(vec![7; 60_000]));
        let _ = tokio::time::timeout(Duration::from_millis(10), write).await;
    }
    drop(stdin);
    let reading = tokio::spawn(async move {
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let read = theirs.read(&mut buffer).await.unwrap();
            all.extend_from_slice(&buffer[..read]);
            if all.ends_with(&[4, 0, 0, 0, 0]) {
                return (all, theirs);
            }
        }
    });
    let (all, mut theirs) = reading.await.unwrap();
    let mut decoder = agents_guest::protocol::Decoder::new();
    decoder.push(&all);
    let mut input = 0;
    while let Some((kind, payload)) = decoder.next_message().unwrap() {
        if kind == 3 {
            assert!(payload.iter().all(|byte| *byte == 7));
            input += payload.len();
        }
    }
    // No more than there was credit for.
    assert!(input > 0 && input <= 256 << 10, "{input}");
    theirs
        .write_all(&bytes(&[FromGuest::Exit(Ended::plain(Status::Code(0)))]))
        .await
        .unwrap();
    assert!(matches!(session.next().await, Some(Ok(ExecEvent::Exit(_)))));
}

#[tokio::test]
async fn a_program_that_never_starts_the_process_is_given_up_at_the_deadline() {
    let (connection, _guest) = pair();
    let judge = Arc::new(Recorder::default());
    let request = SpawnRequest::new(Process::new(["x"])).with_deadline(Some(Duration::from_millis(50)));
    let session = connection.spawn(request, Arc::<Recorder>::clone(&judge)).await.unwrap();
    assert_eq!(to_the_end(session).await.1, Exit::Deadline);
    assert_eq!(judge.0.lock().unwrap().len(), 1);
}
