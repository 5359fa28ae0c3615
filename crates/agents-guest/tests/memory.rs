//! What nobody reads costs no memory. A program of its own, since it looks at its own size.

mod common;

use std::{fs, time::Duration};

use agents_core::{ExecEvent, Process};
use agents_guest::SpawnRequest;
use common::*;
use futures_util::StreamExt;

/// The memory of a process, in bytes.
fn resident(process: &str) -> usize {
    let statm = fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn much_output_needs_little_memory_on_both_sides() {
    const COUNT: usize = 300;
    let process = Process::new(["dd", "if=/dev/zero", "bs=1048576", &format!("count={COUNT}")]);
    let (mut session, child) = start(SpawnRequest::new(process)).await;
    let guest = child.id().unwrap().to_string();
    let before = resident("self");
    let (mut total, mut ours, mut theirs, mut slept) = (0, 0, 0, false);
    while let Some(event) = session.next().await {
        match event.unwrap() {
            ExecEvent::Stdout(bytes) => {
                assert!(bytes.len() <= 64 << 10);
                total += bytes.len();
                if !slept {
                    // A slow reader at first.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    slept = true;
                }
                if total % (1 << 20) < bytes.len() {
                    ours = ours.max(resident("self").saturating_sub(before));
                    theirs = theirs.max(resident(&guest));
                }
            }
            ExecEvent::Stderr(_) => {}
            ExecEvent::Exit(exit) => assert_eq!(exit, exited(0)),
        }
    }
    assert_eq!(total, COUNT << 20);
    println!(
        "the host grew by {} KiB, the program has {} KiB",
        ours >> 10,
        theirs >> 10
    );
    assert!(ours < 16 << 20, "the host grew by {ours} bytes");
    assert!(theirs < 8 << 20, "the program has {theirs} bytes");
}
