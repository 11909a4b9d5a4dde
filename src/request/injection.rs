//! `--inject`: a token for one host, which the broker adds to the requests to it and the cell never has.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::types::hosts::HostRule;
use crate::types::network::HeaderName;

/// What an HTTP library needs for itself: a token in one of these would change where a request ends, and not who sent it.
const FRAMING: [&str; 16] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "if-range",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// The host, by its name, and the port.
    pub rule: HostRule,
    /// The header in which the host wants the token.
    pub header: HeaderName,
    /// The file with the header's value.
    pub file: PathBuf,
}

impl Injection {
    /// Reads `HOST[:PORT]=header:NAME:FILE`.
    ///
    /// # Errors
    /// A sentence: which part is none.
    pub fn parse(text: &OsStr) -> Result<Injection, String> {
        let bytes = text.as_bytes();
        let form = || format!("`{}` is not HOST[:PORT]=header:NAME:FILE", text.to_string_lossy().escape_debug());
        let (host, rest) = cut(bytes, b'=').ok_or_else(form)?;
        let rest = rest.strip_prefix(b"header:").ok_or_else(form)?;
        let (name, file) = cut(rest, b':').ok_or_else(form)?;
        let (host, name) = (str::from_utf8(host).map_err(|_| form())?, str::from_utf8(name).map_err(|_| form())?);
        let rule: HostRule = host.parse()?;
        if rule.below || rule.plain {
            return Err(format!("`{host}` is not one host by TLS; write git.example or git.example:8443"));
        }
        let header = HeaderName::try_from(name.to_owned())?;
        if FRAMING.contains(&header.get().as_str()) {
            return Err(format!("the header `{}` is the connection's, and holds no token", header.get()));
        }
        if file.is_empty() {
            return Err(form());
        }
        Ok(Injection { rule, header, file: PathBuf::from(OsStr::from_bytes(file)) })
    }

    /// The host and the header, for people.
    pub fn shown(&self) -> String {
        format!("{}=header:{}", self.rule, self.header.get())
    }

    /// All that were named, where no host is named twice: what covers a token in an answer knows one.
    ///
    /// # Errors
    /// A sentence.
    pub fn all(texts: &[std::ffi::OsString]) -> Result<Vec<Injection>, String> {
        let mut all: Vec<Injection> = Vec::new();
        for text in texts {
            let one = Injection::parse(text)?;
            if all.iter().any(|known| known.rule == one.rule) {
                return Err(format!("{} is named twice", one.rule));
            }
            all.push(one);
        }
        Ok(all)
    }
}

fn cut(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = bytes.iter().position(|&byte| byte == at)?;
    Some((&bytes[..place], &bytes[place + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_injection_is_a_host_a_header_and_a_file() {
        let one = Injection::parse("git.example:8443=header:Private-Token:/run/a=b:c".as_ref()).unwrap();
        assert_eq!(one.rule.to_string(), "git.example:8443");
        assert_eq!(one.header.get(), "private-token");
        assert_eq!(one.file, PathBuf::from("/run/a=b:c"));
        for bad in [
            "",
            "git.example",
            "git.example=",
            "git.example=header:authorization",
            "git.example=header:authorization:",
            "git.example=header::file",
            "git.example=header:a b:file",
            "git.example=cookie:a:file",
            "git.example=header:Host:file",
            "git.example=header:transfer-encoding:file",
            "*.example=header:authorization:file",
            "http://git.example=header:authorization:file",
            "127.0.0.1=header:authorization:file",
        ] {
            assert!(Injection::parse(bad.as_ref()).is_err(), "{bad}");
        }
        let twice = ["a.example=header:x-a:f".into(), "a.example:443=header:x-b:g".into()];
        assert!(Injection::all(&twice).unwrap_err().contains("twice"));
    }
}
