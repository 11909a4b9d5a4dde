//! Several turns in one cell: a command that starts the agent twice.

use serde_json::json;

use super::cases::Around;
use super::run::{Stage, play};
use crate::model::{Answer, Call, DONE, Model, Request};

/// Its row of the table.
pub const ROW: &str = "a second turn (`--continue`)";

/// A second run of the agent goes on with the conversation of the first.
pub const COMMAND: &str = "claude -p one && claude -p --continue two";

/// Leads both runs.
pub fn model(around: Around) -> Model {
    let path = around.work("turns.txt");
    let write = Call::new("Write", json!({"file_path": path, "content": "turn one\n"}));
    Model::turns(vec![vec![write], vec![Call::new("Read", json!({ "file_path": path }))]])
}

/// Whether the second run remembered the first.
pub fn verdict(answers: &[Answer], requests: &[Request], stdout: &str) -> Result<&'static str, String> {
    let prompts = requests.last().map(|request| request.body["messages"].to_string()).unwrap_or_default();
    let remembers = ["one", "two", "turn one"].iter().all(|text| prompts.contains(text));
    let texts: Vec<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
    let fine = answers.len() == 2 && answers.iter().all(|answer| !answer.is_error) && texts[1].contains("turn one");
    if remembers && fine && stdout == format!("{DONE}\n{DONE}\n") {
        Ok("works")
    } else {
        Err(format!("{texts:?} {stdout:?}"))
    }
}

/// Both runs, in one cell.
pub fn second_turn(stage: &Stage, level: &str) -> Result<&'static str, String> {
    let model = model(Around::LINUX);
    let mut command = stage.run(level, &model);
    let path = std::env::join_paths(
        stage
            .agent
            .parent()
            .into_iter()
            .map(|dir| dir.to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    command.env("PATH", path.map_err(|error| error.to_string())?);
    command.args(["--agent", "claude", "--", "sh", "-c", COMMAND]);
    let seen = play(command, model);
    let verdict = verdict(&seen.answers, &seen.requests, &seen.stdout);
    if seen.status == Some(0) { verdict } else { Err(format!("{verdict:?} {:?} {}", seen.status, seen.stderr)) }
}
