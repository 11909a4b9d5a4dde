//! Several turns in one cell: a command that starts the agent twice.

use super::run::{Stage, play};
use crate::model::{Call, DONE, Model};

/// A second run of the agent goes on with the conversation of the first.
pub fn second_turn(stage: &Stage, level: &str) -> Result<&'static str, String> {
    let write =
        |content: &str| Call::new("Write", serde_json::json!({"file_path": "/work/turns.txt", "content": content}));
    let read = Call::new("Read", serde_json::json!({"file_path": "/work/turns.txt"}));
    let model = Model::turns(vec![vec![write("turn one\n")], vec![read]]);
    let mut command = stage.run(level, &model);
    let path = std::env::join_paths(
        stage
            .claude
            .parent()
            .into_iter()
            .map(|dir| dir.to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    command.env("PATH", path.map_err(|error| error.to_string())?);
    command.args(["--agent", "claude", "--", "sh", "-c", "claude -p one && claude -p --continue two"]);
    let seen = play(command, model);
    let prompts = seen.requests.last().map(|request| request.body["messages"].to_string()).unwrap_or_default();
    let remembers = ["one", "two", "turn one"].iter().all(|text| prompts.contains(text));
    let texts: Vec<&str> = seen.answers.iter().map(|answer| answer.text.as_str()).collect();
    let fine =
        seen.answers.len() == 2 && seen.answers.iter().all(|answer| !answer.is_error) && texts[1].contains("turn one");
    let ended = seen.status == Some(0) && seen.stdout == format!("{DONE}\n{DONE}\n");
    if remembers && fine && ended {
        Ok("works")
    } else {
        Err(format!("{texts:?} {:?} {} {}", seen.status, seen.stdout, seen.stderr))
    }
}
