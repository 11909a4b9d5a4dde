//! The real agent works through the broker as it does without: at every level, for a root launcher and a plain user's,
//! against an upstream with TLS that gets the credential, which is nowhere in the cell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

use super::tap::{self, Tap};
use super::upstream::Front;
use crate::model::{Call, Model, Step};
use crate::need;
use crate::real_agent::run::{LAUNCHERS, LEVELS, LIMIT, Launcher, Stage, output};
use crate::secret::in_memory;

/// Writes a file and changes it, then waits.
fn model() -> Model {
    let write = json!({"file_path": "/work/main.py", "content": "print('hullo')\n"});
    let edit = json!({"file_path": "/work/main.py", "old_string": "hullo", "new_string": "hello"});
    Model::play(vec![Call::new("Write", write).into(), Call::new("Edit", edit).into(), Step::Hold])
}

/// What a run of the agent came to.
struct Ran {
    output: Output,
    edited: String,
}

/// The agent in a cell with a broker; `look` sees its launcher while the agent waits for its model.
fn run(stage: &Stage, level: &str, model: &Model, token: &str, look: impl FnOnce(u32)) -> Ran {
    let front = Front::loopback(model.url().trim_start_matches("http://").parse().unwrap(), stage.open());
    let export = stage.own().join(format!("out-{level}"));
    let mut command: Command = stage.oubliette();
    command.args(["run", "--quiet", "--level", level, "--timeout", "200s", "--network", "broker", "--report-fd", "2"]);
    command.args(["--upstream", &front.url(), "--ca"]).arg(&front.ca);
    if level != "paranoid" {
        // It then has variables for a proxy, and its requests go to the base URL all the same.
        command.args(["--allow", "nobody.example"]);
    }
    command.arg("--credential-file").arg(stage.own().join("token")).arg("--export").arg(&export);
    command.arg("--").arg(&stage.agent).args(["-p", "edit it"]);
    let dir = stage.open().to_owned();
    let tap = need::as_root().then(|| Tap::start(move || launcher(&dir)));
    let output = std::thread::scope(|scope| {
        let run = scope.spawn(move || output(&mut command));
        // The third request is the one that waits.
        if model.wait_for_requests(3, LIMIT)
            && let Some(launcher) = launcher(stage.open())
        {
            look(launcher);
        }
        model.release();
        run.join().unwrap()
    });
    tap.into_iter().for_each(|tap| tap::check(&tap.stop(), token));
    Ran { output, edited: fs::read_to_string(export.join("main.py")).unwrap_or_default() }
}

/// The launcher that was started from this directory.
pub fn launcher(dir: &Path) -> Option<u32> {
    launchers(dir).first().copied()
}

/// Every process of the program that lies in this directory, the oldest first.
pub fn launchers(dir: &Path) -> Vec<u32> {
    let program = dir.join("oubliette");
    let mut all: Vec<u32> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program))
        .collect();
    all.sort_unstable();
    all
}

/// Every file below a directory that holds a text.
fn files_with(dir: &Path, text: &[u8]) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(kind)
                    if kind.is_file()
                        && fs::read(entry.path()).is_ok_and(|bytes| memchr::memmem::find(&bytes, text).is_some()) =>
                {
                    found.push(entry.path());
                }
                _ => {}
            }
        }
    }
    found
}

/// Descriptors of a process that lead to a file with a text, be it one without a name.
fn open_with(pid: i32, text: &[u8]) -> Vec<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let small = |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() < 64 << 20);
    let has = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| memchr::memmem::find(&bytes, text).is_some());
    open.filter(small).filter(has).collect()
}

/// Nothing of the cell holds the credential: not the memory of a process, its arguments, its environment, its
/// descriptors, or a file. A
/// process whose name begins with `agent` must be among those that were looked at.
pub fn look(launcher: u32, token: &str, agent: &str) {
    if !need::as_root() {
        return;
    }
    let mut names = Vec::new();
    for pid in crate::stage::descendants(launcher as i32) {
        let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if text.starts_with(b"oubliette-broker") {
            assert!(in_memory(pid, token.as_bytes()) > 0, "the broker has it");
            continue;
        }
        // A command of the agent's may have ended meanwhile.
        let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
        names.push(name);
        assert_eq!(in_memory(pid, token.as_bytes()), 0, "{names:?}");
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(memchr::memmem::find(&[text, environ].concat(), token.as_bytes()).is_none());
        assert_eq!(open_with(pid, token.as_bytes()), Vec::<PathBuf>::new());
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        for dir in ["home", "tmp", "work", "dev/shm", "etc"] {
            assert_eq!(files_with(&root.join(dir), token.as_bytes()), Vec::<PathBuf>::new());
        }
    }
    assert!(names.iter().any(|name| name.starts_with(agent)), "the agent was looked at: {names:?}");
}

#[test]
fn the_agent_edits_a_file_and_never_has_the_credential() {
    for launcher in LAUNCHERS {
        let Some(stage) = Stage::new(launcher) else { continue };
        for level in LEVELS {
            let model = model();
            let mut looked = false;
            let Ran { output, edited } = run(&stage, level, &model, &stage.token, |launcher| {
                look(launcher, &stage.token, "claude");
                looked = true;
            });
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{launcher:?} {level}: {output:?}");
            assert!(looked, "it was looked at");
            assert_eq!(edited, "print('hello')\n", "{launcher:?} {level}: {said}");
            let requests = model.requests();
            let keys: Vec<_> = requests.iter().map(|request| request.x_api_key.as_deref()).collect();
            assert!(keys.len() >= 3 && keys.iter().all(|key| *key == Some(stage.token.as_str())), "{keys:?}");
            assert!(requests.iter().all(|request| request.authorization.is_none()));
            assert!(!said.contains(&stage.token));
            let report = said.lines().rev().find(|line| line.starts_with('{')).unwrap();
            let report: serde_json::Value = serde_json::from_str(report).unwrap();
            assert_eq!(report["broker"]["requests"], requests.len(), "{report}");
            assert_eq!((&report["broker"]["refused"], &report["broker"]["failed"]), (&0.into(), &0.into()), "{report}");
            let tokens = |name: &str| report["broker"]["tokens"][name].as_u64().unwrap();
            assert!(tokens("answers") >= 3 && tokens("input") > 0 && tokens("output") > 0, "{report}");
            assert_eq!(stage.left(), Vec::<PathBuf>::new());
        }
    }
}

#[test]
fn a_token_of_a_subscription_goes_in_the_header_of_those() {
    let Some(stage) = Stage::new(Launcher::Plain) else { return };
    let token = format!("sk-ant-oat01-{:032x}", rand::random::<u128>());
    stage.write("token", &token);
    let model = model();
    let Ran { output, edited } = run(&stage, "balanced", &model, &token, |launcher| look(launcher, &token, "claude"));
    assert_eq!((output.status.code(), edited.as_str()), (Some(0), "print('hello')\n"), "{output:?}");
    let bearer = format!("Bearer {token}");
    let requests = model.requests();
    assert!(requests.iter().all(|request| request.authorization.as_deref() == Some(&bearer)), "{requests:?}");
    assert!(requests.iter().all(|request| request.x_api_key.is_none()));
}
