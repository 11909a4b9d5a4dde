//! What a caller hands on through exec, and what the launcher makes of it for itself.

use std::time::{Duration, Instant};

use crate::place::{Place, Who};

/// With these signals ignored or blocked by the caller, a run ends as without: its children are waited for.
#[test]
fn a_caller_that_ignores_or_blocks_signals_gets_its_run_ended() {
    for who in Who::all() {
        let place = Place::new(who);
        for layers in ["", "root = \"off\"\npid = \"off\"\n"] {
            let policy = place.policy(layers);
            for word in ["--ignore-signal=CHLD", "--ignore-signal", "--block-signal"] {
                let run =
                    place.run(&["-q", "--policy", policy.to_str().unwrap(), "--timeout", "20s"], "sleep 9 & exit 7");
                let started = Instant::now();
                let output = place.through(&run, "timeout", &["-k", "1", "30", "env", word]).output().unwrap();
                assert_eq!(output.status.code(), Some(7), "{who:?} {layers} {word} {output:?}");
                assert!(started.elapsed() < Duration::from_secs(9), "{who:?} {layers} {word}");
                place.assert_nothing_left(&[]);
            }
        }
        let output =
            place.through(&place.command("sweep"), "timeout", &["30", "env", "--ignore-signal"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

/// The launcher hears TERM, whatever its caller ignores or blocks.
#[test]
fn the_launcher_is_ended_by_a_signal_that_its_caller_ignores() {
    for who in Who::all() {
        let place = Place::new(who);
        for word in ["--ignore-signal", "--block-signal"] {
            let run = place.run(&["-q", "--grace", "1s"], "exec sleep 60");
            let started = Instant::now();
            let mut child = place.through(&run, "env", &[word]).spawn().unwrap();
            while place.cells().is_empty() && started.elapsed() < crate::place::PATIENCE {
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_millis(300));
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
                .unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(143), "{who:?} {word}");
            assert!(started.elapsed() < Duration::from_secs(30));
            place.assert_nothing_left(&[]);
        }
    }
}
