//! The same agent with Anthropic's models: its requests go there, with the credential that the cell does not have.

use std::fs;

use serde_json::json;

use super::stage;
use crate::brokered::brokered;
use crate::model::{Call, DONE, Model};
use crate::real_agent::run::{LEVELS, Launcher, play};

#[test]
fn opencode_with_anthropic_edits_a_file_at_every_level() {
    let Some(stage) = stage(Launcher::Plain) else { return };
    for level in LEVELS {
        let write = Call::new("write", json!({"filePath": "out.txt", "content": "made"}));
        let model = Model::start(vec![write]);
        let out = stage.own().join(format!("out-{level}"));
        let mut command = brokered(&stage, level, &model);
        command.args(["--endpoint", "anthropic", "--export"]).arg(&out).arg("--").arg(&stage.agent);
        command.args(["run", "-m", "anthropic/claude-sonnet-4-5", "hello"]);
        let seen = play(command, model);
        assert_eq!((seen.status, seen.stdout.trim()), (Some(0), DONE), "{level}: {}", seen.stderr);
        assert_eq!(fs::read_to_string(out.join("out.txt")).unwrap_or_default(), "made", "{level}");
        for request in &seen.requests {
            assert!(request.path.starts_with("/v1/messages"), "{level}: {}", request.path);
            assert_eq!(request.x_api_key.as_deref(), Some(stage.token.as_str()), "{level}");
            assert!(!request.body.to_string().contains(&stage.token), "{level}");
        }
    }
}
