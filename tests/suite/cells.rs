//! Live cells: `ps`, `kill` and `sweep`; the deadline, signals, statuses and streams of a run, and its report.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::place::{PATIENCE, Place, Started, Who, marked, marker, text, within};

const DEAF: &str = "trap '' TERM INT HUP; echo ready; while :; do sleep 999; done";
const POLITE: &str =
    "trap 'echo got TERM; exit 3' TERM; trap 'echo got INT; exit 4' INT; trap 'echo got HUP; exit 5' HUP;
                      echo ready; while :; do read line; done";

/// Two that need no policy file's layers, and one without a PID namespace.
const LAYERS: [&str; 3] = ["", "root = \"off\"", "pid = \"off\"\nroot = \"off\""];

fn started(place: &Place, options: &[&str], script: &str) -> Started {
    let mut started = Started::new(&mut place.run(options, script));
    started.line("ready");
    started
}

fn cell_of(place: &Place) -> String {
    place.cells()[0].to_string_lossy().into_owned()
}

#[test]
fn ps_lists_live_cells() {
    for who in Who::all() {
        let place = Place::new(who);
        let ps = |json: bool| place.command("ps").args(json.then_some("--json")).output().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&ps(true).stdout).unwrap(), json!([]));
        let one = started(&place, &["--user", "käthe@example.org", "--level", "paranoid"], "echo ready; read line");
        let cell = cell_of(&place);
        let live: Value = serde_json::from_slice(&ps(true).stdout).unwrap();
        let live = live.as_array().unwrap();
        assert_eq!(live.len(), 1);
        assert_eq!(live[0]["cell"], cell.as_str());
        assert_eq!(live[0]["user"], "käthe@example.org");
        assert_eq!((&live[0]["level"], &live[0]["agent"]), (&json!("paranoid"), &json!("none")));
        assert_eq!(live[0]["launcher"], one.pid().as_raw());
        let output = ps(false);
        let said = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert!(
            lines[0].starts_with("CELL") && lines[1].starts_with(&cell) && lines[1].ends_with("käthe@example.org"),
            "{said}"
        );
        assert_eq!(
            one.end().status.code(),
            Some(0).filter(|_| false).or(Some(1)),
            "read at the end of the input says 1"
        );
        assert_eq!(String::from_utf8(ps(false).stdout).unwrap().lines().count(), 1);
    }
}

#[test]
fn kill_ends_one_cell() {
    for who in Who::all() {
        for layers in LAYERS {
            let place = Place::new(who);
            let policy = place.policy(layers);
            let policy = ["--policy", policy.to_str().unwrap()];
            let kill = |cell: &str| place.command("kill").arg(cell).output().unwrap();
            let refused = |cell: &str, why: &str| {
                let output = kill(cell);
                assert_eq!(output.status.code(), Some(125), "{cell}: {}", text(&output));
                assert!(text(&output).contains(why) && text(&output).contains("hint: "), "{}", text(&output));
            };
            refused("0123", "there is no such live cell");
            let polite = started(&place, &policy, POLITE);
            let cell = cell_of(&place);
            refused("", "every cell");
            refused("../..", "there is no such live cell");
            let output = kill(&cell[..7]);
            assert_eq!(output.status.code(), Some(0), "{who:?} {layers}: {}", text(&output));
            let ended = polite.end();
            assert_eq!((ended.status.code(), ended.out.as_str()), (Some(3), "got TERM\n"), "{who:?} {layers}");
            let marker = marker();
            let mark = format!("MARK={marker}");
            let deaf = started(&place, &[&policy[..], &["--grace", "200ms", "--setenv", &mark]].concat(), DEAF);
            let output = kill(&cell_of(&place));
            assert_eq!(output.status.code(), Some(0), "{}", text(&output));
            assert_eq!(deaf.end().status.code(), Some(128 + 15));
            assert_eq!(marked(&marker), []);
            place.assert_nothing_left(&[]);
        }
    }
}

