//! The real Claude Code under gVisor, led by the scripted model.

use serde_json::json;

use super::sandbox::{Kind, PLAIN, Sandbox, Scratch};
use crate::model::{Call, Model};
use crate::need;
use crate::real_agent;

/// Launches the agent, prints what it has made, and what is left of its cell.
const SCRIPT: &str = r#"
mkdir /tmp/scratch && cd /tmp/scratch || exit 1
(umask 077; cat /mnt/token >token)
/mnt/oubliette run -q --user alice --level balanced --timeout 70s --upstream "$MODEL" --credential-file token \
    --export made -- "$CLAUDE" -p 'write the file' >out 2>&1
echo "status $?"
cat made/edited || cat out
find /run/oubliette/cells /var/tmp/oubliette-*/cells -mindepth 1 2>/dev/null | wc -l
"#;

fn edits(uid: u32) {
    let sandbox = Sandbox { kind: Kind::Gvisor, uid, host_network: true };
    if !need::as_root() || !sandbox.there() {
        return;
    }
    let Some(claude) = real_agent::claude() else { return };
    let scratch = Scratch::new();
    scratch.file("script.sh", SCRIPT.as_bytes());
    let token = format!("sk-ant-api03-{:032x}", rand::random::<u128>());
    scratch.file("token", token.as_bytes());
    let input = json!({"file_path": "edited", "content": "by the agent\n"});
    let model = Model::start(vec![Call::with("Write", move |_| input.clone())]);
    let variables = [("MODEL", model.url()), ("CLAUDE", claude.display().to_string())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let said = sandbox.run(&scratch, &variables, &["sh", "/mnt/script.sh"]);
    assert_eq!(said, "status 0\nby the agent\n0\n");
    let asked = model.requests();
    assert!(!asked.is_empty(), "the agent has asked the model");
    model.finish();
}

#[test]
fn the_real_agent_edits_under_gvisor_as_root() {
    edits(0);
}

#[test]
fn the_real_agent_edits_under_gvisor_as_a_plain_user() {
    edits(PLAIN);
}
