//! The real Qwen Code in a real cell, led by the scripted model through the broker: what it can do, what it cannot, and
//! what a hostile workspace changes of that.

mod cases; // the calls of the table, and what must come of each at each level
mod hostile; // a repository that wants to loosen the level, and an agent without its settings
mod table; // use case × level × launcher, and the README's part of it

use std::process::Command;

use crate::model::Answer;
use crate::real_agent::run::{Launcher, Stage};

/// Nothing where something is missing, which has been said then.
fn stage(launcher: Launcher) -> Option<Stage> {
    Stage::with(launcher, "qwen", "sk-")
}

/// Adds the agent as the command.
fn qwen(command: &mut Command, stage: &Stage, prompt: &str) {
    command.args(["--setenv", "OPENAI_MODEL=scripted", "--"]).arg(&stage.agent).args(["-p", prompt]);
}

/// Whether this agent's settings refused a call: by a rule, by having no such tool, or since nobody can be asked.
fn refused(answer: &Answer) -> bool {
    let says = ["was denied by permission rules", "but that permission was declined"];
    says.iter().any(|text| answer.text.contains(text))
}
