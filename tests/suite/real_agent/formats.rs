//! What the agent prints in which format, and a level that is not in force: the run ends before the agent has done
//! anything, in every format that shows it.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::run::{LAUNCHERS, LEVELS, Seen, Stage, play};
use crate::model::{DONE, Model, Step};
use crate::need;

#[test]
fn json_and_stream_json_are_whole_at_every_level() {
    for launcher in LAUNCHERS {
        let Some(stage) = Stage::new(launcher) else { continue };
        for (level, mode) in LEVELS.into_iter().zip(["dontAsk", "dontAsk", "acceptEdits"]) {
            let seen = chat(&stage, level, &["-p", "hello", "--output-format", "json"]);
            let result: Value =
                serde_json::from_str(&seen.stdout).unwrap_or_else(|error| panic!("{error}: {}", seen.stdout));
            assert_eq!((&result["result"], &result["is_error"]), (&DONE.into(), &false.into()), "{launcher:?} {level}");

            let seen = chat(&stage, level, &["-p", "hello", "--output-format", "stream-json", "--verbose"]);
            let events: Vec<Value> =
                seen.stdout.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
            let init: Vec<&Value> = events.iter().filter(|event| event["subtype"] == "init").collect();
            assert_eq!(init.len(), 1, "{}", seen.stdout);
            assert_eq!(init[0]["permissionMode"], mode, "{launcher:?} {level}");
            assert_eq!(events.last().expect("events")["result"], DONE, "{launcher:?} {level}");
        }
    }
}

fn chat(stage: &Stage, level: &str, arguments: &[&str]) -> Seen {
    let model = Model::start(Vec::new());
    let seen = play(stage.claude::<&str>(level, &model, &[], arguments), model);
    assert_eq!((seen.status, seen.complaints().as_str()), (Some(0), ""), "{level} {arguments:?}: {}", seen.stdout);
    seen
}

/// A directory of policies whose file for this agent differs from the shipped one.
pub fn policies(stage: &Stage, changes: &[(&str, &str)]) -> PathBuf {
    policies_of(stage, "claude", changes)
}

/// The same for an agent by name.
pub fn policies_of(stage: &Stage, agent: &str, changes: &[(&str, &str)]) -> PathBuf {
    let file = format!("policies/agents/{agent}.toml");
    let mut text = fs::read_to_string(need::root().join(&file)).expect("the agent's file");
    for (from, to) in changes {
        assert!(text.contains(from), "`{from}` is not in the agent's file any more");
        text = text.replace(from, to);
    }
    let file = stage.write(&file, &text);
    file.parent().and_then(std::path::Path::parent).expect("two directories").to_owned()
}

/// What is changed in the agent's file, the format in which that shows, and what oubliette must say.
type Spoiled = (&'static [(&'static str, &'static str)], &'static [&'static str], &'static str);

const SETTINGS: (&str, &str) = (r#""--settings={settings}/settings.json", "#, "");
const MANAGED: (&str, &str) = ("\nmanaged = ", "\n# managed = ");
const STREAM: &[&str] = &["-p", "hello", "--output-format", "stream-json", "--verbose"];

const SPOILED: [Spoiled; 4] = [
    (&[SETTINGS, MANAGED], STREAM, "the agent has the tool "),
    (&[("--permission-mode={mode}", "--permission-mode=acceptEdits")], STREAM, "mode acceptEdits instead of dontAsk"),
    (
        &[(r#"web = ["WebFetch", "#, r#"web = ["NoSuchTool", "WebFetch", "#)],
        &["-p", "hello"],
        "«matches no known tool»",
    ),
    // It says so of both files, and either text may be the first to come.
    (&[(r#""Bash(doas *)""#, r#""doas""#)], &["-p", "hello"], "the agent says «"),
];

#[test]
fn a_level_that_is_not_in_force_ends_the_run() {
    for launcher in LAUNCHERS {
        for (changes, arguments, says) in SPOILED {
            let Some(stage) = Stage::new(launcher) else { continue };
            let directory = policies(&stage, changes);
            let out = stage.own().join("out");
            let options = ["--policy-dir".as_ref(), directory.as_os_str(), "--export".as_ref(), out.as_os_str()];
            // The agent waits for its model, so only oubliette ends the run before the deadline.
            let model = Model::play(vec![Step::Hold]);
            let seen = play(stage.claude("balanced", &model, &options, arguments), model);
            let context = format!("{launcher:?} {changes:?}: {:?}\n{}\n{}", seen.status, seen.stdout, seen.stderr);
            assert_eq!(seen.status, Some(125), "{context}");
            let message = seen.stderr.lines().find(|line| line.starts_with("oubliette: cannot trust the agent: "));
            assert!(
                message.is_some_and(|line| line.contains("its level is not in force") && line.contains(says)),
                "{context}"
            );
            assert!(seen.stderr.contains("\nhint: "), "{context}");
            assert!(!seen.stdout.contains(r#""init""#) && !seen.stdout.contains(DONE), "{context}");
            assert!(!out.exists(), "nothing is exported: {context}");
            assert_eq!(stage.left(), Vec::<PathBuf>::new(), "{context}");
        }
    }
}
