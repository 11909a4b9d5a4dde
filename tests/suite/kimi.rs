//! The real Kimi Code in a real cell, led by the scripted model through the broker. No settings of its deny anything: what
//! a level denies the cell does, or nobody.

mod cases; // the calls of the table, and what must come of each at each level
mod table; // use case × level × launcher, and the README's part of it

use std::ffi::OsString;
use std::process::{Command, Stdio};

use crate::brokered::path_with_all;
use crate::need::need;
use crate::real_agent::run::{Launcher, Stage, installed, pinned};

/// Nothing where something is missing, which has been said then.
fn stage(launcher: Launcher) -> Option<Stage> {
    let stage = Stage::with(launcher, "kimi", "sk-")?;
    let mut version = Command::new(&stage.agent);
    version.arg("--version").env("PATH", path(&stage)).stdout(Stdio::null()).stderr(Stdio::null());
    let starts = version.status().is_ok_and(|status| status.success());
    need("a Node.js that starts Kimi Code", starts).then_some(stage)
}

/// PATH, and before it the agent and the Node.js that `.ci/run` installs for it alone.
pub fn path(stage: &Stage) -> OsString {
    let version = pinned("KIMI_NODE=").expect("a line of its own");
    let node = installed(&format!("node-{version}/node_modules/.bin/node"));
    path_with_all([Some(stage.agent.as_path()), node.as_deref()].into_iter().flatten())
}

/// Adds the agent as the command.
fn kimi(command: &mut Command, stage: &Stage, prompt: &str) {
    command.env("PATH", path(stage)).args(["--setenv", "KIMI_MODEL_NAME=scripted", "--"]);
    command.arg(&stage.agent).args(["-p", prompt]);
}
