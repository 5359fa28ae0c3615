//! `agents` is killed with SIGKILL at random points of a run. After `agents gc`, no process, mount, cgroup, folder, loop
//! device or network namespace of it is left, and every session that has begun has an ending on record.

use std::{
    process::{ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use agents_tests::{
    Caller, Outcome, Place, assert_nothing_of_ours_runs, for_callers, network_namespaces, run, wait_for,
};
use serde_json::json;

/// For each caller.
const KILLS: u32 = 200;
const AT_ONCE: u32 = 4;

/// Leaves a process behind, and artifacts large and small.
const SCRIPT: &str =
    "sleep 600 & mkdir /output/d; echo x > /output/d/x; head -c 600k /dev/zero > /output/big; echo out";

fn main() -> ExitCode {
    run(
        true,
        for_callers("killed_at_random_points", killed_at_random_points).into(),
    )
}

fn killed_at_random_points(caller: Caller) -> Outcome {
    let place = Place::new(caller)?;
    let before = network_namespaces();
    let args = place.run_args(&["-q", "--", "sh", "-c", SCRIPT]);
    // The first run makes what later ones find.
    place.agents(&args).code(0);
    let mut random = Random::new();
    // How long a run takes says when to kill it. The machine may get busier or calmer meanwhile.
    let begun = Instant::now();
    together(&place, &args, || Duration::from_secs(60));
    let mut whole = begun.elapsed();
    let mut killed = 0;
    for _ in 0..4 * KILLS / AT_ONCE {
        let ended = together(&place, &args, || whole.mul_f64(random.next()));
        whole = whole.mul_f64(if ended > 0 { 0.9 } else { 1.05 });
        killed += AT_ONCE - ended;
        if killed >= KILLS {
            break;
        }
    }
    assert!(killed >= KILLS, "only {killed} were killed; seed {}", random.seed);

    let report = place.agents(&["gc", "--json"]).code(0).json();
    assert_eq!(report["problems"], json!([]), "seed {}", random.seed);
    assert_nothing_of_ours_runs();
    place.assert_clean();
    if rustix::process::geteuid().is_root() {
        assert_eq!(network_namespaces(), before, "seed {}", random.seed);
    }
    let lost = place.agents(&["ps", "-a", "--json"]).code(0).json();
    let count = |status: &str| {
        let sessions = lost.as_array().into_iter().flatten();
        sessions.filter(|session| session["status"] == status).count()
    };
    assert_eq!(count("running"), 0);
    assert!(count("lost") > 0, "no session was lost: {lost}");
    // And everything goes on.
    place.agents(&args).code(0);
    place.assert_clean();
    Ok(())
}

/// Starts runs at once and kills each after a delay of its own. Returns how many had ended by then.
fn together(place: &Place, args: &[&str], mut delay: impl FnMut() -> Duration) -> u32 {
    let waiting: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let mut child = place
                .command(args)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("agents");
            let delay = delay();
            // A process that is still there then is killed.
            thread::spawn(move || u32::from(wait_for(&mut child, delay).is_some()))
        })
        .collect();
    waiting.into_iter().map(|thread| thread.join().expect("no panic")).sum()
}

/// Numbers from 0 to 1, by Marsaglia's xorshift64 from a seed that a failure shows; `AGENTS_TESTS_SEED` sets it.
struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    fn new() -> Self {
        let given = std::env::var("AGENTS_TESTS_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let now = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(1, |since| since.as_micros() as u64)
        };
        let seed = given.unwrap_or_else(now).max(1);
        Self { seed, state: seed }
    }

    fn next(&mut self) -> f64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as f64 / (1_u64 << 53) as f64
    }
}
