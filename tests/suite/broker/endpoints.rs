//! The real agent at other APIs that serve its model: its requests go where theirs do, with the credential of that API,
//! which the cell does not have.

use std::fs;

use serde_json::json;

use super::agent::{launcher, look};
use super::upstream::Front;
use crate::model::{Call, Model, Step};
use crate::need;
use crate::real_agent::run::{LIMIT, Launcher, Stage, output};

/// An API: its name, what comes after the host in its URL, what the caller says beside, and how a path of it ends.
type Api = (&'static str, &'static str, &'static [&'static str], &'static str);

const APIS: [Api; 2] = [
    ("bedrock", "", &["AWS_REGION=eu-central-1"], "/invoke-with-response-stream"),
    (
        "vertex",
        "/v1",
        &["CLOUD_ML_REGION=europe-west4", "ANTHROPIC_VERTEX_PROJECT_ID=a-project"],
        "/v1/projects/a-project/locations/europe-west4/publishers/anthropic/models/claude-opus-5-5:streamRawPredict",
    ),
];

#[test]
fn the_agent_works_at_bedrock_and_vertex_without_their_credential() {
    let Some(stage) = Stage::with(Launcher::Plain, "claude", "") else { return };
    for (name, path, variables, end) in APIS {
        let write = Call::new("Write", json!({"file_path": "/work/out.txt", "content": "made"}));
        let model = Model::play(vec![write.into(), Step::Hold]);
        let front = Front::loopback(model.url().trim_start_matches("http://").parse().unwrap(), stage.open());
        let export = stage.own().join(name);
        let mut command = stage.oubliette();
        command.args(["run", "--quiet", "--user", "a", "--level", "balanced", "--timeout", "200s", "--endpoint", name]);
        command.args(["--upstream", &format!("{}{path}", front.url()), "--ca"]).arg(&front.ca);
        command.args(variables.iter().flat_map(|pair| ["--setenv", pair]));
        command.arg("--credential-file").arg(stage.own().join("token")).arg("--export").arg(&export);
        command.arg("--").arg(&stage.agent).args(["-p", "--model", "claude-opus-5-5", "go"]);
        let (output, looked) = std::thread::scope(|scope| {
            let run = scope.spawn(move || output(&mut command));
            let held = model.wait_for_answers(1, LIMIT);
            let looked = launcher(stage.open()).filter(|_| held && need::as_root());
            looked.into_iter().for_each(|pid| look(pid, &stage.token, "claude"));
            model.release();
            (run.join().unwrap(), looked)
        });
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        assert!(looked.is_some() || !need::as_root(), "{name}: it was looked at");
        assert_eq!(fs::read_to_string(export.join("out.txt")).unwrap_or_default(), "made", "{name}: {output:?}");
        let (requests, bearer) = (model.requests(), format!("Bearer {}", stage.token));
        assert!(requests.iter().any(|request| request.path.split('?').next().unwrap().ends_with(end)), "{requests:?}");
        for request in &requests {
            assert_eq!(request.authorization.as_deref(), Some(bearer.as_str()), "{name} {}", request.path);
        }
    }
}

#[test]
fn an_endpoint_that_the_agent_does_not_have_is_refused() {
    let Some(stage) = Stage::with(Launcher::Plain, "claude", "") else { return };
    for (agent, options, says) in [
        ("claude", &["--endpoint", "azure"][..], "known: bedrock, vertex"),
        ("none", &["--endpoint", "bedrock"], "leave it out"),
        ("claude", &["--endpoint", "bedrock"], "nothing says where the requests"),
        ("claude", &["--endpoint", "vertex", "--setenv", "ANTHROPIC_VERTEX_BASE_URL=http://127.0.0.1"], "it steers"),
        ("claude", &["--setenv", "ANTHROPIC_VERTEX_PROJECT_ID=a"], "it steers"),
    ] {
        let mut command = stage.oubliette();
        command.args(["run", "--user", "a", "--agent", agent]).args(options);
        command.arg("--credential-file").arg(stage.own().join("token")).arg("--").arg(&stage.agent).arg("-p");
        let output = output(&mut command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{agent} {options:?}: {said}");
        assert!(said.contains(says) && said.contains("hint: "), "{agent} {options:?}: {said}");
    }
}
