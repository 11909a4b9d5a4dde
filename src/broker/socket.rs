//! WebSockets to the upstream (RFC 6455), for agents whose file says that it speaks them: the request and its answer are
//! looked at as all others are, and then bytes pass both ways. No extension and no further protocol is agreed on: what is
//! compressed nobody could look into, and some APIs take a credential for the name of a protocol.
#![forbid(unsafe_code)]

use std::sync::Arc;

use data_encoding::BASE64;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::split;
use tokio::sync::OwnedSemaphorePermit;

use super::body::{LARGEST, TOO_LARGE};
use super::frames::Frames;
use super::gate::{Refusal, only, refuse};
use super::pass::{Answer, Lost, Path, clean_head, cleaned, closing, own_empty};
use super::tally::Direction;
use super::tunnel::{Last, Stop, idle, pump};
use super::usage::Reader;
use super::watched::Seen;

/// The protocol.
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// What `Connection` says of it.
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// The one version of it.
const VERSION: HeaderValue = HeaderValue::from_static("13");

/// What a server adds to the key that it proves to have read (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a request does not.
const EARLY: &str = "something comes behind a request for a WebSocket, before its answer";

/// Why an answer does not pass.
const NONE: &str = "its answer changes to something else than a WebSocket, or to one with extensions";

/// The key of a request that asks for a WebSocket, and for nothing else.
///
/// # Errors
/// It does not, or could be read in two ways.
pub fn asks(head: &Parts, seen: &Seen) -> Result<HeaderValue, Refusal> {
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    let headers = &head.headers;
    let has_body = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT, header::TRAILER];
    if head.method != Method::GET || has_body.iter().any(|name| headers.contains_key(name)) {
        return refuse(BAD, "a request for a WebSocket is a GET without a body");
    }
    if seen.early() {
        return refuse(BAD, EARLY);
    }
    if !only(headers, &header::UPGRADE).is_some_and(|value| is(value, &WEBSOCKET)) || !upgrades(headers) {
        return refuse(BAD, "the broker changes to WebSockets only");
    }
    if only(headers, &header::SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        return refuse(BAD, "the broker knows version 13 of WebSockets");
    }
    match only(headers, &header::SEC_WEBSOCKET_KEY) {
        Some(key) if BASE64.decode(key.as_bytes()).is_ok_and(|key| key.len() == 16) => Ok(key.clone()),
        _ => refuse(BAD, "the key of the WebSocket is none"),
    }
}

fn is(value: &HeaderValue, word: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(word.as_bytes())
}

/// Whether `Connection` says so, and names no header beside: `HTTP2-Settings` would be one.
fn upgrades(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONNECTION).iter().map(|value| value.to_str().unwrap_or("?"));
    let mut words: Vec<String> =
        lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_lowercase()).collect();
    words.sort();
    matches!(words.iter().map(String::as_str).collect::<Vec<_>>()[..], ["upgrade"] | ["keep-alive", "upgrade"])
}

/// What a server answers to a key.
fn accepted(key: &HeaderValue) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(GUID);
    BASE64.encode(&hash.finalize())
}

/// Whether an answer agrees to a WebSocket with this key, and to nothing else.
fn agrees(headers: &HeaderMap, key: &HeaderValue) -> bool {
    let plain = [header::SEC_WEBSOCKET_EXTENSIONS, header::SEC_WEBSOCKET_PROTOCOL, header::TRANSFER_ENCODING];
    only(headers, &header::UPGRADE).is_some_and(|value| is(value, &WEBSOCKET))
        && upgrades(headers)
        && only(headers, &header::SEC_WEBSOCKET_ACCEPT).is_some_and(|value| value == accepted(key).as_str())
        && !plain.iter().any(|name| headers.contains_key(name))
}

