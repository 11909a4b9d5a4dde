//! What a cell sends to its broker, as far as heads go. hyper reads them as it does there; httparse alone, on the first,
//! says what was written. Nothing passes that the two could read differently.
#![no_main]

use std::convert::Infallible;
use std::sync::{Arc, LazyLock, Mutex};

use http::request::Parts;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use oubliette::broker::gate::{Gate, framing, is_last};
use oubliette::broker::proxy::target;
use oubliette::broker::watched::{Seen, Watched};
use oubliette::secret::Secret;
use oubliette_fuzz::check_name;
use tokio::io::{join, sink};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));

static GATE: LazyLock<Gate> = LazyLock::new(|| Gate {
    authority: "127.0.0.1:20080".into(),
    header: header::AUTHORIZATION,
    scheme: "Bearer ".into(),
    phantom: Arc::new(Secret::phantom("p-").expect("random bytes")),
});

/// Stands in an input for the phantom.
const PHANTOM: &[u8] = b"PHANTOM";

/// What the broker made of a request.
struct Read {
    head: Parts,
    framing: bool,
    admitted: bool,
    socket: bool,
    body: Option<usize>,
}

fuzz_target!(|data: &[u8]| {
    let data = with_phantom(data);
    let all = read(&data);
    for (number, read) in all.iter().enumerate() {
        check_target(&read.head);
        if read.admitted || read.socket {
            check_admitted(&read.head);
        }
        assert!(number + 1 == all.len() || !is_last(&read.head.headers), "a request behind a body in chunks");
    }
    if let Some(first) = all.first().filter(|read| read.framing || read.socket) {
        check_first(&data, first);
    }
});

fn with_phantom(data: &[u8]) -> Vec<u8> {
    let Some(at) = data.windows(PHANTOM.len()).position(|word| word == PHANTOM) else { return data.to_vec() };
    [&data[..at], GATE.phantom.expose(), &data[at + PHANTOM.len()..]].concat()
}

/// Every request that hyper reads, as long as the broker would go on with the connection.
fn read(data: &[u8]) -> Vec<Read> {
    let (all, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::<Seen>::default());
    let stream = TokioIo::new(Watched::new(join(data, sink()), seen.clone()));
    let list = all.clone();
    let answer = service_fn(move |request: Request<Incoming>| {
        let (list, seen) = (list.clone(), seen.clone());
        async move {
            let (head, body) = request.into_parts();
            let framing = framing(&head, &seen).is_ok();
            let admitted = GATE.admit(&head, &seen).is_ok();
            let socket = GATE.admit_socket(&head, &seen).is_ok();
            let close = !framing || is_last(&head.headers);
            let body = if framing { body.collect().await.ok().map(|body| body.to_bytes().len()) } else { None };
            list.lock().expect("one thread").push(Read { head, framing, admitted, socket, body });
            let mut answer = Response::new(Empty::<&[u8]>::new());
            if close {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let _ = RUNTIME.block_on(Builder::new().max_buf_size(64 << 10).max_headers(128).serve_connection(stream, answer));
    std::mem::take(&mut *all.lock().expect("one thread"))
}

/// A proxy goes to a name and a port, and `Host` says the same.
fn check_target(head: &Parts) {
    for plain in [false, true] {
        let Ok((name, port)) = target(head, plain, &Seen::default()) else { continue };
        check_name(name.as_str());
        assert!(port > 0);
        for host in head.headers.get_all(header::HOST) {
            let host = host.to_str().expect("a name").to_ascii_lowercase();
            assert_eq!(host.split(':').next(), Some(name.as_str()), "{head:?}");
        }
    }
}

fn check_admitted(head: &Parts) {
    let hosts: Vec<&HeaderValue> = head.headers.get_all(header::HOST).iter().collect();
    assert_eq!(hosts, ["127.0.0.1:20080"]);
    assert!(head.uri.authority().is_none() && head.uri.path().starts_with('/'), "{}", head.uri);
    assert!(!head.uri.path().split('/').any(|part| part == ".."), "{}", head.uri);
    let sent = head.headers.get_all(header::AUTHORIZATION).iter().collect::<Vec<_>>();
    assert!(sent.len() == 1 && sent[0].as_bytes().ends_with(GATE.phantom.expose()));
}

/// What was written has one length, and the body is as long as that.
fn check_first(data: &[u8], first: &Read) {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = request.parse(data) else { panic!("hyper reads what nobody wrote") };
    let all = |name: &str| {
        let named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.to_owned()).collect::<Vec<_>>()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    match (&lengths[..], &codings[..]) {
        ([], []) => assert!(first.body.is_none_or(|body| body == 0)),
        ([text], []) => {
            let size: usize = std::str::from_utf8(text).expect("digits").parse().expect("a number");
            assert!(first.body.is_none_or(|body| body == size && length + size <= data.len()));
        }
        ([], [coding]) => {
            assert_eq!(coding, b"chunked");
            assert!(!first.socket && first.head.method != http::Method::GET);
        }
        both => panic!("told in two ways: {both:?}"),
    }
    if first.socket {
        assert!(lengths.is_empty() && !first.framing);
        assert_eq!(all("upgrade").len(), 1);
        assert!(all("upgrade")[0].eq_ignore_ascii_case(b"websocket") && all("sec-websocket-key").len() == 1);
    } else {
        assert!(all("upgrade").is_empty());
    }
}
