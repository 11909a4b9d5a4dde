//! What it costs to look at the host. The bench has the figures; here a slow probe fails, however busy the machine is:
//! the shortest of many is what counts.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::need;
use crate::place::{Place, Who, text};

const ROUNDS: usize = 15;

/// Without optimisation everything takes longer.
const SLOWER: u32 = if cfg!(debug_assertions) { 4 } else { 1 };

/// A run looks for facts that cost next to nothing; what only an attempt tells, its own launch tells.
const PROBE: Duration = Duration::from_millis(1);

/// `doctor` makes one cell without an agent.
const DOCTOR: Duration = Duration::from_millis(50);

fn shortest(mut sample: impl FnMut() -> Duration) -> Duration {
    (0..ROUNDS).map(|_| sample()).min().unwrap()
}

#[test]
fn looking_at_the_host_is_quick() {
    for who in Who::all() {
        let place = Place::new(who);
        let probe = shortest(|| {
            let output = place.run(&["-q", "--report-fd", "1"], "exit 0").output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", text(&output));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let micros = |part: &str| report["timings"][part].as_u64().unwrap();
            assert!(micros("probe") <= micros("prepare"), "{report}");
            Duration::from_micros(micros("probe"))
        });
        let doctor = shortest(|| {
            let started = Instant::now();
            let output = place.command("doctor").output().unwrap();
            assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
            started.elapsed()
        });
        let line = format!("{who:?}: at best {probe:?} to probe in a run, {doctor:?} for doctor");
        need::tell(&line);
        assert!(probe < PROBE * SLOWER && doctor < DOCTOR * SLOWER, "{line}");
    }
}
