//! A policy: Codex's and Gemini CLI's settings for it read back, and hold everything that it denies.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oubliette::policy::agent::Settings;
use oubliette::policy::files::{Library, parse};
use oubliette::policy::{Policy, codex, gemini};
use oubliette_fuzz::{check_codex, check_gemini};

static CODEX: LazyLock<codex::Template> = LazyLock::new(|| match settings("codex") {
    Some(Settings::Codex(template)) => template,
    _ => unreachable!("it has settings"),
});

static GEMINI: LazyLock<gemini::Template> = LazyLock::new(|| match settings("gemini") {
    Some(Settings::Gemini(template)) => template,
    _ => unreachable!("it has settings"),
});

fn settings(agent: &str) -> Option<Settings> {
    Library::new(None).agent(agent).expect("an agent").value.settings
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(policy) = parse::<Policy>(text, "p.toml") else { return };
    check_codex(&CODEX, &policy);
    check_gemini(&GEMINI, &policy);
});
