//! Hosts of an egress list: by name, since a name is what a certificate vouches for, and what a request asks for.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// The name of a host: labels of letters, digits and hyphens, in small letters. Never an address, in any of its forms.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub struct HostName(String);

impl HostName {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a name below another.
    fn is_below(&self, parent: &HostName) -> bool {
        self.0.strip_suffix(&parent.0).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl std::fmt::Display for HostName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for HostName {
    type Error = String;

    fn try_from(text: String) -> Result<HostName, String> {
        text.parse()
    }
}

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<HostName, String> {
        let wrong = |why: &str| Err(format!("`{}` {why}", text.escape_debug()));
        if !text.is_ascii() {
            return wrong("is not ASCII; write the name as DNS has it (xn--…)");
        }
        let label = |label: &str| {
            let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
        };
        // inet_aton(3) reads an address in 127.1, 0177.0.0.1, 2130706433 and 0x7f.1. No name ends in a number.
        let last = text.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        let hexadecimal = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.strip_prefix("0x").is_some_and(hexadecimal);
        if text.parse::<IpAddr>().is_ok() || text.starts_with('[') || (!last.is_empty() && number) {
            return wrong("is an address; name the host");
        }
        if text.len() > 253 || !text.split('.').all(label) {
            return wrong("is no name of a host");
        }
        Ok(HostName(text.to_ascii_lowercase()))
    }
}

/// A rule: `host`, `host:port`, `*.host` for all names below it but not itself, `http://host` for plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostRule {
    /// Requests in plain HTTP, and no tunnels.
    pub plain: bool,
    /// Names below this one, and not this one.
    pub below: bool,
    /// The name.
    pub name: HostName,
    /// The port.
    pub port: u16,
}

impl HostRule {
    /// Whether it lets a tunnel, or a request in plain HTTP, through to there.
    pub fn covers(&self, plain: bool, name: &HostName, port: u16) -> bool {
        let named = if self.below { name.is_below(&self.name) } else { *name == self.name };
        named && (plain, port) == (self.plain, self.port)
    }
}

impl FromStr for HostRule {
    type Err = String;

    fn from_str(text: &str) -> Result<HostRule, String> {
        const FORMS: &str = "write api.example, git.example:8443, *.packages.example or http://host.example";
        let wrong = |why: &str| format!("`{}` {why}; {FORMS}", text.escape_debug());
        let (plain, rest) = text.strip_prefix("http://").map_or((false, text), |rest| (true, rest));
        if let Some((scheme, _)) = rest.split_once("://") {
            return Err(wrong(if scheme == "https" {
                "needs no https://"
            } else {
                "has a scheme that no rule is for"
            }));
        }
        if rest.contains(['/', '?', '#', '@']) {
            return Err(wrong("is more than a host and a port"));
        }
        let (below, rest) = rest.strip_prefix("*.").map_or((false, rest), |rest| (true, rest));
        if rest.contains('*') {
            return Err(wrong("has a `*` that is no first label"));
        }
        let (name, port) = match rest.rsplit_once(':') {
            // An address of IPv6 has more than one.
            Some((name, port)) if !name.contains(':') => (name, port.parse().ok().filter(|port| *port > 0)),
            _ => (rest, Some(if plain { 80 } else { 443 })),
        };
        let port = port.ok_or_else(|| wrong("has no port after the colon"))?;
        Ok(HostRule { plain, below, name: name.parse().map_err(|why| format!("{why}; {FORMS}"))?, port })
    }
}

impl std::fmt::Display for HostRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let HostRule { plain, below, name, port } = self;
        let (scheme, usual) = if *plain { ("http://", 80) } else { ("", 443) };
        write!(f, "{scheme}{}{name}", if *below { "*." } else { "" })?;
        if *port == usual { Ok(()) } else { write!(f, ":{port}") }
    }
}

impl TryFrom<String> for HostRule {
    type Error = String;

    fn try_from(text: String) -> Result<HostRule, String> {
        text.parse()
    }
}

impl From<HostRule> for String {
    fn from(rule: HostRule) -> String {
        rule.to_string()
    }
}

