//! Bodies in chunks: they go on part by part, framed anew, and what two servers would read in two ways does not.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};

use super::upstream::{Upstream, http2, plain};
use super::{Service, client, report, somebody};
use crate::stage::output;

const CHUNKS: &str = r#"
line, chunked = "POST /v1/x HTTP/1.1", "Transfer-Encoding: chunked"
smuggled = f"GET /smuggled HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nx-api-key: {KEY}\r\n\r\n".encode()
"#;

#[test]
fn a_body_in_chunks_goes_on_and_nothing_behind_it_is_a_request() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let script = r#"
body = b"2;name=value\r\nhe\r\n0003\r\nllo\r\n0\r\nX-Trailer: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
for more in ["X-More: 1", "Trailer: X-Trailer", "Expect: 100-continue"]:
    connection = connect()
    connection.sendall(head(line, chunked, more) + body + smuggled)
    got = answer(connection)
    say(got.status, got.read().decode(), got.headers["connection"], connection.recv(1))
connection = connect()
connection.sendall(head(line, chunked) + b"0\r\n\r\n")
say(answer(connection).status)
"#;
    let done = service.play(upstream.address, &format!("{CHUNKS}{script}"));
    let report = report(&done);
    assert_eq!(done.out.lines().collect::<Vec<_>>(), [["200 fine close b''"; 3].as_slice(), &["200"]].concat());
    let asked = upstream.asked();
    let bodies: Vec<&[u8]> = asked.iter().map(|one| &one.body[..]).collect();
    assert_eq!(bodies, [&b"hello"[..], b"hello", b"hello", b""], "{asked:?}");
    for one in &asked {
        assert_eq!(one.header("x-api-key"), [&service.token]);
        assert!(one.header("content-length").is_empty() && one.header("trailer").is_empty(), "{one:?}");
    }
    let counted = |name: &str| report["broker"][name].as_u64().unwrap();
    assert_eq!((counted("requests"), counted("failed"), counted("bytes-up")), (4, 0, 15), "{report}");
}

