//! What the pages say about the repository is so.

use std::fmt::Write as _;
use std::fs;

use crate::need::root;

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_link_to_a_file_leads_somewhere() {
    let mut wrong = String::new();
    for name in ["README.md", "SECURITY.md", "CHANGELOG.md"] {
        for link in page(name).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") && !root().join(file).exists() {
                let _ = writeln!(wrong, "{name}: {file}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_readme_has_the_two_commands_and_ci_runs_the_second() {
    let readme = page("README.md");
    let commands: Vec<&str> = readme.lines().filter(|line| line.starts_with("cargo ")).collect();
    assert!(commands[0].starts_with("cargo run "), "{commands:?}");
    assert!(commands[1].starts_with("cargo test"), "{commands:?}");
    assert!(page(".ci/run").contains(commands[1]), "`{}` is not in .ci/run", commands[1]);
}

#[test]
fn the_changelog_knows_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = page("CHANGELOG.md");
    assert!(changelog.contains(&format!("## [{version}]")) || changelog.contains("## [Unreleased]"));
}
