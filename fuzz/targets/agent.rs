//! An agent file, with every level: what it puts into arguments, variables, file names and settings.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oubliette::fs::trusted::parse;
use oubliette::policy::Policy;
use oubliette::policy::agents::spec::AgentSpec;
use oubliette::policy::library::Library;
use oubliette_fuzz::{check_error, check_plan, check_rendered, host, requests, split};

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
        agent.settings.iter().for_each(|settings| check_rendered(settings, policy));
    }
    for name in agent.environment.set.keys().chain(&agent.environment.base_url) {
        assert!(agent.steers(name), "--setenv may replace {name}");
    }
    let request = &requests()[choices.below(requests().len())];
    let policy = &LEVELS[choices.below(LEVELS.len())];
    check_plan(request, policy, &agent, &host(&mut choices, policy, request));
});
