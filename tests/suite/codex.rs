//! The real Codex in a real cell, led by the scripted model through the broker: what it can do, what it cannot, and what
//! a hostile workspace, or its own HOME, changes of that.

mod cases; // the calls of the table, and what must come of each at each level
mod hostile; // a repository that wants to loosen the level, and an agent that rewrites its own settings
mod table; // use case × level × launcher, and the README's part of it

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::broker::upstream::Front;
use crate::model::{Call, Model};
use crate::real_agent::run::{Launcher, Stage};

/// Nothing where something is missing, which has been said then.
fn stage(launcher: Launcher) -> Option<Stage> {
    Stage::with(launcher, "codex", "sk-")
}

/// `oubliette run` with a broker, whose upstream is the model behind TLS.
fn brokered(stage: &Stage, level: &str, model: &Model) -> Command {
    let front = Front::loopback(model.url().trim_start_matches("http://").parse().unwrap(), stage.open());
    let mut command: Command = stage.oubliette();
    command.args(["run", "--user", "alice@example.org", "--level", level, "--timeout", "200s", "--network", "broker"]);
    command.args(["--upstream", &format!("{}/v1", front.url()), "--ca"]).arg(&front.ca);
    command.arg("--credential-file").arg(stage.own().join("token"));
    command
}

/// The same with the agent as the command.
fn codex(command: &mut Command, stage: &Stage, prompt: &str) {
    command.arg("--").arg(&stage.agent).args(["exec", "--skip-git-repo-check", prompt]);
}

/// A command of the agent's shell.
fn shell(command: &str) -> Call {
    Call::new("exec_command", json!({ "cmd": command }))
}

/// An edit, as the agent's models write it.
fn patch(text: &str) -> Value {
    format!("*** Begin Patch\n{text}\n*** End Patch").into()
}

/// Every way in which this agent says that its settings refuse a call.
fn refused(text: &str) -> bool {
    text.contains("rejected: the level denies this") || text.contains("unsupported call")
}

/// PATH with the agent's own directory.
fn path_with(agent: &Path) -> std::ffi::OsString {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let all = agent.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&rest));
    std::env::join_paths(all).expect("directories without a colon")
}
