//! The memory of `agents` does not grow with what the agent prints or leaves.

use std::{
    fs,
    io::{self, Read},
    process::{ExitCode, Stdio},
    thread,
    time::Duration,
};

use agents_tests::{Caller, Outcome, Place, require_root, run, trial};

const LIMIT_KIB: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    run(
        true,
        vec![
            trial("root::300_mib_of_output", || output(Caller::Root)),
            trial("user::300_mib_of_output", || output(Caller::User)),
            // The writable space of an ordinary user is memory, which is no place for a gibibyte.
            trial("root::an_artifact_of_1_gib", an_artifact_of_1_gib),
        ],
    )
}

fn output(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let (peak, printed) = peak(&place, &["-q"], "yes agent | head -c 300m; exit 0");
    assert_eq!(printed, 300 * MIB);
    assert!(peak < LIMIT_KIB, "{peak} KiB");
    Ok(())
}

fn an_artifact_of_1_gib() -> Outcome {
    require_root()?;
    let place = Place::new(Caller::Root)?;
    let script = "yes agent | head -c 1024m > /output/big; exit 0";
    let (peak, _) = peak(&place, &["-q", "--disk", "1500"], script);
    let session = &place.sessions()[0];
    let listed = place.agents(&["artifacts", "ls", "--json", session]).code(0).json();
    assert_eq!(listed[0]["size"], 1024 * MIB, "{listed}");
    assert!(peak < LIMIT_KIB, "{peak} KiB");
    place.assert_clean();
    Ok(())
}

/// Runs a script; the highest resident memory of the `agents` process in KiB, and how much it printed.
fn peak(place: &Place, args: &[&str], script: &str) -> (u64, u64) {
    let args = place.run_args(&[args, &["--", "sh", "-c", script]].concat());
    let mut child = place
        .command(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("agents");
    let mut stdout = child.stdout.take().expect("a pipe");
    let counter = thread::spawn(move || io::copy(&mut stdout, &mut io::sink()).unwrap_or_default());
    let mut peak = 0;
    let status = loop {
        // The kernel keeps the high-water mark, so that looking late misses little.
        peak = peak.max(high_water(child.id()).unwrap_or_default());
        if let Some(status) = child.try_wait().expect("a status") {
            break status;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let mut said = String::new();
    child
        .stderr
        .take()
        .expect("a pipe")
        .read_to_string(&mut said)
        .expect("text");
    assert!(status.success(), "{status}: {said}");
    assert!(peak > 1000, "memory was not seen: {peak} KiB");
    (peak, counter.join().expect("the reader"))
}

fn high_water(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
