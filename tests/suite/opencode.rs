//! The real opencode in a real cell, led by the scripted model through the broker: what it can do, what it cannot, and
//! what a hostile workspace changes of that.

mod cases; // the calls of the table, and what must come of each at each level
mod hidden; // names of the workspace that it must not read: hidden, kept as they are, and refused where they cannot be
mod hostile; // a repository that wants to loosen the level, and arguments that would
mod provider; // Anthropic's models in the place of OpenAI's
mod table; // use case × level × launcher, and the README's part of it

use std::process::Command;

use serde_json::{Value, json};

use crate::real_agent::run::{Launcher, Stage};

/// One whose models edit by `edit` and `write`; those of newer ones get `apply_patch`.
const MODEL: &str = "openai/gpt-4.1";
const PATCHING_MODEL: &str = "openai/gpt-5.4";

/// Nothing where something is missing, which has been said then.
fn stage(launcher: Launcher) -> Option<Stage> {
    crate::need::need_program("rg")?;
    Stage::with(launcher, "opencode", "sk-")
}

/// Adds the agent as the command.
fn opencode(command: &mut Command, stage: &Stage, prompt: &str) {
    command.arg("--").arg(&stage.agent).args(["run", "-m", MODEL, prompt]);
}

/// The input of its shell.
fn shell(command: &str) -> Value {
    json!({"command": command, "description": "as the script says"})
}

/// Whether this agent's settings refused a call: by a rule, or by having no such tool.
fn refused(text: &str) -> bool {
    text.contains("specified a rule which prevents you") || text.contains("tried to call unavailable tool")
}
