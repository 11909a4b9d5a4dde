//! The real Codex in a real cell, led by the scripted model through the broker: what it can do, what it cannot, and what
//! a hostile workspace, or its own HOME, changes of that.

mod cases; // the calls of the table, and what must come of each at each level
mod hostile; // a repository that wants to loosen the level, and an agent that rewrites its own settings
mod sockets; // its model over a WebSocket
pub mod table; // use case × level × launcher, and the README's part of it

use std::process::Command;

use serde_json::{Value, json};

use crate::model::Call;
use crate::real_agent::run::{Launcher, Stage};

/// Nothing where something is missing, which has been said then.
fn stage(launcher: Launcher) -> Option<Stage> {
    Stage::with(launcher, "codex", "sk-")
}

/// Adds the agent as the command.
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
