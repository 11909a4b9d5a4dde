//! What a request must be to be sent on. Nothing is repaired: what two programs could read in two ways is refused, and
//! its connection closed.
#![forbid(unsafe_code)]

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use subtle::ConstantTimeEq;

use super::body::{LARGEST, TOO_LARGE};
use super::socket;
use super::watched::Seen;
use crate::secret::Secret;

/// Who may pass.
#[derive(Debug)]
pub struct Gate {
    /// `127.0.0.1:PORT`: what the agent connects to is what it must ask for.
    pub authority: String,
    /// The header with the phantom.
    pub header: HeaderName,
    /// What comes before the phantom in it, with a space, or nothing.
    pub scheme: String,
    /// The phantom.
    pub phantom: Arc<Secret>,
}

/// Why a request is not sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// The kind of error, in the words of the Messages API.
    pub kind: &'static str,
    /// For people.
    pub message: &'static str,
}

/// A sentence with its status.
///
/// # Errors
/// Always.
pub const fn refuse<T>(status: StatusCode, message: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, kind: "invalid_request_error", message })
}

/// Methods that are sent on. CONNECT would make a tunnel, TRACE would send the credential back.
pub const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

impl Gate {
    /// Lets a request pass, or says why not.
    pub fn admit(&self, head: &Parts, seen: &Seen) -> Result<(), Refusal> {
        self.form(head)?;
        framing(head, seen)?;
        self.phantom(&head.headers)
    }

    /// Lets a request for a WebSocket pass, and gives its key.
    pub fn admit_socket(&self, head: &Parts, seen: &Seen) -> Result<HeaderValue, Refusal> {
        self.form(head)?;
        let key = socket::asks(head, seen)?;
        self.phantom(&head.headers).map(|()| key)
    }

    /// Origin form and the listener's own name: anything else asks for another host or a proxy.
    fn form(&self, head: &Parts) -> Result<(), Refusal> {
        if !METHODS.contains(&head.method) {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "the broker does not send this method on");
        }
        if head.version != Version::HTTP_11 {
            return refuse(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "the broker speaks HTTP/1.1");
        }
        if head.uri.scheme().is_some() || head.uri.authority().is_some() {
            return refuse(StatusCode::MISDIRECTED_REQUEST, "the broker is no proxy here: no host is on the list");
        }
        if !head.uri.path().starts_with('/') || climbs(head.uri.path()) {
            return refuse(StatusCode::BAD_REQUEST, "the path of the request is none, or climbs");
        }
        match only(&head.headers, &header::HOST) {
            Some(host) if host.as_bytes().eq_ignore_ascii_case(self.authority.as_bytes()) => Ok(()),
            Some(_) => refuse(StatusCode::MISDIRECTED_REQUEST, "the broker answers to its own address only"),
            None => refuse(StatusCode::BAD_REQUEST, "the request has not exactly one host"),
        }
    }

    fn phantom(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let sent = only(headers, &self.header).map(HeaderValue::as_bytes).unwrap_or_default();
        let scheme = self.scheme.as_bytes();
        let fits = sent.len() >= scheme.len() && sent[..scheme.len()].eq_ignore_ascii_case(scheme);
        let token = if fits { &sent[scheme.len()..] } else { &[] };
        if bool::from(token.ct_eq(self.phantom.expose())) {
            return Ok(());
        }
        Err(Refusal {
            status: StatusCode::UNAUTHORIZED,
            kind: "authentication_error",
            message: "the request does not carry what this cell was given",
        })
    }
}

