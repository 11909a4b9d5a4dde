//! A policy on any host: the plan claims nothing that is not there, and shows and allows nothing that was not asked for.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oubliette::fs::trusted::parse;
use oubliette::policy::Policy;
use oubliette::policy::agents::spec::AgentSpec;
use oubliette::policy::library::Library;
use oubliette_fuzz::{check_plan, host, requests, split};

static AGENTS: LazyLock<Vec<AgentSpec>> = LazyLock::new(|| {
    let library = Library::new(None);
    library.agents().iter().map(|name| library.agent(name).expect("an agent").value).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((text, mut choices)) = split(data) else { return };
    let Ok(policy) = parse::<Policy>(text, "p.toml") else { return };
    let request = &requests()[choices.below(requests().len())];
    let agent = &AGENTS[choices.below(AGENTS.len())];
    check_plan(request, &policy, agent, &host(&mut choices, &policy, request));
});
