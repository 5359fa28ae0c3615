//! Memory does not grow with output and artifacts.

mod support;

use std::sync::atomic::Ordering;

use agents_core::Policy;
use agents_session::{RunStatus, SessionRequest};
use support::*;

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn output_of_300_mib_and_an_artifact_of_1_gib_need_less_than_64_mib() {
    let world = World::new([
        Script::steps([Step::Flood(4800), exit(0)]),
        Script {
            large: Some(1 << 30),
            ..Script::steps([exit(0)])
        },
    ]);
    world.storage.forgets.store(true, Ordering::SeqCst);
    let result = world
        .engine
        .run(SessionRequest::new(agent(), Policy::default()))
        .await
        .unwrap();
    assert_eq!(result.stdout.total, 300 << 20);
    let after_output = peak_mib();
    let result = world
        .engine
        .run(SessionRequest::new(agent(), Policy::default()))
        .await
        .unwrap();
    assert_eq!(result.status, RunStatus::Completed, "{result:?}");
    assert_eq!(result.artifacts[0].size, 1 << 30);
    let after_artifact = peak_mib();
    assert!(
        after_output < 64 && after_artifact < 64,
        "{after_output} MiB, {after_artifact} MiB"
    );
    let log: u64 = names(&world.state().join("sessions"))
        .iter()
        .flat_map(|id| {
            let folder = world.state().join("sessions").join(id);
            names(&folder)
                .into_iter()
                .map(move |name| folder.join(name).metadata().unwrap().len())
        })
        .sum();
    assert!(log < 17 << 20, "{log}");
}
