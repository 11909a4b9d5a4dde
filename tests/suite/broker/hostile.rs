//! What is not sent on: wrong phantoms, requests that two servers would read in two ways, floods.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};

use super::upstream::{Upstream, plain};
use super::{Service, broker, everybody, report, said, somebody};
use crate::stage::{Who, wait_for};

/// The client's answers, each on a line of its own.
fn lines(done: &crate::stage::Done) -> Vec<&str> {
    done.out.lines().collect()
}

#[test]
fn only_the_phantom_of_the_cell_is_worth_anything_and_only_in_its_header() {
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let upstream = Upstream::fine();
        let script = r#"
for key in ["", "x", KEY[:-1], KEY + "0", KEY[:-1] + "!", KEY.upper()]:
    got, text = ask(key=key)
    say(got.status, '"type":"authentication_error"' in text, got.headers["content-type"])
connection = connect()
connection.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
say(answer(connection).status)
say(ask(f"x-api-key: {KEY}")[0].status)
got, text = ask("Authorization: Bearer of another account", "Cookie: session=1", "Connection: x-api-key, x-mine, close",
                "X-Mine: 1", "X-Kept: 1", "Range: bytes=0-1", "Accept-Encoding: gzip")
say(got.status, text)
"#;
        let done = service.play(upstream.address, script);
        let report = report(&done);
        let mut want = vec!["401 True application/json"; 6];
        want.extend(["401", "401", "200 fine"]);
        assert_eq!(lines(&done), want, "{done:?}");
        let asked = upstream.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        let asked = &asked[0];
        assert_eq!(asked.header("x-api-key"), [&service.token]);
        assert_eq!(asked.header("host"), [upstream.address.to_string()]);
        assert_eq!(asked.header("accept-encoding"), ["identity"]);
        assert_eq!(asked.header("x-kept"), ["1"]);
        for gone in ["authorization", "cookie", "connection", "x-mine", "range"] {
            assert!(asked.header(gone).is_empty(), "{gone}: {asked:?}");
        }
        assert_eq!((asked.head.lines().next(), &asked.body[..]), (Some("POST /v1/x HTTP/1.1"), &b"hello"[..]));
        let traffic = &report["broker"];
        let counted = |name: &str| traffic[name].as_u64().unwrap();
        assert_eq!((counted("requests"), counted("refused"), counted("failed")), (1, 8, 0), "{traffic}");
        assert_eq!((counted("bytes-up"), counted("bytes-down")), (5, 4), "{traffic}");
        assert!(counted("first-byte-max") > 0 && counted("first-byte-mean") > 0, "{traffic}");
    }
}

#[test]
fn a_credential_for_another_header_goes_there_with_its_scheme() {
    let token = format!("bearer-{:032x}", rand::random::<u128>());
    let Some(service) = Service::with(somebody(), &token) else { return };
    let upstream = Upstream::fine();
    let script = r#"
say(ask()[0].status)
say(ask(f"authorization: Bearer {KEY}", "x-api-key: mine")[0].status)
say(ask(f"authorization: {KEY}")[0].status)
"#;
    let done = service.play(upstream.address, script);
    assert_eq!(lines(&done), ["401", "200", "401"], "{done:?}");
    let asked = upstream.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), [format!("Bearer {token}")]);
    assert!(asked[0].header("x-api-key").is_empty());
}