/// How long the body is, told in one way: by a length, or in chunks. The host gets the request framed anew, so that nobody
/// behind the broker reads another length.
pub fn framing(head: &Parts, seen: &Seen) -> Result<(), Refusal> {
    let headers = &head.headers;
    if seen.two_lengths() {
        return refuse(StatusCode::BAD_REQUEST, "the length of the body is told in two ways, or in an odd one");
    }
    match headers.get_all(header::TRANSFER_ENCODING).iter().collect::<Vec<_>>()[..] {
        [] => {}
        // The library sends nothing on of a body that these have in chunks.
        [_] if matches!(head.method, Method::GET | Method::HEAD) => {
            return refuse(StatusCode::BAD_REQUEST, "a request of this method has no body in chunks");
        }
        [coding] if coding == "chunked" => {}
        _ => return refuse(StatusCode::NOT_IMPLEMENTED, "the broker knows one transfer coding, chunked"),
    }
    if headers.contains_key(header::UPGRADE) {
        return refuse(StatusCode::BAD_REQUEST, "the broker does not change protocols");
    }
    if headers.get_all(header::EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return refuse(StatusCode::EXPECTATION_FAILED, "the broker knows 100-continue only");
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().map(|value| value.to_str().ok().and_then(|text| text.parse::<u64>().ok()));
    match (length, lengths.next()) {
        (_, Some(_)) | (Some(None), _) => refuse(StatusCode::BAD_REQUEST, "the length of the body is not clear"),
        (Some(Some(length)), None) if length > LARGEST => {
            Err(Refusal { status: StatusCode::PAYLOAD_TOO_LARGE, kind: "request_too_large", message: TOO_LARGE })
        }
        _ => Ok(()),
    }
}

/// Whether nothing behind a request is read as another: a body in chunks has ended where the broker says so, and a client
/// that reads its end elsewhere has to begin anew.
pub fn is_last(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
}

/// The header, where it is there once.
pub fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether a path has a part that stands for the same or the higher directory, as any server may read it: the upstream
/// may be a path of a host.
pub fn climbs(path: &str) -> bool {
    let plain =
        path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    plain.split('/').any(|part| part == "." || part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(scheme: &str) -> Gate {
        Gate {
            authority: "127.0.0.1:20080".into(),
            header: header::AUTHORIZATION,
            scheme: scheme.into(),
            phantom: Arc::new(Secret::phantom("p-").unwrap()),
        }
    }

    fn status(gate: &Gate, change: impl FnOnce(http::request::Builder) -> http::request::Builder) -> u16 {
        let word = String::from_utf8(gate.phantom.expose().to_vec()).unwrap();
        let request = http::Request::post("/v1/messages")
            .header("host", "127.0.0.1:20080")
            .header("authorization", format!("{}{word}", gate.scheme));
        let head = change(request).body(()).unwrap().into_parts().0;
        gate.admit(&head, &Seen::default()).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_what_can_be_read_in_one_way_passes() {
        for scheme in ["", "Bearer "] {
            let gate = gate(scheme);
            assert_eq!(status(&gate, |request| request), 200);
            assert_eq!(status(&gate, |request| request.header("content-length", "5")), 200);
            assert_eq!(status(&gate, |request| request.header("transfer-encoding", "chunked")), 200);
            assert_eq!(status(&gate, |request| request.uri("/v1/a.b/..c?x=../..")), 200);
            for (name, value, want) in [
                ("host", "127.0.0.1:20080", 400),
                ("transfer-encoding", "identity", 501),
                ("transfer-encoding", "Chunked", 501),
                ("transfer-encoding", "chunked, chunked", 501),
                ("transfer-encoding", "gzip, chunked", 501),
                ("upgrade", "websocket", 400),
                ("expect", "a miracle", 417),
                ("content-length", "1, 1", 400),
                ("content-length", "-1", 400),
                ("content-length", "1073741825", 413),
                ("authorization", "Bearer x", 401),
            ] {
                assert_eq!(status(&gate, |request| request.header(name, value)), want, "{name}: {value}");
            }
            for (uri, want) in [
                ("http://127.0.0.1:20080/v1/messages", 421),
                ("http://example.org/", 421),
                ("127.0.0.1:20080", 421),
                ("*", 400),
                ("/a/../b", 400),
                ("/a/%2E%2e/b", 400),
                ("/a/..%2fb", 400),
                ("/a/..%5Cb", 400),
                ("/.", 400),
            ] {
                assert_eq!(status(&gate, |request| request.uri(uri)), want, "{uri}");
            }
            for method in ["CONNECT", "TRACE", "BREW"] {
                assert_eq!(status(&gate, |request| request.method(method)), 405, "{method}");
            }
            assert_eq!(status(&gate, |request| request.version(Version::HTTP_10)), 505);
            for method in ["GET", "HEAD"] {
                let chunks =
                    |request: http::request::Builder| request.method(method).header("transfer-encoding", "chunked");
                assert_eq!(status(&gate, chunks), 400, "{method}");
            }
            let twice = |request: http::request::Builder| {
                request.header("transfer-encoding", "chunked").header("transfer-encoding", "chunked")
            };
            assert_eq!(status(&gate, twice), 501);
        }
    }

    #[test]
    fn only_the_whole_phantom_passes() {
        let gate = gate("Bearer ");
        let word = String::from_utf8(gate.phantom.expose().to_vec()).unwrap();
        let sent = |value: &str| {
            let request = http::Request::get("/").header("host", "127.0.0.1:20080").header("authorization", value);
            gate.admit(&request.body(()).unwrap().into_parts().0, &Seen::default()).is_ok()
        };
        assert!(sent(&format!("Bearer {word}")) && sent(&format!("bearer {word}")));
        let wrong =
            ["", "Bearer ", "Bearer", &word, &word[1..], &format!("Bearer {}", &word[1..]), &format!("Bearer {word}x")];
        assert!(!wrong.into_iter().any(sent));
    }
}