#[test]
fn kill_by_a_beginning_that_two_cells_share() {
    let place = Place::new(Who::all()[0]);
    // Seventeen cells cannot all begin differently.
    let mut cells: Vec<Started> = (0..17).map(|_| started(&place, &[], "echo ready; read line; exit 0")).collect();
    let names: Vec<String> = place.cells().iter().map(|cell| cell.to_string_lossy().into_owned()).collect();
    let shared = names
        .iter()
        .map(|name| &name[..1])
        .find(|first| names.iter().filter(|name| name.starts_with(*first)).count() > 1);
    let output = place.command("kill").arg(shared.unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output).contains("more than one begins like this"), "{}", text(&output));
    for cell in cells.drain(..) {
        assert_eq!(cell.end().status.code(), Some(0));
    }
}

#[test]
fn sweep_says_what_it_would_do() {
    for who in Who::all() {
        let place = Place::new(who);
        let mut dead = started(&place, &[], "echo ready; read line");
        dead.kill();
        let cell = cell_of(&place);
        let dry = place.command("sweep").arg("--dry-run").output().unwrap();
        assert_eq!(
            (dry.status.code(), String::from_utf8_lossy(&dry.stdout).into_owned()),
            (Some(0), format!("would remove {cell}\n"))
        );
        assert_eq!(place.cells().len(), 1);
        let dry = place.command("sweep").args(["--dry-run", "--json"]).output().unwrap();
        let said: Value = serde_json::from_slice(&dry.stdout).unwrap();
        assert_eq!((&said["removed"], &said["live"], &said["left"]), (&json!([cell]), &json!(0), &json!([])));
        let real = place.command("sweep").output().unwrap();
        assert_eq!(
            (real.status.code(), String::from_utf8_lossy(&real.stdout).into_owned()),
            (Some(0), format!("removed {cell}\n"))
        );
        assert_eq!(place.sweep()["removed"], json!([]));
        place.assert_nothing_left(&[cell.into()]);
    }
}

#[test]
fn the_deadline_is_term_then_kill() {
    for who in Who::all() {
        for layers in LAYERS {
            let place = Place::new(who);
            let policy = place.policy(layers);
            let options = ["--policy", policy.to_str().unwrap(), "--timeout", "700ms", "--grace", "500ms"];
            let begun = Instant::now();
            let ended = started(&place, &options, POLITE).end();
            assert_eq!(
                (ended.status.code(), ended.out.as_str()),
                (Some(124), "got TERM\n"),
                "{who:?} {layers} {}",
                ended.err
            );
            assert!(
                ended.err.contains("its 700ms are over") && ended.err.contains("hint: give it more with --timeout"),
                "{}",
                ended.err
            );
            assert!(begun.elapsed() >= Duration::from_millis(700));
            let begun = Instant::now();
            let ended = started(&place, &options, DEAF).end();
            assert_eq!(ended.status.code(), Some(124), "{who:?} {layers}");
            assert!(begun.elapsed() >= Duration::from_millis(1200), "KILL came before the grace period was over");
            place.assert_nothing_left(&[]);
        }
    }
}

#[test]
fn signals_are_passed_on_and_the_agent_decides() {
    for who in Who::all() {
        for layers in LAYERS {
            let place = Place::new(who);
            let policy = place.policy(layers);
            for (signal, said, status) in
                [(Signal::SIGTERM, "got TERM\n", 3), (Signal::SIGINT, "got INT\n", 4), (Signal::SIGHUP, "got HUP\n", 5)]
            {
                let run = started(&place, &["--policy", policy.to_str().unwrap()], POLITE);
                run.signal(signal);
                let ended = run.end();
                assert_eq!(
                    (ended.status.code(), ended.out.as_str()),
                    (Some(status), said),
                    "{who:?} {layers} {signal}"
                );
            }
            // A second one ends it at once, long before the grace period is over.
            let begun = Instant::now();
            let run = started(&place, &["--policy", policy.to_str().unwrap(), "--grace", "1h"], DEAF);
            run.signal(Signal::SIGTERM);
            within(PATIENCE, "the first is taken", || pending(&run) == 0);
            run.signal(Signal::SIGTERM);
            assert_eq!(run.end().status.code(), Some(128 + 15));
            assert!(begun.elapsed() < PATIENCE);
            place.assert_nothing_left(&[]);
        }
    }
}