/// Requests that must not be sent on, each on a connection of its own, and then two good ones on one.
const FORMS: &str = r#"
length = "Content-Length: 5"
line = "POST /v1/x HTTP/1.1"
smuggled = f"GET /smuggled HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nx-api-key: {KEY}\r\n\r\n".encode()
forms = {
    "two lengths": head(line, length, "Content-Length: 6") + b"hello",
    "the same length twice": head(line, length, length) + b"hello" + smuggled,
    "a list of lengths": head(line, "Content-Length: 5, 5") + b"hello",
    "a signed length": head(line, "Content-Length: +5") + b"hello",
    "a huge length": head(line, "Content-Length: 18446744073709551617") + b"hello",
    "a length too large": head(line, "Content-Length: 1073741825"),
    "a folded header": head(line, "X-A: 1\r\n 2", length) + b"hello",
    "a header without a name": head(line, ": 1", length) + b"hello",
    "a NUL": head(line, "X-A: 1\0", length) + b"hello",
    "a bare CR": head(line, "X-A: 1\rX-B: 2", length) + b"hello",
    "two hosts": head(line, f"Host: {HOST}:{PORT}", length) + b"hello",
    "another host": head(line, length).replace(f"Host: {HOST}".encode(), b"Host: 127.0.0.2") + b"hello",
    "a host with a name before it": head(line, length).replace(b"Host: ", b"Host: a@") + b"hello",
    "no host": head(line, length).replace(b"Host:", b"Hots:") + b"hello",
    "absolute form": head(f"POST http://{HOST}:{PORT}/v1/x HTTP/1.1", length) + b"hello",
    "absolute form elsewhere": head("POST http://169.254.169.254/latest HTTP/1.1", length) + b"hello",
    "authority form": head(f"POST {HOST}:{PORT} HTTP/1.1", length) + b"hello",
    "asterisk form": head("OPTIONS * HTTP/1.1"),
    "no slash": head("POST v1/x HTTP/1.1", length) + b"hello",
    "climbing": head("POST /v1/../x HTTP/1.1", length) + b"hello",
    "climbing in disguise": head("POST /v1/%2e%2E/x HTTP/1.1", length) + b"hello",
    "CONNECT": head("CONNECT example.org:443 HTTP/1.1"),
    "TRACE": head("TRACE / HTTP/1.1"),
    "upgrade": head("GET /ws HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA=="),
    "HTTP/1.0": head("POST /v1/x HTTP/1.0", length) + b"hello",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9,
    "TLS": bytes.fromhex("160301000501000001") + b"\0" * 64,
}
for name, request in forms.items():
    connection = connect()
    try:
        connection.sendall(request)
        got = answer(connection)
        got.read()
        code = got.status
        # The connection is over: what stood behind the request is not a request.
        rest = connection.recv(1)
    except (http.client.HTTPException, ConnectionError) as error:
        code, rest = "closed", b""
    say(name, "|", code, "|", len(rest))
connection = connect()
for request in [head(line, f"Content-Length: {len(smuggled)}") + smuggled, head(line, length) + b"hello"]:
    connection.sendall(request)
    got = answer(connection)
    say("good | ", got.status, got.read())
"#;

#[test]
fn what_two_servers_would_read_in_two_ways_is_not_sent_on() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let done = service.play(upstream.address, FORMS);
    assert_eq!(report(&done)["broker"]["requests"], 2, "{done:?}");
    let all = lines(&done);
    assert_eq!(all.len(), 30, "{done:?}");
    for line in &all[..28] {
        let words: Vec<&str> = line.split('|').map(str::trim).collect();
        let refused = ["400", "405", "413", "421", "505", "closed"].contains(&words[1]);
        assert!(refused && words[2] == "0", "{line}");
    }
    for (name, code) in [
        ("a folded header", "400"),
        ("the same length twice", "400"),
        ("absolute form elsewhere", "421"),
        ("another host", "421"),
        ("two hosts", "400"),
        ("CONNECT", "405"),
        ("upgrade", "400"),
        ("a length too large", "413"),
    ] {
        // A connection that is closed with bytes unread is reset, and the answer may be lost with it.
        let said = |code: &str| all.contains(&format!("{name} | {code} | 0").as_str());
        assert!(said(code) || said("closed"), "{name}: {all:?}");
    }
    assert_eq!(all[28..], ["good |  200 b'fine'", "good |  200 b'fine'"], "{all:?}");
    let asked = upstream.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().all(|one| one.head.starts_with("POST /v1/x HTTP/1.1\r\n")), "{asked:?}");
    assert!(asked[0].body.starts_with(b"GET /smuggled "), "a body is a body");
}

#[test]
fn another_cell_reaches_neither_the_broker_nor_anything_by_its_phantom() {
    for who in everybody() {
        let Some(service) = Service::new(who) else { return };
        let (upstream, other) = (Upstream::fine(), Upstream::fine());
        let mut first =
            service.start(upstream.address, "say(KEY); say(ask()[0].status); import signal; signal.pause()");
        let phantom = first.line().trim().to_owned();
        assert_eq!(first.line().trim(), "200");
        assert!(phantom.starts_with("ph-") && phantom.len() == 3 + 64, "{phantom}");

        // From a cell with a broker of its own: that does not know it.
        let second = service.play(other.address, &format!("say(ask(key={phantom:?})[0].status); say(ask()[0].status)"));
        assert_eq!(lines(&second), ["401", "200"], "{second:?}");
        // From a cell on the host's network, and from the host: nobody listens.
        let mut beside = service.stage.run(who, &[]);
        let open = service.stage.policy(&[], Some("[network]\nmode = \"host\"\nconnect = \"any\"\nbind = \"any\""));
        let connects = "import socket; print(socket.socket().connect_ex(('127.0.0.1', 20080)))";
        let beside = crate::stage::output(beside.arg("--policy").arg(open).args(["--", "python3", "-c", connects]));
        assert_eq!(beside.out.trim(), libc::ECONNREFUSED.to_string(), "{beside:?}");
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 20080)).is_err());
        assert_eq!((upstream.asked().len(), other.asked().len()), (1, 1));

        // And after the run its process is gone, too.
        let pid = broker(&first);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(first.pid()), nix::sys::signal::Signal::SIGTERM).unwrap();
        let done = first.end();
        assert_eq!(said(&done)["outcome"]["signaled"], 15, "{done:?}");
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(service.stage.cells(who).is_empty());
    }
}

