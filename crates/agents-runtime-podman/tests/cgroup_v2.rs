//! What must hold on a host with cgroup v2: a choice of the shared cases, small enough for an emulated machine. All of it
//! passes there: a case that would be ignored elsewhere is a failure here.
//!
//! Not part of `cargo test`: the virtual machine runs it as root and as an ordinary user, with podman's socket of each in
//! `AGENTS_TEST_PODMAN`. Any other host with cgroup v2 can: `cargo test -p agents-runtime-podman --test cgroup_v2`.

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/variables.rs"]
mod variables;

use std::{path::Path, process::ExitCode, sync::Arc};

use agents_core::{Process, ResourceLimits};
use agents_testkit::{
    Case, CaseResult, Failure, Outcome,
    libtest_mimic::{Failed, Trial},
    probe, run,
    runtime::{self, RuntimeFixture},
};

/// The chosen ones among the cases of every runtime and of the probe: what another kernel, its cgroups and systemd may
/// change. Each takes ten times as long as elsewhere, so none is there whose own deadline is a few seconds.
const CHOSEN: &[&str] = &[
    "identity_and_availability",
    "what_is_undeclared_is_refused",
    "everything_that_is_compared_holds",
    "output_and_exit_of_the_main_process",
    "output_and_exit_of_an_exec",
    "a_killed_process_says_so",
    "stdin_is_echoed",
    "dropping_kills_the_tree",
    "cancelling_kills_the_tree",
    "too_much_memory",
    "too_much_memory_in_a_further_process",
    "too_many_processes",
    "too_much_disk",
    "open_files_are_limited",
    "stats_are_true",
    "secrets_are_files_and_nothing_else",
    "copy_from_a_file_and_a_folder",
    "copy_to_and_back",
    "the_probe_works",
    "a_seccomp_filter_is_on",
    "namespaces_are_its_own",
    "sys_is_read_only_and_masked",
    "cgroups_cannot_be_written_to",
    "refuses_what_is_forbidden",
];

fn main() -> ExitCode {
    let url = variables::variable("AGENTS_TEST_PODMAN", "podman");
    let image = variables::variable("AGENTS_TEST_ENGINE_IMAGE", "podman");
    let (url, image) = match (url, image) {
        (Ok(url), Ok(image)) => (url, image),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        eprintln!("this host has no cgroup v2; `cargo xtask vm-test` runs the suite on one that has");
        return ExitCode::FAILURE;
    }
    let mut cases = runtime::cases();
    cases.extend(probe::grouped_cases());
    let known: Vec<_> = cases.iter().map(|case| case.name().to_owned()).collect();
    for name in CHOSEN {
        if !known.iter().any(|known| known == name) {
            eprintln!("there is no case `{name}` any more");
            return ExitCode::FAILURE;
        }
    }
    cases.retain(|case| CHOSEN.contains(&case.name()));
    cases.push(Case::new("limits_are_the_kernels", limits_are_the_kernels));
    cases.push(Case::new("half_a_core_is_half_a_core", half_a_core_is_half_a_core));
    run([cases.into_iter().map(|case| trial(case, &url, &image)).collect()])
}

/// A trial without a way to be ignored.
fn trial(case: Case<RuntimeFixture>, url: &str, image: &str) -> Trial {
    let (url, image) = (url.to_owned(), image.to_owned());
    Trial::test(case.name().to_owned(), move || {
        let tokio = tokio::runtime::Runtime::new().map_err(Failed::from)?;
        match tokio.block_on(async { Ok::<_, String>(case.run(fixture::make(&url, &image, None).await?).await) })? {
            Outcome::Passed => Ok(()),
            Outcome::Failed(reason) => Err(reason.into()),
            Outcome::Ignored(reason) => Err(format!("must be judged here, and was not: {reason}").into()),
        }
    })
}

/// The files of the container's own cgroup say what was asked for.
async fn limits_are_the_kernels(fx: Arc<RuntimeFixture>) -> CaseResult {
    let limits = ResourceLimits::none()
        .with_memory_bytes(Some(64 << 20))
        .with_cpu_cores(Some(0.5))
        .with_pids(Some(32));
    let script = "cd /sys/fs/cgroup && cat memory.max memory.swap.max pids.max cpu.max";
    assert_eq!(within(&fx, limits, script).await?, "67108864\n0\n32\n50000 100000\n");
    Ok(())
}

/// Two busy loops get no more, by the clock and the counters of their own kernel: the shared case goes by the caller's
/// clock, and in an emulated machine the end of a process takes long.
async fn half_a_core_is_half_a_core(fx: Arc<RuntimeFixture>) -> CaseResult {
    let script = "
        now() { cut -d ' ' -f 1 /proc/uptime; sed -n 's/^usage_usec //p; s/^nr_throttled //p' /sys/fs/cgroup/cpu.stat; }
        (while :; do :; done) & one=$!
        (while :; do :; done) & two=$!
        now; sleep 4; now; kill $one $two";
    let said = within(&fx, ResourceLimits::none().with_cpu_cores(Some(0.5)), script).await?;
    let numbers: Vec<f64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    let [begin, used_before, _, end, used_after, throttled] = numbers[..] else {
        return Err(Failure::Failed(format!("the kernel's counters are {said:?}")));
    };
    let cores = (used_after - used_before) / 1e6 / (end - begin);
    assert!(cores <= 0.6 && throttled > 0.0, "{cores} cores: {said}");
    Ok(())
}

/// What a script prints in a container with these limits.
async fn within(fx: &RuntimeFixture, limits: ResourceLimits, script: &str) -> Result<String, Failure> {
    let container = fx.provision(fx.request().with_resources(limits)).await?.handle;
    let said = fx.exec(&container, Process::new(["sh", "-c", script])).await?;
    if said.exit.is_success() {
        return Ok(said.stdout.to_text());
    }
    Err(Failure::Failed(format!("{:?}: {}", said.exit, said.stderr.to_text())))
}
