//! What a name must never be: an address, in any form that somebody reads as one.

use std::net::IpAddr;

/// Whether inet_aton(3) reads an address in it: one to four numbers, each decimal, octal or hexadecimal.
fn aton(text: &str) -> bool {
    let number = |part: &str| {
        let (digits, radix) = match part.strip_prefix("0x").or(part.strip_prefix("0X")) {
            Some("") => return Some(0),
            Some(digits) => (digits, 16),
            None if part.len() > 1 && part.starts_with('0') => (&part[1..], 8),
            None => (part, 10),
        };
        let plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
        plain.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
    };
    let parts: Vec<&str> = text.split('.').collect();
    let Some((last, first)) = parts.split_last().filter(|_| parts.len() <= 4) else { return false };
    let whole = 8 * (4 - first.len() as u32);
    first.iter().all(|part| number(part).is_some_and(|number| number < 256))
        && number(last).is_some_and(|number| number < 1 << whole)
}

/// A name that was taken is one of DNS, in small letters, and nobody reads an address in it.
pub fn check_name(name: &str) {
    assert!(!name.is_empty() && name.len() <= 253, "{name:?}");
    assert!(name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')), "{name:?}");
    assert!(name.split('.').all(|label| (1..=63).contains(&label.len())), "{name:?}");
    assert!(name.parse::<IpAddr>().is_err() && !aton(name), "{name:?} is an address");
    // What the URLs of browsers take for one (WHATWG, "ends in a number checker").
    let last = name.rsplit('.').next().unwrap_or_default();
    assert!(!last.bytes().all(|byte| byte.is_ascii_digit()), "{name:?} ends in a number");
}
