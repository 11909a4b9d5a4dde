//! What the pages say about the repository is so.

use std::fmt::Write as _;
use std::fs;

use oubliette::fs::trusted::parse;
use oubliette::policy::Policy;
use oubliette::policy::agents::spec::AgentSpec;
use oubliette::types::class::Class;
use oubliette::types::layer::Layer;

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

/// Every line of text in the picture: it was drawn from the text beside it as that is now.
#[test]
fn the_picture_says_what_its_text_says() {
    let text = page("man/broker.dot");
    let labels = text.split("label=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let mut written: Vec<String> = labels.flat_map(|label| label.split("\\n")).map(str::to_owned).collect();
    let picture = page("man/broker.svg");
    let texts = picture.split("<text ").skip(1).filter_map(|rest| rest.split_once('>')?.1.split('<').next());
    let mut drawn: Vec<String> = texts.map(|text| text.replace("&#39;", "'").replace("&#45;", "-")).collect();
    written.sort();
    drawn.sort();
    assert_eq!(drawn, written, "dot -Tsvg man/broker.dot -o man/broker.svg");
    assert!(page("README.md").contains("](man/broker.svg)"));
}

#[test]
fn the_changelog_knows_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = page("CHANGELOG.md");
    assert!(changelog.contains(&format!("## [{version}]")) || changelog.contains("## [Unreleased]"));
}

/// The keys that a table of a file may have, as its own error names them.
fn keys<T: serde::de::DeserializeOwned>(before: &str) -> Vec<String> {
    let text = format!("{before}\nno-such-key = 1\n");
    let Err(error) = parse::<T>(&text, "x") else { panic!("{text} is taken") };
    let error = error.to_string();
    let known = error.split_once("expected").unwrap_or_else(|| panic!("{text}: {error}")).1;
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_policy_page_lists_every_key_class_and_layer() {
    let page = page("man/oubliette-policy.5").replace("\\-", "-");
    let mut names: Vec<String> = Vec::new();
    names.extend(["", "[limits]", "[network]", "[kernel]", "[files]"].iter().flat_map(|table| keys::<Policy>(table)));
    let tables = [
        "",
        "[credential]",
        "[[credential.way]]",
        "[endpoint.x]",
        "[login]",
        "[environment]",
        "[arguments]",
        "[check]",
        "[settings]\nformat = \"claude\"",
    ];
    names.extend(tables.iter().flat_map(|table| keys::<AgentSpec>(&format!("title = \"x\"\n{table}"))));
    names.extend(Class::ALL.iter().map(|class| class.name().to_owned()));
    names.extend(Layer::ALL.iter().map(|layer| layer.name().to_owned()));
    assert!(names.len() > 80, "{names:?}");
    let listed = |name: &str| {
        let words =
            |line: &str| line.split([' ', '[', ']']).map(|word| word.trim_matches(',').to_owned()).collect::<Vec<_>>();
        let marked = page.lines().filter(|line| line.starts_with(".B") || line.starts_with(".SS"));
        marked.flat_map(words).any(|word| word == name)
    };
    let missing: Vec<&String> = names.iter().filter(|name| !listed(name)).collect();
    assert!(missing.is_empty(), "man/oubliette-policy.5 does not list {missing:?}");
}
