//! The real Gemini CLI in a real cell, led by the scripted model through the broker: what it can do, what it cannot, and
//! what a hostile workspace changes of that.

mod cases; // the calls of the table, and what must come of each at each level
mod hostile; // a repository that wants to loosen the level, and a policy that the agent drops
mod table; // use case × level × launcher, and the README's part of it

use std::process::Command;

use crate::broker::upstream::Front;
use crate::model::{Answer, Model};
use crate::real_agent::run::{Launcher, Stage};

/// Nothing where something is missing, which has been said then.
fn stage(launcher: Launcher) -> Option<Stage> {
    Stage::with(launcher, "gemini", "AIzaSy")
}

/// `oubliette run` with a broker, whose upstream is the model behind TLS.
fn brokered(stage: &Stage, level: &str, model: &Model) -> Command {
    let front = Front::loopback(model.url().trim_start_matches("http://").parse().unwrap(), stage.open());
    let mut command: Command = stage.oubliette();
    command.args(["run", "--user", "alice@example.org", "--level", level, "--timeout", "200s", "--network", "broker"]);
    command.args(["--upstream", &front.url(), "--ca"]).arg(&front.ca);
    command.arg("--credential-file").arg(stage.own().join("token"));
    command
}

/// The same with the agent as the command.
fn gemini(command: &mut Command, stage: &Stage, prompt: &str) {
    command.arg("--").arg(&stage.agent).args(["-p", prompt]);
}

/// Whether this agent's settings refused a call: by a rule, by having no such tool, or since a path lies outside.
fn refused(answer: &Answer) -> bool {
    let says = [
        "denied by policy",
        "\" not found. Did you mean one of",
        "Path not in workspace",
        "requires user confirmation",
    ];
    answer.is_error && says.iter().any(|text| answer.text.contains(text))
}
