//! A policy: every agent's settings for it read back, and hold everything that it denies.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oubliette::fs::trusted::parse;
use oubliette::policy::Policy;
use oubliette::policy::agents::spec::Settings;
use oubliette::policy::library::Library;
use oubliette_fuzz::check_rendered;

static AGENTS: LazyLock<Vec<Settings>> = LazyLock::new(|| {
    let library = Library::new(None);
    let named = library.agents().into_iter().map(|name| library.agent(&name).expect("an agent").value);
    named.filter_map(|agent| agent.settings).collect()
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(policy) = parse::<Policy>(text, "p.toml") else { return };
    AGENTS.iter().for_each(|settings| check_rendered(settings, &policy));
});