#[test]
fn a_chunk_is_there_before_the_next_is_sent() {
    let Some(service) = Service::new(somebody()) else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let script = r#"
connection = connect()
connection.sendall(head(line, chunked) + b"5\r\nfirst\r\n")
sys.stdin.readline()
connection.sendall(b"5\r\nafter\r\n0\r\n\r\n")
say(answer(connection).status)
"#;
    let mut running = service.start(listener.local_addr().unwrap(), &format!("{CHUNKS}{script}"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut got = Vec::new();
    let mut until = |end: &[u8]| {
        while !got.ends_with(end) {
            let mut part = [0; 4096];
            let length = stream.read(&mut part).unwrap();
            assert!(length > 0, "{}", String::from_utf8_lossy(&got));
            got.extend(&part[..length]);
        }
    };
    until(b"5\r\nfirst\r\n");
    writeln!(running.child.stdin.take().unwrap()).unwrap();
    until(b"5\r\nafter\r\n0\r\n\r\n");
    stream.write_all(&plain("200 OK", "", "")).unwrap();
    assert_eq!(running.line().trim(), "200");
    assert_eq!(report(&running.end())["broker"]["bytes-up"], 10);
}

#[test]
fn an_upstream_with_http_2_gets_a_body_without_chunks() {
    let Some(service) = Service::new(somebody()) else { return };
    let front = http2(service.stage.path());
    let mut command = service.bare();
    command.args(["--upstream", &front.url(), "--ca"]).arg(&front.ca);
    let script = r#"
connection = connect()
connection.sendall(head(line, chunked) + b"5\r\nhello\r\n1\r\n!\r\n0\r\nX-Trailer: 1\r\n\r\n")
say(answer(connection).read().decode())
"#;
    let done = output(client(&mut command, &format!("{CHUNKS}{script}")));
    report(&done);
    assert!(done.out.starts_with("HTTP/2.0 ") && done.out.trim().ends_with(" body=hello!"), "{done:?}");
}

/// Each on a connection of its own, with what it is answered, and a request behind it that nobody may read.
const FORMS: &str = r#"
length, end = "Content-Length: 5", b"0\r\n\r\n"
def coded(*values, line=line):
    return head(line, *[f"Transfer-Encoding:{value}" for value in values])
heads = {
    "length and chunks": head(line, length, chunked),
    "chunks and length": head(line, chunked, length),
    "chunks, a good header, a length of nothing": head(line, chunked, "X-A: 1", "Content-Length: 0"),
    "two codings": coded(" chunked", " chunked"),
    "two codings, one of them another": coded(" chunked", " identity"),
    "the same in a list": coded(" chunked, chunked"),
    "a coding before it": coded(" gzip, chunked"),
    "a coding behind it": coded(" chunked, gzip"),
    "another name": coded(" xchunked"),
    "no name": coded(" "),
    "capitals": coded(" Chunked"),
    "a tab": coded("\tchunked"),
    "two blanks": coded("  chunked"),
    "a blank behind it": coded(" chunked "),
    "a vertical tab": coded(" \vchunked"),
    "quotes": coded(' "chunked"'),
    "a parameter": coded(" chunked;q=1"),
    "a blank behind the name": head(line, "Transfer-Encoding : chunked"),
    "a folded header": coded("\r\n chunked"),
    "HTTP/1.0": coded(" chunked", line="POST /v1/x HTTP/1.0"),
    "GET": coded(" chunked", line="GET /v1/x HTTP/1.1"),
}
good = head(line, chunked)
bodies = {
    "no size": b"\r\n",
    "no digits": b"zz\r\nhello\r\n",
    "a sign": b"+5\r\nhello\r\n",
    "a prefix": b"0x5\r\nhello\r\n",
    "a size of 65 bits": b"10000000000000005\r\nhello\r\n",
    "a blank in it": b"0 5\r\nhello\r\n",
    "a line end without CR": b"5\nhello\r\n",
    "CR alone": b"5\rhello\r\n",
    "an extension with a line end": b"5;a\nb\r\nhello\r\n",
    "a huge extension": b"5;" + b"a" * 20000 + b"\r\nhello\r\n",
    "many extensions": b"1;" + b"a" * 500 + b"\r\nh\r\n" + (b"1;" + b"a" * 500 + b"\r\nh\r\n") * 40,
    "more than its size": b"5\r\nhello!\r\n",
    "no end of the chunk": b"5\r\nhello",
    "huge trailers": b"0\r\n" + b"X-A: " + b"a" * 70000 + b"\r\n\r\n",
    "many trailers": b"0\r\n" + b"X-A: a\r\n" * 200 + b"\r\n",
}
forms = [(name, start + end) for name, start in heads.items()] + [(name, good + body) for name, body in bodies.items()]
for name, request in forms:
    connection = connect()
    try:
        connection.sendall(request + end + smuggled)
        got = answer(connection)
        got.read()
        code, rest = got.status, connection.recv(1)
    except ConnectionError:
        # A connection that is closed with bytes unread is reset, and the answer may be lost with it.
        code, rest = "closed", b""
    say(name, "|", code, "|", len(rest))
say(ask()[0].status)
"#;

#[test]
fn what_two_servers_would_read_in_two_ways_is_not_sent_on() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let done = service.play(upstream.address, &format!("{CHUNKS}{FORMS}"));
    let report = report(&done);
    let all: Vec<&str> = done.out.lines().collect();
    assert_eq!((all.len(), all[36]), (37, "200"), "{done:?}");
    for line in &all[..36] {
        let words: Vec<&str> = line.split('|').map(str::trim).collect();
        assert!(["400", "501", "closed"].contains(&words[1]) && words[2] == "0", "{line}");
    }
    // Of those with a bad head the upstream hears nothing, of the others no end.
    let asked = upstream.asked();
    assert_eq!((asked.len(), &asked[0].body[..]), (1, &b"hello"[..]), "{asked:?}");
    let counted = |name: &str| report["broker"][name].as_u64().unwrap();
    assert_eq!((counted("requests"), counted("failed")), (16, 15), "{report}");
}

#[test]
fn a_body_in_chunks_that_is_too_large_ends_where_it_is() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let script = r#"
connection, sent = connect(), 0
connection.sendall(head(line, chunked))
part = b"1000000\r\n" + b"u" * (16 << 20) + b"\r\n"
try:
    for _ in range(66):
        connection.sendall(part)
        sent += 1
except ConnectionError:
    pass
try:
    say(answer(connection).status)
except ConnectionError:
    say("closed")
say(sent >= 63, ask()[0].status)
"#;
    let done = service.play(upstream.address, &format!("{CHUNKS}{script}"));
    let report = report(&done);
    let all: Vec<&str> = done.out.lines().collect();
    assert!(["413", "closed"].contains(&all[0]) && all[1] == "True 200", "{done:?}");
    let up = report["broker"]["bytes-up"].as_u64().unwrap();
    assert!((1 << 30) - (1 << 20) < up && up <= (1 << 30) + 5, "{up}");
    assert_eq!(upstream.asked().len(), 1);
}
