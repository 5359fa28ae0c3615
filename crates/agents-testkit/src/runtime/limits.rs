//! The cases about limits and use.

use std::time::{Duration, Instant};

use agents_core::{ContainerStats, Error, ExecRequest, Exit, Mount, Process, ResourceLimits};

use super::{Fx, MIB, RuntimeFixture, shell, stdout, succeeded, to_the_end};
use crate::{
    Case, CaseResult, Failure,
    case::{cases, failed, skipped},
};

/// The cases about limits and use.
pub fn limit_cases() -> Vec<Case<RuntimeFixture>> {
    cases![
        too_much_memory,
        too_much_memory_in_a_further_process,
        too_many_processes,
        too_much_disk,
        cpu_time_is_limited,
        open_files_are_limited,
        stats_are_true,
    ]
}

async fn too_much_memory(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_memory_bytes(Some(64 * MIB));
    let process = Process::new(["dd", "if=/dev/zero", "of=/dev/null", "bs=268435456", "count=1"]);
    let (_, output) = fx.run(fx.request().with_resources(limits), process).await?;
    assert_eq!(output.exit, Exit::OutOfMemory, "{:?}", output.stderr.to_text());
    assert_eq!(output.exit.code(), Some(137));
    Ok(())
}

async fn too_much_memory_in_a_further_process(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_memory_bytes(Some(64 * MIB));
    let container = fx.provision(fx.request().with_resources(limits)).await?.handle;
    let process = Process::new(["dd", "if=/dev/zero", "of=/dev/null", "bs=268435456", "count=1"]);
    let session = fx.runtime.exec(ExecRequest::new(container, process)).await?;
    assert_eq!(to_the_end(session).await?.1, Exit::OutOfMemory);
    Ok(())
}

async fn too_many_processes(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_pids(Some(16));
    let script = "i=0; while [ $i -lt 64 ]; do sleep 3 & i=$((i+1)); done; wait; exit 0";
    let (_, output) = fx.run(fx.request().with_resources(limits), shell(script)).await?;
    assert!(
        matches!(output.exit, Exit::PidsLimit { .. }),
        "{:?} {:?}",
        output.exit,
        output.stderr.to_text()
    );
    Ok(())
}

async fn too_much_disk(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_disk_bytes(Some(16 * MIB));
    let process = Process::new(["dd", "if=/dev/zero", "of=/output/big", "bs=1048576", "count=64"]);
    let (container, output) = fx.run(fx.request().with_resources(limits), process).await?;
    assert!(
        matches!(output.exit, Exit::DiskLimit { .. }),
        "{:?} {:?}",
        output.exit,
        output.stderr.to_text()
    );
    let written = fx.read_file(&container, "/output/big").await?.len() as u64;
    assert!(written <= 16 * MIB, "{written} bytes were written");
    Ok(())
}

async fn cpu_time_is_limited(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_cpu_cores(Some(0.5));
    let wall = Duration::from_secs(3);
    let busy = shell("while :; do :; done & while :; do :; done");
    let (container, session) = fx.begin(fx.request().with_resources(limits), busy, Some(wall)).await?;
    assert_eq!(to_the_end(session).await?.1, Exit::Deadline);
    let Some(used) = fx.runtime.stats(&container).await?.cpu_seconds else {
        return skipped("the runtime cannot tell the CPU time");
    };
    let allowed = wall.as_secs_f64() * 0.5;
    assert!(
        used <= allowed * 1.25,
        "{used} s of CPU time in {wall:?} with half a core"
    );
    assert!(
        used >= allowed * 0.2,
        "{used} s of CPU time for two busy loops in {wall:?}"
    );
    Ok(())
}

async fn open_files_are_limited(fx: Fx) -> CaseResult {
    let limits = ResourceLimits::none().with_nofile(Some(40));
    let container = fx.provision(fx.request().with_resources(limits)).await?.handle;
    let both = stdout(&fx.sh(&container, "ulimit -S -n; ulimit -H -n").await?);
    assert_eq!(both, "40\n40\n");
    Ok(())
}

async fn stats_are_true(fx: Fx) -> CaseResult {
    fx.needs("memory_limit", |c| &c.memory_limit)?;
    let request = fx
        .request()
        .with_resources(ResourceLimits::none().with_memory_bytes(Some(256 * MIB)))
        .with_mounts([Mount::tmpfs(128 * MIB, "/tmp")]);
    let container = fx.provision(request).await?.handle;
    let stats = async || -> Result<ContainerStats, Error> { fx.runtime.stats(&container).await };
    let before = stats().await?;
    assert!((before.memory_limit_mb - 256.0).abs() < 0.1, "{before:?}");
    assert!(before.memory_mb < 100.0 && before.cpu_percent >= 0.0, "{before:?}");
    succeeded(
        &fx.sh(&container, "dd if=/dev/zero of=/tmp/held bs=1048576 count=50")
            .await?,
    )?;
    let held = stats().await?;
    let grown = held.memory_mb - before.memory_mb;
    assert!(
        (45.0..90.0).contains(&grown),
        "50 MiB are held, and memory grew by {grown} MiB"
    );
    // What is compared is CPU time, and time only as both of its ends are known, so that a machine that has other things to
    // do changes nothing.
    let asked_first = Instant::now();
    let held = stats().await?;
    let heard_first = Instant::now();
    let worked = fx
        .sh(&container, "i=0; while [ $i -lt 600000 ]; do i=$((i + 1)); done; times")
        .await?;
    succeeded(&worked)?;
    let by_kernel = cpu_time(&stdout(&worked))?;
    let asked_last = Instant::now();
    let after = stats().await?;
    let heard_last = Instant::now();
    let used = match (held.cpu_seconds, after.cpu_seconds) {
        (Some(before), Some(after)) => {
            let used = after - before;
            // An own kernel tells its processes how long they have run by its own clock, whatever else the machine does.
            let least = if fx.own_kernel() { 0.1 } else { by_kernel * 0.9 - 0.02 };
            // Starting a process takes some too, and more where a kernel has to.
            let most = by_kernel * 1.1 + if fx.own_kernel() { 2.0 } else { 0.3 };
            assert!(
                (least..=most).contains(&used),
                "{used} s of CPU time for a process that the kernel counts {by_kernel} s for"
            );
            used
        }
        _ => by_kernel,
    };
    let percent = |elapsed: Duration| used / elapsed.as_secs_f64() * 100.0;
    let (least, most) = (percent(heard_last - asked_first), percent(asked_last - heard_first));
    assert!(
        (least * 0.9 - 1.0..=most * 1.1 + 1.0).contains(&after.cpu_percent),
        "{} % of a CPU, which was between {least} and {most}",
        after.cpu_percent
    );
    if let Some(peak) = after.memory_peak_bytes {
        assert!(peak >= 45 * MIB, "{after:?}");
    }
    assert!(after.pids.is_none_or(|pids| pids < 16), "{after:?}");
    Ok(())
}

/// User's and system's time of a shell, as the first line of its `times` says it: `0m1.250s 0m0.010s`.
fn cpu_time(times: &str) -> Result<f64, Failure> {
    let seconds = |word: &str| {
        let (minutes, seconds) = word.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    let words = times.lines().next().unwrap_or_default().split_whitespace();
    match words.map(seconds).collect::<Option<Vec<_>>>().as_deref() {
        Some([user, system]) => Ok(user + system),
        _ => failed(format!("the shell's times are {times:?}")),
    }
}