/// Signals that a process has not taken yet.
fn pending(run: &Started) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", run.pid())).unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap_or("0");
    u64::from_str_radix(field.trim(), 16).unwrap()
}

#[test]
fn statuses_are_the_agents_own() {
    for who in Who::all() {
        let place = Place::new(who);
        let status = |script: &str| place.run(&[], script).output().unwrap().status.code();
        for code in [0, 1, 2, 124, 125, 126, 127, 128, 200, 255] {
            assert_eq!(status(&format!("exit {code}")), Some(code));
        }
        for (name, number) in [("TERM", 15), ("KILL", 9), ("SEGV", 11), ("PIPE", 13), ("USR1", 10)] {
            assert_eq!(status(&format!("kill -{name} $$")), Some(128 + number), "{who:?} {name}");
        }
        let other = |words: &[&str]| {
            let output = place.command("run").arg("--").args(words).output().unwrap();
            (output.status.code(), text(&output))
        };
        assert_eq!(other(&["no-such-program"]).0, Some(127), "{}", other(&["no-such-program"]).1);
        let plain = place.file("not-executable", "#!/bin/sh\n");
        let (code, said) = other(&[plain.to_str().unwrap()]);
        assert!(matches!(code, Some(126)), "{said}");
        place.assert_nothing_left(&[]);
    }
}

#[test]
fn standard_streams_may_be_closed() {
    for who in Who::all() {
        let place = Place::new(who);
        for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
            let shell = place.command("run");
            let run = format!(
                "exec '{}' run -- sh -c 'echo out; echo err >&2; exit 6' {closed}",
                shell.get_program().to_string_lossy()
            );
            let mut outer = Command::new("sh");
            outer
                .args(["-c", &run])
                .env_clear()
                .envs(shell.get_envs().filter_map(|(name, value)| Some((name, value?))));
            outer.current_dir(place.dir.path());
            if who == Who::Plain && nix::unistd::geteuid().is_root() {
                outer.uid(who.uid()).gid(who.uid());
            }
            let ended = Started::new(&mut outer).end();
            assert_eq!(ended.status.code(), Some(6), "{who:?} {closed}: {ended:?}");
            assert_eq!(
                ended.out == "out\n",
                !closed.contains(">&- ") && closed != ">&-",
                "{who:?} {closed}: {ended:?}"
            );
            place.sweep();
            place.assert_nothing_left(&[]);
        }
    }
}

#[test]
fn background_children_that_keep_a_pipe_open_do_not_hang_it() {
    for who in Who::all() {
        for layers in LAYERS {
            let place = Place::new(who);
            let policy = place.policy(layers);
            let ended = Started::new(
                &mut place.run(&["--policy", policy.to_str().unwrap()], "sleep 999 & (setsid sleep 999 &) ; echo done"),
            )
            .end();
            assert_eq!((ended.status.code(), ended.out.as_str()), (Some(0), "done\n"), "{who:?} {layers}");
            place.assert_nothing_left(&[]);
        }
    }
}

/// A run with its report on a pipe: the status and the report.
fn reported(place: &Place, options: &[&str], script: &str) -> (Option<i32>, Value) {
    let (mut read, write): (File, OwnedFd) = {
        let (read, write) = nix::unistd::pipe().unwrap();
        (read.into(), write)
    };
    let number = write.as_raw_fd().to_string();
    let output = place.run(&[options, &["--report-fd", &number]].concat(), script).output().unwrap();
    drop(write);
    let mut said = String::new();
    read.read_to_string(&mut said).unwrap();
    assert_eq!(said.lines().count(), 1, "one object on one line: {said} {}", text(&output));
    (output.status.code(), serde_json::from_str(&said).unwrap())
}

