//! Rules of the list of hosts, and a name that somebody asks for: no rule leads to an address, and one that covers a name
//! is for it or for what is below it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oubliette::types::hosts::{HostName, HostRule};
use oubliette_fuzz::{check_name, parts};

fuzz_target!(|data: &[u8]| {
    let [rule, name] = parts(data).map(|part| std::str::from_utf8(part).unwrap_or("\u{0}"));
    let rule = rule.parse::<HostRule>().map_err(check_sentence).ok();
    let name = name.parse::<HostName>().map_err(check_sentence).ok();
    if let Some(name) = &name {
        check_name(name.as_str());
        assert_eq!(name.as_str().parse(), Ok(name.clone()));
    }
    let Some(rule) = rule else { return };
    check_name(rule.name.as_str());
    assert!(rule.port > 0);
    assert_eq!(rule.to_string().parse(), Ok(rule.clone()), "{rule}");
    let Some(name) = name else { return };
    let end = format!(".{}", rule.name);
    let named = if rule.below { name.as_str().ends_with(&end) } else { name == rule.name };
    for port in [80, 443, rule.port, rule.port ^ 1] {
        for plain in [false, true] {
            let covers = rule.covers(plain, &name, port);
            assert_eq!(covers, named && port == rule.port && plain == rule.plain, "{rule}: {name}:{port}");
        }
    }
});

/// It goes to the launcher's terminal.
fn check_sentence(why: String) {
    assert!(!why.contains(char::is_control), "{why:?}");
}
