//! An agent that lives in somebody's home is found there, and nothing else of that home is shown.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::run::{LAUNCHERS, Stage, bash, output, play};
use crate::model::{DONE, Model};
use crate::need::need_program;

/// Files of the home's owner that no cell may show.
const PRIVATE: [&str; 6] = [
    "home/.ssh/id_ed25519",
    "home/.claude/.credentials.json",
    "home/.local/bin/other",
    "home/.local/share/claude/versions/older",
    "home/.nvm/versions/node/v20/lib/node_modules/other/index.js",
    "home/prefix/lib/node_modules/other/index.js",
];

/// The same file under another name; a copy where it is on another file system or somebody else's.
fn put(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("a directory")).expect("directories");
    let from = from.canonicalize().expect("a program");
    if fs::hard_link(&from, to).is_err() {
        crate::need::copy_program(&from, to);
    }
}

fn link(target: &str, at: &Path) {
    fs::create_dir_all(at.parent().expect("a directory")).expect("directories");
    symlink(target, at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
}

fn furnish(stage: &Stage) -> PathBuf {
    PRIVATE.iter().for_each(|name| drop(stage.write(name, "nobody else's business")));
    stage.own().join("home")
}

/// Everything below the home that a cell shows, as `find` lists it, equals `expected` and the way there.
fn assert_shown(listed: &str, home: &Path, expected: &[&str]) {
    let mut all: Vec<PathBuf> = Vec::new();
    for path in expected.iter().map(|name| home.join(name)) {
        all.extend(path.ancestors().take_while(|above| above.starts_with(home)).map(Path::to_owned));
    }
    all.sort();
    all.dedup();
    let mut listed: Vec<PathBuf> = listed.lines().map(PathBuf::from).collect();
    listed.sort();
    assert_eq!(listed, all);
}

/// Runs `claude` as PATH finds it in `bin`, which lists the home.
fn run_claude(stage: &Stage, home: &Path, bin: &str, expected: &[&str]) {
    let model = Model::start(vec![bash(&format!("find {}", home.display()))]);
    let mut command = stage.run("developer", &model);
    command.env("PATH", format!("{}:/usr/bin:/bin", home.join(bin).display())).args(["--", "claude", "-p", "list it"]);
    let seen = play(command, model);
    assert_eq!((seen.status, seen.stdout.trim()), (Some(0), DONE), "{}", seen.stderr);
    assert_shown(&seen.answers[0].text, home, expected);
}

#[test]
fn a_global_npm_package_behind_its_link() {
    for stage in LAUNCHERS.into_iter().filter_map(Stage::new) {
        let home = furnish(&stage);
        let package = "prefix/lib/node_modules/@anthropic-ai/claude-code";
        put(&stage.agent, &home.join(package).join("bin/claude.exe"));
        stage.write(&format!("home/{package}/package.json"), "{}");
        link("../lib/node_modules/@anthropic-ai/claude-code/bin/claude.exe", &home.join("prefix/bin/claude"));
        let shown =
            [format!("{package}/bin/claude.exe"), format!("{package}/package.json"), "prefix/bin/claude".into()];
        run_claude(&stage, &home, "prefix/bin", &shown.each_ref().map(String::as_str));
    }
}

#[test]
fn a_single_program_behind_its_link() {
    for stage in LAUNCHERS.into_iter().filter_map(Stage::new) {
        let home = furnish(&stage);
        put(&stage.agent, &home.join(".local/share/claude/versions/9.9.9"));
        link("../share/claude/versions/9.9.9", &home.join(".local/bin/claude"));
        run_claude(&stage, &home, ".local/bin", &[".local/share/claude/versions/9.9.9", ".local/bin/claude"]);
    }
}

/// Stands for any agent that is a script: it lists the directory that it is given.
const SCRIPT: &str = "#!/usr/bin/env node
const fs = require('fs'), path = require('path');
function list(at) {
  console.log(at);
  if (fs.lstatSync(at).isDirectory()) fs.readdirSync(at).forEach((name) => list(path.join(at, name)));
}
list(process.argv[2]);
";

#[test]
fn a_script_with_an_interpreter_of_its_own() {
    let Some(node) = need_program("node") else { return };
    for stage in LAUNCHERS.into_iter().filter_map(Stage::new) {
        let home = furnish(&stage);
        let (bin, package) = (".nvm/versions/node/v20/bin", ".nvm/versions/node/v20/lib/node_modules/@x/y");
        put(&node, &home.join(bin).join("node"));
        let script = stage.write(&format!("home/{package}/cli.js"), SCRIPT);
        fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
        link("../lib/node_modules/@x/y/cli.js", &home.join(bin).join("y"));
        let mut command = stage.oubliette();
        command.env("PATH", format!("{}:/usr/bin:/bin", home.join(bin).display()));
        let output = output(command.args(["run", "-q", "--", "y"]).arg(&home));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let shown = [format!("{bin}/node"), format!("{bin}/y"), format!("{package}/cli.js")];
        assert_shown(&String::from_utf8_lossy(&output.stdout), &home, &shown.each_ref().map(String::as_str));
    }
}
