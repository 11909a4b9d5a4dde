//! A run whose broker ends is a failure, and leaves nothing; a broker does not outlive its launcher.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::upstream::Upstream;
use super::{Service, broker, everybody, said, somebody};
use crate::stage::wait_for;

/// Whatever its client makes of that.
const STUBBORN: &str = r#"
say(ask()[0].status)
while True:
    try:
        ask()
    except OSError:
        os._exit(0)
"#;

#[test]
fn a_run_whose_broker_is_killed_is_a_failure_and_wiped() {
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        for (signal, name) in [(Signal::SIGKILL, "SIGKILL"), (Signal::SIGABRT, "SIGABRT"), (Signal::SIGSEGV, "SIGSEGV")]
        {
            let upstream = Upstream::fine();
            for script in ["say(ask()[0].status); sys.stdin.read()", STUBBORN] {
                let mut running = service.start(upstream.address, script);
                assert_eq!(running.line().trim(), "200");
                let pid = Pid::from_raw(broker(&running));
                // Rust's runtime takes a first SIGSEGV that no access has caused, and goes on.
                while kill(pid, signal).is_ok() && signal == Signal::SIGSEGV && alive(pid) {}
                let done = running.end();
                assert_eq!(done.status.code(), Some(125), "{done:?}");
                let report = said(&done);
                let why = report["outcome"]["broker-ended"].as_str().unwrap_or_else(|| panic!("{done:?}"));
                assert!(why.contains(name), "{why}");
                assert!(done.err.contains("oubliette: cannot broker the agent's requests: "), "{done:?}");
                assert_eq!(report["left"], serde_json::json!([]));
                assert!(service.stage.cells(who).is_empty());
                let leases = fs::read_dir(service.stage.state(who).join("uids")).into_iter().flatten().count();
                assert_eq!(leases, 0, "no UID stays leased");
            }
        }
    }
}

fn alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[test]
fn a_broker_that_is_stopped_does_not_keep_the_run() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let script = "say(ask()[0].status); sys.stdin.readline()";
    let mut running = service.start(upstream.address, script);
    assert_eq!(running.line().trim(), "200");
    let pid = broker(&running);
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    drop(running.child.stdin.take());
    let done = running.end();
    assert_eq!(done.status.code(), Some(125), "what it did is not known: {done:?}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(service.stage.cells(service.who).is_empty());
}

#[test]
fn a_broker_dies_with_its_launcher() {
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let upstream = Upstream::fine();
        let script = "say(ask()[0].status); sys.stdin.read()";
        let mut running = service.start(upstream.address, script);
        assert_eq!(running.line().trim(), "200");
        let pid = Pid::from_raw(broker(&running));
        kill(Pid::from_raw(running.pid()), Signal::SIGKILL).unwrap();
        running.end();
        wait_for("the end of the broker", || (!alive(pid)).then_some(()));
    }
}

#[test]
fn a_run_that_asks_nothing_has_no_broker_and_reports_nothing_brokered() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let mut running = service.start(upstream.address, "say('here'); sys.stdin.read()");
    assert_eq!(running.line().trim(), "here");
    let names = crate::stage::descendants(running.pid()).into_iter();
    let names: Vec<Vec<u8>> = names.filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok()).collect();
    assert!(!names.iter().any(|name| name.starts_with(b"oubliette-broker")));
    drop(running.child.stdin.take());
    assert_eq!(super::report(&running.end())["broker"]["requests"], 0);
}