/// Hosts whose address the policy says: they are not looked up, and may be on a private network or this machine.
pub(crate) fn pinned<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<HostRule, IpAddr>, D::Error> {
    let all = BTreeMap::<HostRule, IpAddr>::deserialize(from)?;
    let nobody = |address: &IpAddr| {
        let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        address.is_unspecified() || address.is_multicast() || broadcast
    };
    for (rule, address) in &all {
        if rule.below {
            return Err(serde::de::Error::custom(format!("`{rule}` has one address: write each name")));
        }
        if nobody(address) {
            return Err(serde::de::Error::custom(format!("`{address}` of `{rule}` is no host's address")));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_back_as_it_was_meant() {
        for (text, shown) in [
            ("api.example", "api.example"),
            ("API.Example:443", "api.example"),
            ("git.example:8443", "git.example:8443"),
            ("*.packages.example", "*.packages.example"),
            ("http://deb.example", "http://deb.example"),
            ("http://deb.example:80", "http://deb.example"),
            ("http://*.deb.example:8080", "http://*.deb.example:8080"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("intranet", "intranet"),
            ("0x.example", "0x.example"),
        ] {
            assert_eq!(text.parse::<HostRule>().map(|rule| rule.to_string()).as_deref(), Ok(shown));
        }
    }

    #[test]
    fn what_is_no_host_by_name_is_no_rule() {
        for (text, part) in [
            ("", "no name of a host"),
            ("*", "no first label"),
            ("*.", "no name of a host"),
            ("a.*.example", "no first label"),
            ("*example", "no first label"),
            ("127.0.0.1", "is an address"),
            ("127.1", "is an address"),
            ("0177.0.0.1", "is an address"),
            ("2130706433", "is an address"),
            ("0x7f000001", "is an address"),
            ("0X7F.1", "is an address"),
            ("a.0x", "is an address"),
            ("[::1]", "is an address"),
            ("[::1]:443", "is an address"),
            ("::1", "is an address"),
            ("*.10.0.0.1", "is an address"),
            ("bücher.example", "not ASCII"),
            ("a.example.", "no name of a host"),
            (".example", "no name of a host"),
            ("a..example", "no name of a host"),
            ("-a.example", "no name of a host"),
            ("a_b.example", "no name of a host"),
            ("a b.example", "no name of a host"),
            ("a.example:", "no port"),
            ("a.example:0", "no port"),
            ("a.example:65536", "no port"),
            ("a.example:https", "no port"),
            ("https://a.example", "needs no https"),
            ("ftp://a.example", "scheme"),
            ("a@b.example", "more than a host"),
            ("a.example/path", "more than a host"),
            ("http://a.example/", "more than a host"),
        ] {
            let why = text.parse::<HostRule>().expect_err(text);
            assert!(why.contains(part), "{text}: {why}");
        }
        let long = format!("{}.example", "a".repeat(64));
        assert!(long.parse::<HostName>().is_err());
        assert!(vec!["a"; 128].join(".").parse::<HostName>().is_err());
    }

    #[test]
    fn a_rule_covers_its_host_and_port_and_nothing_beside() {
        let covers = |rule: &str, plain: bool, name: &str, port: u16| {
            rule.parse::<HostRule>().unwrap().covers(plain, &name.parse().unwrap(), port)
        };
        assert!(covers("api.example", false, "API.example", 443));
        assert!(!covers("api.example", false, "api.example", 8443));
        assert!(!covers("api.example", true, "api.example", 443), "a tunnel's rule is none for plain HTTP");
        assert!(!covers("http://api.example:443", false, "api.example", 443));
        assert!(!covers("api.example", false, "x.api.example", 443));
        assert!(covers("*.api.example", false, "x.api.example", 443));
        assert!(covers("*.api.example", false, "x.y.api.example", 443));
        assert!(!covers("*.api.example", false, "api.example", 443));
        assert!(!covers("*.api.example", false, "xapi.example", 443));
        assert!(!covers("*.api.example", false, "x.api.example.evil", 443));
    }
}
