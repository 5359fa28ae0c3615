//! The conformance suite, the probe from inside and what agents leave to do harm, on every engine that there is and with each
//! of its runtime classes.

mod support;

use std::{process::ExitCode, sync::Arc};

use agents_core::{CopyFromRequest, Process, StartRequest};
use agents_testkit::{
    Case, Failure,
    hostile::{HostileOutput, hostile_outputs},
    probe, runtime,
    runtime::RuntimeFixture,
    trials,
};
use futures_util::StreamExt;
use libtest_mimic::Arguments;

/// Cases that measure time or memory, which others disturb.
const ALONE: [&str; 3] = [
    "stats_are_true",
    "cpu_time_is_limited",
    "a_slow_reader_does_not_cost_memory",
];

/// How many of the others run at once: they wait for the engine most of the time.
const AT_ONCE: usize = 6;

/// How much of an archive is looked at: some agents leave more than anybody wants.
const LOOKED_AT: usize = 64 << 20;

fn main() -> ExitCode {
    let mut all = Vec::new();
    for target in support::targets() {
        let name = target.name();
        let make = move || async move { target.fixture().await };
        all.extend(trials(&name, runtime::cases(), make));
        all.extend(trials(&format!("{name}::probe"), probe::grouped_cases(), make));
        all.extend(trials(&format!("{name}::ports"), support::ports::cases(), make));
        let hostile = hostile_outputs().into_iter().map(hostile_case).collect();
        all.extend(trials(&format!("{name}::hostile"), hostile, make));
    }
    let (alone, together): (Vec<_>, Vec<_>) = all.into_iter().partition(|trial| {
        let name = trial.name().rsplit("::").next().unwrap_or_default();
        ALONE.contains(&name)
    });
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let together = libtest_mimic::run(&arguments, together);
    arguments.test_threads = Some(1);
    let alone = libtest_mimic::run(&arguments, alone);
    if together.has_failed() || alone.has_failed() {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}

/// What an agent leaves in its output comes as it is, and reading it ends whatever still runs there. What becomes of it on
/// the host is the extractor's to prove.
fn hostile_case(output: HostileOutput) -> Case<RuntimeFixture> {
    let name = output.name.replace(' ', "_");
    Case::new(name, move |fx: Arc<RuntimeFixture>| {
        let output = output.clone();
        async move {
            let process = Process::new(["sh", "-c", &output.script]);
            let container = fx.provision(fx.request().with_process(Some(process))).await?.handle;
            let session = fx.runtime.start(StartRequest::new(container.clone())).await?;
            let ended = session.collect(1000).await?;
            assert!(ended.exit.is_success(), "{ended:?}");
            let copy = CopyFromRequest::new(container, "/output").with_quiesce(true);
            let mut stream = fx.runtime.copy_from(copy).await?;
            let mut archive = Vec::new();
            while let Some(chunk) = stream.next().await {
                archive.extend_from_slice(&chunk?);
                if archive.len() > LOOKED_AT {
                    return Ok(());
                }
            }
            let files = files(&archive).map_err(|error| Failure::Failed(error.to_string()))?;
            for (name, content) in &output.stored {
                let wanted = [b"output/", &name[..]].concat();
                let found = files.iter().find(|(name, _)| *name == wanted);
                assert_eq!(
                    found.map(|(_, content)| content),
                    Some(content),
                    "{}",
                    String::from_utf8_lossy(name)
                );
            }
            Ok(())
        }
    })
}

/// The files of an archive, with the beginnings of their contents.
fn files(archive: &[u8]) -> std::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    use std::io::Read;

    let mut files = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let entry = entry?;
        if entry.header().entry_type().is_file() {
            let name = entry.path_bytes().into_owned();
            let mut content = Vec::new();
            entry.take(1 << 16).read_to_end(&mut content)?;
            files.push((name, content));
        }
    }
    Ok(files)
}
