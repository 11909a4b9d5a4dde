//! What is no request for a WebSocket, no answer to one, or no frame that can be looked into.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::super::frames::{accept, agree, write};
use super::super::upstream::{Asked, Front, Upstream, http2, plain};
use super::super::{Service, report, somebody};
use super::{Speaking, echo};
use crate::stage::PATIENCE;

/// Each on a connection of its own, and what it is answered; a request stands behind those that have a body.
const FORMS: &str = r#"
smuggled = f"GET /smuggled HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nx-api-key: {KEY}\r\n\r\n".encode()
connects, upgrades, version, nonce = UPGRADE
forms = {
    "a wrong phantom": dict(key=KEY[:-1] + "!"),
    "no phantom": dict(key=""),
    "another host": dict(lines=[*UPGRADE, "Host: other.example"]),
    "a URL": dict(line="GET http://other.example/ws HTTP/1.1"),
    "climbing": dict(line="GET /v1/../ws HTTP/1.1"),
    "POST": dict(line="POST /ws HTTP/1.1"),
    "HTTP/1.0": dict(line="GET /ws HTTP/1.0"),
    "another protocol": dict(lines=[connects, "Upgrade: h2c", version, nonce]),
    "a second protocol": dict(lines=[connects, "Upgrade: websocket, h2c", version, nonce]),
    "a second line": dict(lines=[*UPGRADE, "Upgrade: h2c"]),
    "the same line twice": dict(lines=[*UPGRADE, upgrades]),
    "a protocol's version": dict(lines=[connects, "Upgrade: websocket/13", version, nonce]),
    "settings of HTTP/2": dict(lines=["Connection: Upgrade, HTTP2-Settings", upgrades, version, nonce], more=["HTTP2-Settings: AA"]),
    "a header of the connection": dict(lines=["Connection: Upgrade, X-Mine", upgrades, version, nonce]),
    "an end of the connection": dict(lines=["Connection: Upgrade, close", upgrades, version, nonce]),
    "no connection": dict(lines=[upgrades, version, nonce]),
    "a connection without it": dict(lines=["Connection: keep-alive", upgrades, version, nonce]),
    "no version": dict(lines=[connects, upgrades, nonce]),
    "another version": dict(lines=[connects, upgrades, "Sec-WebSocket-Version: 8", nonce]),
    "two versions": dict(lines=[*UPGRADE, version]),
    "no key": dict(lines=[connects, upgrades, version]),
    "a short key": dict(lines=[connects, upgrades, version, "Sec-WebSocket-Key: eA=="]),
    "a key of no letters": dict(lines=[connects, upgrades, version, "Sec-WebSocket-Key: " + "!" * 24]),
    "two keys": dict(lines=[*UPGRADE, nonce]),
    "a body": dict(more=["Content-Length: 5"], behind=b"hello"),
    "a length of nothing": dict(more=["Content-Length: 0"]),
    "chunks": dict(more=["Transfer-Encoding: chunked"], behind=b"0\r\n\r\n"),
    "an expectation": dict(more=["Expect: 100-continue"]),
    "a frame at once": dict(behind=frame(0x81, b"early")),
    "a request at once": dict(behind=smuggled),
    "a folded header": dict(lines=[connects, "Upgrade:\r\n websocket", version, nonce]),
}
for name, form in forms.items():
    try:
        connection, status, headers = change(*form.pop("more", []), **form)
        length = int(headers.get("content-length", 0))
        exactly(connection, length)
        say(name, "|", status, "|", over(connection))
    except ConnectionError:
        # A connection that is closed with bytes unread is reset, and the answer may be lost with it.
        say(name, "| closed | 0")
say(change()[1], change(lines=["connection: keep-alive", "Connection: UPGRADE", "UPGRADE: WebSocket", version, nonce])[1])
"#;

#[test]
fn what_is_no_request_for_a_websocket_alone_is_not_sent_on() {
    let upstream = Upstream::start(echo);
    let Some(speaking) = Speaking::new(&upstream) else { return };
    let done = speaking.play(FORMS);
    let report = report(&done);
    let all: Vec<&str> = done.out.lines().collect();
    assert_eq!((all.len(), all[31]), (32, "101 101"), "{done:?}");
    for line in &all[..31] {
        let words: Vec<&str> = line.split('|').map(str::trim).collect();
        let want: &[&str] = match words[0] {
            "a wrong phantom" | "no phantom" => &["401"],
            "another host" => &["400"],
            "a URL" => &["421"],
            "HTTP/1.0" => &["505"],
            _ => &["400", "closed"],
        };
        assert!(want.contains(&words[1]) && words[2] == "0", "{line}: {want:?}");
    }
    assert_eq!(upstream.asked().len(), 2, "{:?}", upstream.asked());
    assert_eq!(report["broker"]["requests"], 2, "{report}");
}