#[test]
fn a_redirect_is_the_agents_to_look_at_and_nobody_follows_it() {
    let Some(service) = Service::new(somebody()) else { return };
    let elsewhere = Upstream::fine();
    let location = format!("location: http://{}/take\r\n", elsewhere.address);
    let upstream = Upstream::start(move |asked, stream| {
        let status = if asked.head.contains("/permanent") { "308 Permanent Redirect" } else { "302 Found" };
        stream.write_all(&plain(status, &location, ""))
    });
    let script = r#"
for path in ["/found", "/permanent"]:
    got, _ = ask(line=f"POST {path} HTTP/1.1")
    say(got.status, got.headers["location"])
"#;
    let done = service.play(upstream.address, script);
    let to = format!("http://{}/take", elsewhere.address);
    assert_eq!(lines(&done), [format!("302 {to}"), format!("308 {to}")], "{done:?}");
    assert_eq!((upstream.asked().len(), elsewhere.asked().len()), (2, 0));
}

#[test]
fn an_upstream_that_repeats_the_credential_is_not_heard() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::start(|asked, stream| {
        let token = asked.header("x-api-key")[0].to_owned();
        if asked.head.contains("/encoded") {
            return stream.write_all(&plain("200 OK", "content-encoding: gzip\r\n", &token));
        }
        let (first, second) = token.split_at(10);
        let headers =
            format!("x-echo: <{token}>\r\nset-cookie: a={token}\r\nx-kept: 1\r\ntransfer-encoding: chunked\r\n");
        write!(stream, "HTTP/1.1 401 No\r\n{headers}\r\n")?;
        for part in ["before ", first, second, " after ", &token] {
            write!(stream, "{:x}\r\n{part}\r\n", part.len())?;
        }
        stream.write_all(b"0\r\n\r\n")
    });
    let script = r#"
got, text = ask()
say(got.status, text, dict((k.lower(), v) for k, v in got.getheaders() if k.lower() != "date"))
say(ask(line="GET /encoded HTTP/1.1")[0].status)
"#;
    let done = service.play(upstream.address, script);
    let stars = "*".repeat(service.token.len());
    let want = format!("401 before {stars} after {stars} {{'x-kept': '1', 'transfer-encoding': 'chunked'}}");
    assert_eq!(lines(&done), [&want, "502"], "{done:?}");
    assert!(!done.err.contains(&service.token));
}

#[test]
fn a_head_that_never_ends_or_is_too_large_costs_one_connection() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let script = r#"
slow = connect()
slow.sendall(head()[:-2])
large = connect()
try:
    large.sendall(head("POST /v1/x HTTP/1.1", *[f"X-{n}: {'a' * 1000}" for n in range(100)]))
    say("large", answer(large).status)
except ConnectionError:
    say("large closed")
many = connect()
many.sendall(head("POST /v1/x HTTP/1.1", *[f"X-{n}: a" for n in range(1000)]))
say("many", answer(many).status)
say("good", ask()[0].status)
# It says nothing more, and is closed.
slow.settimeout(60)
say("slow", len(slow.recv(100000).splitlines()))
"#;
    let done = service.play(upstream.address, script);
    assert_eq!(report(&done)["broker"]["requests"], 1);
    let all = lines(&done);
    assert!(["large 431", "large closed"].contains(&all[0]), "{all:?}");
    assert_eq!(all[1..3], ["many 431", "good 200"], "{done:?}");
    assert!(all[3].starts_with("slow "), "{done:?}");
}

#[test]
fn a_flood_of_connections_waits_and_the_next_request_is_answered() {
    let Some(service) = Service::new(somebody()) else { return };
    let upstream = Upstream::fine();
    let script = r#"
flood = [connect() for _ in range(1000)]
say("flood", len(flood))
sys.stdin.readline()
for connection in flood:
    connection.close()
say(ask()[0].status)
"#;
    let mut running = service.start(upstream.address, script);
    assert_eq!(running.line().trim(), "flood 1000");
    let pid = broker(&running);
    let sockets = || {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        })
        .count()
    };
    if service.who == Who::Root {
        // Those that it serves, the one that it has taken up, the listener, the channel.
        let full = wait_for("a broker with all its places taken", || Some(sockets()).filter(|count| *count >= 64));
        assert!(full <= 70, "{full} sockets");
    }
    writeln!(running.child.stdin.take().unwrap()).unwrap();
    assert_eq!(running.line().trim(), "200");
    assert_eq!(report(&running.end())["broker"]["requests"], 1);
}