#[test]
fn the_report_says_how_it_was() {
    for who in Who::all() {
        let place = Place::new(who);
        let (status, report) = reported(
            &place,
            &["--user", "u@x", "--level", "developer"],
            "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 9",
        );
        assert_eq!(status, Some(9));
        assert_eq!(report["version"], 1);
        assert_eq!(report["cell"].as_str().unwrap().len(), 32);
        assert_eq!(
            (&report["user"], &report["agent"], &report["level"]),
            (&json!("u@x"), &json!("none"), &json!("developer"))
        );
        assert_eq!(
            (&report["outcome"], &report["status"], &report["error"]),
            (&json!({"exited": 9}), &json!(9), &Value::Null)
        );
        assert_eq!(report["layers"].as_array().unwrap().len(), oubliette::types::layer::Layer::ALL.len());
        for part in ["probe", "prepare", "enter", "run", "wipe"] {
            assert!(report["timings"][part].as_u64().unwrap() > 0, "{part}: {report}");
        }
        assert!(
            report["usage"]["user"].as_u64().unwrap() + report["usage"]["system"].as_u64().unwrap() > 0,
            "{report}"
        );
        assert!(report["usage"]["peak-process"].as_u64().unwrap() > 100_000);
        assert_eq!(report["left"], json!([]));
        let (status, report) = reported(&place, &[], "kill -9 $$");
        assert_eq!((status, &report["outcome"], &report["status"]), (Some(137), &json!({"signaled": 9}), &json!(137)));
        let (status, report) = reported(&place, &["--timeout", "300ms"], "sleep 99");
        assert_eq!((status, &report["outcome"], &report["status"]), (Some(124), &json!("deadline"), &json!(124)));
        assert!(report["error"].as_str().unwrap().contains("300ms"));
    }
}

#[test]
fn a_refused_run_has_a_report_too() {
    let place = Place::new(Who::Plain);
    let policy = place.policy("uid = \"required\"");
    let policy = policy.to_str().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["--policy", policy], "uid"),
        (&["--user", ""], "it is empty"),
        (&["--level", "no-such-level"], "no-such-level"),
        (&["--network", "host", "--credential-file", "/no/such/file"], "/no/such/file"),
        (&["--workspace", "/no/such/place"], "/no/such/place"),
    ];
    for (options, why) in cases {
        let (status, report) = reported(&place, options, "exit 0");
        assert_eq!((status, &report["status"]), (Some(125), &json!(125)), "{report}");
        assert!(report["error"].as_str().unwrap().contains(why), "{why}: {report}");
        assert_eq!(report["outcome"]["refused"], report["error"], "{report}");
    }
    let (_, report) = reported(&place, &["--policy", policy], "exit 0");
    let uid = report["layers"].as_array().unwrap().iter().find(|layer| layer["layer"] == "uid").unwrap();
    assert_eq!(uid["decision"], "refuse", "{uid}");
    place.assert_nothing_left(&[]);
}

/// What is typed reaches the agent, and nothing is lost at the end.
#[test]
fn streams_are_the_agents() {
    for who in Who::all() {
        let place = Place::new(who);
        let mut run = Started::new(&mut place.run(&[], "cat; echo error >&2"));
        let typed = "line\n".repeat(20_000);
        let mut input = run.child.stdin.take().unwrap();
        let writer = std::thread::spawn({
            let typed = typed.clone();
            move || input.write_all(typed.as_bytes()).unwrap()
        });
        let ended = run.end();
        writer.join().unwrap();
        assert_eq!((ended.status.code(), ended.out == typed), (Some(0), true));
        assert!(ended.err.ends_with("error\n"), "{}", ended.err);
    }
}
