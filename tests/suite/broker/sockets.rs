//! WebSockets to an upstream: the request and its answer are looked at as all others are, and then frames go both ways.

mod refused; // what is no request for one, no answer to it, or no frame

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use super::frames::{agree, read, write};
use super::upstream::{Asked, Front, Upstream};
use super::{AGENT, Service, broker, client, report, said, somebody};
use crate::stage::{Done, PATIENCE, Running, output};

/// What each client's script begins with.
const SOCKETS: &str = r#"
import base64, hashlib, struct, time
NONCE = base64.b64encode(os.urandom(16)).decode()
UPGRADE = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {NONCE}"]
ACCEPT = base64.b64encode(hashlib.sha1((NONCE + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()

def change(*more, line="GET /v1/x?y=1 HTTP/1.1", key=None, lines=UPGRADE, behind=b""):
    """A request to change; the status, and the headers in small letters."""
    connection = connect()
    connection.sendall(head(line, *lines, *more, key=key) + behind)
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionResetError()
        got += byte
    first, *rest = got.decode().strip().split("\r\n")
    pairs = [line.split(":", 1) for line in rest]
    return connection, int(first.split(" ")[1]), {name.lower(): value.strip() for name, value in pairs}

def frame(first, payload, mask=b"\x01\x02\x03\x04"):
    size = len(payload)
    if size < 126: length = bytes([0x80 | size])
    elif size < 65536: length = b"\xfe" + struct.pack(">H", size)
    else: length = b"\xff" + struct.pack(">Q", size)
    word = int.from_bytes(mask * (size // 4 + 1), "big") >> 8 * (4 - size % 4)
    return bytes([first]) + length + mask + (int.from_bytes(payload, "big") ^ word).to_bytes(size, "big")

def exactly(connection, size):
    got = b""
    while len(got) < size:
        part = connection.recv(size - len(got))
        if not part:
            raise ConnectionResetError()
        got += part
    return got

def receive(connection):
    first, size = exactly(connection, 2)
    if size == 126: size, = struct.unpack(">H", exactly(connection, 2))
    elif size == 127: size, = struct.unpack(">Q", exactly(connection, 8))
    return hex(first), exactly(connection, size)

def over(connection):
    """How it ends: with so many bytes."""
    try:
        return len(connection.recv(1000))
    except ConnectionError:
        return 0
"#;

/// A service whose agent has an upstream that speaks WebSocket.
struct Speaking {
    service: Service,
    front: Front,
}

impl Speaking {
    fn new(upstream: &Upstream) -> Option<Speaking> {
        let service = Service::new(somebody())?;
        let front = Front::choosing(upstream.address, service.stage.path());
        Some(Speaking::to(service, front))
    }

    fn to(service: Service, front: Front) -> Speaking {
        let agent = format!("{AGENT}upstream = \"{}/prefix\"\nwebsocket = true\n", front.url());
        std::fs::write(service.policies.join("agents/client.toml"), agent).unwrap();
        Speaking { service, front }
    }

    fn command(&self) -> Command {
        let mut command = self.service.bare();
        command.arg("--ca").arg(&self.front.ca);
        command
    }

    /// The same with a line for the network of the level, for so long.
    fn with(&self, line: &str, timeout: &str) -> Command {
        let Service { stage, who, policies, file, .. } = &self.service;
        let mut command = stage.run(*who, &[]);
        command.args(["--quiet", "--agent", "client", "--timeout", timeout, "--report-fd", "2", "--policy-dir"]);
        command.arg(policies).arg("--policy").arg(self.service.network(line)).arg("--credential-file").arg(file);
        command.arg("--ca").arg(&self.front.ca);
        command
    }

    fn explained(&self, more: &[&str]) -> String {
        let Service { stage, who, policies, file, .. } = &self.service;
        let mut command = stage.command(*who, &[]);
        command.arg("explain").arg("--state-dir").arg(stage.state(*who)).args(["--agent", "client"]).args(more);
        command.arg("--policy-dir").arg(policies).arg("--credential-file").arg(file).arg("--ca").arg(&self.front.ca);
        let done = output(command.args(["--", "true"]));
        assert!(done.out.contains("upstream  https://127.0.0.1:"), "{done:?}");
        done.out
    }

    fn play(&self, script: &str) -> Done {
        output(client(&mut self.command(), &format!("{SOCKETS}{script}")))
    }
}

/// Sends every frame back; pings as pongs, and the end as an end.
fn echo(asked: &Asked, stream: &mut TcpStream) -> std::io::Result<()> {
    agree(asked, stream, "x-kept: 1\r\n")?;
    loop {
        let frame = read(stream)?;
        let first = if frame.first == 0x89 { 0x8a } else { frame.first };
        write(stream, first, &frame.payload)?;
        if frame.first == 0x88 {
            return Err(std::io::Error::other("done"));
        }
    }
}

#[test]
fn frames_go_both_ways_and_the_upstream_gets_the_credential() {
    let upstream = Upstream::start(echo);
    let Some(speaking) = Speaking::new(&upstream) else { return };
    let script = r#"
connection, status, headers = change(
    "Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: api, key.of-another-account",
    "Authorization: Bearer of another account", "Cookie: a=1", "X-Kept: 1")
say(status, headers["sec-websocket-accept"] == ACCEPT, headers["upgrade"], headers["connection"], headers["x-kept"])
say(sorted(set(headers) - {"date"}))
sent = 0
for first, payload in [(0x81, b"hello"), (0x89, b"there"), (0x01, b"in"), (0x80, b" parts"), (0x82, b""),
                       (0x82, os.urandom(1000)), (0x82, os.urandom(3 << 20)), (0x88, b"\x03\xe8")]:
    connection.sendall(frame(first, payload))
    got = receive(connection)
    say(got[0], got[1] == payload)
say(over(connection))
"#;
    let done = speaking.play(script);
    let report = report(&done);
    let all: Vec<&str> = done.out.lines().collect();
    let names = "['connection', 'sec-websocket-accept', 'upgrade', 'x-kept']";
    assert_eq!(all[..2], ["101 True websocket upgrade 1", names], "{done:?}");
    let kinds = ["0x81", "0x8a", "0x1", "0x80", "0x82", "0x82", "0x82", "0x88"].map(|kind| format!("{kind} True"));
    assert_eq!(all[2..10], kinds, "{done:?}");
    assert_eq!(all[10], "0", "{done:?}");
    let asked = &upstream.asked()[0];
    assert!(asked.head.starts_with("GET /prefix/v1/x?y=1 HTTP/1.1\r\n"), "{asked:?}");
    assert_eq!(asked.header("x-api-key"), [&speaking.service.token]);
    assert_eq!((asked.header("connection"), asked.header("upgrade")), (vec!["upgrade"], vec!["websocket"]));
    assert_eq!((asked.header("sec-websocket-version"), asked.header("x-kept")), (vec!["13"], vec!["1"]));
    for gone in ["sec-websocket-extensions", "sec-websocket-protocol", "authorization", "cookie"] {
        assert!(asked.header(gone).is_empty(), "{gone}: {asked:?}");
    }
    let payload = 5 + 5 + 2 + 6 + 1000 + (3 << 20) + 2;
    // Heads of 2 bytes, one of 4 and one of 10; the client's have 4 more for the mask of each of 8 frames.
    let heads = 6 * 2 + 4 + 10;
    let counted = |name: &str| report["broker"][name].as_u64().unwrap();
    assert_eq!((counted("requests"), counted("refused"), counted("failed")), (1, 0, 0), "{report}");
    assert_eq!((counted("bytes-up"), counted("bytes-down")), (payload + heads + 8 * 4, payload + heads), "{report}");
    assert!(counted("first-byte-max") > 0, "{report}");
}

#[test]
fn a_message_that_repeats_the_credential_is_covered_and_one_that_counts_tokens_is_counted() {
    let upstream = Upstream::start(|asked, stream| {
        let token = asked.header("x-api-key")[0].to_owned();
        agree(asked, stream, &format!("x-echo: {token}\r\n"))?;
        read(stream)?;
        write(stream, 0x81, format!("<{token}>").as_bytes())?;
        // As the credential begins.
        write(stream, 0x81, b"thus")?;
        read(stream)?;
        for input in [3, 4] {
            let usage = format!("{{\"input_tokens\":{input},\"output_tokens\":2}}");
            let text = format!("{{\"type\":\"response.completed\",\"response\":{{\"usage\":{usage}}}}}");
            write(stream, 0x81, text.as_bytes())?;
        }
        write(stream, 0x88, b"")?;
        Err(std::io::Error::other(format!("{:?}", read(stream))))
    });
    let Some(speaking) = Speaking::new(&upstream) else { return };
    let script = r#"
connection, status, headers = change()
say(status, "x-echo" in headers)
connection.sendall(frame(0x81, b"go"))
say(receive(connection)[1].decode())
say(receive(connection)[1].decode())
connection.sendall(frame(0x81, b"on"))
while (got := receive(connection))[0] != "0x88":
    pass
connection.sendall(frame(0x88, b""))
say(over(connection))
"#;
    let done = speaking.play(script);
    let report = report(&done);
    let covered = format!("<{}>", "*".repeat(speaking.service.token.len()));
    assert_eq!(done.out.lines().collect::<Vec<_>>(), ["101 False", &covered, "thus", "0"], "{done:?}");
    let tokens = &report["broker"]["tokens"];
    assert_eq!((&tokens["answers"], &tokens["input"], &tokens["output"]), (&2.into(), &7.into(), &4.into()));
}

#[test]
fn a_websocket_that_carries_nothing_for_too_long_ends() {
    let upstream = Upstream::start(echo);
    let Some(speaking) = Speaking::new(&upstream) else { return };
    let script = r#"
connection, status, _ = change()
for _ in range(3):
    time.sleep(1)
    connection.sendall(frame(0x81, b"here"))
    say(receive(connection)[1].decode())
began = time.monotonic()
say(over(connection), 1.5 < time.monotonic() - began < 20)
"#;
    let mut command = speaking.with("upstream-timeout = \"2s\"", "5m");
    let done = output(client(&mut command, &format!("{SOCKETS}{script}")));
    assert_eq!(done.out.lines().collect::<Vec<_>>(), ["here", "here", "here", "0 True"], "{done:?}");
    let report = report(&done);
    assert_eq!((&report["broker"]["requests"], &report["broker"]["failed"]), (&1.into(), &1.into()), "{report}");
}

#[test]
fn an_upstream_that_does_not_read_holds_its_client_up_and_fills_no_memory() {
    let (go_on, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |asked, stream| {
        agree(asked, stream, "")?;
        wait.lock().unwrap().recv_timeout(PATIENCE).map_err(std::io::Error::other)?;
        let frame = read(stream)?;
        write(stream, 0x81, frame.payload.len().to_string().as_bytes())
    });
    let Some(speaking) = Speaking::new(&upstream) else { return };
    let script = r#"
connection, status, _ = change()
message, sent = frame(0x82, b"u" * (128 << 20)), 0
connection.settimeout(2)
try:
    while sent < len(message):
        sent += connection.send(message[sent:sent + (1 << 20)])
    say("all of it")
except TimeoutError:
    say("held up")
sys.stdin.readline()
connection.settimeout(60)
connection.sendall(message[sent:])
say(receive(connection)[1].decode())
"#;
    let mut command = speaking.command();
    let command = client(&mut command, &format!("{SOCKETS}{script}"));
    let mut running = Running::start(command.stdin(std::process::Stdio::piped()));
    assert_eq!(running.line().trim(), "held up");
    let peak = super::flow::peak(broker(&running));
    // A debug build's code alone is some MiB.
    assert!(peak < 48 << 20, "{} MiB", peak >> 20);
    go_on.send(()).unwrap();
    writeln!(running.child.stdin.take().unwrap()).unwrap();
    assert_eq!(running.line().trim(), (128 << 20).to_string());
    report(&running.end());
}

#[test]
fn a_websocket_has_a_place_among_the_connections_and_ends_with_the_run() {
    let (say_ended, ended) = channel();
    let say_ended = Arc::new(Mutex::new(say_ended));
    let upstream = Upstream::start(move |asked, stream| {
        let done = echo(asked, stream);
        let _ = say_ended.lock().unwrap().send(());
        done
    });
    let Some(speaking) = Speaking::new(&upstream) else { return };
    let script = r#"
first, second = change()[0], change()[0]
third = connect()
third.sendall(head("GET / HTTP/1.1", *UPGRADE))
third.settimeout(2)
try:
    third.recv(1)
    say("a third")
except TimeoutError:
    say("waits")
first.sendall(frame(0x88, b""))
receive(first)
first.close()
third.settimeout(60)
say(third.recv(12).decode())
sys.stdin.read()
"#;
    let mut command = speaking.with("connections = 2", "10s");
    let command = client(&mut command, &format!("{SOCKETS}{script}"));
    let mut running = Running::start(command.stdin(std::process::Stdio::piped()));
    assert_eq!(running.line().trim(), "waits");
    assert_eq!(running.line().trim(), "HTTP/1.1 101");
    ended.recv_timeout(PATIENCE).unwrap();
    assert!(ended.try_recv().is_err(), "the other two go on");
    let _open = running.child.stdin.take();
    let done = running.end();
    assert_eq!(done.status.code(), Some(124), "{done:?}");
    assert_eq!(said(&done)["broker"]["requests"], 3, "{done:?}");
    for _ in 0..2 {
        ended.recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn no_websocket_but_to_the_upstream_of_a_file_that_says_so() {
    let upstream = Upstream::start(echo);
    let Some(speaking) = Speaking::new(&upstream) else { return };
    let script = format!("{SOCKETS}say(change()[1])");
    let own = output(client(&mut speaking.command(), &script));
    assert_eq!(own.out.trim(), "101", "{own:?}");
    assert!(speaking.explained(&[]).contains("sockets   WebSockets to it, too"));
    assert!(!speaking.explained(&["--upstream", &speaking.front.url()]).contains("\n  sockets "));
    // Of another upstream nothing says that it speaks them.
    let named = output(client(speaking.command().args(["--upstream", &speaking.front.url()]), &script));
    assert_eq!((named.out.trim(), &report(&named)["broker"]["refused"]), ("400", &1.into()), "{named:?}");
    let file = speaking.service.policies.join("agents/client.toml");
    std::fs::write(&file, format!("{AGENT}upstream = \"{}\"\n", speaking.front.url())).unwrap();
    let silent = output(client(&mut speaking.command(), &script));
    assert_eq!(silent.out.trim(), "400", "{silent:?}");
    assert_eq!(upstream.asked().len(), 1);
    std::fs::write(&file, format!("{AGENT}websocket = true\n")).unwrap();
    let wrong = output(client(&mut speaking.command(), &script));
    assert_eq!(wrong.status.code(), Some(125), "{wrong:?}");
    assert!(wrong.err.contains("`websocket` says something of `upstream`, and there is none"), "{wrong:?}");
}
