//! An agent file, with every level: what it puts into arguments, variables, file names and settings.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oubliette::policy::Policy;
use oubliette::policy::agent::{AgentSpec, Settings};
use oubliette::policy::files::{Library, parse};
use oubliette_fuzz::{check_codex, check_error, check_gemini, check_plan, check_settings, host, requests, split};

static LEVELS: LazyLock<Vec<Policy>> = LazyLock::new(|| {
    let library = Library::new(None);
    library.levels().iter().map(|name| library.level(name).expect("a level").value).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((text, mut choices)) = split(data) else { return };
    let agent = match parse::<AgentSpec>(text, "a.toml") {
        Ok(agent) => agent,
        Err(error) => return check_error(&error, "a.toml"),
    };
    for policy in LEVELS.iter() {
        match &agent.settings {
            Some(Settings::Claude(template)) => check_settings(template, policy),
            Some(Settings::Codex(template)) => check_codex(template, policy),
            Some(Settings::Gemini(template)) => check_gemini(template, policy),
            None => {}
        }
    }
    for name in agent.environment.set.keys().chain(&agent.environment.base_url) {
        assert!(agent.steers(name), "--setenv may replace {name}");
    }
    let request = &requests()[choices.below(requests().len())];
    let policy = &LEVELS[choices.below(LEVELS.len())];
    check_plan(request, policy, &agent, &host(&mut choices, policy, request));
});
