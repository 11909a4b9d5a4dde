//! Values of a request that have a form of their own.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The base URL of a model API: `http` or `https`, a host, perhaps a port and a path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upstream {
    /// As the agent gets it.
    pub url: String,
    /// The port that it connects to.
    pub port: u16,
}

/// UIDs that root lends to runs, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct UidRange {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
}

impl std::str::FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Upstream, String> {
        let wrong =
            |what: &str| Err(format!("`{}` {what}; write http://HOST[:PORT][/PATH] or https://…", text.escape_debug()));
        let (rest, default) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (rest, 443),
            (_, Some(rest)) => (rest, 80),
            _ => return wrong("is neither http nor https"),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            // It would be a credential in the agent's environment, and is none for a message either.
            return Err(
                "it holds a name or password; leave that out and name a credential with --credential-file".into()
            );
        }
        if authority.is_empty() || text.contains(char::is_whitespace) || text.contains(char::is_control) {
            return wrong("has no plain host");
        }
        let after_host = authority.rfind(']').map_or(authority, |end| &authority[end..]);
        let port = match after_host.rsplit_once(':') {
            None => default,
            Some((_, digits)) => match digits.parse() {
                Ok(port) if port > 0 => port,
                _ => return wrong("has no port after the colon"),
            },
        };
        Ok(Upstream { url: text.to_owned(), port })
    }
}

impl TryFrom<String> for Upstream {
    type Error = String;

    fn try_from(text: String) -> Result<Upstream, String> {
        text.parse()
    }
}

impl std::convert::From<Upstream> for String {
    fn from(upstream: Upstream) -> String {
        upstream.url
    }
}

impl std::str::FromStr for UidRange {
    type Err = String;

    fn from_str(text: &str) -> Result<UidRange, String> {
        let numbers = text.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        let (first, last) = numbers.ok_or_else(|| format!("`{}` is not FIRST-LAST", text.escape_debug()))?;
        UidRange::new(first, last)
    }
}

impl UidRange {
    /// # Errors
    /// UIDs that no run may have: 0 to 999 are the system's; 65534 is nobody's, and whoever has it shares it; the last
    /// number of all means «unchanged».
    pub fn new(first: u32, last: u32) -> Result<UidRange, String> {
        let range = UidRange { first, last };
        if first < 1000 || last < first || last == u32::MAX || (first..=last).contains(&65534) {
            return Err(format!("`{range}` must rise, start from 1000 on and leave out 65534 (nobody)"));
        }
        Ok(range)
    }
}

impl std::fmt::Display for UidRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_urls_with_a_plain_host() {
        let port = |text: &str| text.parse::<Upstream>().map(|u| u.port).ok();
        assert_eq!(port("https://api.example"), Some(443));
        assert_eq!(port("http://127.0.0.1:8080/v1"), Some(8080));
        assert_eq!(port("http://[::1]:99"), Some(99));
        assert_eq!(port("http://[::1]"), Some(80));
        for bad in ["ftp://x", "https://", "https://a:b@c", "http://a:x", "http://a b", "http://a:0"] {
            assert_eq!(port(bad), None, "{bad}");
        }
    }

    #[test]
    fn uid_ranges_stay_clear_of_people_and_nobody() {
        for bad in ["", "1", "5-2", "0-10", "60000-70000", "10-4294967295", "a-b"] {
            assert!(bad.parse::<UidRange>().is_err(), "{bad}");
        }
        assert_eq!("2000-2001".parse(), Ok(UidRange { first: 2000, last: 2001 }));
    }
}
