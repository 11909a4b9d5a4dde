//! Use case × level × launcher: every call is made by the real agent in a real cell, through the broker.
//! `cargo test --test suite opencode_table -- --nocapture` prints it.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::{MODEL, cases, opencode, refused, stage};
use crate::brokered::{brokered, goes_on, path_with, publish, watched};
use crate::model::{Call, DONE, Model, Step};
use crate::real_agent::cases::{Case, PROGRAM, judge};
use crate::real_agent::run::{LAUNCHERS, LEVELS, Launcher, Seen, Stage};
use crate::real_agent::table::{CHAT, Neighbour, Table, servers};

/// Plays every call; the credential is looked for while the agent waits for the end.
fn play_all(stage: &Stage, level: &str, neighbour: &Neighbour, cases: &[Case]) -> Seen {
    let steps: Vec<Step> = cases.iter().map(Case::call).map(Step::from).chain([Step::Hold]).collect();
    let model = Model::play(steps);
    let mut command = brokered(stage, level, &model);
    command.args(servers(stage)).arg("--export").arg(stage.own().join(format!("out-{level}")));
    opencode(&mut command, stage, "do as the script says");
    watched(stage, command, model, neighbour, cases.len() + 1, "opencode")
}

/// A second run of the agent in the same cell goes on with the conversation of the first.
fn second_turn(stage: &Stage, level: &str) -> Result<&'static str, String> {
    let write = Call::new("write", json!({"filePath": "turns.txt", "content": "turn one\n"}));
    let read = Call::new("read", json!({"filePath": "turns.txt"}));
    let model = Model::turns(vec![vec![write], vec![read]]);
    let mut command = brokered(stage, level, &model);
    let turns = format!("opencode run -m {MODEL} one && opencode run --continue -m {MODEL} two");
    command.env("PATH", path_with(&stage.agent)).args(["--agent", "opencode", "--", "sh", "-c", &turns]);
    goes_on(command, model, "input")
}

fn fill(table: &mut Table, launcher: Launcher) -> Option<()> {
    let stage = stage(launcher)?;
    let neighbour = Neighbour::start(&stage);
    for (level, name) in LEVELS.into_iter().enumerate() {
        let cases = cases::cases(&neighbour.marks);
        let seen = play_all(&stage, name, &neighbour, &cases);
        let context = format!("{launcher:?} {name}");
        assert_eq!((seen.status, seen.stdout.trim()), (Some(0), DONE), "{context}: {}", seen.stderr);
        assert_eq!(seen.answers.len(), cases.len(), "{context}: {}\n{:#?}", seen.stderr, seen.answers.last());
        assert!(!seen.stderr.contains("asked for hosts"), "{context}: {}", seen.stderr);
        table.add(CHAT, level, Ok("works"), launcher);
        // Two more starts, of some seconds each, in the same files whoever the launcher is.
        if launcher == Launcher::Root || !nix::unistd::geteuid().is_root() {
            table.add("a second turn (`run --continue`)", level, second_turn(&stage, name), launcher);
        }
        for (case, answer) in cases.iter().zip(&seen.answers) {
            let verdict = judge(case, level, answer, &neighbour.marks, refused(&answer.text));
            table.add(case.row, level, verdict, launcher);
        }
        let tools = &seen.requests.iter().find(|request| !request.tools.is_empty()).expect("a request").tools;
        let offered = |name: &str| if tools.iter().any(|tool| tool == name) { "offered" } else { "denied" };
        table.add("subagents", level, Ok(offered("task")), launcher);
        let out = stage.own().join(format!("out-{name}"));
        let written = fs::read_to_string(out.join("main.py")).unwrap_or_default();
        assert_eq!(written, PROGRAM, "{context}: the exported file");
        assert!(!out.join(".opencode").exists() && !out.join("opencode.json").exists(), "{context}");
    }
    drop(neighbour);
    assert_eq!(stage.left(), Vec::<PathBuf>::new());
    Some(())
}

#[test]
fn opencode_table() {
    let mut table = Table::default();
    let launchers = LAUNCHERS.map(|launcher| fill(&mut table, launcher)).into_iter().flatten().count();
    if launchers == 0 {
        return;
    }
    publish(&table, "opencode");
}
