//! A policy: what is read is written and read again as the same, and its settings hold.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oubliette::fs::trusted::parse;
use oubliette::policy::Policy;
use oubliette::policy::agents::claude::Template;
use oubliette::policy::agents::spec::Settings;
use oubliette::policy::library::Library;
use oubliette_fuzz::{check_error, check_settings};

static TEMPLATE: LazyLock<Template> = LazyLock::new(|| {
    let Some(Settings::Claude(template)) = Library::new(None).agent("claude").expect("an agent").value.settings else {
        unreachable!("it has settings")
    };
    template
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let policy = match parse::<Policy>(text, "p.toml") {
        Ok(policy) => policy,
        Err(error) => return check_error(&error, "p.toml"),
    };
    let written = serde_json::to_string(&policy).expect("a policy as JSON");
    let again: Policy = serde_json::from_str(&written).unwrap_or_else(|error| panic!("{error}: {written}"));
    assert_eq!(again, policy, "{written}");
    check_settings(&TEMPLATE, &policy);
});