/// An upstream that does not agree, or to something else, or without being asked.
fn strange(asked: &Asked, stream: &mut TcpStream) -> std::io::Result<()> {
    let accept = accept(asked);
    let changes = |lines: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n\r\n").into_bytes();
    let good = format!("connection: upgrade\r\nsec-websocket-accept: {accept}");
    let answer = match asked.head.split(' ').nth(1).unwrap().trim_start_matches("/prefix") {
        "/404" => plain("404 Not Found", "x-kept: 1\r\n", "none here"),
        "/426" => plain("426 Upgrade Required", "upgrade: h2c\r\nconnection: upgrade\r\n", ""),
        "/200" => plain("200 OK", "", &asked.header("x-api-key").concat()),
        "/302" => plain("302 Found", "location: http://127.0.0.1:1/\r\n", ""),
        "/h2c" => changes(&format!("upgrade: h2c\r\n{good}")),
        "/both" => changes(&format!("upgrade: websocket, h2c\r\n{good}")),
        "/twice" => changes(&format!("upgrade: websocket\r\nupgrade: h2c\r\n{good}")),
        "/unsaid" => changes(&format!("upgrade: websocket\r\nsec-websocket-accept: {accept}")),
        "/unproved" => changes("upgrade: websocket\r\nconnection: upgrade"),
        "/wrong" => changes("upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: AAAA"),
        "/deflate" => changes(&format!("upgrade: websocket\r\n{good}\r\nsec-websocket-extensions: permessage-deflate")),
        "/named" => changes(&format!("upgrade: websocket\r\n{good}\r\nsec-websocket-protocol: api")),
        // Nobody asked.
        _ => changes(&format!("upgrade: websocket\r\n{good}")),
    };
    stream.write_all(&answer)
}

#[test]
fn an_upstream_that_does_not_agree_to_a_websocket_makes_none() {
    let upstream = Upstream::start(strange);
    let Some(service) = Service::new(somebody()) else { return };
    let front = Front::loopback(upstream.address, service.stage.path());
    let speaking = Speaking::to(service, front);
    let script = r#"
for path in ["404", "426", "200", "302", "h2c", "both", "twice", "unsaid", "unproved", "wrong", "deflate", "named"]:
    connection, status, headers = change(line=f"GET /{path} HTTP/1.1")
    body = exactly(connection, int(headers["content-length"]))
    kept = [name for name in ("upgrade", "location", "x-kept") if name in headers]
    say(path, status, headers["connection"], kept, body.decode() if status < 500 else b"api_error" in body, over(connection))
say(ask(line="GET /asked-nothing HTTP/1.1")[0].status, ask(line="POST /asked-nothing HTTP/1.1")[0].status)
"#;
    let done = speaking.play(script);
    let report = report(&done);
    let stars = "*".repeat(speaking.service.token.len());
    let mut want = vec![
        "404 404 close ['x-kept'] none here 0".to_owned(),
        "426 426 close []  0".to_owned(),
        format!("200 200 close [] {stars} 0"),
        "302 302 close ['location']  0".to_owned(),
    ];
    let others = ["h2c", "both", "twice", "unsaid", "unproved", "wrong", "deflate", "named"];
    want.extend(others.map(|path| format!("{path} 502 close [] True 0")));
    want.push("502 502".to_owned());
    assert_eq!(done.out.lines().collect::<Vec<_>>(), want, "{done:?}");
    assert_eq!((&report["broker"]["requests"], &report["broker"]["failed"]), (&14.into(), &10.into()), "{report}");
}

#[test]
fn an_upstream_of_http_2_alone_has_no_websockets() {
    let Some(service) = Service::new(somebody()) else { return };
    let front = http2(service.stage.path());
    let speaking = Speaking::to(service, front);
    let done = speaking.play("say(change()[1], ask()[1][:8])");
    report(&done);
    assert_eq!(done.out.trim(), "502 HTTP/2.0", "{done:?}");
}

#[test]
fn frames_that_cannot_be_looked_into_end_the_connection() {
    let bad: [&[u8]; 4] = [b"\xc1\x01x", b"\x81\x81\0\0\0\0x", b"\x83\x01x", b"\x80\x01x"];
    let upstream = Upstream::start(move |asked, stream| {
        let number: usize = asked.head.split(['=', ' ']).nth(2).unwrap().parse().unwrap();
        agree(asked, stream, "")?;
        write(stream, 0x81, b"good")?;
        stream.write_all(bad[number])?;
        // Until the broker has ended it.
        stream.set_read_timeout(Some(PATIENCE))?;
        let ended = stream.read(&mut [0]);
        Err(std::io::Error::other(format!("{ended:?}")))
    });
    let Some(speaking) = Speaking::new(&upstream) else { return };
    let script = r#"
for number in range(4):
    connection, status, _ = change(line=f"GET /?n={number} HTTP/1.1")
    say(status, over(connection) in (0, 6), over(connection))
"#;
    let done = speaking.play(script);
    assert_eq!(done.out.lines().collect::<Vec<_>>(), ["101 True 0"; 4], "{done:?}");
    assert_eq!(report(&done)["broker"]["failed"], 4);
}