/// A request for a WebSocket, whose answer is the last of its connection.
pub async fn answer(
    path: Arc<Path>,
    mut request: Request<Incoming>,
    place: Arc<OwnedSemaphorePermit>,
    seen: &Seen,
) -> Answer {
    let client = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let key = match path.gate.admit_socket(&head, seen) {
        Ok(key) => key,
        Err(refusal) => return path.refused(refusal),
    };
    match send(&path, head, body, &key, seen).await {
        Ok((answer, Some(host))) => {
            tokio::spawn(async move {
                let _place = place;
                match tokio::try_join!(client, host) {
                    Ok((client, host)) => carry(&path, client, host).await,
                    // One side has gone before the other was told.
                    Err(_) => path.tally.model.failed(),
                }
            });
            answer
        }
        Ok((answer, None)) => closing(answer),
        Err(why) => closing(path.lost(&why)),
    }
}

/// The upstream's answer as the agent gets it, and its connection where it agrees.
async fn send(
    path: &Path,
    head: Parts,
    body: Incoming,
    key: &HeaderValue,
    seen: &Seen,
) -> Result<(Answer, Option<OnUpgrade>), Lost> {
    let Some(sockets) = &path.sockets else { return Err(Lost::Unreachable(NONE.into())) };
    let mut answer = path.ask(sockets, head, body, |headers| asking(headers, key)).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let reader = Reader::new(answer.headers(), &path.tally);
        return Ok((cleaned(answer, &path.credential, path.part(), reader).map_err(|_| Lost::Encoded)?, None));
    }
    if !agrees(answer.headers(), key) {
        return Err(Lost::Unreachable(NONE.into()));
    }
    // The upstream hears nothing of it.
    if seen.early() {
        return Err(Lost::Broken(StatusCode::BAD_REQUEST, EARLY.into()));
    }
    let host = hyper::upgrade::on(&mut answer);
    let mut changes = own_empty();
    *changes.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *changes.headers_mut() = std::mem::take(answer.headers_mut());
    clean_head(changes.headers_mut(), &path.credential);
    changes.headers_mut().remove(header::CONTENT_LENGTH);
    changes.headers_mut().insert(header::CONNECTION, UPGRADE);
    changes.headers_mut().insert(header::UPGRADE, WEBSOCKET);
    Ok((changes, Some(host)))
}

/// What the upstream is asked, beside the agent's other headers: no extension, no further protocol.
fn asking(headers: &mut HeaderMap, key: &HeaderValue) {
    for name in [header::SEC_WEBSOCKET_EXTENSIONS, header::SEC_WEBSOCKET_PROTOCOL, header::SEC_WEBSOCKET_ACCEPT] {
        headers.remove(name);
    }
    headers.insert(header::CONNECTION, UPGRADE);
    headers.insert(header::UPGRADE, WEBSOCKET);
    headers.insert(header::SEC_WEBSOCKET_VERSION, VERSION);
    headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
}

/// Carries frames until both sides are done.
async fn carry(path: &Path, client: Upgraded, host: Upgraded) {
    let counters = &path.tally.model;
    let last = Last::default();
    let (client_reads, client_writes) = split(TokioIo::new(client));
    let (host_reads, host_writes) = split(TokioIo::new(host));
    let mut left = LARGEST;
    let up = pump(client_reads, host_writes, &last, |bytes| {
        left = left.checked_sub(bytes.len() as u64).ok_or(Stop::Spent(TOO_LARGE))?;
        counters.passed(Direction::Up, bytes.len() as u64);
        Ok(None)
    });
    let mut frames = Frames::new(path.credential.clone(), &path.tally);
    let down = pump(host_reads, client_writes, &last, |bytes| {
        last.hear();
        counters.passed(Direction::Down, bytes.len() as u64);
        frames.pass(bytes).map(Some).map_err(Stop::Spent)
    });
    let whole = tokio::select! {
        both = async { tokio::try_join!(up, down) } => match both {
            Ok(_) => true,
            Err(Stop::Spent(_)) => false,
            // Many end so when they are done.
            Err(Stop::Lost(_)) => last.heard(),
        },
        () = idle(&last, path.timeout) => false,
    };
    if !whole {
        counters.failed();
    }
}
