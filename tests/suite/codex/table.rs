//! Use case × level × launcher: every call is made by the real agent in a real cell, through the broker.
//! `cargo test --test suite codex_table -- --nocapture` prints it.

use std::fs;
use std::path::{Path, PathBuf};

use super::{cases, codex, refused, shell, stage};
use crate::brokered::{brokered, goes_on, path_with, publish, watched};
use crate::model::{DONE, Model, Step};
use crate::need;
use crate::real_agent::cases::{Case, PROGRAM, judge};
use crate::real_agent::run::{LAUNCHERS, LEVELS, Launcher, Seen, Stage};
use crate::real_agent::table::{self, CHAT, Neighbour, Table};

/// Plays every call; the credential is looked for while the agent waits for the end.
fn play_all(stage: &Stage, level: &str, neighbour: &Neighbour, cases: &[Case]) -> Option<Seen> {
    let steps: Vec<Step> = cases.iter().map(Case::call).map(Step::from).chain([Step::Hold]).collect();
    let model = Model::play(steps);
    let mut command = brokered(stage, level, &model);
    command.args(servers(stage)?);
    command.arg("--export").arg(stage.own().join(format!("out-{level}")));
    codex(&mut command, stage, "do as the script says");
    Some(watched(stage, command, model, neighbour, cases.len() + 1, "codex"))
}

/// The caller's MCP server, by an interpreter of its own: what a server is run by, the agent's shell may run, too.
fn servers(stage: &Stage) -> Option<[String; 2]> {
    let python = stage.open().join("servers-python3");
    if !python.exists() {
        need::need("/usr/bin/python3", Path::new("/usr/bin/python3").exists()).then_some(())?;
        need::copy_program(&fs::canonicalize("/usr/bin/python3").expect("a program"), &python);
    }
    let [option, file] = table::servers(stage);
    let text = fs::read_to_string(&file).expect("servers").replace("/usr/bin/python3", &python.display().to_string());
    fs::write(&file, text).expect("servers");
    Some([option, file])
}

/// A second run of the agent goes on with the conversation of the first.
fn second_turn(stage: &Stage, level: &str) -> Result<&'static str, String> {
    let model = Model::turns(vec![vec![shell("echo turn one >turns.txt")], vec![shell("cat turns.txt")]]);
    let mut command = brokered(stage, level, &model);
    let turns = "codex exec --skip-git-repo-check one && codex exec resume --skip-git-repo-check --last two";
    command.env("PATH", path_with(&stage.agent)).args(["--agent", "codex", "--", "sh", "-c", turns]);
    goes_on(command, model, "input")
}

fn fill(table: &mut Table, launcher: Launcher) -> Option<()> {
    let stage = stage(launcher)?;
    let neighbour = Neighbour::start(&stage);
    for (level, name) in LEVELS.into_iter().enumerate() {
        let cases = cases::cases(&neighbour.marks);
        let seen = play_all(&stage, name, &neighbour, &cases)?;
        let context = format!("{launcher:?} {name}");
        assert_eq!((seen.status, seen.stdout.trim()), (Some(0), DONE), "{context}: {}", seen.stderr);
        assert_eq!(seen.answers.len(), cases.len(), "{context}: {}\n{:#?}", seen.stderr, seen.answers.last());
        table.add(CHAT, level, Ok("works"), launcher);
        table.add("a second turn (`exec resume`)", level, second_turn(&stage, name), launcher);
        for (case, answer) in cases.iter().zip(&seen.answers) {
            let verdict = judge(case, level, answer, &neighbour.marks, refused(&answer.text));
            table.add(case.row, level, verdict, launcher);
        }
        let tools = &seen.requests[0].tools;
        let offered = |name: &str| if tools.iter().any(|tool| tool.contains(name)) { "offered" } else { "denied" };
        table.add("subagents", level, Ok(offered("spawn_agent")), launcher);
        table.add("web search", level, Ok(offered("web_search")), launcher);
        let out = stage.own().join(format!("out-{name}"));
        assert_eq!(
            fs::read_to_string(out.join("main.py")).unwrap_or_default(),
            PROGRAM,
            "{context}: the exported file"
        );
        assert_eq!(stage.left().iter().filter(|path| path.is_dir()).count(), 1, "{context}: the neighbour's cell");
    }
    drop(neighbour);
    assert_eq!(stage.left(), Vec::<PathBuf>::new());
    Some(())
}

#[test]
fn codex_table() {
    let mut table = Table::default();
    let launchers = LAUNCHERS.map(|launcher| fill(&mut table, launcher)).into_iter().flatten().count();
    if launchers == 0 {
        return;
    }
    publish(&table, "codex");
}
